"""Errors and names: one line that says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


class DivergedError(RuntimeError):
    """Every chain's loss became NaN or infinite before one draw was kept."""


def unknown(kind: str, got: object, known: Iterable[str]) -> ValueError:
    """The error for a name that nobody knows, with the nearest one that is known."""
    known = sorted(known)
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(got).lower(), by_lower, n=3, cutoff=0.4)
    near.sort(key=lambda name: sorted(name) != sorted(str(got).lower()))  # letters in another order are a slip: sgdl
    hint = f"did you mean {by_lower[near[0]]!r}? " if near else ""
    return ValueError(f"Unknown {kind} {got!r}: {hint}Known: {', '.join(known)}.")


def is_real(value: Any) -> bool:
    """Whether ``value`` is a real number of any type, numpy's included, but no boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)


def positive(name: str, value: Any) -> float:
    """``value`` if it is a finite number > 0, else a ValueError that names it."""
    if not is_real(value) or not 0 < value < float("inf"):
        raise ValueError(f"Expected {name} > 0 and finite, got {value!r}: give a positive number.")
    return float(value)


def not_negative(name: str, value: Any, hint: str = "give a non-negative number") -> float:
    """``value`` if it is a finite number >= 0, else a ValueError that names it."""
    if not is_real(value) or not 0 <= value < float("inf"):
        raise ValueError(f"Expected {name} >= 0 and finite, got {value!r}: {hint}.")
    return float(value)


def fraction(name: str, value: Any, hint: str = "it is a share, not a count") -> float:
    """``value`` if it lies in [0, 1), else a ValueError that names it."""
    if not is_real(value) or not 0 <= value < 1:
        raise ValueError(f"Expected {name} in [0, 1), got {value!r}: {hint}.")
    return float(value)


def at_least(name: str, value: Any, least: int) -> int:
    """``value`` if it is an integer >= ``least``, else a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"Expected {name} to be an integer >= {least}, got {value!r}.")
    return int(value)


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or its name where it says nothing: to quote in an error of ours."""
    return next(iter(str(error).splitlines()), type(error).__name__)
