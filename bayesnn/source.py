"""Sources: where draws of the weights come from. One a chain; a posterior holds a list of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, Normal

from bayesnn.errors import first_line
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

    def blocks(self, n: int | None, generator: torch.Generator, size: int) -> Iterator[State]:
        """The draws of :meth:`states`, ``size`` at a time along axis 0 of each tensor; what is left comes last."""
        return in_blocks(self.states(n, generator), size)

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

    def write(self, folder: Path, stem: str) -> list[str]:
        """Save in files whose names, which are returned, begin with ``stem``."""
        name = f"{stem}.safetensors"
        write_tensors(self.tensors(), folder / name)
        return [name]

    @classmethod
    def read(cls, files: Sequence[Path], device: torch.device) -> Source:
        """The source that :meth:`write` has written, on a device.

        Raises
        ------
        OSError, SafetensorError, KeyError, ValueError, TypeError, StopIteration : files that are not such ones.
        """
        (file,) = files
        return cls.from_tensors(read_tensors(file, device))


def in_blocks(states: Iterable[State], size: int | None = None) -> Iterator[State]:
    """States one by one, or ``size`` at a time along axis 0 of each tensor."""
    rest = iter(states)
    if size is None:
        yield from rest
    while block := list(islice(rest, size)):
        yield {name: torch.stack([state[name] for state in block]) for name in block[0]}


def evenly_spaced(n: int | None, num_draws: int) -> list[int]:
    """Indices of ``n`` draws, all for None; with the last one, which is the farthest from the start."""
    n = num_draws if n is None else min(n, num_draws)
    return [((k + 1) * num_draws) // n - 1 for k in range(n)]


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """A safetensors file of these; OSError where the disk does not take it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    except SafetensorError as error:
        raise OSError(f"{file}: {first_line(error)}") from error


def read_tensors(file: Path, device: torch.device) -> dict[str, Tensor]:
    """What a safetensors file holds, on a device."""
    from safetensors.torch import load_file

    # Copies, as tensors lie in the file at any byte: a product's last bits depend on how memory is aligned.
    return {key: value.to(device, copy=True) for key, value in load_file(file).items()}


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
        wanted = evenly_spaced(n, self.num_draws)
        if len(wanted) < self.num_draws:  # a view of each of ten thousand draws takes longer than a pass of ten
            yield from (self.state(index, generator) for index in wanted)
            return
        each = {name: tensor.unbind() for name, tensor in self.stacked.items()}
        for index in wanted:
            yield {name: tensors[index] for name, tensors in each.items()}

    def blocks(self, n: int | None, generator: torch.Generator, size: int) -> Iterator[State]:
        wanted = evenly_spaced(n, self.num_draws)
        for first in range(0, len(wanted), size):
            part = wanted[first : first + size]
            whole = len(wanted) == self.num_draws  # then a block is a slice, and no copy
            yield {name: t[first : first + size] if whole else t[part] for name, t in self.stacked.items()}

    def state(self, index: int, generator: torch.Generator) -> State:
        return {name: tensor[index] for name, tensor in self.stacked.items()}

    def last(self) -> State:
        return {name: tensor[-1] for name, tensor in self.stacked.items()}

    def tensors(self) -> dict[str, Tensor]:
        return self.stacked

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Draws:
        return cls(tensors)


class Distribution(Source):
    """A source without an end: every draw is a fresh sample. Subclasses say how one is made, by :meth:`_draw`."""

    num_draws = None

    @abstractmethod
    def _draw(self, generator: torch.Generator) -> State:
        """One sample. What it takes from ``generator`` goes by sorted names: a file puts them in another order."""

    def log_prob(self, state: State) -> float:
        """Log density of the weights that are drawn, nats; ValueError where there is none."""
        raise ValueError(f"Expected a distribution with a density over the weights, got {self.kind!r}: take another q.")

    def states(self, n: int | None, generator: torch.Generator) -> Iterator[State]:
        if n is None:
            raise ValueError("Expected a number of draws from a distribution, got None: say draws=.")
        for _ in range(n):
            yield self._draw(generator)

    def state(self, index: int, generator: torch.Generator) -> State:
        for _ in range(index):
            self._draw(generator)
        return self._draw(generator)


def to_parts(**parts: State) -> dict[str, Tensor]:
    """Named groups of tensors as one flat dict, ``"part/name"``."""
    return {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


def from_parts(tensors: dict[str, Tensor], *names: str) -> list[State]:
    """The groups of that :func:`to_parts` made, in the order of ``names``; KeyError for one that is not among them."""
    parts: dict[str, State] = {part: {} for part in names}
    for key, value in tensors.items():
        part, name = key.split("/", 1)
        parts[part][name] = value
    return list(parts.values())


def _flat(tensors: State, names: Sequence[str]) -> Tensor:
    """These tensors as one float64 vector."""
    return torch.cat([tensors[name].flatten().double() for name in names])


class NormalSource(Distribution):
    """Independent Normals: w = loc + exp(log_sd) * xi for the names in ``log_sd``; the others are fixed at ``loc``."""

    kind: ClassVar[str] = "normal"

    def __init__(self, loc: State, log_sd: State) -> None:
        self.loc, self.log_sd = loc, log_sd
        self._sd = {name: log_sd[name].exp() for name in sorted(log_sd)}

    def _draw(self, generator: torch.Generator) -> State:
        state = dict(self.loc)
        for name, sd in self._sd.items():
            xi = torch.empty_like(sd).normal_(generator=generator)
            state[name] = xi.mul_(sd).add_(self.loc[name])
        return state

    def log_prob(self, state: State) -> float:
        each = (
            Normal(self.loc[k].double(), self.log_sd[k].double().exp()).log_prob(state[k].double()) for k in self._sd
        )
        return float(sum(value.sum() for value in each))

    def last(self) -> State:
        return dict(self.loc)

    def tensors(self) -> dict[str, Tensor]:
        return to_parts(loc=self.loc, log_sd=self.log_sd)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> NormalSource:
        return cls(*from_parts(tensors, "loc", "log_sd"))


class LowRankNormal(Distribution):
    """Normal with covariance diag(sd^2) + F F': w = loc + sd * xi + F zeta for the names in ``sd``; others are fixed.

    ``factor[name]`` is F' with the weights' own axes, (rank, *shape of the weight).
    """

    kind: ClassVar[str] = "low_rank_normal"

    def __init__(self, loc: State, sd: State, factor: State) -> None:
        self.loc, self.sd, self.factor = loc, sd, factor
        if sd.keys() != factor.keys():
            raise ValueError(f"Expected a factor for each name in sd, got {sorted(sd.keys() ^ factor.keys())[0]!r}.")

    def _draw(self, generator: torch.Generator) -> State:
        state = dict(self.loc)
        zeta: Tensor | None = None
        for name in sorted(self.sd):
            factor = self.factor[name]
            if zeta is None:
                zeta = factor.new_empty(len(factor)).normal_(generator=generator)
            xi = torch.empty_like(self.sd[name]).normal_(generator=generator)
            state[name] = xi.mul_(self.sd[name]).add_(torch.tensordot(zeta, factor, 1)).add_(self.loc[name])
        return state

    @cached_property
    def _law(self) -> LowRankMultivariateNormal:
        names = sorted(self.sd)
        factor = torch.cat([self.factor[name].flatten(1) for name in names], dim=1).T.double()
        return LowRankMultivariateNormal(_flat(self.loc, names), factor, _flat(self.sd, names).square())

    def log_prob(self, state: State) -> float:
        return float(self._law.log_prob(_flat(state, sorted(self.sd))))

    def last(self) -> State:
        return dict(self.loc)

    def tensors(self) -> dict[str, Tensor]:
        return to_parts(loc=self.loc, sd=self.sd, factor=self.factor)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> LowRankNormal:
        return cls(*from_parts(tensors, "loc", "sd", "factor"))


class FullRankNormal(Distribution):
    """Normal with covariance R R': w = loc + R zeta for the names in ``root``; others are fixed.

    ``root[name]`` are that weight's rows of R, (*shape of the weight, P), P the number of weights in all.
    """

    kind: ClassVar[str] = "full_rank_normal"

    def __init__(self, loc: State, root: State) -> None:
        self.loc, self.root = loc, root

    def _draw(self, generator: torch.Generator) -> State:
        root = next(iter(self.root.values()))
        zeta = root.new_empty(root.shape[-1]).normal_(generator=generator)
        return {**self.loc, **{name: self.loc[name] + self.root[name] @ zeta for name in sorted(self.root)}}

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """R as its triangular factors, found once and not for each draw: P^3 operations."""
        rows = torch.cat([self.root[name].flatten(0, -2) for name in sorted(self.root)])
        factors, pivots = torch.linalg.lu_factor(rows.double())
        return factors, pivots

    def log_prob(self, state: State) -> float:
        (factors, pivots), names = self._factors, sorted(self.root)
        shift = _flat(state, names) - _flat(self.loc, names)
        z = torch.linalg.lu_solve(factors, pivots, shift[:, None])
        log_det = factors.diagonal().abs().log().sum()
        return float(-0.5 * (z.square().sum() + len(z) * math.log(2 * math.pi)) - log_det)

    def last(self) -> State:
        return dict(self.loc)

    def tensors(self) -> dict[str, Tensor]:
        return to_parts(loc=self.loc, root=self.root)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> FullRankNormal:
        return cls(*from_parts(tensors, "loc", "root"))


class RadialSource(Distribution):
    """w = loc + exp(log_scale) * r * xi / |xi| for each name in ``log_scale``; others are fixed.

    xi ~ Normal(0, I) has the weight's shape, r ~ Normal(0, 1) is one number: see :class:`bayesnn.RadialVI`.
    """

    kind: ClassVar[str] = "radial"

    def __init__(self, loc: State, log_scale: State) -> None:
        self.loc, self.log_scale = loc, log_scale
        self._scale = {name: log_scale[name].exp() for name in sorted(log_scale)}

    def _draw(self, generator: torch.Generator) -> State:
        state = dict(self.loc)
        for name, scale in self._scale.items():
            xi = torch.empty_like(scale).normal_(generator=generator)
            r = scale.new_empty(()).normal_(generator=generator)
            length = xi.norm().clamp_min(torch.finfo(xi.dtype).tiny)  # of one weight's xi it may be 0
            state[name] = xi.mul_(r / length).mul_(scale).add_(self.loc[name])
        return state

    def last(self) -> State:
        return dict(self.loc)

    def tensors(self) -> dict[str, Tensor]:
        return to_parts(loc=self.loc, log_scale=self.log_scale)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> RadialSource:
        return cls(*from_parts(tensors, "loc", "log_scale"))


SOURCES: dict[str, type[Source]] = {
    cls.kind: cls for cls in (Draws, NormalSource, LowRankNormal, FullRankNormal, RadialSource)
}
