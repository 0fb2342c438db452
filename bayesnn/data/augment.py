"""Augmentation: random transforms of images that leave their class as it is, each image its own.

``transform(x, generator)`` takes images (batch, channels, height, width), and every callable of that form is one. What
it does to the likelihood is in docs/augmentation.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesnn.data.shift import rotated, translated
from bayesnn.data.standardize import Standardize
from bayesnn.errors import at_least, first_line, is_real, positive
from bayesnn.rng import isolated

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Transform(ABC):
    """A random transform of images: ``transform(x, generator)``.

    Takes x (batch, channels, height, width), floating, on any device, and gives the same shape, dtype and device. All
    random numbers come from ``generator``, which may be on another device. Amounts are in the units of x: ``fit`` and
    ``predict`` put standardised images of a :class:`Data` back into their own units for it, in which black is 0.

    Raises
    ------
    ValueError : x has no such shape.
    TypeError : x is not floating.
    """

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if x.dim() != 4:
            raise ValueError(
                f"Expected images (batch, channels, height, width) for {type(self).__name__}, got {tuple(x.shape)}: "
                "reshape them, or leave augment= out."
            )
        if not x.is_floating_point():
            raise TypeError(f"Expected floating images, got {x.dtype}: convert them with .float().")
        return self.apply(x, generator)

    @abstractmethod
    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The transformed images, (batch, channels, height, width)."""


@dataclass(frozen=True)
class Rotation(Transform):
    """Each image turned about its centre by an angle ~ Uniform(-degrees, degrees), bilinear.

    Parameters
    ----------
    degrees : > 0.
    fill : what comes in from outside: black.
    """

    degrees: float = 15.0
    fill: float = 0.0

    def __post_init__(self) -> None:
        positive("degrees", self.degrees)
        _check_fill(self.fill)

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        angles = _uniform(len(x), self.degrees, generator)
        return _filled(x, self.fill, lambda images: rotated(images, angles))


@dataclass(frozen=True)
class Shift(Transform):
    """Each image moved right and down by amounts ~ Uniform(-pixels, pixels), each its own, bilinear between pixels.

    By whole pixels, which blur nothing: :class:`Crop`.

    Parameters
    ----------
    pixels : > 0.
    fill : what comes in from outside: black.
    """

    pixels: float = 2.0
    fill: float = 0.0

    def __post_init__(self) -> None:
        positive("pixels", self.pixels)
        _check_fill(self.fill)

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        height, width = x.shape[-2:]
        right = _uniform(len(x), self.pixels / width, generator)
        down = _uniform(len(x), self.pixels / height, generator)
        return _filled(x, self.fill, lambda images: translated(images, right, down))


@dataclass(frozen=True)
class Flip(Transform):
    """Each image mirrored, left to right, with probability ``p``.

    Parameters
    ----------
    p : in (0, 1].
    vertical : top to bottom instead.
    """

    p: float = 0.5
    vertical: bool = False

    def __post_init__(self) -> None:
        if not is_real(self.p) or not 0 < self.p <= 1:
            raise ValueError(f"Expected p in (0, 1], got {self.p!r}: 0.5 mirrors every other image.")

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        turned = torch.rand(len(x), generator=generator, device=generator.device) < self.p
        return torch.where(turned.to(x.device).view(-1, 1, 1, 1), x.flip(-2 if self.vertical else -1), x)


@dataclass(frozen=True)
class Crop(Transform):
    """Each image padded on all sides and cut to its size again, at one of the (2 padding + 1)^2 places.

    That moves it by whole pixels, uniform from -padding to padding each way (He et al. 2016, section 4.2).

    Parameters
    ----------
    padding : pixels, >= 1.
    fill : what the padding holds: black.
    """

    padding: int = 4
    fill: float = 0.0

    def __post_init__(self) -> None:
        at_least("padding", self.padding, 1)
        _check_fill(self.fill)

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = x.shape
        padded = F.pad(x, (self.padding,) * 4, value=self.fill)
        first = torch.randint(2 * self.padding + 1, (2, batch, 1), generator=generator, device=generator.device)
        top, left = first.to(x.device)
        rows = (top + torch.arange(height, device=x.device))[:, None, :, None]  # (batch, 1, height, 1)
        columns = (left + torch.arange(width, device=x.device))[:, None, None, :]  # (batch, 1, 1, width)
        each = torch.arange(batch, device=x.device).view(-1, 1, 1, 1)
        return padded[each, torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1), rows, columns]


@dataclass(frozen=True)
class Noise(Transform):
    """Gaussian noise added to each pixel, independent of all others; not clipped.

    Parameters
    ----------
    sd : standard deviation, > 0, in the units of the images.
    """

    sd: float = 0.1

    def __post_init__(self) -> None:
        positive("sd", self.sd)

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
        return x + self.sd * noise.to(x.device)


@dataclass(frozen=True, init=False)
class Compose(Transform):
    """One transform after another: ``Compose(Rotation(15), Shift(2))``.

    Parameters
    ----------
    *transforms : of images, ``(x, generator) -> x`` each.
    """

    transforms: tuple[Augment, ...]

    def __init__(self, *transforms: Any) -> None:
        odd = next((t for t in transforms if not callable(t)), None)
        if odd is not None or not transforms:
            got = type(odd).__name__ if transforms else "none"
            raise TypeError(f"Expected transforms (x, generator) -> x, got {got}: Compose(Rotation(15), Shift(2)).")
        object.__setattr__(self, "transforms", transforms)

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        for transform in self.transforms:
            x = transform(x, generator)
        return x


@dataclass(frozen=True)
class InUnits:
    """A transform that sees standardised images in their own units: black is 0 there, and an sd is one of pixels.

    What it is given is a copy, into which it may write.

    Parameters
    ----------
    augment : (x, generator) -> x, of images in their own units.
    inputs : the map by which they were standardised, or None.
    """

    augment: Augment
    inputs: Standardize | None = None

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if self.inputs is None:
            return self.augment(x.clone(), generator)
        return self.inputs.forward(self.augment(self.inputs.inverse(x), generator))


def in_units(augment: Any, inputs: Standardize | None, x: Tensor) -> InUnits:
    """``augment`` for inputs that were standardised by ``inputs``, tried on ``x``, a few of them.

    Raises
    ------
    TypeError : it is no callable.
    ValueError : it fails, or gives another shape, dtype or device.
    """
    if not callable(augment):
        raise TypeError(
            f"Expected augment= to be (x, generator) -> x, got {type(augment).__name__}: Rotation(15), say."
        )
    whole = InUnits(augment, inputs)
    try:
        with isolated(torch.Generator().manual_seed(0)):  # a user's own code may draw from the global streams
            out: Any = whole(x, torch.Generator(device=x.device).manual_seed(0))
    except Exception as error:  # it may be a user's own code
        raise ValueError(f"Expected augment= to take inputs {tuple(x.shape)}, got: {first_line(error)}") from error
    if not isinstance(out, Tensor) or (out.shape, out.dtype, out.device) != (x.shape, x.dtype, x.device):
        got = f"{tuple(out.shape)} {out.dtype} on {out.device}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"Expected augment= to give {tuple(x.shape)} {x.dtype} on {x.device}, got {got}: keep all three."
        )
    return whole


def _check_fill(fill: float) -> None:
    if not is_real(fill) or not abs(fill) < float("inf"):
        raise ValueError(f"Expected a finite number for fill, got {fill!r}: the value of black.")


def _uniform(rows: int, most: float, generator: torch.Generator) -> Tensor:
    """One number of each row ~ Uniform(-most, most), (rows,), where the generator is."""
    return most * (2 * torch.rand(rows, generator=generator, device=generator.device, dtype=torch.float64) - 1)


def _filled(x: Tensor, fill: float, move: Callable[[Tensor], Tensor]) -> Tensor:
    """``move``, which brings in zeros, so that it brings in ``fill``; half precision is interpolated in single."""
    images = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (move(images - fill) + fill if fill else move(images)).to(x.dtype)
