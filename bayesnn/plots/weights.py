"""What the data have taught the weights: their posterior beside their prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from bayesnn.plots._style import (
    BLUE,
    SKY,
    STYLES,
    VERMILLION,
    AxesArray,
    finish,
    layout,
    panels_for,
    share_legend,
    to_numpy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bayesnn.posterior import Posterior

MOST = 8  # panels
FEW = 4  # draws of a chain, below which a weight's spread is not told
VALUES = 200_000  # in a histogram: more cannot be told apart on it


def weights_against_prior(
    posterior: Posterior,
    names: Sequence[str] | None = None,
    draws: int | None = None,
    seed: int = 0,
    axes: Axes | Sequence[Axes] | AxesArray | None = None,
) -> AxesArray:
    """Density of all weights of a parameter, over all draws, beside that of its prior: a panel to each parameter.

    The title says how much was learned of a single weight: the median over the weights of the spread of its posterior,
    divided by the prior's, where the spread is the distance between the quartiles, which every prior has. 1 is a weight
    of which the data say nothing. It is taken within chains, as another chain may have found the same function with its
    units in another order; a chain that has not gone far yet has a small one as well.

    Parameters
    ----------
    posterior : Posterior
    names : sequence of str, optional
        Parameters with a prior, as in ``net.named_parameters()``; by default the weight matrices and kernels, or what
        there is where there are none, 8 at most.
    draws : int, optional
        Draws a chain, as in ``predict``.
    seed : int
        Of the draws from the prior, and of samples of a distribution.
    axes : sequence of Axes, optional
        One to each parameter.

    Returns
    -------
    array of Axes, (parameter,)

    Raises
    ------
    ValueError
        If a name is not one of a parameter with a prior, or there are more than 8.
    """
    have = {name.removeprefix("net."): name for name in posterior.model.log_priors if name.startswith("net.")}
    unknown = [name for name in names or () if name not in have]
    if unknown:
        raise ValueError(f"names must be of parameters with a prior, {', '.join(have)}; got {unknown[0]!r}")
    if names is None:
        shapes = posterior.model.log_priors
        matrices = [name for name, full in have.items() if len(shapes[full].event_shape) > 1]
        names = (matrices or list(have))[:MOST]
    if not 1 <= len(names) <= MOST:
        raise ValueError(f"names must be 1 to {MOST} parameters; got {len(names)}: choose a few")
    made = axes is None
    rows = -(-len(names) // 4)
    columns = -(-len(names) // rows)
    if made:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.9 * columns, 3.4 * rows), layout=layout())
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for spare in grid[len(names) :]:
            spare.remove()
        panels: AxesArray = grid[: len(names)]
    else:
        panels = panels_for(axes, len(names), (3.9, 3.4))
    chains = posterior.states(draws, seed)
    largest = max(posterior.model.log_priors[have[name]].event_shape.numel() for name in names)
    prior = list(posterior.model.prior_states(min(1000, max(100, VALUES // largest)), seed))
    for i, (ax, name) in enumerate(zip(panels, names, strict=True)):
        own = torch.stack([torch.stack([state[have[name]] for state in chain]) for chain in _level(chains)])
        own = own.flatten(2).double()  # (chain, draw, weight)
        before = torch.stack([state[have[name]] for state in prior]).double()
        ratio = ""
        if own.shape[1] >= FEW:
            learned = np.median(_quartiles(own, 1).mean(0) / _quartiles(before.flatten(1), 0))
            ratio = f"\none weight's spread: {learned:.2f} of the prior's"
        after, prior_values = _some(own), _some(before)
        # The prior's tails may be far out; the picture is of where the weights are, and of most of the prior.
        low = min(np.quantile(after, 0.001), np.quantile(prior_values, 0.02))
        high = max(np.quantile(after, 0.999), np.quantile(prior_values, 0.98))
        edges = np.linspace(low, high, 61)
        width = edges[1] - edges[0]
        ax.stairs(np.histogram(after, edges)[0] / (len(after) * width), edges, fill=True, color=SKY, edgecolor=BLUE,
                  linewidth=0.8, label="posterior, all weights and draws")  # fmt: skip
        ax.stairs(np.histogram(prior_values, edges)[0] / (len(prior_values) * width), edges, color=VERMILLION,
                  linewidth=1.8, linestyle=STYLES[1], label="prior", baseline=None)  # fmt: skip
        ax.set_title(f"{name}{ratio}")
        ax.set_xlim(low, high)
        ax.set_ylim(bottom=0)
        ax.locator_params("x", nbins=5)
        ax.set_xlabel("weight")
        ax.set_ylabel("density" if i % columns == 0 else "")
        finish(ax)
        ax.title.set_fontsize(12)
    share_legend(panels, made)
    return panels


def _quartiles(values: torch.Tensor, axis: int) -> NDArray[np.float64]:
    """Distance between the quartiles along an axis."""
    low, high = np.quantile(to_numpy(values), (0.25, 0.75), axis=axis)
    distance: NDArray[np.float64] = high - low
    return distance


def _level(chains: list[list[dict[str, torch.Tensor]]]) -> list[list[dict[str, torch.Tensor]]]:
    """Chains cut to the shortest: one that was interrupted has fewer draws."""
    shortest = min(map(len, chains))
    return [chain[:shortest] for chain in chains]


def _some(values: torch.Tensor) -> NDArray[np.float64]:
    """At most VALUES of the values, evenly spaced."""
    flat = to_numpy(values).ravel()
    return flat[:: max(1, len(flat) // VALUES)]
