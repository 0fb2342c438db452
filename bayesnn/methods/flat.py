"""All weights of a model in one flat vector, seen by the net through views."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bayesnn.methods.base import split_normal
from bayesnn.model import BayesianModel


class FlatWeights:
    """Moves parameters into one vector: what acts on all weights becomes one operation, and nothing is copied.

    The parameters keep their identity (shared weights stay shared, hooks and parametrisations go on working); only
    their storage becomes a slice of ``vector``.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.sizes = [p.numel() for p in parameters.values()]
        with torch.no_grad():
            self.vector = torch.cat([p.detach().flatten() for p in parameters.values()])
        for part, p in zip(self.vector.split(self.sizes), parameters.values(), strict=True):
            p.data = part.view(p.shape)

    def gradient(self, out: Tensor | None) -> Tensor:
        """The gradients as one vector, written into ``out``; zero where a parameter has none."""
        return self.gather((p.grad for p in self.parameters.values()), out)

    def gather(self, values: Iterable[Tensor | None], out: Tensor | None) -> Tensor:
        """One vector of a tensor for each parameter in turn, written into ``out``; zero where it is None."""
        parts = [
            torch.zeros_like(p).flatten() if value is None else value.flatten()
            for value, p in zip(values, self.parameters.values(), strict=True)
        ]
        return torch.cat(parts, out=out)

    def flat(self, values: dict[str, Tensor]) -> Tensor:
        """One vector of a value for each weight; each value is broadcast to its parameter's shape."""
        parts = [values[name].to(p).expand(p.shape).flatten() for name, p in self.parameters.items()]
        return torch.cat(parts)

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """The slices of ``vector``, by name and in the parameters' shapes: what is written into one is in the other."""
        parts = vector.detach().split(self.sizes)
        return {name: part.view(p.shape) for part, (name, p) in zip(parts, self.parameters.items(), strict=True)}

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Copies of the slices of ``vector``, by name and in the parameters' shapes."""
        return {name: view.clone() for name, view in self.views(vector).items()}


def normal_priors(model: BayesianModel, weights: FlatWeights) -> tuple[Tensor, Tensor, list[str]]:
    """Means and precisions of the Normal priors as vectors, 0 and 0 under the others; and the names of the others."""
    normal, others = split_normal(model)
    zero = torch.zeros(())
    priors = {name: normal.get(name, (zero, zero)) for name in weights.parameters}
    loc = weights.flat({name: value for name, (value, _) in priors.items()})
    precision = weights.flat({name: value for name, (_, value) in priors.items()})
    return loc, precision, others
