"""Autoencoders: images through a narrow code and back, with a distribution for each pixel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from bayesnn.nets._shapes import Activation, activation_factory, check_images, image_shape, positive, positives


class Autoencoder(nn.Module):
    """Dense layers down to a code and, mirrored, back up to the image.

    The output has the image's shape, for ``likelihoods.Normal()`` (one noise for all pixels), or twice its channels
    (``outputs=2``) for ``HeteroscedasticNormal()``; with ``Bernoulli()``, of black and white, outputs are logits.

    Parameters
    ----------
    in_shape : sequence of 3 int
        (channels, height, width) of one image.
    widths : sequence of int
        Widths of the encoder's layers; the last is that of the code.
    outputs : int
        Outputs for each number of the image.
    activation : str or callable
        As in :class:`bayesnn.nets.MLP`.

    Raises
    ------
    ValueError
        If a size is below 1, or there is no layer.
    """

    def __init__(
        self,
        in_shape: Sequence[int] = (1, 28, 28),
        widths: Sequence[int] = (128, 32),
        outputs: int = 1,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.in_shape = image_shape(in_shape)
        sizes = positives("widths", widths)
        if not sizes:
            raise ValueError("widths: expected at least one width, got (): the last is that of the code")
        self.outputs = positive("outputs", outputs)
        make_activation = activation_factory(activation)
        pixels = math.prod(self.in_shape)
        down, up = (pixels, *sizes), (*reversed(sizes), pixels * self.outputs)
        self.encoder, self.decoder = _dense(down, make_activation), _dense(up, make_activation)

    def encode(self, x: Tensor) -> Tensor:
        """Map images, (batch, *in_shape), to codes, (batch, widths[-1])."""
        check_images("Autoencoder", x, self.in_shape)
        code: Tensor = self.encoder(x.flatten(1))
        return code

    def forward(self, x: Tensor) -> Tensor:
        """Map images, (batch, *in_shape), to images, (batch, outputs * channels, height, width)."""
        channels, height, width = self.in_shape
        out: Tensor = self.decoder(self.encode(x)).view(len(x), self.outputs * channels, height, width)
        return out


def _dense(sizes: Sequence[int], make_activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear layers with an activation after each but the last."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), make_activation()]
    return nn.Sequential(*layers[:-1])
