"""The convolutional autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bayesnn.nets._shapes import Activation, activation_factory, check_images, image_shape, positive, positives


class ConvAutoencoder(nn.Module):
    """Convolutions that halve the image down to a code, and convolutions on the enlarged maps back up.

    On the way up each map is enlarged to the size that it had on the way down, by its nearest pixels, and convolved
    (Odena, Dumoulin & Olah 2016: transposed convolutions leave a checkerboard). Images of any size come back as they
    were.

    Parameters
    ----------
    in_shape : sequence of 3 int
        (channels, height, width) of one image.
    channels : sequence of int
        Of each convolution on the way down, 3x3 with stride 2.
    code : int, optional
        Width of a dense code between the two; none by default: the last map is the code.
    outputs : int
        Outputs for each number of the image, as in :class:`bayesnn.nets.Autoencoder`.
    activation : str or callable
        As in :class:`bayesnn.nets.MLP`.

    Raises
    ------
    ValueError
        If a size is below 1, there is no convolution, or the image is too small for them.
    """

    def __init__(
        self,
        in_shape: Sequence[int] = (1, 28, 28),
        channels: Sequence[int] = (16, 32),
        code: int | None = None,
        outputs: int = 1,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.in_shape = image_shape(in_shape)
        widths = positives("channels", channels)
        if not widths:
            raise ValueError("channels: expected at least one convolution, got (): use Autoencoder")
        self.outputs = positive("outputs", outputs)
        make_activation = activation_factory(activation)
        first, *sides = self.in_shape
        smallest = 2 ** len(widths)
        if min(sides) < smallest:
            raise ValueError(
                f"ConvAutoencoder: expected images of at least {smallest}x{smallest} for {len(widths)} convolutions, "
                f"got {sides[0]}x{sides[1]}: take fewer"
            )
        self.sizes = [(sides[0], sides[1])]
        down: list[nn.Module] = []
        before = first
        for width in widths:
            down += [nn.Conv2d(before, width, 3, stride=2, padding=1), make_activation()]
            before = width
            height, breadth = self.sizes[-1]
            self.sizes.append(((height + 1) // 2, (breadth + 1) // 2))
        self.encoder = nn.Sequential(*down)
        height, breadth = self.sizes[-1]
        self.code_shape = (before, height, breadth)
        numbers = before * height * breadth
        self.to_code = nn.Linear(numbers, positive("code", code)) if code is not None else None
        self.from_code = nn.Linear(code, numbers) if code is not None else None
        self.code_act = make_activation() if code is not None else None
        backwards = (*reversed(widths[:-1]), first * self.outputs)
        self.decoder = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(reversed(widths), backwards, strict=True)
        )
        self.acts = nn.ModuleList(make_activation() for _ in backwards[:-1])

    def encode(self, x: Tensor) -> Tensor:
        """Map images, (batch, *in_shape), to codes: (batch, code), or the last maps, (batch, *code_shape)."""
        check_images("ConvAutoencoder", x, self.in_shape)
        maps: Tensor = self.encoder(x)
        if self.to_code is None:
            return maps
        code: Tensor = self.to_code(maps.flatten(1))
        return code

    def forward(self, x: Tensor) -> Tensor:
        """Map images, (batch, *in_shape), to images, (batch, outputs * channels, height, width)."""
        maps = self.encode(x)
        if self.from_code is not None and self.code_act is not None:
            maps = self.code_act(self.from_code(maps)).view(-1, *self.code_shape)
        for k, conv in enumerate(self.decoder):
            maps = conv(F.interpolate(maps, size=self.sizes[-2 - k], mode="nearest"))
            if k < len(self.acts):
                maps = self.acts[k](maps)
        return maps
