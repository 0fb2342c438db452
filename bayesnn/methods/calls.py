"""Calls of linear and convolution functions as data: which function, with which options, and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Op:
    """F.linear, or F.conv1d, 2d, 3d with its options (stride, padding, dilation, groups)."""

    function: Callable[..., Tensor]
    options: tuple[Any, ...] = ()

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.function(x, weight, bias, *self.options)


Call = tuple[Op, Tensor, Tensor, Tensor | None]  # op, input, weight, bias


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call:
    return Op(F.linear), input, weight, bias


def _conv(function: Callable[..., Tensor]) -> Callable[..., Call]:
    def call(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Call:
        return Op(function, (stride, padding, dilation, groups)), input, weight, bias

    return call


# Each reads the arguments as its function does, by position or by name.
CALLS: dict[Any, Callable[..., Call]] = {F.linear: _linear, **{f: _conv(f) for f in (F.conv1d, F.conv2d, F.conv3d)}}


def explicit(op: Op, x: Tensor, weight: Tensor) -> tuple[Op, Tensor]:
    """Options as lists of numbers, as a convolution's backward pass takes them; ``padding="same"`` may pad x."""
    if not op.options:
        return op, x
    axes = weight.dim() - 2
    stride, padding, dilation, groups = op.options
    stride, dilation = _per_axis(stride, axes), _per_axis(dilation, axes)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = [t // 2 for t in total]
        if any(t % 2 for t in total):  # one more at the end of an axis; F.pad begins with the last axis
            x = F.pad(x, [side for t in reversed(total) for side in (0, t % 2)])
    elif padding == "valid":
        padding = 0
    return Op(op.function, (stride, _per_axis(padding, axes), dilation, groups)), x


def _per_axis(value: Any, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def gradients(
    op: Op, g: Tensor, x: Tensor, weight: Tensor, x_needs: bool, b_needs: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``op(x, weight, bias)`` with respect to the three, at the gradient g of its outputs."""
    if op.options:
        stride, padding, dilation, groups = op.options
        g_x, g_weight, g_b = torch.ops.aten.convolution_backward(
            g,
            x,
            weight,
            [len(weight)],
            stride,
            padding,
            dilation,
            False,
            [0] * len(stride),
            groups,
            [x_needs, True, b_needs],
        )
        return g_x, g_weight, g_b
    rows = g.reshape(-1, g.shape[-1])
    g_weight = rows.T @ x.reshape(-1, x.shape[-1])
    return (g @ weight if x_needs else None), g_weight, (rows.sum(0) if b_needs else None)
