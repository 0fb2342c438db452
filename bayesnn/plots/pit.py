"""Whether the distributions that were predicted for real targets are those of what came true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bayesnn.errors import at_least
from bayesnn.plots._style import BLUE, GREY, LIGHT, Values, finish, line_look, one_axes, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAND = 0.95  # of the bands in which a calibrated prediction would be


def pit_histogram(pit: Values, bins: int = 10, ax: Axes | None = None) -> Axes:
    """Histogram of the probability integral transform: flat where predictions are right.

    A hump is predictions that are too wide, a bowl ones that are too narrow. The band holds 95 % of each bar of a
    calibrated prediction (binomial).

    Parameters
    ----------
    pit : Tensor or ndarray, (batch, ...)
        Of :meth:`bayesnn.Predictive.pit`, in [0, 1].
    bins : int
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If a value is outside [0, 1], there is none, or `bins` is below 1.
    """
    values, bins = _checked(pit), at_least("bins", bins, 1)
    ax = one_axes(ax, (6.0, 4.0))
    counts, edges = np.histogram(values, bins, (0.0, 1.0))
    low, high = _band(len(values), 1 / bins) * bins
    ax.axhspan(low, high, color=LIGHT, linewidth=0, label=f"{100 * BAND:.0f} % of a calibrated prediction's bars")
    ax.bar(edges[:-1], counts * bins / len(values), 1 / bins, align="edge", color=BLUE, alpha=0.75, edgecolor="white",
           label="targets that came true")  # fmt: skip
    ax.axhline(1.0, color=GREY, linewidth=1)
    ax.set_xlim(0, 1)
    ax.set_xlabel("predicted probability of a smaller target (PIT)")
    ax.set_ylabel("density")
    finish(ax)
    return ax


def coverage_curve(pits: Mapping[str, Values], ax: Axes | None = None) -> Axes:
    """Share of targets in the central predictive interval, against its level: below the diagonal is overconfident.

    The band is where a calibrated prediction would be at each level, 95 % of the time.

    Parameters
    ----------
    pits : dict of str to Tensor or ndarray, (batch, ...)
        Of :meth:`bayesnn.Predictive.pit`, in [0, 1], for each method; the first one's size makes the band.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If a value is outside [0, 1], or there is none.
    """
    if not pits:
        raise ValueError("there must be at least one method to draw; got an empty dict")
    ax = one_axes(ax, (5.2, 5.2))
    levels = np.linspace(0, 1, 101)
    size = len(_checked(next(iter(pits.values()))))
    low, high = _band(size, levels)
    ax.fill_between(levels, low, high, color=LIGHT, linewidth=0, label=f"{100 * BAND:.0f} % of a calibrated prediction")
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    for k, (name, pit) in enumerate(pits.items()):
        # A target is inside of the central interval of level l where |2 pit - 1| <= l.
        reach = np.sort(np.abs(2 * _checked(pit) - 1))
        ax.plot(levels, np.searchsorted(reach, levels, side="right") / len(reach),
                **line_look(k, marker=None, label=name))  # fmt: skip
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_aspect("equal")
    ax.set_xlabel("level of the central interval")
    ax.set_ylabel("share of targets inside")
    finish(ax)
    return ax


def _band(rows: int, share: Values | float) -> NDArray[np.float64]:
    """Where BAND of the shares of so many rows lie, if the true one is ``share``: both ends, (2, ...)."""
    from scipy import stats  # a second, which who imports the library need not wait

    return np.stack([stats.binom.ppf(q, rows, share) / rows for q in ((1 - BAND) / 2, (1 + BAND) / 2)])


def _checked(pit: Values) -> NDArray[np.float64]:
    values = to_numpy(pit).ravel()
    if len(values) == 0 or not bool(((values >= 0) & (values <= 1)).all()):
        got = f"values from {values.min():.3g} to {values.max():.3g}" if len(values) else "none"
        raise ValueError(f"Expected probabilities in [0, 1] of predictive.pit(y), got {got}: give those.")
    return values
