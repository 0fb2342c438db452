"""What a chain keeps: its draws as they are made, in memory or on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from bayesnn.data.dataset import all_finite
from bayesnn.model import State
from bayesnn.source import Draws, Source, write_tensors
from bayesnn.source_shards import Shards

# A file of draws is written when so many wait in memory, or the oldest of them have waited so long.
SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 30.0


class Kept:
    """Draws in memory."""

    def __init__(self) -> None:
        self._states: list[State] = []

    def __len__(self) -> int:
        return len(self._states)

    def extend(self, states: Sequence[State]) -> None:
        """Keep these as well."""
        self._states.extend(states)

    def drop_broken(self) -> None:
        """Leave out the last draws that are not finite: a loss shows that weights are broken after the step."""
        while self._states and not is_finite(self._states[-1]):
            self._states.pop()

    def source(self) -> Source | None:
        """All that was kept; None where that is nothing."""
        return Draws.stack(self._states) if self._states else None

    def hold(self, source: Source) -> Source:
        """A source that a chain ended in, where this one's draws are held."""
        return source


class KeptOnDisk(Kept):
    """Draws in files of SHARD_BYTES or one draw, whichever is more; those of one file at most are in memory.

    Parameters
    ----------
    folder, stem : the files are ``folder/stem-0.safetensors`` and so on.
    device : of the draws when they are read.
    wrote : called after each file.
    """

    def __init__(self, folder: Path, stem: str, device: torch.device, wrote: Callable[[Source], None]) -> None:
        super().__init__()
        self._folder, self._stem, self._device, self._wrote = folder, stem, device, wrote
        self._files: list[Path] = []
        self._counts: list[int] = []
        self._written_at = time.monotonic()

    def __len__(self) -> int:
        return sum(self._counts) + len(self._states)

    def extend(self, states: Sequence[State]) -> None:
        for state in states:
            # The last draw waits for the one after it: until then nobody knows whether it is broken.
            size = sum(value.nbytes for value in state.values())
            full = (len(self._states) + 1) * size > SHARD_BYTES
            if self._states and (full or time.monotonic() - self._written_at > SHARD_SECONDS):
                self._write()
            self._states.append(state)

    def _write(self) -> None:
        if not is_finite(self._states[-1]):  # of a GPU the loss that shows it is read late: it can still be dropped
            return
        file = self._folder / f"{self._stem}-{len(self._files)}.safetensors"
        write_tensors(Draws.stack(self._states).tensors(), file)
        self._files.append(file)
        self._counts.append(len(self._states))
        self._states, self._written_at = [], time.monotonic()
        self._wrote(self._shards())

    def _shards(self, rest: Source | None = None) -> Shards:
        return Shards(self._files, self._device, self._counts, rest if isinstance(rest, Draws) else None)

    def source(self) -> Source | None:
        """Likewise; draws that the disk does not take, for want of room, are in memory."""
        if self._states:
            with suppress(OSError):
                self._write()
        rest = super().source()
        return self._shards(rest) if self._files else rest

    def hold(self, source: Source) -> Source:
        if isinstance(source, Draws):
            with suppress(OSError):
                self.extend(list(source.states(None, torch.Generator())))
                return self.source() or source
        return source


def is_finite(state: State) -> bool:
    """Whether every number of a draw is finite."""
    return all(all_finite(value) for value in state.values())
