"""Errors and names: one line that says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DivergedError(RuntimeError):
    """Every chain's loss became NaN or infinite before one draw was kept."""


def unknown(kind: str, got: object, known: Iterable[str]) -> ValueError:
    """The error for a name that nobody knows, with the nearest one that is known."""
    known = sorted(known)
    near = difflib.get_close_matches(str(got).lower(), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"Unknown {kind} {got!r}: {hint}Known: {', '.join(known)}.")


def positive(name: str, value: float) -> float:
    """``value`` if it is a finite number > 0, else a ValueError that names it."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError(f"Expected {name} > 0 and finite, got {value!r}: give a positive number.")
    return value


def fraction(name: str, value: float) -> float:
    """``value`` if it lies in [0, 1), else a ValueError that names it."""
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"Expected {name} in [0, 1), got {value!r}: it is a share, not a count.")
    return value


def at_least(name: str, value: int, least: int) -> int:
    """``value`` if it is an integer >= ``least``, else a ValueError that names it."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"Expected {name} to be an integer >= {least}, got {value!r}.")
    return value
