"""VGG16 (Simonyan & Zisserman 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bayesnn.errors import fraction
from bayesnn.nets._shapes import check_images, image_shape, positive, positives

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SMALLEST = 2 ** len(BLOCKS)


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five blocks, each pooled by 2, then dense layers: configuration D of the paper.

    Parameters
    ----------
    in_shape : sequence of 3 int
        (channels, height, width) of one image, at least 32 pixels a side.
    num_outputs : int
        Number of outputs, usually classes.
    dense : sequence of int
        Widths of the hidden dense layers.
    dropout : float
        Probability in [0, 1) with which a hidden dense unit is dropped in train mode; the paper has 0.5. 0, the
        default, adds no dropout layers: samplers refuse them.

    Raises
    ------
    ValueError
        If the image is below 32 pixels a side, or another argument is out of range.

    Notes
    -----
    With the defaults 138,357,544 parameters.

    References
    ----------
    Simonyan & Zisserman (2015), Very deep convolutional networks for large-scale image recognition, ICLR, table 1, D.
    """

    def __init__(
        self,
        in_shape: Sequence[int] = (3, 224, 224),
        num_outputs: int = 1000,
        dense: Sequence[int] = (4096, 4096),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_shape = image_shape(in_shape)
        self.num_outputs = positive("num_outputs", num_outputs)
        fraction("dropout", dropout)
        before, *sides = self.in_shape
        if min(sides) < SMALLEST:
            raise ValueError(
                f"VGG16: expected images of at least {SMALLEST}x{SMALLEST}, got {sides[0]}x{sides[1]}: nothing would "
                "be left after five poolings"
            )
        layers: list[nn.Module] = []
        for block in BLOCKS:
            for channels in block:
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
                before = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        width = before * (sides[0] // SMALLEST) * (sides[1] // SMALLEST)
        head: list[nn.Module] = []
        for units in positives("dense", dense):
            head += [nn.Linear(width, units), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
            width = units
        self.head = nn.Sequential(*head, nn.Linear(width, self.num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map images, (batch, *in_shape), to outputs, (batch, num_outputs); ValueError for another shape."""
        check_images("VGG16", x, self.in_shape)
        out: Tensor = self.head(self.features(x).flatten(1))
        return out
