"""Residual nets (He, Zhang, Ren & Sun 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bayesnn.nets._shapes import check_images, image_shape, positive
from bayesnn.nets.norms import Make, norm_and_activation

# Blocks of each stage, whether they are bottlenecks, and channels of the first stage.
DEPTHS: dict[int, tuple[tuple[int, ...], bool, int]] = {
    18: ((2, 2, 2, 2), False, 64),
    20: ((3, 3, 3), False, 16),
    34: ((3, 4, 6, 3), False, 64),
    50: ((3, 4, 6, 3), True, 64),
    101: ((3, 4, 23, 3), True, 64),
    152: ((3, 8, 36, 3), True, 64),
}
EXPANSION = 4  # of the channels at the end of a bottleneck
SMALL = 64  # pixels a side, below which a stem that divides them by four would leave nothing


class ResNet(nn.Module):
    """A residual net: a stem, stages of residual blocks, the global average, and a linear layer.

    Parameters
    ----------
    depth : {18, 20, 34, 50, 101, 152}
        Layers with weights. 20 is the paper's net for 32 x 32 images, with three stages of 16, 32 and 64 channels; the
        others have four, of 64 to 512 channels, from 50 on times 4 at the end of each block.
    in_shape : sequence of 3 int
        (channels, height, width) of one image.
    num_outputs : int
        Number of outputs, usually classes.
    norm : {"frn", "group", "batch"}
        Filter response normalisation, the default, or groups of channels: both leave the rows independent of one
        another, as a likelihood that is a product over rows has to have it. Under batch normalisation they are not, and
        running statistics belong to no draw of the weights: good for the deterministic net, not for a posterior.
    small : bool, optional
        Whether the stem keeps the size (3 x 3) instead of dividing it by four (7 x 7 with stride 2, then pooling); by
        default for 20 layers, and for images below 64 pixels.

    Raises
    ------
    ValueError
        If there is no such depth or norm, an argument is out of range, or the image is too small.

    Notes
    -----
    Shortcuts where the shape changes are a 1 x 1 convolution ("option B"). The stride of a bottleneck is in its 3 x 3
    convolution. With ``norm="batch"`` and 1,000 outputs, 50 layers have 25,557,032 parameters; "frn" adds a threshold
    for each normalised channel that an activation follows.

    References
    ----------
    He, Zhang, Ren & Sun (2016), Deep residual learning for image recognition, CVPR, table 1 and section 4.2.

    Examples
    --------
    >>> import torch
    >>> ResNet(20)(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        depth: int = 20,
        in_shape: Sequence[int] = (3, 32, 32),
        num_outputs: int = 10,
        norm: str = "frn",
        small: bool | None = None,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth: expected one of {', '.join(map(str, DEPTHS))}, got {depth!r}")
        self.in_shape = image_shape(in_shape)
        self.num_outputs = positive("num_outputs", num_outputs)
        blocks, bottleneck, width = DEPTHS[depth]
        make_norm, make_act = norm_and_activation(norm)
        sides = self.in_shape[1:]
        small = (depth == 20 or min(sides) < SMALL) if small is None else small
        smallest = (1 if small else 4) * 2 ** (len(blocks) - 1) + 1
        if min(sides) < smallest:
            raise ValueError(
                f"ResNet: expected images of at least {smallest}x{smallest} for {depth} layers, got "
                f"{sides[0]}x{sides[1]}: the last stage would see a single pixel"
            )
        if small:
            stem: list[nn.Module] = [nn.Conv2d(self.in_shape[0], width, 3, padding=1, bias=False)]
        else:
            stem = [nn.Conv2d(self.in_shape[0], width, 7, stride=2, padding=3, bias=False)]
        stem += [make_norm(width), make_act(width)]
        if not small:
            stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        self.stem = nn.Sequential(*stem)
        stages: list[nn.Module] = []
        before = width
        for stage, count in enumerate(blocks):
            channels = width * 2**stage
            layers: list[nn.Module] = []
            for k in range(count):
                stride = 2 if stage > 0 and k == 0 else 1
                block = Bottleneck if bottleneck else Basic
                layers.append(block(before, channels, stride, make_norm, make_act))
                before = channels * (EXPANSION if bottleneck else 1)
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, self.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, (batch, *in_shape), to outputs, (batch, num_outputs); ValueError for another shape."""
        check_images("ResNet", x, self.in_shape)
        maps: Tensor = self.stages(self.stem(x))  # (batch, channels, height, width)
        out: Tensor = self.head(maps.mean((2, 3)))  # (batch, num_outputs)
        return out


class Basic(nn.Module):
    """Two convolutions of 3 x 3, and the shortcut."""

    def __init__(self, before: int, channels: int, stride: int, make_norm: Make, make_act: Make) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False),
            make_norm(channels),
            make_act(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            make_norm(channels),
        )
        self.shortcut = _shortcut(before, channels, stride, make_norm)
        self.act = make_act(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, height, width) to (batch, channels, height / stride, width / stride)."""
        out: Tensor = self.act(self.branch(x) + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """Convolutions of 1 x 1, 3 x 3 and 1 x 1, the last with four times the channels, and the shortcut."""

    def __init__(self, before: int, channels: int, stride: int, make_norm: Make, make_act: Make) -> None:
        super().__init__()
        wide = EXPANSION * channels
        self.branch = nn.Sequential(
            nn.Conv2d(before, channels, 1, bias=False),
            make_norm(channels),
            make_act(channels),
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False),
            make_norm(channels),
            make_act(channels),
            nn.Conv2d(channels, wide, 1, bias=False),
            make_norm(wide),
        )
        self.shortcut = _shortcut(before, wide, stride, make_norm)
        self.act = make_act(wide)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, height, width) to (batch, 4 * channels, height / stride, width / stride)."""
        out: Tensor = self.act(self.branch(x) + self.shortcut(x))
        return out


def _shortcut(before: int, after: int, stride: int, make_norm: Make) -> nn.Module:
    if before == after and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), make_norm(after))
