"""Two classes in the plane: where the boundary is, and where nobody can know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bayesnn.plots._style import BLUE, GREY, ORANGE, finish, one_axes, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bayesnn.posterior import Posterior

GRID = 120  # points to a side
MARGIN = 0.35  # of the data's range, on each side: the part that matters is where there are no data


def decision_boundary(
    posterior: Posterior, data: tuple[Any, Any], draws: int | None = None, boundaries: int = 20, ax: Axes | None = None
) -> Axes:
    """Epistemic uncertainty over two inputs in shades, the mixture's boundary, and those of single draws.

    Parameters
    ----------
    posterior : Posterior
        Of a net with two inputs and two classes (two logits, or one).
    data : (x, y), (m, 2) and (m,)
    draws : int, optional
        Draws a chain, as in ``predict``.
    boundaries : int
        How many draws' own boundaries are drawn, thin; 0 for none.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the inputs are not two, or the classes not two.
    """
    x, y = to_numpy(torch.as_tensor(data[0])), to_numpy(torch.as_tensor(data[1]))
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"Expected two inputs, (rows, 2), got {x.shape}: a plane has two.")
    low, high = x.min(0), x.max(0)
    sides = [np.linspace(a - MARGIN * (b - a), b + MARGIN * (b - a), GRID) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)
    predictive = posterior.predict(grid, draws=draws)
    each = predictive.draws.flatten(0, 1)
    if each.dim() == 3:
        if each.shape[2] != 2:
            raise ValueError(f"Expected two classes, got {each.shape[2]}: one against the rest has a boundary.")
        each = each[..., 1]
    epistemic, probability = to_numpy(predictive.epistemic), to_numpy(each.mean(0))
    ax = one_axes(ax, (6.4, 5.2))
    shades = ax.contourf(*sides, epistemic.reshape(GRID, GRID), 12, cmap="Greys", vmin=0, vmax=1.6 * epistemic.max())
    bar = ax.figure.colorbar(shades, ax=ax, shrink=0.9)
    bar.set_label("epistemic uncertainty (nats)", fontsize=12)
    for draw in each[:: max(1, len(each) // boundaries)] if boundaries else ():
        ax.contour(*sides, to_numpy(draw).reshape(GRID, GRID), [0.5], colors=GREY, linewidths=0.5, alpha=0.6)
    ax.contour(*sides, probability.reshape(GRID, GRID), [0.5], colors="black", linewidths=2.2)
    for label, (colour, marker) in enumerate(((BLUE, "o"), (ORANGE, "^"))):
        ax.plot(*x[y == label].T, linestyle="none", marker=marker, markersize=5, color=colour, markeredgecolor="white",
                markeredgewidth=0.5, label=f"class {label}")  # fmt: skip
    ax.plot([], [], color="black", linewidth=2.2, label="boundary of the mixture")
    if boundaries:
        ax.plot([], [], color=GREY, linewidth=0.8, label="of single draws")
    ax.set_xlabel("first input")
    ax.set_ylabel("second input")
    finish(ax)
    ax.grid(False)
    return ax
