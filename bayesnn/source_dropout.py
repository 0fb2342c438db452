"""Draws that are masks: one set of dropout masks is one function of the inputs."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from bayesnn.model import BayesianModel, State
from bayesnn.source import SOURCES, Distribution, from_parts, to_parts

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Masked(nn.Module):
    """Multiplies by a mask of the features, the same for every row: a dropout module with its noise held fixed.

    Parameters
    ----------
    mask : shape of the features without the batch axis; of whole channels (channel, 1, ...).
    channels : whether the mask is one of whole channels.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, channels: bool) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = mask_shape(x, self.channels)
        if shape != self.mask.shape:
            raise ValueError(
                f"Expected features of the shape at which dropout's masks were made, {tuple(self.mask.shape)}, got "
                f"{tuple(shape)}: give inputs of the size that the net was fitted to."
            )
        return x * self.mask


def mask_shape(x: Tensor, channels: bool) -> torch.Size:
    """Shape of a mask for features ``x``, (batch, ...): that of one row, or (channel, 1, ...)."""
    return torch.Size([x.shape[1], *[1] * (x.dim() - 2)]) if channels else x.shape[1:]


class DropoutSource(Distribution):
    """Weights at ``loc`` and, for each dropout module, a mask of Bernoulli(1 - p) numbers over 1 - p, new each draw.

    Parameters
    ----------
    loc : the weights; they are the same in all draws.
    rate : p of each module, by the module's name in the model (``"net.layers.2"``), each of shape ().
    shape : of each module's mask, integers.
    """

    kind: ClassVar[str] = "dropout"

    def __init__(self, loc: State, rate: State, shape: State) -> None:
        self.loc = loc
        # On the CPU, wherever they were read to: each draw asks for their values, and would wait for a GPU.
        self.rate, self.shape = ({name: value.cpu() for name, value in part.items()} for part in (rate, shape))
        if rate.keys() != shape.keys():
            raise ValueError(f"Expected a mask for each rate, got {sorted(rate.keys() ^ shape.keys())[0]!r}.")

    def _draw(self, generator: torch.Generator) -> State:
        state = dict(self.loc)
        for path in sorted(self.rate):
            keep = 1 - float(self.rate[path])
            mask = self._ones(path).bernoulli_(keep, generator=generator)
            state[f"{path}.mask"] = mask.div_(keep) if keep > 0 else mask
        return state

    def _ones(self, path: str) -> Tensor:
        return next(iter(self.loc.values())).new_ones(self.shape[path].tolist())

    def last(self) -> State:
        """The weights alone: under masks of ones they are the deterministic net."""
        return dict(self.loc)

    def bind(self, model: BayesianModel) -> BayesianModel:
        """A copy of ``model`` whose dropout modules multiply with the masks of a state, in eval mode as well."""
        bound = model.copy()
        modules = dict(bound.named_modules())
        for path in self.rate:
            old = modules.get(path)
            if not isinstance(old, (Masked, *DROPOUT)):
                raise ValueError(
                    f"Expected a dropout module {path!r}, got {type(old).__name__}: give the net that was fitted."
                )
            channels = old.channels if isinstance(old, Masked) else isinstance(old, CHANNELS)
            masked = Masked(self._ones(path), channels)
            for parent in modules.values():  # a module may be known under several names
                for name, child in list(parent._modules.items()):  # named_children() leaves aliases out
                    if child is old:
                        parent.add_module(name, masked)
        return bound

    def tensors(self) -> dict[str, Tensor]:
        return to_parts(loc=self.loc, rate=self.rate, shape=self.shape)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> DropoutSource:
        return cls(*from_parts(tensors, "loc", "rate", "shape"))


SOURCES[DropoutSource.kind] = DropoutSource
