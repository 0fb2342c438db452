"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998) for images of any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bayesnn.nets._shapes import Activation, activation_factory, check_images, image_shape, positive

KERNEL = 5
POOL = 2


class LeNet5(nn.Module):
    """Two 5x5 convolutions of 6 and 16 channels, each pooled by 2, then dense layers of 120, 84 and the outputs.

    Parameters
    ----------
    in_shape : sequence of 3 int
        (channels, height, width) of one image.
    num_outputs : int
        Number of outputs, usually classes.
    activation : str or callable
        As in :class:`bayesnn.nets.MLP`.

    Raises
    ------
    ValueError
        If the image is too small to be pooled twice (below 4 pixels a side), or another argument is out of range.
    TypeError
        If a size is no integer, or ``activation`` is neither a name nor a callable that makes a module.

    Notes
    -----
    The layers' sizes are those of figure 2 of the paper. Today's usual choices replace the rest: max-pooling for the
    trainable subsampling, every map of the second convolution connected to all 6 maps before it, ReLU for the scaled
    tanh, and a linear output layer for the radial basis functions.

    Padding, for height and width each on its own:

    - the first convolution keeps the size (2 pixels of zeros on every side), so that 28x28 gives the paper's maps,
      28 -> 14 -> 10 -> 5, which the paper gets from 32x32 without padding;
    - the second has none, as in the paper, unless its input is smaller than 6, where it could not be pooled
      afterwards: there it keeps the size too. So 8x8 gives 8 -> 4 -> 4 -> 2.

    With ``in_shape=(1, 28, 28)`` and 10 outputs there are 61,706 parameters.

    References
    ----------
    LeCun, Bottou, Bengio & Haffner (1998), Gradient-based learning applied to document recognition, Proc. IEEE 86(11).

    Examples
    --------
    >>> import torch
    >>> LeNet5(in_shape=(1, 8, 8))(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        in_shape: Sequence[int] = (1, 28, 28),
        num_outputs: int = 10,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.in_shape = image_shape(in_shape)
        self.num_outputs = positive("num_outputs", num_outputs)
        make_activation = activation_factory(activation)

        channels, *size = self.in_shape
        _check_size(self.in_shape, 1, size)
        size = [side // POOL for side in size]
        _check_size(self.in_shape, 2, size)
        padding = [0 if side >= KERNEL - 1 + POOL else KERNEL // 2 for side in size]
        height, width = ((side + 2 * pad - KERNEL + 1) // POOL for side, pad in zip(size, padding, strict=True))

        self.conv1 = nn.Conv2d(channels, 6, KERNEL, padding=KERNEL // 2)
        self.act1 = make_activation()
        self.conv2 = nn.Conv2d(6, 16, KERNEL, padding=(padding[0], padding[1]))
        self.act2 = make_activation()
        self.dense1 = nn.Linear(16 * height * width, 120)
        self.act3 = make_activation()
        self.dense2 = nn.Linear(120, 84)
        self.act4 = make_activation()
        self.dense3 = nn.Linear(84, self.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to outputs.

        Parameters
        ----------
        x : Tensor, shape (batch, *in_shape)

        Returns
        -------
        Tensor, shape (batch, num_outputs)
            Logits when they are classes.

        Raises
        ------
        ValueError
            If the images have another shape than ``in_shape``.
        """
        check_images("LeNet5", x, self.in_shape)
        h: Tensor = F.max_pool2d(self.act1(self.conv1(x)), POOL)  # (batch, 6, 14, 14) for 28x28
        h = F.max_pool2d(self.act2(self.conv2(h)), POOL)  # (batch, 16, 5, 5) for 28x28
        h = self.act3(self.dense1(h.flatten(1)))  # (batch, 120)
        h = self.act4(self.dense2(h))  # (batch, 84)
        h = self.dense3(h)  # (batch, num_outputs)
        return h


def _check_size(in_shape: tuple[int, int, int], layer: int, size: Sequence[int]) -> None:
    """Raise ValueError if a map of ``size`` (height, width) is too small for pooling ``layer``."""
    if min(size) < POOL:
        smallest = POOL * POOL
        raise ValueError(
            f"LeNet5: expected a map of at least {POOL}x{POOL} before pooling {layer}, got {size[0]}x{size[1]} "
            f"from in_shape {in_shape}: images must be at least {smallest}x{smallest}"
        )
