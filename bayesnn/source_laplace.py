"""A Normal around the mode in the form its curvature comes in, and the net made affine in its weights there."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from bayesnn.model import BayesianModel, State
from bayesnn.source import SOURCES, Distribution, from_parts, to_parts


class Linearised(nn.Module):
    """f(x, w*) + J(x, w*) (w - w*): affine in the weights w, which have the names that they have in ``net``.

    Parameters
    ----------
    net : at w*; its modules become those of this one.
    names : of the parameters in which it is affine; in the others it is ``net``.
    """

    def __init__(self, net: nn.Module, names: list[str]) -> None:
        super().__init__()
        # The same dicts, so that a weight written here is one of the net's: no second set of names.
        self._modules, self._parameters, self._buffers = net._modules, net._parameters, net._buffers
        self.training = net.training
        parameters = dict(net.named_parameters())
        self._net = (net,)  # in a tuple it is no submodule
        self._centre = {name: parameters[name].detach().clone() for name in names}

    def forward(self, x: Tensor) -> Tensor:
        (net,) = self._net
        present = dict(self.named_parameters())
        shift = {name: present[name] - centre for name, centre in self._centre.items()}
        both = jvp(lambda weights: functional_call(net, weights, (x,)), (self._centre,), (shift,))
        outputs: Tensor = both[0] + both[1]
        return outputs


class LaplaceSource(Distribution):
    """Normal(mode, curvature^-1), in blocks of three kinds; names in none of them are fixed at the mode.

    Parameters
    ----------
    loc : the mode.
    sd : standard deviations of independent weights.
    root : of a dense block over P weights, each weight tensor's rows of R, (*shape, P), with covariance R R'.
    left, right, grid : of Kronecker blocks, by the name of a layer's weight: W + left (grid * Xi) right', with the
        layer's bias as the last column where ``right`` has one row more than W has columns.
    meta : ``linearised``, whether predictions are those of the net made affine at the mode; ``log_evidence``, the
        approximate log marginal likelihood, nats. Each of shape ().
    """

    kind: ClassVar[str] = "laplace"

    def __init__(self, loc: State, sd: State, root: State, left: State, right: State, grid: State, meta: State) -> None:
        self.loc, self.sd, self.meta = loc, sd, meta
        # As a file gives them back: a product's last bit depends on how its factors lie in memory.
        self.root, self.left, self.right, self.grid = (
            {name: value.contiguous() for name, value in part.items()} for part in (root, left, right, grid)
        )
        self.linearised, self.log_evidence = bool(meta["linearised"]), float(meta["log_evidence"])
        if not left.keys() == right.keys() == grid.keys():
            raise ValueError("Expected both factors and a grid for each Kronecker block, got fewer.")

    def _draw(self, generator: torch.Generator) -> State:
        state = dict(self.loc)
        for name in sorted(self.sd):
            xi = torch.empty_like(self.sd[name]).normal_(generator=generator)
            state[name] = xi.mul_(self.sd[name]).add_(self.loc[name])
        zeta: Tensor | None = None
        for name in sorted(self.root):
            root = self.root[name]
            if zeta is None:
                zeta = root.new_empty(root.shape[-1]).normal_(generator=generator)
            state[name] = self.loc[name] + root @ zeta
        for name in sorted(self.grid):
            xi = torch.empty_like(self.grid[name]).normal_(generator=generator).mul_(self.grid[name])
            shift = self.left[name] @ xi @ self.right[name].T
            weight = self.loc[name]
            columns = weight[0].numel()
            state[name] = weight + shift[:, :columns].reshape(weight.shape)
            if shift.shape[1] > columns:
                bias = bias_of(name)
                state[bias] = self.loc[bias] + shift[:, columns]
        return state

    def last(self) -> State:
        return dict(self.loc)

    def bind(self, model: BayesianModel) -> BayesianModel:
        """A copy of ``model`` that is affine at the mode in the weights that are drawn; ``model`` where it is not."""
        drawn = [*self.sd, *self.root, *self.grid]
        drawn += [bias_of(name) for name in self.grid if self.right[name].shape[0] > self.loc[name][0].numel()]
        names = sorted(name.removeprefix("net.") for name in drawn if name.startswith("net."))
        if not (self.linearised and names):
            return model
        bound = model.copy()
        bound.load_state(self.loc)
        bound.net = Linearised(bound.net, names)
        return bound

    def tensors(self) -> dict[str, Tensor]:
        blocks = {"left": self.left, "right": self.right, "grid": self.grid}
        return to_parts(loc=self.loc, sd=self.sd, root=self.root, **blocks, meta=self.meta)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> LaplaceSource:
        return cls(*from_parts(tensors, "loc", "sd", "root", "left", "right", "grid", "meta"))


def bias_of(weight: str) -> str:
    """Name of the bias beside a layer's weight."""
    return weight.removesuffix("weight") + "bias"


SOURCES[LaplaceSource.kind] = LaplaceSource
