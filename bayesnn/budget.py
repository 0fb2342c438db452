"""The budget of a comparison: what each method may spend, and how many epochs that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bayesnn.errors import positive

# Shares of the budget. Shorter, and what a method does once would pass for what it does in each epoch; up to the second
# where the costs do not lie on a line yet.
PROBED, PROBED_MORE, STRAIGHT = 1 / 8, 1 / 4, 0.1
MOST_PROBED = 1024  # epochs: a method that refuses as many asks for something else


@dataclass(frozen=True)
class Budget:
    """What is equal between the methods of a comparison.

    Attributes
    ----------
    kind : ``"epochs"``: the same passes over the data for each chain. ``"gradients"``: the same gradient evaluations
        for each method, all its chains together. ``"time"``: the same seconds of fitting, all chains together.
    seconds : of ``"time"``.
    """

    kind: Literal["epochs", "gradients", "time"]
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``"epochs"``, ``"gradients"`` or ``"time:SECONDS"``; ValueError for anything else."""
        kind, _, seconds = str(text).partition(":")
        if text in ("epochs", "gradients"):
            return cls(text)  # type: ignore[arg-type]
        try:
            if kind == "time":
                return cls("time", positive("seconds", float(seconds)))
        except ValueError:
            pass
        raise ValueError(
            f"Expected budget 'epochs', 'gradients' or 'time:SECONDS', got {text!r}: time:60 is a minute a method."
        )

    def sentence(self, epochs: int | None) -> str:
        """What the budget was, in words."""
        if self.kind == "time":
            return f"about {self.seconds:g} s of fitting a method, all chains together"
        if self.kind == "gradients":
            return f"the gradients of {epochs} epochs a method, all chains together"
        return f"{epochs} epochs a chain"


def epochs_within(budget: float, cost: Callable[[int], float]) -> int:
    """The largest E with a + b E <= budget, and at least 1.

    The line a + b E goes through the last two of cost(1), cost(2), cost(4), ..., at least three of them; a is what
    a method does once, such as the looks for a step size or a last pass over the data. The last cost is the first that
    takes an eighth of the budget and is within a tenth of what the line through the two before it says, or that takes
    a quarter.

    Parameters
    ----------
    budget : of one chain, in the units of ``cost``.
    cost : of a chain of that many epochs. A ValueError says that so few are too few.
    """
    points: list[tuple[int, float]] = []
    epochs = 1
    while True:
        try:
            points.append((epochs, cost(epochs)))
        except ValueError:
            if epochs >= MOST_PROBED:
                raise
        if points and (points[-1][1] >= budget or _enough(points, budget)):
            break
        epochs *= 2
    if len(points) == 1:
        return points[0][0]
    a, b = _line(points[-2:])
    return max(1, int((budget - a) / b + 1e-9))


def _enough(points: list[tuple[int, float]], budget: float) -> bool:
    if len(points) < 3:
        return False
    (a, b), (n, spent) = _line(points[-3:-1]), points[-1]
    return spent >= PROBED_MORE * budget or (spent >= PROBED * budget and abs(a + b * n - spent) <= STRAIGHT * spent)


def _line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """(a, b) of a + b E through two points, or through the origin and the later, where a clock was off."""
    (n, first), (m, second) = points
    b = (second - first) / (m - n)
    a = second - b * m
    return (a, b) if b > 0 and a >= 0 else (0.0, second / m)
