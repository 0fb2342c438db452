"""Nets that the benchmarks need and the library does not have yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(8, channels),
}


class ResNet20(nn.Module):
    """The residual net of 20 layers for images of 32 x 32 (He et al. 2016), 275,000 weights.

    Shortcuts where the shape changes are a 1 x 1 convolution ("option B"). Rows depend on one another under batch
    normalisation, which local reparameterization and flipout refuse: ``norm="group"`` takes groups of channels.
    """

    def __init__(self, norm: Literal["batch", "group"] = "batch", in_channels: int = 3, num_outputs: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), NORMS[norm](16), nn.ReLU()]
        width = 16
        for channels in (16, 32, 64):
            for _ in range(3):
                layers.append(Block(width, channels, NORMS[norm]))
                width = channels
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Block(nn.Module):
    """Two convolutions of 3 x 3 and what goes around them; the first halves the image where the channels double."""

    def __init__(self, before: int, channels: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        stride = 1 if before == channels else 2
        self.branch = nn.Sequential(
            nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False),
            norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            norm(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(before, channels, 1, stride=stride, bias=False), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        return (self.branch(x) + self.shortcut(x)).relu()
