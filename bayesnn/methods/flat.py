"""All weights of a model in one flat vector, seen by the net through views."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        parts = [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in self.parameters.values()
        ]
        return torch.cat(parts, out=out)

    def flat(self, values: dict[str, Tensor]) -> Tensor:
        """One vector of a value for each weight; each value is broadcast to its parameter's shape."""
        parts = [values[name].to(p).expand(p.shape).flatten() for name, p in self.parameters.items()]
        return torch.cat(parts)

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Copies of the slices of ``vector``, by name and in the parameters' shapes."""
        parts = vector.detach().split(self.sizes)
        return {
            name: part.view(p.shape).clone() for part, (name, p) in zip(parts, self.parameters.items(), strict=True)
        }
