"""A data set in memory, and splits of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesnn.data.standardize import Standardize


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Inputs and targets in memory: ``x`` as the net takes it (standardised already), ``y`` in its own units.

    Parameters
    ----------
    x : Tensor, shape (N, ...)
        Inputs, standardised where ``inputs`` says so.
    y : Tensor, shape (N,) or (N, ...)
        Targets, in their own units always: integers for classes and counts, floating for regression.
    name : str
        What reports call the data set.
    classes : tuple of str, optional
        Names of the classes 0, 1, and so on; ``num_outputs`` counts them. Give them where a subset may lack the last.
    inputs : Standardize, optional
        How ``x`` was standardised: ``inputs.inverse(x)`` is in the inputs' own units.
    target : Standardize, optional
        Constants with which ``fit`` standardises ``y``; predictions come back in the target's own units.

    Raises
    ------
    ValueError
        If ``x`` and ``y`` differ in rows or have none, hold NaN or infinities, a class lies outside ``classes``, or
        ``target`` or ``classes`` does not go with the dtype of ``y``.
    TypeError
        If ``x`` or ``y`` is no tensor of real numbers; :meth:`Data.of` takes arrays and lists.
    """

    x: Tensor
    y: Tensor
    name: str = ""
    classes: tuple[str, ...] | None = None
    inputs: Standardize | None = None
    target: Standardize | None = None

    def __post_init__(self) -> None:
        for label, v in (("x", self.x), ("y", self.y)):
            if not isinstance(v, Tensor):
                raise TypeError(f"Data: expected {label} to be a tensor, got {type(v).__name__}: use Data.of(x, y)")
            check_dtype(label, v)
            if v.dim() == 0:
                raise ValueError(
                    f"Data: expected {label} of shape (N, ...), got a single number: pass one row per case"
                )
        if len(self.x) != len(self.y):
            raise ValueError(
                f"Data: expected as many rows in y as in x ({len(self.x)}), got {len(self.y)}: one target per input"
            )
        if self.x.numel() == 0 or self.y.numel() == 0:
            raise ValueError(
                f"Data: expected at least one row, got x {tuple(self.x.shape)} and y {tuple(self.y.shape)}: add rows"
            )
        check_finite("x", self.x)
        check_finite("y", self.y)
        if self.y.is_floating_point():
            if self.classes is not None:
                raise ValueError(f"Data: expected integer y with classes, got {self.y.dtype}: convert y with .long()")
            return
        if self.target is not None:
            raise ValueError(f"Data: expected floating y with target, got {self.y.dtype}: leave target out for classes")
        low, high = int(self.y.min()), int(self.y.max())
        if self.classes is not None and not 0 <= low <= high < len(self.classes):
            raise ValueError(
                f"Data: expected y from 0 to {len(self.classes) - 1}, one of {len(self.classes)} classes, "
                f"got {low} to {high}: renumber y or name every class"
            )

    @classmethod
    def of(
        cls,
        x: Any,
        y: Any,
        name: str = "",
        classes: Sequence[str] | None = None,
        inputs: Standardize | None = None,
        target: Standardize | None = None,
    ) -> Data:
        """Make a ``Data`` of arrays, lists, data frames or tensors.

        Parameters
        ----------
        x : array-like or Tensor, shape (N, ...)
            Floating numbers keep their dtype, which is float64 for lists: a number like 1e9 + 1 has no float32. ``fit``
            and ``predict`` cast to the net's dtype themselves. Integers stay (as indices for an embedding need them),
            booleans become torch's default dtype.
        y : array-like or Tensor, shape (N,) or (N, ...)
            As ``x``, except that integers and booleans become int64, in tensors as well.
        name, classes, inputs, target
            As in the class.

        Raises
        ------
        TypeError
            If an array holds no numbers (strings, objects).
        ValueError
            If rows differ in length, and as the class does.
        """
        return cls(as_inputs(x), as_targets(y), name, None if classes is None else tuple(classes), inputs, target)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        kind = f", {self.num_outputs} classes" if self.classes is not None else ""
        return (
            f"Data({self.name!r}, {len(self)} rows, x {tuple(self.x.shape)} {self.x.dtype}, "
            f"y {tuple(self.y.shape)} {self.y.dtype}{kind})"
        )

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x.shape[1:])

    @property
    def num_outputs(self) -> int:
        """Outputs a net needs: the number of classes for integer ``y``, else 1 for (N,) and D for (N, D).

        Without ``classes`` the number of classes is the largest label in these rows plus 1.

        Raises
        ------
        ValueError
            If ``y`` is integer and negative somewhere.
        """
        if self.y.is_floating_point():
            return 1 if self.y.dim() == 1 else self.y.shape[1]
        if self.classes is not None:
            return len(self.classes)
        if int(self.y.min()) < 0:
            raise ValueError(f"Data: expected classes 0, 1, ..., got {int(self.y.min())}: renumber y from 0")
        return int(self.y.max()) + 1

    def subset(self, indices: Tensor | Sequence[int]) -> Data:
        """Return the rows ``indices``, in their order, with everything else the same.

        Parameters
        ----------
        indices : Tensor or sequence of int, shape (M,)
            Row numbers, or a boolean tensor of shape (N,).

        Raises
        ------
        ValueError
            If no row is left, or ``indices`` is not one list.
        IndexError
            If there is no such row.
        """
        rows = torch.as_tensor(indices)
        if rows.dim() != 1 or len(rows) == 0:
            raise ValueError(
                f"Data.subset: expected a list of at least one row, got shape {tuple(rows.shape)}: pass row numbers"
            )
        return dataclasses.replace(self, x=self.x[rows.to(self.x.device)], y=self.y[rows.to(self.y.device)])


def split(data: Data, fraction: float, seed: int = 0, stratify: bool | None = None) -> tuple[Data, Data]:
    """Split rows at random into the rest and a part of about ``fraction * N`` rows, both in the order of ``data``.

    Parameters
    ----------
    data : Data
        At least 2 rows.
    fraction : float
        Share of the part, in (0, 1). The part gets ``round(fraction * N)`` rows, at least 1 and at most N - 1.
    seed : int
        Seed of a generator of its own; the same seed gives the same split.
    stratify : bool, optional
        Give each class its share, to within one row, and leave no class out of the rest as long as that can be. By
        default so for integer targets of shape (N,).

    Returns
    -------
    rest, part : Data

    Raises
    ------
    ValueError
        If ``fraction`` is outside (0, 1), there is 1 row only, or ``stratify`` is asked for targets that are not
        integers of shape (N,).
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"split: expected a fraction in (0, 1), got {fraction}: 0.2 gives a fifth to the part")
    num_data = len(data)
    if num_data < 2:
        raise ValueError(f"split: expected at least 2 rows, one for each side, got {num_data}: pass more data")
    can_stratify = not data.y.is_floating_point() and data.y.dim() == 1
    if stratify and not can_stratify:
        raise ValueError(
            f"split: expected integer y of shape (N,) to stratify, got {data.y.dtype} {tuple(data.y.shape)}: "
            "pass stratify=False"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(num_data, generator=generator)
    size = min(max(round(fraction * num_data), 1), num_data - 1)
    in_part = torch.zeros(num_data, dtype=torch.bool)
    if can_stratify and stratify is not False:
        in_part[_stratified(data.y.cpu(), order, size)] = True
    else:
        in_part[order[:size]] = True
    return data.subset(~in_part), data.subset(in_part)


NUMBERS = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip


def in_memory(data: Any) -> Data:
    """``data`` where it is Data, or the Data of a pair (x, y), as ``fit`` takes them; else a TypeError."""
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return Data.of(*data)
    if not isinstance(data, Data):
        raise TypeError(
            f"Expected rows in memory, bayesnn.data.Data or (x, y), got {type(data).__name__}: of a loader, join "
            "the minibatches."
        )
    return data


def as_inputs(x: Any) -> Tensor:
    """Inputs as :meth:`Data.of` converts them, or its errors."""
    tensor = _tensor("x", x)
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.bool else tensor


def as_targets(y: Any) -> Tensor:
    """Targets as :meth:`Data.of` converts them, or its errors."""
    tensor = _tensor("y", y)
    return tensor if tensor.is_floating_point() else tensor.long()


def _tensor(label: str, v: Any) -> Tensor:
    if isinstance(v, Tensor):
        check_dtype(label, v)
        return v
    if np.ma.is_masked(v):
        raise ValueError(
            f"Data: expected {label} without missing numbers, got {int(np.ma.getmaskarray(v).sum())} masked: "
            "drop or fill these rows"
        )
    try:
        array = np.asarray(v)
    except ValueError as error:
        raise ValueError(
            f"Data: expected rows of one shape in {label}, got a ragged {type(v).__name__}: pad or cut its rows"
        ) from error
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"Data: expected numbers in {label}, got an array of {array.dtype}: "
            "number labels with numpy.unique(labels, return_inverse=True)"
        )
    # torch knows neither long doubles nor other byte orders, nor strides below 0.
    dtype = np.dtype(np.float64) if array.dtype.char == "g" else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def all_finite(v: Tensor) -> bool:
    """Whether all numbers of ``v`` are finite: whether their sum is, which one infinity or NaN decides.

    A sum is read off in one pass that keeps nothing. Where it overflows, the numbers are looked at one by one.
    """
    return not v.is_floating_point() or bool(torch.isfinite(v.sum())) or bool(torch.isfinite(v).all())


def check_dtype(label: str, v: Tensor) -> None:
    """Refuse complex numbers, and those that torch cannot add up."""
    if v.dtype not in NUMBERS:
        raise TypeError(f"Data: expected real numbers in {label}, got {v.dtype}: convert them, to float32 say")


def check_finite(label: str, v: Tensor) -> None:
    """Refuse NaN and infinities in ``v``, which the error calls ``label``."""
    if not all_finite(v):
        bad = ~torch.isfinite(v)
        row = int(bad.flatten(1).any(1).nonzero()[0]) if v.dim() > 1 else int(bad.nonzero()[0])
        raise ValueError(
            f"Data: expected finite numbers in {label}, got {int(bad.sum())} NaN or infinite, the first in row {row}: "
            "drop or fill these rows"
        )


def _stratified(y: Tensor, order: Tensor, size: int) -> Tensor:
    """Return ``size`` rows, each class's share by largest remainders, which of its rows by ``order``."""
    _, label, counts = torch.unique(y, return_inverse=True, return_counts=True)
    quota = counts.double() * size / len(y)
    take = quota.floor().long()
    # Classes that would be gone from the rest come last, whatever their remainder.
    remainder = quota - take - (counts - take < 2).double()
    take[remainder.argsort(descending=True, stable=True)[: size - int(take.sum())]] += 1
    by_class = order[label[order].argsort(stable=True)]
    start = counts.cumsum(0) - counts
    rank = torch.arange(len(y)) - start[label[by_class]]
    return by_class[rank < take[label[by_class]]]
