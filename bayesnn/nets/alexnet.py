"""AlexNet (Krizhevsky, Sutskever & Hinton 2012), as one tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayesnn.errors import fraction
from bayesnn.nets._shapes import check_images, image_shape, positive

SMALLEST = 67  # pixels a side, below which the last pooling has nothing left


class AlexNet(nn.Module):
    """Convolutions of 96 (11x11, stride 4), 256 (5x5), 384, 384 and 256 (3x3) channels, then dense layers.

    The first, second and fifth are pooled by overlapping 3x3 windows with stride 2.

    Parameters
    ----------
    in_shape : sequence of 3 int
        (channels, height, width) of one image, at least 67 pixels a side.
    num_outputs : int
        Number of outputs, usually classes.
    dropout : float
        Probability in [0, 1) with which a hidden dense unit is dropped in train mode; the paper has 0.5. 0, the
        default, adds no dropout layers: samplers refuse them.

    Raises
    ------
    ValueError
        If the image is below 67 pixels a side, or another argument is out of range.

    Notes
    -----
    The paper's two towers, one to a GPU, are one here: 62,378,344 parameters with the defaults, where the two have 60
    million. The local response normalisation, which has no parameters, is left out: later work found no use in it.

    References
    ----------
    Krizhevsky, Sutskever & Hinton (2012), ImageNet classification with deep convolutional neural networks, NeurIPS.
    """

    def __init__(self, in_shape: Sequence[int] = (3, 227, 227), num_outputs: int = 1000, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_shape = image_shape(in_shape)
        self.num_outputs = positive("num_outputs", num_outputs)
        fraction("dropout", dropout)
        channels, *sides = self.in_shape
        if min(sides) < SMALLEST:
            raise ValueError(
                f"AlexNet: expected images of at least {SMALLEST}x{SMALLEST}, got {sides[0]}x{sides[1]}: nothing would "
                "be left after three poolings"
            )
        self.features = nn.Sequential(
            nn.Conv2d(channels, 96, 11, stride=4), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        height, width = (_last(side) for side in sides)
        first, second = ([nn.Dropout(dropout)] if dropout else [] for _ in range(2))  # a mask is of one layer
        self.head = nn.Sequential(
            nn.Linear(256 * height * width, 4096), nn.ReLU(), *first,
            nn.Linear(4096, 4096), nn.ReLU(), *second,
            nn.Linear(4096, self.num_outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map images, (batch, *in_shape), to outputs, (batch, num_outputs); ValueError for another shape."""
        check_images("AlexNet", x, self.in_shape)
        out: Tensor = self.head(torch.flatten(self.features(x), 1))
        return out


def _last(side: int) -> int:
    """Pixels a side of the last map."""
    side = (side - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side
