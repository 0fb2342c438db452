"""Shifted images: does a net's doubt grow as the images leave what it was fitted to?

The question, and rotated and translated images as its first answer, are those of Ovadia et al. 2019, *Can you trust
your model's uncertainty?*, NeurIPS; noise and blur in five severities are those of Hendrycks & Dietterich 2019,
*Benchmarking neural network robustness to common corruptions and perturbations*, ICLR. The amounts are this library's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesnn.errors import at_least, unknown
from bayesnn.rng import generator

# By severity, from 0 (the image itself) to 5, and in units that mean the same for images of any size and range.
SHIFTS: dict[str, tuple[float, ...]] = {
    "rotation": (0.0, 15.0, 30.0, 45.0, 60.0, 75.0),  # degrees, counter-clockwise
    "translation": (0.0, 1 / 14, 2 / 14, 3 / 14, 4 / 14, 5 / 14),  # of the width, to the right: 2 pixels a step of 28
    "noise": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),  # standard deviation, of the pixels' range
    "blur": (0.0, 0.02, 0.04, 0.06, 0.08, 0.1),  # standard deviation of the kernel, of the width
}
SEVERITIES = range(6)


def shift(x: Tensor, kind: str, severity: int, seed: int = 0, pixel_range: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Images that are turned, moved, noisy or blurred.

    Parameters
    ----------
    x : Tensor, (N, C, H, W), floating
        In the scale of pixels, not standardised: ``data.inputs.inverse(data.x)``.
    kind : one of ``SHIFTS``, which has the amounts:
        ``"rotation"``: by 15 degrees a severity, counter-clockwise about the centre, bilinear.
        ``"translation"``: to the right by 1/14 of the width a severity, bilinear where that is no whole pixel.
        ``"noise"``: Gaussian, independent from pixel to pixel, of standard deviation 0.1 of the range a severity.
        ``"blur"``: Gaussian, with a standard deviation of 0.02 of the width a severity; at the borders the outermost
        pixels go on.
    severity : 0 to 5; 0 gives the images themselves.
    seed : of the noise.
    pixel_range : (low, high). What comes in from outside is ``low``, and noisy pixels are clipped to the range.

    Returns
    -------
    Tensor, (N, C, H, W)

    Raises
    ------
    ValueError
        If the kind is unknown, the severity is not in 0..5, the range is empty, or ``x`` has another shape.
    TypeError
        If ``x`` is not floating.
    """
    if kind not in SHIFTS:
        raise unknown("shift", kind, SHIFTS)
    if at_least("severity", severity, 0) not in SEVERITIES:
        raise ValueError(f"Expected a severity from 0 to {SEVERITIES[-1]}, got {severity}: 5 is the strongest.")
    if x.dim() != 4:
        raise ValueError(f"Expected images (N, C, H, W), got {tuple(x.shape)}: add an axis with x[None].")
    if not x.is_floating_point():
        raise TypeError(f"Expected floating images, got {x.dtype}: convert them with .float().")
    low, high = pixel_range
    if not low < high:
        raise ValueError(f"Expected pixel_range (low, high) with low < high, got {pixel_range}: (0.0, 1.0), say.")
    amount = SHIFTS[kind][severity]
    if amount == 0:
        return x
    if kind == "rotation":
        return rotated(x - low, amount) + low
    if kind == "translation":
        return translated(x - low, amount) + low
    if kind == "noise":
        noise = torch.randn(x.shape, generator=generator(seed), dtype=x.dtype).to(x.device)
        return (x + amount * (high - low) * noise).clamp(low, high)
    return blurred(x, amount * x.shape[-1])


def rotated(images: Tensor, degrees: float | Tensor) -> Tensor:
    """Images (N, C, H, W) turned counter-clockwise about their centre, bilinear, zero outside; each by its own (N,)."""
    turn, (height, width) = torch.deg2rad(torch.as_tensor(degrees, dtype=torch.float64)), images.shape[-2:]
    c, s, zero = turn.cos(), turn.sin(), torch.zeros_like(turn)
    # affine_grid measures in halves of the height and of the width: a turn of an oblong has their ratio in it.
    return _moved(images, [c, -s * height / width, zero, s * width / height, c, zero])


def translated(images: Tensor, right: float | Tensor, down: float | Tensor = 0.0) -> Tensor:
    """Images (N, C, H, W) moved by shares of width and height, bilinear, zero outside; each by its own (N,)."""
    x, y = torch.broadcast_tensors(*(torch.as_tensor(share, dtype=torch.float64) for share in (right, down)))
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    return _moved(images, [one, zero, -2.0 * x, zero, one, -2.0 * y])


def _moved(images: Tensor, affine: Sequence[Tensor]) -> Tensor:
    """Each pixel from where the affine map, row by row of its matrix (2, 3), takes it: each entry () or (N,)."""
    matrix = torch.stack(list(affine), -1).unflatten(-1, (2, 3)).to(images)
    grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def kernel(sd: float) -> Tensor:
    """A Gaussian of that standard deviation in pixels at whole numbers out to 4 sd, adding up to 1: (2 r + 1,)."""
    radius = math.ceil(4 * sd)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sd).square())
    return weights / weights.sum()


def blurred(images: Tensor, sd: float) -> Tensor:
    """Images (N, C, H, W) convolved with a Gaussian of ``sd`` pixels, along the height and then the width."""
    k = kernel(sd).to(images)
    radius = len(k) // 2
    flat = F.pad(images.flatten(0, 1)[:, None], (radius,) * 4, mode="replicate")  # (N C, 1, H + 2 r, W + 2 r)
    return F.conv2d(F.conv2d(flat, k.view(1, 1, -1, 1)), k.view(1, 1, 1, -1)).view_as(images)
