"""Normalisation of feature maps, by name, each with the activation that goes with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bayesnn.errors import unknown


class FilterResponseNorm(nn.Module):
    """Filter response normalisation: each map of each image divided by its own root mean square.

        nu = mean_{h, w} x^2,    y = gamma * x / sqrt(nu + eps) + beta

    No row depends on another and nothing moves with training, as in batch normalisation: the likelihood factorises over
    rows, and a draw of the weights is all that a prediction needs. It goes with :class:`ThresholdedLinearUnit`, as the
    maps are not centred.

    Parameters
    ----------
    channels : int
    eps : float
        Added to nu.

    References
    ----------
    Singh & Krishnan (2020), Filter response normalization layer, CVPR, equations 1 and 2.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def reset_parameters(self) -> None:
        """Start as the identity of maps with a root mean square of 1."""
        nn.init.ones_(self.gamma)
        nn.init.zeros_(self.beta)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        nu = x.square().mean((2, 3), keepdim=True)
        return self.gamma[:, None, None] * (x * (nu + self.eps).rsqrt()) + self.beta[:, None, None]


class ThresholdedLinearUnit(nn.Module):
    """max(x, tau) with a tau for each channel, a parameter (Singh & Krishnan 2020, equation 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.zeros(channels))

    def reset_parameters(self) -> None:
        """Start as ReLU."""
        nn.init.zeros_(self.tau)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        return torch.maximum(x, self.tau[:, None, None])


def _group_norm(channels: int) -> nn.Module:
    """Groups of at least two channels, 8 of them at most: of a single channel the norm would forget the size."""
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0 and (channels // g > 1 or g == 1))
    return nn.GroupNorm(groups, channels)


Make = Callable[[int], nn.Module]
NORMS: dict[str, tuple[Make, Make]] = {
    "batch": (nn.BatchNorm2d, lambda channels: nn.ReLU()),
    "group": (_group_norm, lambda channels: nn.ReLU()),
    "frn": (FilterResponseNorm, ThresholdedLinearUnit),
}


def norm_and_activation(name: str) -> tuple[Make, Make]:
    """What makes the norm, and what makes the activation after it, for a number of channels."""
    if name not in NORMS:
        raise unknown("norm", name, NORMS)
    return NORMS[name]
