"""How well chains mix: correlation of a chain with itself, and ranks of its draws among those of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bayesnn.diagnostics import ess, rhat
from bayesnn.plots._style import (
    COLOURS,
    GREY,
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


def autocorrelation(
    values: Values,
    names: Sequence[str] | None = None,
    max_lag: int | None = None,
    axes: Axes | Sequence[Axes] | AxesArray | None = None,
) -> AxesArray:
    """Correlation of draws with those made a number of draws later, a line to each chain.

    Of a chain x_1, ..., x_n: rho_t = sum_{i <= n - t} (x_i - m)(x_{i+t} - m) / sum_i (x_i - m)^2, m its own mean. The
    grey band, +- 1.96 / sqrt(n), is where 95 % of them lie for independent draws.

    Parameters
    ----------
    values : Tensor or ndarray, (chain, draw, quantity)
        At most 8 quantities.
    names : sequence of str, optional
        Of the quantities.
    max_lag : int, optional
        By default a third of the draws, and 100 at most.
    axes : sequence of Axes, optional
        One to each quantity.

    Returns
    -------
    array of Axes, (quantity,)

    Raises
    ------
    ValueError
        As `traces`; with fewer than 4 draws to a chain; or if `max_lag` is not in [1, draws).
    """
    draws, titles = quantities_of(values, names, least=4)
    chains, length, quantities = draws.shape
    lags = max(1, min(length // 3, 100)) if max_lag is None else max_lag
    if not 1 <= lags < length:
        raise ValueError(f"max_lag must be in [1, {length}), the number of draws; got {max_lag}: leave it out")
    panels = panels_for(axes, quantities, (4.6, 3.6))
    centred = draws - draws.mean(1, keepdims=True)
    square = (centred**2).sum(1)  # (chain, quantity)
    sizes = ess(draws, "mean")
    band = 1.96 / np.sqrt(length)
    for i, ax in enumerate(panels):
        ax.axhspan(-band, band, color=LIGHT, zorder=0, label="95 % of independent draws")
        for chain in range(chains):
            x = centred[chain, :, i]
            if np.ptp(draws[chain, :, i]) == 0:
                continue  # a chain that does not move has no correlation, and its mean is one only up to rounding
            rho = [float(x[: length - t] @ x[t:]) / square[chain, i] for t in range(lags + 1)]
            ax.plot(rho, color=COLOURS[chain % len(COLOURS)], linestyle=STYLES[chain % len(STYLES)], linewidth=1.6,
                    label=f"chain {chain}")  # fmt: skip
        ax.set_title(f"{titles[i]}   (ESS {sizes[i]:.0f} of {chains * length})")
        ax.set_xlim(0, lags)
        ax.set_ylim(top=1.02)
        ax.set_xlabel("lag (draws)")
        ax.set_ylabel("autocorrelation" if i == 0 else "")
        finish(ax)
        ax.title.set_fontsize(12)
    share_legend(panels, made=axes is None)
    return panels


def ranks(
    values: Values,
    names: Sequence[str] | None = None,
    bins: int | None = None,
    axes: Axes | Sequence[Axes] | AxesArray | None = None,
) -> AxesArray:
    """Histograms of the ranks of each chain's draws among those of all chains: level where the chains agree.

    A chain in another place has its draws at one end, one of another width a hill or a valley. The grey band is where
    95 % of the bars of *independent* draws lie (a bin's share of a chain is hypergeometric); correlated ones leave it
    more often.

    Parameters
    ----------
    values : Tensor or ndarray, (chain, draw, quantity)
        At most 8 quantities, two chains or more.
    names : sequence of str, optional
        Of the quantities.
    bins : int, optional
        Bins of the ranks; by default 20 or as many as leave five draws of a chain to a bin, and bins of equal size.
    axes : sequence of Axes, optional
        One to each quantity.

    Returns
    -------
    array of Axes, (quantity,)

    Raises
    ------
    ValueError
        As `traces`; with a single chain, or fewer than 4 draws; or if there are more bins than draws in all.

    References
    ----------
    Vehtari et al. (2021), Rank-normalization, folding, and localization, Bayesian Analysis 16(2): rank plots.
    """
    from scipy import stats

    draws, titles = quantities_of(values, names, least=4)
    chains, length, quantities = draws.shape
    if chains < 2:
        raise ValueError("values must be of two chains or more; got 1: its ranks among its own draws say nothing")
    total = chains * length
    if bins is None:
        bins = max(b for b in range(1, 21) if total % b == 0 and (b <= 2 or length >= 5 * b))
    if not 1 <= bins <= total:
        raise ValueError(f"bins must be in [1, {chains * length}], the number of draws; got {bins}: 20 is usual")
    panels = panels_for(axes, quantities, (4.6, 3.6))
    worst = rhat(draws)
    edges = np.linspace(0, chains * length, bins + 1)
    inside = stats.hypergeom(chains * length, round(chains * length / bins), length)
    for i, ax in enumerate(panels):
        place = stats.rankdata(draws[:, :, i], axis=None).reshape(chains, length) - 0.5
        ax.axhspan(*inside.ppf((0.025, 0.975)), color=LIGHT, zorder=0, label="95 % of independent draws")
        ax.axhline(length / bins, color=GREY, linewidth=1)
        for chain in range(chains):
            ax.stairs(np.histogram(place[chain], edges)[0], edges, color=COLOURS[chain % len(COLOURS)],
                      linestyle=STYLES[chain % len(STYLES)], linewidth=1.6, label=f"chain {chain}")  # fmt: skip
        ax.set_title(f"{titles[i]}   (R-hat {worst[i]:.3f})")
        ax.set_xlim(0, chains * length)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("rank among all draws")
        ax.set_ylabel("draws in the bin" if i == 0 else "")
        finish(ax)
        ax.title.set_fontsize(12)
    share_legend(panels, made=axes is None)
    return panels
