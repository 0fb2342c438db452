"""Whether chains agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bayesnn.diagnostics import ess, rhat
from bayesnn.plots._style import (
    BLUE,
    COLOURS,
    SKY,
    STYLES,
    VERMILLION,
    AxesArray,
    Values,
    finish,
    one_axes,
    panels_for,
    to_numpy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def traces(
    values: Values, names: Sequence[str] | None = None, axes: Axes | Sequence[Axes] | AxesArray | None = None
) -> AxesArray:
    """Draws in the order they were made, a line to each chain, with R-hat and ESS in the title.

    Parameters
    ----------
    values : Tensor or ndarray, (chain, draw, quantity)
        At most 8 quantities: outputs on a few inputs tell more than weights.
    names : sequence of str, optional
        Of the quantities, with their units.
    axes : sequence of Axes, optional
        One to each quantity.

    Returns
    -------
    array of Axes, (quantity,)

    Raises
    ------
    ValueError
        If `values` has other axes, no or more than 8 quantities, or the numbers of names or axes differ from theirs.
    """
    draws = to_numpy(values)
    if draws.ndim != 3 or not 1 <= draws.shape[2] <= 8:
        raise ValueError(f"values must be (chain, draw, quantity), 1 to 8 quantities; got {draws.shape}: choose a few")
    chains, length, quantities = draws.shape
    titles = [f"quantity {i}" for i in range(quantities)] if names is None else list(names)
    if len(titles) != quantities:
        raise ValueError(f"names must be {quantities}, one to a quantity; got {len(titles)}: {titles}")
    panels = panels_for(axes, quantities, (8.0, 1.9 if quantities > 1 else 3.2), vertical=True)
    # Diagnostics warn where they cannot say anything; here the title says so.
    worst = rhat(draws) if chains > 1 and length >= 4 else np.full(quantities, np.nan)
    sizes = ess(draws) if length >= 4 else np.full(quantities, np.nan)
    for i, ax in enumerate(panels):
        for chain in range(chains):
            ax.plot(draws[chain, :, i], color=COLOURS[chain % len(COLOURS)], linewidth=0.9, alpha=0.8,
                    label=f"chain {chain}")  # fmt: skip
        agreement = f"R-hat {worst[i]:.3f}" if chains > 1 else "one chain: no R-hat"
        ax.set_title(f"{titles[i]}   ({agreement}, bulk ESS {sizes[i]:.0f} of {chains * length})")
        ax.set_xlim(0, max(length - 1, 1))
        finish(ax, legend=False)
        ax.title.set_fontsize(12)
        if i < quantities - 1:
            ax.tick_params(labelbottom=False)
    panels[-1].set_xlabel("draw" if chains == 1 else f"draw (a colour to each of {chains} chains)")
    return panels


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
