"""Methods side by side: what each costs and what it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bayesnn.plots._style import finish, line_look, one_axes, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def nll_against_seconds(methods: Mapping[str, tuple[Sequence[float], Sequence[float]]], ax: Axes | None = None) -> Axes:
    """A point to each method: test NLL against the seconds of its fit, whiskers of one standard error over seeds.

    Parameters
    ----------
    methods : dict of str to (seconds, nll)
        One of each for each seed; NLL in nats per row.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If there is no method, or the numbers of seconds and NLLs differ, are zero, or are not finite.
    """
    if not methods:
        raise ValueError("there must be at least one method to draw; got an empty dict")
    ax = one_axes(ax, (6.4, 4.4))
    for k, (name, (seconds, nll)) in enumerate(methods.items()):
        if not seconds or len(seconds) != len(nll) or not all(map(math.isfinite, (*seconds, *nll))):
            raise ValueError(
                f"{name}: seconds and nll must be finite, one of each for each seed; got {len(seconds)} and {len(nll)}"
            )
        centre, spread = zip(*map(_mean_and_error, (seconds, nll)), strict=True)
        ax.errorbar(centre[0], centre[1], xerr=spread[0] or None, yerr=spread[1] or None, elinewidth=1.5, capsize=3,
                    **line_look(k, linestyle="none", markersize=9, markeredgewidth=1.5, label=name))  # fmt: skip
    ax.set_xscale("log")
    plain_ticks(ax)
    ax.margins(0.12)
    ax.set_xlabel("seconds of the fit")
    ax.set_ylabel("test NLL (nats per row)")
    finish(ax)
    return ax


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error; that of a single value is unknown, and not drawn."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
