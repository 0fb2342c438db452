"""R-hat and effective sample sizes of many quantities at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bayesnn.plots._style import BLUE, SKY, STYLES, VERMILLION, Values, finish, one_axes, plain_ticks, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rhat_histogram(rhat_values: Values, ax: Axes | None = None, threshold: float = 1.05) -> Axes:
    """Histogram of R-hat over many quantities, with the share above the threshold in the title.

    Values above 2 (two chains in two places) are counted in the last bin. Those that are nan are left out, and counted
    in the title.

    Parameters
    ----------
    rhat_values : Tensor or ndarray, any shape
        As from `bayesnn.diagnostics.rhat`.
    ax : Axes, optional
    threshold : float
        What is still called converged.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If no value is a number (R-hat of a single chain).
    """
    everything = to_numpy(rhat_values).ravel()
    values = everything[~np.isnan(everything)]
    if len(values) == 0:
        raise ValueError(f"rhat_values must hold a number; got {len(everything)} nan: fit with at least two chains")
    ax = one_axes(ax, (6.4, 4.0))
    start = min(1.0, float(values.min()))
    end = max(2 * threshold - 1.0, min(float(values.max()), 2.0))
    edges = np.linspace(start, end, 51)
    counts = np.histogram(np.minimum(values, end), edges)[0]
    ax.stairs(counts, edges, fill=True, color=SKY, edgecolor=BLUE, linewidth=0.8)
    ax.axvline(threshold, color=VERMILLION, linestyle=STYLES[1], linewidth=1.8, label=f"threshold {threshold:g}")
    above = float((values > threshold).mean())
    unknown = len(everything) - len(values)
    missing = f", {unknown:,} nan" if unknown else ""
    ax.set_title(f"{100 * above:.1f} % of {len(values):,} above {threshold:g}{missing}")
    ax.set_xlim(start, end)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("R-hat (2 and more in the last bin)" if values.max() > 2.0 else "R-hat")
    ax.set_ylabel("number of quantities")
    finish(ax)
    return ax


def ess_histogram(ess_values: Values, draws: int, ax: Axes | None = None, threshold: float = 400) -> Axes:
    """Histogram of effective sample sizes over many quantities, with the share below the threshold in the title.

    The scale is logarithmic. Values that are nan are left out, and counted in the title.

    Parameters
    ----------
    ess_values : Tensor or ndarray, any shape
        As from `bayesnn.diagnostics.ess`.
    draws : int
        Draws of all chains, which independent draws would be worth: marked.
    ax : Axes, optional
    threshold : float
        What is still called enough: 400 for R-hat and ESS themselves to be trusted (Vehtari et al. 2021).

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If no value is a number (fewer than 4 draws to a chain), or one is infinite, zero or negative.
    """
    everything = to_numpy(ess_values).ravel()
    values = everything[~np.isnan(everything)]
    if len(values) == 0:
        raise ValueError(f"ess_values must hold a number; got {len(everything)} nan: keep 4 draws a chain or more")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError("ess_values must be positive and finite, or nan; got others: take diagnostics.ess")
    ax = one_axes(ax, (6.4, 4.0))
    start, end = min(float(values.min()), threshold, draws) / 1.2, 1.2 * max(float(values.max()), threshold, draws)
    edges = np.geomspace(start, end, 51)
    ax.stairs(np.histogram(values, edges)[0], edges, fill=True, color=SKY, edgecolor=BLUE, linewidth=0.8)
    ax.axvline(threshold, color=VERMILLION, linestyle=STYLES[1], linewidth=1.8, label=f"threshold {threshold:g}")
    ax.axvline(draws, color=BLUE, linestyle=STYLES[2], linewidth=1.8, label=f"{draws:,} draws")
    below = float((values < threshold).mean())
    unknown = len(everything) - len(values)
    missing = f", {unknown:,} nan" if unknown else ""
    ax.set_title(f"{100 * below:.1f} % of {len(values):,} below {threshold:g}{missing}")
    ax.set_xscale("log")
    plain_ticks(ax)
    ax.set_xlim(start, end)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("effective draws of all chains")
    ax.set_ylabel("number of quantities")
    finish(ax)
    return ax
