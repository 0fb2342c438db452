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
from bayesnn.source import SOURCES, Source, evenly_spaced


class Shards(Source):
    """Draws in files of several each, one file after another; each tensor has the draws of its file along axis 0.

    One draw is in memory at a time. The files have to stay where they are for as long as the source is used.

    Parameters
    ----------
    files : safetensors files with the same names of tensors, one or more.
    device : where the draws are to be.

    Raises
    ------
    OSError, SafetensorError : a file that is not there, or is damaged; ValueError where it is lost later.
    """

    kind: ClassVar[str] = "shards"

    def __init__(self, files: Sequence[Path], device: torch.device | str = "cpu") -> None:
        # Absolute: the process may move to another directory.
        self.files, self._device = [file.absolute() for file in files], str(device)
        self._counts = [_length(file) for file in self.files]
        self.num_draws: int = sum(self._counts)

    def states(self, n: int | None, generator: torch.Generator) -> Iterator[State]:
        wanted, first = evenly_spaced(n, self.num_draws), 0
        for file, count in zip(self.files, self._counts, strict=True):
            # Each file is opened once, and what was mapped of the one before is given back.
            yield from self._read(file, [index - first for index in wanted if first <= index < first + count])
            first += count

    def state(self, index: int, generator: torch.Generator) -> State:
        for file, count in zip(self.files, self._counts, strict=True):
            if index < count:
                return next(self._read(file, [index]))
            index -= count
        raise IndexError(f"Expected a draw in [0, {self.num_draws}), got {index + self.num_draws}.")

    def last(self) -> State:
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
            return [file.name for file in self.files]
        names = [f"{stem}-{number}.safetensors" for number in range(len(self.files))]
        for file, name in zip(self.files, names, strict=True):
            shutil.copyfile(file, folder / name)
        return names

    @classmethod
    def read(cls, files: Sequence[Path]) -> Source:
        return cls(files)


def _length(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return int(opened.get_slice(next(iter(opened.keys()))).get_shape()[0])


SOURCES[Shards.kind] = Shards
