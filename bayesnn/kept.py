"""What a chain keeps: its draws as they are made, in memory or on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bayesnn.data.dataset import all_finite
from bayesnn.model import State
from bayesnn.source import Draws, Source
from bayesnn.source_shards import Shards

SHARD_BYTES = 64 * 2**20  # of a file, and of the draws that wait in memory to be written to it


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
        self._written = 0

    def __len__(self) -> int:
        return self._written + len(self._states)

    def extend(self, states: Sequence[State]) -> None:
        for state in states:
            # The last draw waits for the one after it: until then nobody knows whether it is broken.
            size = sum(value.nbytes for value in state.values())
            if self._states and (len(self._states) + 1) * size > SHARD_BYTES:
                self._write()
            self._states.append(state)

    def _write(self) -> None:
        from safetensors.torch import save_file

        if not is_finite(self._states[-1]):  # of a GPU the loss that shows it is read late: it can still be dropped
            return
        file = self._folder / f"{self._stem}-{len(self._files)}.safetensors"
        save_file(Draws.stack(self._states).tensors(), file)
        self._written += len(self._states)
        self._files, self._states = [*self._files, file], []
        self._wrote(Shards(self._files, self._device))

    def source(self) -> Source | None:
        if self._states:
            self._write()
        return Shards(self._files, self._device) if self._files else None

    def hold(self, source: Source) -> Source:
        if not isinstance(source, Draws):
            return source
        self.extend(list(source.states(None, torch.Generator())))
        return self.source() or source


def is_finite(state: State) -> bool:
    """Whether every number of a draw is finite."""
    return all(all_finite(value) for value in state.values())
