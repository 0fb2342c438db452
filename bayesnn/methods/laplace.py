"""The Laplace approximation: a Normal at the mode whose precision is the curvature there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayesnn.errors import first_line, unknown
from bayesnn.methods.base import Plan, Run, refuse_dropout, refuse_running_statistics, split_normal
from bayesnn.methods.ggn import curvature_root, dense, diagonal, jacobians, scalar_curvature
from bayesnn.methods.kfac import Diagonal, Kronecker, LayerSums
from bayesnn.methods.map import MAP, MAPRun
from bayesnn.model import BayesianModel
from bayesnn.rng import Streams, generator, isolated
from bayesnn.source import Source
from bayesnn.source_laplace import LaplaceSource, Linearised

CURVATURES, WEIGHTS, PREDICTIVES = ("full", "kron", "diag"), ("all", "last-layer"), ("linearised", "weights")
CURVATURE_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Laplace(MAP):
    """q(w) = Normal(w*, H^-1), w* the mode (MacKay 1992; Ritter et al. 2018; Daxberger et al. 2021).

    Training is that of :class:`bayesnn.MAP`. Then one pass over all rows gives the generalised Gauss-Newton matrix plus
    the prior's precision P,

        H = sum_i J_i' Lambda_i J_i + P,    J_i = d f(x_i, w*) / d w,    Lambda_i = -d^2 log p(y_i | f_i) / d f^2

    where a likelihood that is not log-concave in f (Laplace and Student's t noise, HeteroscedasticNormal) puts its
    Fisher information in the place of Lambda_i, which for all others is the same. Priors have to be Normal: no other
    prior of the library has a curvature that is positive everywhere.

    An inferred noise scale is a weight as well: l = log sigma has as precision the exact -d^2 log p(l, D | w*) / d l^2,
    and is independent of the net's weights, as it is in the Fisher information of every location-scale family.
    Weights without a prior stay fixed.

    Parameters
    ----------
    lr, optimizer, momentum, schedule : of the training, see :class:`bayesnn.MAP`.
    curvature : ``"full"``: H, refused where it would take more than CURVATURE_BYTES. ``"kron"``: a block a layer,
        (sum a a') kron (sum g g') / positions for ``nn.Linear`` and ``nn.Conv2d``, bias included, the prior added
        exactly in its eigenbasis; all other weights (and layers with groups, shared weights or several calls) have the
        diagonal. ``"diag"``: the diagonal of H.
    weights : ``"all"``, or ``"last-layer"``: those of the module with weights that a forward pass comes to last; the
        others stay at w*.
    predictive : ``"linearised"``: draws are the functions f(x, w*) + J(x) (w - w*) (Immer et al. 2021), of which H is
        the exact curvature. ``"weights"``: the net itself at w, which for a wide q is a net nobody trained.

    Notes
    -----
    ``posterior.sources[0].log_evidence`` is the approximate log marginal likelihood of the chain's mode,
    log p(D, w*) + n / 2 log 2 pi - log det H / 2 over the n weights that are drawn: exact in a linear model with Normal
    noise, and what to compare priors or nets by.

    References
    ----------
    MacKay 1992, A practical Bayesian framework for backpropagation networks, Neural Computation 4(3).
    Ritter, Botev & Barber 2018, A scalable Laplace approximation for neural networks, ICLR.
    Immer, Korzepa & Bauer 2021, Improving predictions of Bayesian neural nets via local linearization, AISTATS.
    Daxberger et al. 2021, Laplace redux: effortless Bayesian deep learning, NeurIPS.
    """

    full_passes = True

    curvature: str = "kron"
    weights: str = "all"
    predictive: str = "linearised"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("curvature", CURVATURES), ("weights", WEIGHTS), ("predictive", PREDICTIVES)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)

    def check(self, model: BayesianModel, plan: Plan) -> None:
        refuse_dropout(plan, self)
        refuse_running_statistics(model, self)
        if len(plan.out_shape) > 1:
            raise ValueError(
                f"Expected a net with outputs (batch, outputs) for Laplace, got (batch, {plan.out_shape[0]}, ...): the "
                "curvature of images is not implemented; use MeanFieldVI or SGHMC."
            )
        if not model.log_priors:
            raise ValueError("Expected at least one parameter with a prior for Laplace, got none: use MAP.")
        _, others = split_normal(model)
        others = [name for name in others if name.startswith("net.")]
        if others:
            raise ValueError(
                f"Expected Normal priors for Laplace, got {_kind(model.log_priors[others[0]])} for {others[0]!r}, "
                "whose curvature need not be positive: use priors.Normal or Layerwise, or another method."
            )
        if self.weights == "all" and self.curvature == "full":
            _refuse_large(_net_weights(model))

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        plain = super().draw_bytes(model, plan)
        whole = self.curvature == "full" and self.weights == "all"
        return plain + _net_weights(model) * plain if whole else 2 * plain

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return _LaplaceRun(self, model, plan, streams, init)


class _LaplaceRun(MAPRun):
    def __init__(
        self, method: Laplace, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None
    ) -> None:
        super().__init__(method, model, plan, streams, init)
        self._method = method
        self._names: list[str] = []

    def begin_epoch(self, epoch: int, batches: Any) -> None:
        if epoch > 0:
            return
        # Before the first step: what torch cannot do after the last one would come too late.
        rows, training = next(iter(batches.all_rows()))[0][:3], self.model.training
        self.model.eval()
        with isolated(generator(0)):
            self._find_names(rows)
            self._try(rows)
        self.model.train(training)

    def _find_names(self, rows: Tensor) -> None:
        """The weights, within the net, that will be drawn."""
        names = [name.removeprefix("net.") for name in self.model.log_priors if name.startswith("net.")]
        self._names = last_layer(self.model.net, names, rows) if self._method.weights == "last-layer" else names

    def _try(self, rows: Tensor) -> None:
        net, names, method = self.model.net, self._names, self._method
        try:
            layers = self._layers(rows)
            rest = [name for name in names if layers is None or name not in layers.names]
            with torch.no_grad():
                if method.predictive == "linearised" and names:
                    Linearised(net, names)(rows)
                for _ in jacobians(net, rest, rows[:1]) if rest else ():
                    pass
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"Expected a net that torch.func can differentiate row by row, got: {first_line(error)} Give a net of "
                "plain torch operations, or use another method."
            ) from error
        if isinstance(layers, Kronecker) and layers.num_bytes() > CURVATURE_BYTES:
            raise ValueError(
                f"Expected Kronecker factors of at most {CURVATURE_BYTES:,} bytes, got {layers.num_bytes():,}: use "
                "curvature='diag', or weights='last-layer'."
            )
        if method.curvature == "full":
            _refuse_large(sum(self._parameter(name).numel() for name in names))

    def _parameter(self, name: str) -> nn.Parameter:
        return self.model.bayesian_parameters()[f"net.{name}"]

    def _precisions(self) -> dict[str, Tensor]:
        """Prior precision of the weights by their names in the net, of shape () where it is one number."""
        normal, _ = split_normal(self.model)
        return {name: normal[f"net.{name}"][1] for name in self._names}

    def _layers(self, rows: Tensor) -> LayerSums | None:
        """The layers whose curvature comes layer by layer; the rest of the weights has that of whole Jacobians."""
        net, precisions = self.model.net, self._precisions()
        if self._method.curvature == "kron":
            return Kronecker(net, [name for name in self._names if precisions[name].dim() == 0], rows)
        return Diagonal(net, self._names, rows) if self._method.curvature == "diag" else None

    def finish(self, batches: Any) -> LaplaceSource:
        model, method = self.model.eval(), self._method
        net, likelihood, first = model.net, model.likelihood, next(iter(batches.all_rows()))[0]
        with isolated(generator(0)):
            layers = self._layers(first[:3])
        rest = [name for name in self._names if layers is None or name not in layers.names]
        size = sum(self._parameter(name).numel() for name in rest)
        noise = {name: p for name, p in model.bayesian_parameters().items() if not name.startswith("net.")}
        double = {"dtype": torch.float64, "device": first.device}
        total = torch.zeros((size, size) if method.curvature == "full" else (size,), **double)
        noise_precision = {
            name: scalar_curvature(model.log_priors[name].log_prob(p), p).double() for name, p in noise.items()
        }
        log_joint = torch.zeros((), **double)
        for x, y in batches.all_rows():
            with torch.no_grad():
                outputs = net(x)
                log_joint += likelihood.log_prob(outputs, y).sum(dtype=torch.float64)
            for name, p in noise.items():
                noise_precision[name] += scalar_curvature(likelihood.log_prob(outputs, y).sum(), p)
            if self._names:
                roots = curvature_root(likelihood, outputs, y)
                self.gradient_evaluations += roots.shape[-1]
                if layers is not None:
                    layers.add(x, roots)
                if rest:
                    (dense if method.curvature == "full" else diagonal)(net, rest, x, roots, total)
        with torch.no_grad():
            for name in [*(f"net.{name}" for name in self._names), *noise]:
                log_joint += model.log_priors[name].log_prob(model.bayesian_parameters()[name]).double()
            return self._source(rest, total, layers, noise_precision, log_joint)

    def _source(
        self,
        rest: list[str],
        total: Tensor,
        layers: LayerSums | None,
        noise_precision: dict[str, Tensor],
        log_joint: Tensor,
    ) -> LaplaceSource:
        """The Normal with the curvature's blocks: those of layers, ``rest`` with ``total``, and the noise's."""
        loc, precisions = self.model.state(), self._precisions()
        sd, root, left, right, grid, log_dets = _states(5)
        if isinstance(layers, Diagonal):
            parts = layers.parts()
            rest, total = [*rest, *parts], torch.cat([total, *(part.flatten() for part in parts.values())])
        flat = [precisions[name].to(total).expand(self._parameter(name).shape).flatten() for name in rest]
        prior = torch.cat(flat) if flat else total.new_zeros(0)
        sizes = [len(part) for part in flat]
        if rest and total.dim() == 2:
            total.diagonal().add_(prior)
            factor = torch.linalg.cholesky(total)
            log_dets.append(2 * factor.diagonal().log().sum())
            # H = L L', so R = L^-T has R R' = H^-1.
            inverse = torch.linalg.solve_triangular(factor, torch.eye(len(total)).to(total), upper=False).T
            for name, rows in zip(rest, inverse.split(sizes), strict=True):
                like = loc[f"net.{name}"]
                root[f"net.{name}"] = rows.reshape(*like.shape, -1).to(like)
        elif rest:
            precision = total + prior
            log_dets.append(precision.log().sum())
            for name, part in zip(rest, precision.rsqrt().split(sizes), strict=True):
                like = loc[f"net.{name}"]
                sd[f"net.{name}"] = part.reshape(like.shape).to(like)
        for name, block in layers.blocks(precisions).items() if isinstance(layers, Kronecker) else ():
            like, key = loc[f"net.{name}"], f"net.{name}"
            left[key], right[key], grid[key] = block.left.to(like), block.right.to(like), block.grid.to(like)
            log_dets.append(block.log_det)
        for name, precision in noise_precision.items():
            if not bool((precision > 0).all()):
                raise ValueError(
                    f"Expected a positive curvature of log p in {name!r} at the mode, got {precision.min():.3g}: train "
                    "longer, or fix the noise's scale."
                )
            sd[name] = precision.rsqrt().to(loc[name])
            log_dets.append(precision.log().sum())
        n = sum(self._parameter(name).numel() for name in self._names)
        n += sum(precision.numel() for precision in noise_precision.values())
        evidence = log_joint + 0.5 * n * math.log(2 * math.pi) - 0.5 * sum(log_dets)
        linearised = torch.tensor(float(self._method.predictive == "linearised"), dtype=torch.float64)
        meta = {"linearised": linearised, "log_evidence": evidence.cpu()}
        return LaplaceSource(loc, sd, root, left, right, grid, meta)


def last_layer(net: nn.Module, names: list[str], rows: Tensor) -> list[str]:
    """Those of ``names`` that belong to the module, of those with some of their own, that is entered last."""
    parameters = dict(net.named_parameters())
    by_id = {id(parameters[name]): name for name in names}
    entered: list[list[str]] = []
    handles = []
    for module in net.modules():
        own = [by_id[id(p)] for p in module.parameters(recurse=False) if id(p) in by_id]
        if own:
            handles.append(module.register_forward_pre_hook(lambda *_, own=own: entered.append(own)))
    with torch.no_grad():
        net(rows)
    for handle in handles:
        handle.remove()
    return entered[-1] if entered else []


def _states(n: int) -> tuple[Any, ...]:
    return (*({} for _ in range(n)), [])


def _kind(prior: Any) -> str:
    return type(getattr(prior, "base_dist", prior)).__name__


def _net_weights(model: BayesianModel) -> int:
    return sum(p.numel() for name, p in model.bayesian_parameters().items() if name.startswith("net."))


def _refuse_large(num_weights: int) -> None:
    """Raise where the dense curvature and the two matrices made of it would not fit."""
    needed = 3 * 8 * num_weights**2
    if needed > CURVATURE_BYTES:
        raise ValueError(
            f"Expected a full curvature of at most {CURVATURE_BYTES:,} bytes, got {needed:,} for {num_weights:,} "
            "weights: use curvature='kron' or 'diag', or weights='last-layer'."
        )
