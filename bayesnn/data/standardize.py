"""Standardisation: the affine map to mean 0 and standard deviation 1, and data sets that carry it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bayesnn.data.dataset import Data

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


@dataclass(frozen=True, eq=False)
class Standardize:
    """The affine map ``(v - mean) / std`` and its inverse.

    Parameters
    ----------
    mean, std : Tensor
        Of one shape that broadcasts against the trailing axes of ``v``: () for targets of shape (N,), (F,) for
        features (N, F), (C, 1, 1) for images (N, C, H, W). So ``v`` may have
        more leading axes: (chain, draw, batch, F).

    Raises
    ------
    ValueError
        If the shapes differ, the numbers are not finite, or an ``std`` is not positive.
    TypeError
        If ``mean`` or ``std`` is not floating or their dtypes differ.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if not self.mean.is_floating_point() or self.mean.dtype != self.std.dtype:
            raise TypeError(
                f"Standardize: expected mean and std of one floating dtype, got {self.mean.dtype} and "
                f"{self.std.dtype}: convert them first"
            )
        if self.mean.shape != self.std.shape:
            raise ValueError(
                f"Standardize: expected mean and std of one shape, got {tuple(self.mean.shape)} and "
                f"{tuple(self.std.shape)}: expand one of them"
            )
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.std).all() and (self.std > 0).all()):
            raise ValueError(
                "Standardize: expected a finite mean and a finite std above 0, got others: give a constant std 1"
            )

    @classmethod
    def fit(cls, v: Tensor, per_channel: bool = True) -> Standardize:
        """Take mean and standard deviation (divisor N) over the rows of ``v``.

        Parameters
        ----------
        v : Tensor, shape (N, ...), floating
        per_channel : bool
            For ``v`` of 3 axes or more, (N, C, ...): one pair of constants for each of the C channels if True, for each
            element of a row if False. With 1 or 2 axes there is one pair for each feature in either case.

        Returns
        -------
        Standardize
            Constants of shape () for (N,), (F,) for (N, F), (C, 1, ...) for (N, C, ...). What is constant gets std 1.

        Raises
        ------
        ValueError
            If ``v`` has no rows, or its numbers are not finite.
        TypeError
            If ``v`` is not floating.
        """
        if not v.is_floating_point():
            raise TypeError(f"Standardize.fit: expected a floating tensor, got {v.dtype}: convert it with .float()")
        if v.dim() == 0 or v.numel() == 0:
            raise ValueError(f"Standardize.fit: expected at least one row, got shape {tuple(v.shape)}: pass (N, ...)")
        dims = [0, *range(2, v.dim())] if per_channel else [0]
        var, mean = torch.var_mean(v, dim=dims, correction=0, keepdim=True)
        # Rounding can leave a constant feature a variance above 0; only its range tells.
        constant = v.amax(dims, keepdim=True) == v.amin(dims, keepdim=True)
        std = torch.where(constant | (var == 0), torch.ones_like(var), var.sqrt())
        return cls(mean.squeeze(0), std.squeeze(0))

    def forward(self, v: Tensor) -> Tensor:
        """Return ``(v - mean) / std``, on the device and in the floating dtype of ``v``, in its shape."""
        return (v - self._like(self.mean, v)) / self._like(self.std, v)

    def inverse(self, v: Tensor) -> Tensor:
        """Return ``v * std + mean``: standardised numbers back in their own units."""
        return v * self._like(self.std, v) + self._like(self.mean, v)

    @staticmethod
    def _like(constant: Tensor, v: Tensor) -> Tensor:
        return constant.to(device=v.device, dtype=v.dtype if v.is_floating_point() else constant.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, exactly: dtype, shape, and mean and std as flat lists of floats."""
        return {
            "dtype": str(self.mean.dtype).removeprefix("torch."),
            "shape": list(self.mean.shape),
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Standardize:
        """Return what :meth:`to_dict` was called on, to the bit, on the CPU.

        Raises
        ------
        ValueError
            If a key is missing, the dtype unknown, or the lists do not fill the shape.
        """
        missing = [key for key in ("dtype", "shape", "mean", "std") if key not in values]
        if missing:
            raise ValueError(
                f"Standardize.from_dict: expected dtype, shape, mean, std; got no {', '.join(missing)}: pass a to_dict"
            )
        if values["dtype"] not in _DTYPES:
            raise ValueError(
                f"Standardize.from_dict: expected a dtype among {', '.join(_DTYPES)}; got {values['dtype']!r}: "
                "pass what to_dict gave"
            )
        dtype, shape = _DTYPES[values["dtype"]], torch.Size(values["shape"])
        for key in ("mean", "std"):
            if len(values[key]) != shape.numel():
                raise ValueError(
                    f"Standardize.from_dict: expected {shape.numel()} numbers in {key} for shape {tuple(shape)}, "
                    f"got {len(values[key])}: pass what to_dict gave"
                )
        mean, std = (torch.tensor(values[key], dtype=dtype).reshape(shape) for key in ("mean", "std"))
        return cls(mean, std)


def standardize(train: Data, *others: Data) -> tuple[Data, ...]:
    """Standardise inputs by the training rows, and note the constants of a floating target.

    Parameters
    ----------
    train : Data
        Gives mean and standard deviation of ``x``: per feature for (N, F), per channel for (N, C, ...); and of ``y``,
        where that is floating, as ``target``. ``y`` itself stays in its own units.
    *others : Data
        Validation or test parts; they get the training part's constants.

    Returns
    -------
    tuple of Data
        ``(train, *others)``.

    Raises
    ------
    ValueError
        If one of them is standardised already, or its inputs have another shape than the training part's.
    TypeError
        If ``x`` is not floating, or one of the parts is no ``Data``.
    """
    for data in (train, *others):
        if not hasattr(data, "in_shape"):
            raise TypeError(f"standardize: expected Data, got a {type(data).__name__}: make one with Data.of(x, y)")
    inputs = Standardize.fit(train.x)
    target = Standardize.fit(train.y) if train.y.is_floating_point() else None
    return tuple(apply_standardize(data, inputs, target, train.in_shape) for data in (train, *others))


def apply_standardize(data: Data, inputs: Standardize, target: Standardize | None, in_shape: tuple[int, ...]) -> Data:
    """Return ``data`` with ``x`` standardised by given constants, or raise ValueError as :func:`standardize` does."""
    if data.inputs is not None:
        raise ValueError(f"standardize: expected inputs in their own units, got {data!r} standardised already: skip it")
    if data.in_shape != in_shape:
        raise ValueError(
            f"standardize: expected inputs of shape {in_shape} as in the training part, got {data.in_shape}: reshape x"
        )
    return dataclasses.replace(data, x=inputs.forward(data.x), inputs=inputs, target=target)
