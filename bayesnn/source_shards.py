"""Draws on disk: a source that reads them when they are asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bayesnn.errors import first_line
from bayesnn.model import State
from bayesnn.source import SOURCES, Draws, Source, evenly_spaced


class DamagedShardError(ValueError):
    """A file of draws that is not what it should be; ``file`` says which."""

    def __init__(self, file: Path, got: str) -> None:
        super().__init__(got)
        self.file = file


class Shards(Source):
    """Draws in files of several each, one file after another; each tensor has the draws of its file along axis 0.

    One draw is in memory at a time. The files have to stay where they are for as long as the source is used.

    Parameters
    ----------
    files : safetensors files with the same names of tensors, one or more.
    device : where the draws are to be.
    counts : draws in each file, by who wrote them; by default they are read, and the files held against the first.
    rest : draws after those of the files that are in memory, because they could not be written.

    Raises
    ------
    DamagedShardError : a file that is not there, is damaged, or holds other tensors than the first.
    ValueError : likewise, where it is lost later.
    """

    kind: ClassVar[str] = "shards"

    def __init__(
        self,
        files: Sequence[Path],
        device: torch.device | str = "cpu",
        counts: Sequence[int] | None = None,
        rest: Draws | None = None,
    ) -> None:
        # Absolute: the process may move to another directory.
        self.files, self._device, self._rest = [file.absolute() for file in files], str(device), rest
        self._counts = list(counts) if counts is not None else _counts(self.files)
        self.num_draws: int = sum(self._counts) + (rest.num_draws if rest is not None else 0)

    def states(self, n: int | None, generator: torch.Generator) -> Iterator[State]:
        wanted, first = evenly_spaced(n, self.num_draws), 0
        for file, count in zip(self.files, self._counts, strict=True):
            # Each file is opened once, and what was mapped of the one before is given back.
            yield from self._read(file, [index - first for index in wanted if first <= index < first + count])
            first += count
        if self._rest is not None:
            for index in wanted:
                if index >= first:
                    yield self._rest.state(index - first, generator)

    def state(self, index: int, generator: torch.Generator) -> State:
        if not 0 <= index < self.num_draws:
            raise IndexError(f"Expected a draw in [0, {self.num_draws}), got {index}.")
        for file, count in zip(self.files, self._counts, strict=True):
            if index < count:
                return next(self._read(file, [index]))
            index -= count
        assert self._rest is not None
        return self._rest.state(index, generator)

    def last(self) -> State:
        if self._rest is not None:
            return self._rest.last()
        return next(self._read(self.files[-1], [self._counts[-1] - 1]))

    def _read(self, file: Path, indices: Sequence[int]) -> Iterator[State]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "pt", device=self._device) as opened:
                names = list(opened.keys())
                for index in indices:
                    # Copies: a view would hold on to the whole file, and lie in memory at any byte.
                    yield {name: opened.get_slice(name)[index].clone() for name in names}
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"Expected the draws in {file}, got {first_line(error)}: put it back; posterior.save() copies them."
            ) from error

    def tensors(self) -> dict[str, Tensor]:
        raise TypeError("Expected a source in memory, got one on disk: it is saved by copying its files.")

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Source:
        raise TypeError("Expected the files of a source on disk, got tensors: use read().")

    def write(self, folder: Path, stem: str) -> list[str]:
        if all(file.resolve().parent == folder.resolve() for file in self.files):
            names = [file.name for file in self.files]
        else:
            names = [f"{stem}-{number}.safetensors" for number in range(len(self.files))]
            for file, name in zip(self.files, names, strict=True):
                shutil.copyfile(file, folder / name)
        return names if self._rest is None else names + self._rest.write(folder, f"{stem}-rest")

    @classmethod
    def read(cls, files: Sequence[Path], device: torch.device) -> Source:
        return cls(files, device)


def _counts(files: Sequence[Path]) -> list[int]:
    """Draws in each file, by its header alone; every file has to have the tensors of the first."""
    counts, forms = [], []
    for file in files:
        count, form = _form(file)
        counts.append(count)
        forms.append(form)
        if form != forms[0]:
            other = min(name for name in {**form, **forms[0]} if form.get(name) != forms[0].get(name))
            raise DamagedShardError(file, f"{other!r} of another form than in {files[0].name}, {form.get(other)}")
    return counts


def _form(file: Path) -> tuple[int, dict[str, tuple[str, tuple[int, ...]]]]:
    """How many draws a file has, and the dtype and shape of each tensor of a draw."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {name: part.get_dtype() for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise DamagedShardError(file, first_line(error)) from error
    lengths = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise DamagedShardError(file, f"tensors of {sorted(lengths)} draws")
    return lengths.pop(), {name: (dtypes[name], shape[1:]) for name, shape in shapes.items()}


SOURCES[Shards.kind] = Shards
