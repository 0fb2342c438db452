"""Draws in the order they were made: whether chains move, and whether they have arrived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bayesnn.diagnostics import ess, mcse_mean, rhat
from bayesnn.plots._style import (
    COLOURS,
    LIGHT,
    STYLES,
    AxesArray,
    Values,
    finish,
    panels_for,
    quantities_of,
    share_legend,
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
    draws, titles = quantities_of(values, names)
    chains, length, quantities = draws.shape
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


def running_mean(
    values: Values, names: Sequence[str] | None = None, axes: Axes | Sequence[Axes] | AxesArray | None = None
) -> AxesArray:
    """Mean of the draws so far, a line to each chain: where they end apart, or still climb, the run was too short.

    The grey band is the mean of all draws +- 2 of its Monte-Carlo standard errors, which take the chains to be
    stationary: lines that end outside it say that they are not.

    Parameters
    ----------
    values : Tensor or ndarray, (chain, draw, quantity)
        At most 8 quantities.
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
        As `traces`; also with fewer than 4 draws to a chain, which have no Monte-Carlo error.
    """
    draws, titles = quantities_of(values, names, least=4)
    chains, length, quantities = draws.shape
    panels = panels_for(axes, quantities, (8.0, 2.0 if quantities > 1 else 3.2), vertical=True)
    means = draws.cumsum(1) / np.arange(1, length + 1)[:, None]  # (chain, draw, quantity)
    centre, error = draws.mean((0, 1)), mcse_mean(draws)
    for i, ax in enumerate(panels):
        ax.axhspan(centre[i] - 2 * error[i], centre[i] + 2 * error[i], color=LIGHT, zorder=0,
                   label="all draws, +- 2 standard errors")  # fmt: skip
        for chain in range(chains):
            ax.plot(np.arange(1, length + 1), means[chain, :, i], color=COLOURS[chain % len(COLOURS)],
                    linestyle=STYLES[chain % len(STYLES)], linewidth=1.6, label=f"chain {chain}")  # fmt: skip
        # The first few draws' means would set a scale on which nothing of the end is seen.
        shown = means[:, length // 20 :, i]
        low, high = min(shown.min(), centre[i] - 3 * error[i]), max(shown.max(), centre[i] + 3 * error[i])
        if high > low:
            ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        ax.set_title(f"{titles[i]}   ({centre[i]:.3g} +- {error[i]:.2g})")
        ax.set_xlim(1, max(length, 2))
        finish(ax)
        ax.title.set_fontsize(12)
        if i < quantities - 1:
            ax.tick_params(labelbottom=False)
    panels[-1].set_xlabel("draws so far")
    share_legend(panels, made=axes is None)
    return panels
