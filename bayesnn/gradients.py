"""Gradient norms of each layer on the way of a fit, and whether they vanish or explode."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesnn.history import GRADIENT
from bayesnn.model import BayesianModel, State
from bayesnn.rng import generator, isolated

if TYPE_CHECKING:
    from bayesnn.methods import Run

ROWS = 256  # of a minibatch, at most
GAP = 500  # steps between two looks, at most twice as many as were taken so far: a look costs as much as two
LOOKS = 3  # the first so many, all of them, decide
VANISHED = 1e-6  # of the largest layer's norm
EXPLODED = 1e4  # how far outputs move, in units of targets, for a layer that changes by its own size


class Norms(NamedTuple):
    """What a look finds.

    Attributes
    ----------
    gradient : norm over a layer of the gradient of the mean negative log likelihood, by the layer's name.
    reach : of layers with a matrix, |gradient| |w| / (mean_i |d l_i / d f_i| max(1, |y|)): how far the outputs f move,
        in units of the targets, for a change of w by its own size; 1 of a net that just scales, for |y| the root mean
        square size of a row's target (1 of classes).
    """

    gradient: dict[str, float]
    reach: dict[str, float]


class _RowLosses(nn.Module):
    """Negative log likelihood of each row, and the outputs: a module, for ``functional_call``."""

    def __init__(self, model: BayesianModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model.outputs(x)
        return -self.model.likelihood.log_prob(outputs, y), outputs


@torch.enable_grad()
def layer_norms(model: BayesianModel, state: State, x: Tensor, y: Tensor, row_weights: Tensor | None = None) -> Norms:
    """The norms on rows x (batch, ...), y at the weights ``state``; of the model nothing changes.

    Rows drawn with unequal probabilities have ``row_weights`` (batch,), as in :class:`BayesianModel`: every mean over
    rows is then weighted by them, and one of the data. A layer is a module with parameters of its own. Those that the
    loss does not reach are left out. The prior is left out as well: where the data's gradient vanishes, the prior's is
    still there.
    """
    trainable = {name: state[name].detach().requires_grad_() for name, p in model.named_parameters() if p.requires_grad}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # running statistics move
    own = {f"model.{name}": value for name, value in {**buffers, **trainable}.items()}
    with isolated(generator(0, device=x.device if x.is_cuda else "cpu")):
        losses, outputs = functional_call(_RowLosses(model), own, (x, y))
    weights = torch.ones_like(losses) if row_weights is None else row_weights
    names = [name for name in trainable if name.startswith("net.")]
    *found, slope = torch.autograd.grad(
        (weights * losses).mean(), [*(trainable[n] for n in names), outputs], allow_unused=True
    )
    layers: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, g in zip(names, found, strict=True):
        if g is not None:
            path = name.removeprefix("net.")
            layers.setdefault(path.rpartition(".")[0] or path, []).append((g, trainable[name].detach()))
    sizes = [
        torch.stack([torch.stack(torch._foreach_norm(list(each))).norm() for each in zip(*members, strict=True)])
        for members in layers.values()
    ]
    table: list[list[float]] = torch.stack(sizes).tolist() if sizes else []
    gradient = {layer: g for layer, (g, _) in zip(layers, table, strict=True)}
    pull = float(slope.flatten(1).norm(dim=1).sum()) * _size_of(model, y, weights)
    matrices = [any(w.dim() >= 2 for _, w in members) for members in layers.values()]
    reach = {
        layer: g * w / pull if pull > 0 else 0.0
        for layer, (g, w), matrix in zip(layers, table, matrices, strict=True)
        if matrix
    }
    return Norms(gradient, reach)


def _size_of(model: BayesianModel, y: Tensor, weights: Tensor) -> float:
    if model.likelihood.kind == "classes":
        return 1.0
    return max(1.0, float((weights * y.double().reshape(len(y), -1).square().sum(1)).mean().sqrt()))


def fault(norms: Norms) -> tuple[str, str] | None:
    """What is wrong with these, and where, in words; None where nothing is.

    Of layers with a matrix: the smallest gradient is less than VANISHED of the largest (one of exactly 0 may be a part
    that these rows did not use: it counts where all but one are), or the largest reach is more than EXPLODED.
    """
    sizes = {layer: norms.gradient[layer] for layer in norms.reach}
    if not all(map(math.isfinite, (*sizes.values(), *norms.reach.values()))) or len(sizes) < 2:
        return None
    top, moving = max(sizes, key=sizes.__getitem__), {layer: size for layer, size in sizes.items() if size > 0}
    if len(moving) == 1 and len(sizes) > 2:
        return "vanishing", f"that of layer {next(iter(sizes))!r} is 0, and of all layers but {top!r}"
    low = min(moving, key=moving.__getitem__, default=top)
    if sizes[low] < VANISHED * sizes[top]:
        return "vanishing", f"that of layer {low!r} has {sizes[low] / sizes[top]:.0e} of the norm of that of {top!r}"
    far = max(norms.reach, key=norms.reach.__getitem__)
    if norms.reach[far] > EXPLODED:
        return "exploding", f"a change of layer {far!r} by 1 % moves the net's outputs by {norms.reach[far] / 100:.0e}"
    return None


REMEDIES = {
    "vanishing": "take ReLU for sigmoids, normalise or skip layers, or start from other weights, init='kaiming_normal'",
    "exploding": "start from smaller weights, init='kaiming_normal', standardise the data, normalise layers, or clip, "
    "MAP(clip_grad_norm=1.0)",
}


class GradientWatch:
    """One chain's looks at its gradients, and one warning for all chains.

    Parameters
    ----------
    told : of the fit; what has been said is added.
    sampler : whether weights are draws: those of a wide prior reach far by themselves, and only vanishing counts.
    """

    def __init__(self, told: list[str], sampler: bool) -> None:
        self._told, self._sampler, self._next = told, sampler, 0
        self._faults: list[tuple[str, str] | None] = []

    def look(
        self, run: Run, x: Tensor, y: Tensor, row_weights: Tensor | None, steps: int, epoch: int
    ) -> dict[str, float]:
        """Columns for the history after so many steps, of the rows of the last; {} where it is not time yet."""
        if steps < self._next:
            return {}
        self._next = steps + min(steps, GAP)
        try:
            # On a copy, as a net may keep account of its passes beside its tensors.
            weights = None if row_weights is None else row_weights[:ROWS]
            norms = layer_norms(run.model.copy(), run.weights(), x[:ROWS], y[:ROWS], weights)
        except Exception:  # a net may be such that it cannot be called from aside: the run is worth more than a look
            return {}
        if len(self._faults) < LOOKS:
            self._faults.append(fault(norms))
            if len(self._faults) == LOOKS:
                self.judge(epoch, 6)
        return {f"{GRADIENT}{layer}": norm for layer, norm in norms.gradient.items()}

    def judge(self, epoch: int, stacklevel: int = 4) -> None:
        """Warn where all looks so far found the same fault; at the latest at the end of the run."""
        found = [one for one in self._faults if one is not None]
        kinds = {kind for kind, _ in found} - ({"exploding"} if self._sampler else set())
        if self._told or not found or len(found) < len(self._faults) or len(kinds) != 1:
            return
        kind, where = found[-1]
        if kind in kinds:
            self._told.append(kind)
            said = f"{kind.capitalize()} gradients: after epoch {epoch + 1} {where}: {REMEDIES[kind]}."
            warnings.warn(said, stacklevel=stacklevel)
