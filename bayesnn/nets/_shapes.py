"""What the networks share: checks of sizes and shapes, and activations by name."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from bayesnn.errors import unknown

Activation = str | Callable[[], nn.Module]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


def activation_factory(activation: Activation) -> Callable[[], nn.Module]:
    """Return what makes a fresh activation module for each layer.

    Parameters
    ----------
    activation : str or callable
        A name in ``ACTIVATIONS``, or a callable without arguments that returns a module (``nn.PReLU``).

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If it is a module instance (its parameters would be shared by every layer) or not callable.
    """
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        return ACTIVATIONS[activation]
    if isinstance(activation, nn.Module) or not callable(activation):
        raise TypeError(
            f"activation: expected a name or a callable that makes a module, got {activation!r}: "
            "pass the class (nn.Tanh), not an instance (nn.Tanh())"
        )
    return activation


def positive(name: str, value: int) -> int:
    """Return ``value`` as an int of at least 1, or raise ValueError (TypeError when it is no integer)."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer of at least 1, got {value!r}: pass an int") from None
    if number < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {number}: pass a positive size")
    return number


def positives(name: str, values: object) -> tuple[int, ...]:
    """Return ``values`` as a tuple of ints of at least 1, or raise ValueError or TypeError."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name}: expected a sequence of integers, got {values!r}: pass a tuple such as (50,)")
    return tuple(positive(f"{name}[{i}]", value) for i, value in enumerate(values))


def per_block(name: str, value: int | Sequence[int], blocks: int) -> tuple[int, ...]:
    """Return one size per block: an int is repeated, a sequence must have ``blocks`` entries (else ValueError)."""
    if not isinstance(value, Sequence):
        return (positive(name, value),) * blocks
    sizes = positives(name, value)
    if len(sizes) != blocks:
        raise ValueError(f"{name}: expected {blocks} entries, one per block, got {len(sizes)}: pass an int or {blocks}")
    return sizes


def image_shape(in_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return ``in_shape`` as (channels, height, width), or raise ValueError or TypeError."""
    shape = positives("in_shape", in_shape)
    if len(shape) != 3:
        raise ValueError(f"in_shape: expected (channels, height, width), got {shape}: grey images have 1 channel")
    return shape


def check_images(net: str, x: Tensor, in_shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless ``x`` has shape (batch, *in_shape)."""
    if x.dim() != 4 or tuple(x.shape[1:]) != in_shape:
        expected = ", ".join(map(str, in_shape))
        raise ValueError(
            f"{net}: expected images of shape (batch, {expected}), got {tuple(x.shape)}: "
            "reshape the input or build the net with another in_shape"
        )
