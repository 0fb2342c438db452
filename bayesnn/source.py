"""Sources: where draws of the weights come from. One a chain; a posterior holds a list of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from bayesnn.model import BayesianModel, State


class Source(ABC):
    """Draws of one chain, stored or made on demand.

    Attributes
    ----------
    kind : name under which it is saved.
    num_draws : how many draws are stored; None when there is no end to them.
    """

    kind: ClassVar[str]
    num_draws: int | None

    @abstractmethod
    def states(self, n: int | None, generator: torch.Generator) -> Iterator[State]:
        """``n`` draws: fresh ones, or ``n`` evenly spaced ones of those stored (all of them for None)."""

    @abstractmethod
    def state(self, index: int, generator: torch.Generator) -> State:
        """Draw ``index`` of those that :meth:`states` gives."""

    @abstractmethod
    def last(self) -> State:
        """Where a run that goes on from here starts."""

    def bind(self, model: BayesianModel) -> BayesianModel:
        """The model whose forward pass takes this source's states: ``model`` itself, or a copy with another forward.

        For answers that are not the plain net at other weights: dropout with the mask of a draw, a linearised net.
        """
        return model

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All there is to save."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Source:
        """The source that :meth:`tensors` came from."""


class Draws(Source):
    """Stored draws: each tensor has the draws along axis 0."""

    kind: ClassVar[str] = "draws"

    def __init__(self, stacked: dict[str, Tensor]) -> None:
        self.stacked = stacked
        self.num_draws: int = len(next(iter(stacked.values())))

    @classmethod
    def stack(cls, states: Sequence[State]) -> Draws:
        """One source of many states with the same names."""
        return cls({name: torch.stack([state[name] for state in states]) for name in states[0]})

    def states(self, n: int | None, generator: torch.Generator) -> Iterator[State]:
        n = self.num_draws if n is None else min(n, self.num_draws)
        # Evenly spaced and with the last one: the draw farthest from the start is always among them.
        for k in range(n):
            yield self.state(((k + 1) * self.num_draws) // n - 1, generator)

    def state(self, index: int, generator: torch.Generator) -> State:
        return {name: tensor[index] for name, tensor in self.stacked.items()}

    def last(self) -> State:
        return {name: tensor[-1] for name, tensor in self.stacked.items()}

    def tensors(self) -> dict[str, Tensor]:
        return self.stacked

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Draws:
        return cls(tensors)


class NormalSource(Source):
    """Independent Normals: w = loc + exp(log_sd) * xi for the names in ``log_sd``; the others are fixed at ``loc``."""

    kind: ClassVar[str] = "normal"
    num_draws = None

    def __init__(self, loc: State, log_sd: State) -> None:
        self.loc, self.log_sd = loc, log_sd
        # Sorted: the noise of a draw goes by name, and is the same after a file has put the names in another order.
        self._sd = {name: log_sd[name].exp() for name in sorted(log_sd)}

    def states(self, n: int | None, generator: torch.Generator) -> Iterator[State]:
        if n is None:
            raise ValueError("Expected a number of draws from a distribution, got None: say draws=.")
        for _ in range(n):
            yield self._draw(generator)

    def _draw(self, generator: torch.Generator) -> State:
        state = dict(self.loc)
        for name, sd in self._sd.items():
            xi = torch.empty_like(sd).normal_(generator=generator)
            state[name] = xi.mul_(sd).add_(self.loc[name])
        return state

    def state(self, index: int, generator: torch.Generator) -> State:
        for _ in range(index):
            self._draw(generator)
        return self._draw(generator)

    def last(self) -> State:
        return dict(self.loc)

    def tensors(self) -> dict[str, Tensor]:
        return {
            **{f"loc/{name}": value for name, value in self.loc.items()},
            **{f"log_sd/{name}": value for name, value in self.log_sd.items()},
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> NormalSource:
        parts: dict[str, State] = {"loc": {}, "log_sd": {}}
        for key, value in tensors.items():
            part, name = key.split("/", 1)
            parts[part][name] = value
        return cls(parts["loc"], parts["log_sd"])


SOURCES: dict[str, type[Source]] = {cls.kind: cls for cls in (Draws, NormalSource)}
