"""Plain convolutional network: blocks of convolution, activation and pooling, then dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from bayesnn.errors import fraction, unknown
from bayesnn.nets._shapes import (
    Activation,
    activation_factory,
    check_images,
    image_shape,
    per_block,
    positive,
    positives,
)
from bayesnn.nets.maxout import Maxout
from bayesnn.nets.norms import norm_and_activation

POOLS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class ConvNet(nn.Module):
    """Blocks of convolution, activation and pooling, then dense layers with an activation after each but the last.

    Parameters
    ----------
    in_shape : sequence of 3 int
        (channels, height, width) of one image.
    num_outputs : int
        Number of outputs, usually classes.
    channels : sequence of int
        Channels of each block; at least one block.
    kernel_size : int or sequence of int
        Side of the square kernel, for all blocks or for each.
    pool : int or sequence of int
        Side and stride of the pooling, for all blocks or for each; 1 is none.
    dense : sequence of int
        Widths of the hidden dense layers; ``()`` goes straight from the last block to the outputs.
    activation : str or callable
        As in :class:`bayesnn.nets.MLP`.
    dropout : float
        Probability in [0, 1) with which an element is dropped, in train mode, after every block and every hidden
        dense layer. 0 adds no dropout layers.
    padding : {"same", "valid"}
        "same" pads the convolutions with zeros to keep the size, "valid" loses ``kernel_size - 1`` pixels.
    stride : int or sequence of int
        Of the convolutions, for all blocks or for each.
    pooling : {"max", "average"}
    norm : {"frn", "group", "batch"}, optional
        Between convolution and activation, see :class:`bayesnn.nets.ResNet` for what a posterior wants; "frn" brings
        its own activation. None by default.
    maxout : int
        Above 1 each block has so many times its channels, and the largest of each group (:class:`bayesnn.nets.Maxout`)
        takes the place of the activation.
    global_average : bool
        Whether the dense layers see the average of each map of the last block, instead of all of its pixels.

    Raises
    ------
    ValueError
        If the image is too small for its blocks (the message gives the smallest that works), or another argument is
        out of range.
    TypeError
        If a size is no integer, or ``activation`` is neither a name nor a callable that makes a module.

    Notes
    -----
    Parameters are named ``blocks.<b>.conv.weight`` and ``head.<i>.weight``, and likewise for ``bias``.

    Examples
    --------
    >>> import torch
    >>> ConvNet((3, 32, 32), num_outputs=10)(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_outputs: int,
        channels: Sequence[int] = (32, 64),
        kernel_size: int | Sequence[int] = 3,
        pool: int | Sequence[int] = 2,
        dense: Sequence[int] = (128,),
        activation: Activation = "relu",
        dropout: float = 0.0,
        padding: Literal["same", "valid"] = "same",
        stride: int | Sequence[int] = 1,
        pooling: Literal["max", "average"] = "max",
        norm: str | None = None,
        maxout: int = 1,
        global_average: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape = image_shape(in_shape)
        self.num_outputs = positive("num_outputs", num_outputs)
        widths = positives("channels", channels)
        if not widths:
            raise ValueError("channels: expected at least one block, got (): use MLP for a net without convolutions")
        kernels = per_block("kernel_size", kernel_size, len(widths))
        pools = per_block("pool", pool, len(widths))
        if padding not in ("same", "valid"):
            raise ValueError(f"padding: expected 'same' or 'valid', got {padding!r}: pass one of the two")
        if pooling not in POOLS:
            raise unknown("pooling", pooling, POOLS)
        strides = per_block("stride", stride, len(widths))
        groups = positive("maxout", maxout)
        make_activation = activation_factory(activation)
        dropout = fraction("dropout", dropout)
        height, width = _map_size(self.in_shape, kernels, strides, pools, padding)
        self.global_average = global_average

        blocks: list[nn.Module] = []
        channels_in = self.in_shape[0]
        for channels_out, kernel, step, side in zip(widths, kernels, strides, pools, strict=True):
            pad = _conv_padding(kernel, step, padding)
            conv = nn.Conv2d(channels_in, channels_out * groups, kernel, stride=step, padding=pad)
            block = nn.Sequential()
            block.add_module("conv", conv)
            make_norm, make_own = norm_and_activation(norm) if norm is not None else (None, None)
            if make_norm is not None:
                block.add_module("norm", make_norm(channels_out * groups))
            if groups > 1:
                block.add_module("act", Maxout(groups))
            elif norm == "frn" and make_own is not None:
                block.add_module("act", make_own(channels_out))
            else:
                block.add_module("act", make_activation())
            if side > 1:
                block.add_module("pool", POOLS[pooling](side))
            if dropout > 0.0:
                block.add_module("dropout", nn.Dropout(dropout))
            blocks.append(block)
            channels_in = channels_out
        self.blocks = nn.Sequential(*blocks)

        head: list[nn.Module] = []
        width_in = channels_in * (1 if global_average else height * width)
        for width_out in positives("dense", dense):
            head += [nn.Linear(width_in, width_out), make_activation()]
            if dropout > 0.0:
                head.append(nn.Dropout(dropout))
            width_in = width_out
        head.append(nn.Linear(width_in, self.num_outputs))
        self.head = nn.Sequential(*head)

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
        check_images("ConvNet", x, self.in_shape)
        maps: Tensor = self.blocks(x)  # (batch, channels[-1], height, width)
        out: Tensor = self.head(maps.mean((2, 3)) if self.global_average else maps.flatten(1))  # (batch, num_outputs)
        return out


def _conv_padding(kernel: int, stride: int, padding: str) -> int | str:
    if padding == "valid":
        return 0
    if kernel % 2 == 0 and stride > 1:
        raise ValueError(f"kernel_size: expected an odd one with padding 'same' and stride {stride}, got {kernel}")
    # An even kernel needs one zero more on one side, which only torch's own "same" can say.
    return kernel // 2 if kernel % 2 else "same"


def _map_size(
    in_shape: tuple[int, int, int], kernels: Sequence[int], strides: Sequence[int], pools: Sequence[int], padding: str
) -> tuple[int, int]:
    """Return (height, width) after the last block, or raise ValueError where nothing is left of the map."""
    reach = [kernel if padding == "valid" else 1 for kernel in kernels]  # pixels that the first output needs
    smallest = 1
    for first, stride, pool in zip(reversed(reach), reversed(strides), reversed(pools), strict=True):
        smallest = (smallest * pool - 1) * stride + first

    _, height, width = in_shape
    for block, (first, stride, pool) in enumerate(zip(reach, strides, pools, strict=True)):
        needed = (pool - 1) * stride + first
        if min(height, width) < needed:
            raise ValueError(
                f"ConvNet: expected a map of at least {needed}x{needed} before block {block} (kernel_size "
                f"{kernels[block]}, pool {pool}, padding {padding!r}), got {height}x{width} from in_shape {in_shape}: "
                f"images must be at least {smallest}x{smallest}, or take fewer blocks"
            )
        height, width = (((side - first) // stride + 1) // pool for side in (height, width))
    return height, width
