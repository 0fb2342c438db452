"""Whether predicted probabilities are those of what comes true, and whether doubt is where the errors are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
import torch

from bayesnn.metrics import as_class_probs, confidence_bins, ece, rejection_curve
from bayesnn.plots._style import (
    BLUE,
    GREY,
    LIGHT,
    ORANGE,
    STYLES,
    AxesArray,
    finish,
    line_look,
    one_axes,
    panels_for,
    share_legend,
    to_numpy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@overload
def reliability(
    probs: torch.Tensor, y: torch.Tensor, bins: int = 15, ax: Axes | None = None, label: str | None = None
) -> Axes: ...
@overload
def reliability(
    probs: Mapping[str, torch.Tensor],
    y: torch.Tensor,
    bins: int = 15,
    ax: Sequence[Axes] | AxesArray | None = None,
    label: None = None,
) -> AxesArray: ...
def reliability(
    probs: torch.Tensor | Mapping[str, torch.Tensor],
    y: torch.Tensor,
    bins: int = 15,
    ax: Axes | Sequence[Axes] | AxesArray | None = None,
    label: str | None = None,
) -> Axes | AxesArray:
    """Reliability diagram: accuracy against confidence of the top class, in equal-width bins of confidence.

    The grey band is where 90 % of the points of a *calibrated* model with these confidences and these numbers of rows
    would fall (binomial quantiles; consistency bars), so that a point outside is evidence and one inside is not. The
    strip below shows the number of rows in each bin.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,), or dict of str to Tensor
        Class probabilities; a dict draws one panel per method.
    y : Tensor, (batch,), int
    bins : int
        Number of bins on [0, 1].
    ax : Axes, or for a dict a sequence of as many, optional
    label : str, optional
        Name of the method, for the title; the ECE is in it anyway.

    Returns
    -------
    Axes, or for a dict an array of Axes, (method,)

    Raises
    ------
    ValueError
        If the shapes do not match, or the number of axes is not the number of methods.

    References
    ----------
    Guo et al. (2017), On calibration of modern neural networks, ICML.
    Bröcker & Smith (2007), Increasing the reliability of reliability diagrams, Weather and Forecasting 22.
    """
    if isinstance(probs, Mapping):
        panels = panels_for(ax, len(probs), (4.3, 4.6))
        for i, (panel, (name, one)) in enumerate(zip(panels, probs.items(), strict=True)):
            reliability(one, y, bins, panel, name)
            if i > 0:
                panel.set_ylabel("")
        share_legend(panels, made=ax is None)
        return panels
    from scipy import stats

    single = one_axes(ax, (4.9, 5.0))
    confidence, accuracy, count = (column.cpu().numpy() for column in confidence_bins(probs, y, bins))
    full = count > 0
    confidence, accuracy, rows = confidence[full], accuracy[full], count[full]
    left = np.arange(bins)[full] / bins
    low, high = (stats.binom.ppf(p, rows, np.clip(confidence, 0, 1)) / rows for p in (0.05, 0.95))
    single.bar(left, high - low, 1 / bins, bottom=low, align="edge", color=LIGHT, zorder=1,
               label="90 % band of a calibrated model")  # fmt: skip
    single.plot([0, 1], [0, 1], color=GREY, linestyle=STYLES[1], linewidth=1.2, zorder=2)
    single.plot(confidence, accuracy, color=BLUE, marker="o", markersize=6, linewidth=1.6, zorder=3, clip_on=False,
                label="accuracy")  # fmt: skip
    # The strip has its own place under 0, where no accuracy can be.
    single.bar(left, 0.15 * rows / rows.max(), 0.9 / bins, bottom=-0.24, align="edge", color=ORANGE, zorder=2)
    most = int(rows.argmax())
    single.text(left[most] + 0.5 / bins, -0.085, f"{int(rows[most])}", ha=_inward(left[most] + 0.5 / bins),
                va="bottom", fontsize=10, color=GREY)  # fmt: skip
    single.axhline(-0.02, color=LIGHT, linewidth=0.8)
    ticks = np.linspace(0, 1, 6)
    single.set_yticks([-0.165, *ticks], ["rows", *(f"{tick:.1f}" for tick in ticks)])
    single.set_xlim(0, 1)
    single.set_ylim(-0.26, 1.02)
    single.set_xlabel("confidence in the top class")
    single.set_ylabel("accuracy")
    error = f"ECE {100 * ece(probs, y, bins):.1f} %"
    single.set_title(f"{label}: {error}" if label else error)
    finish(single)
    return single


def accuracy_rejection(
    curves: Mapping[str, tuple[torch.Tensor, torch.Tensor]], y: torch.Tensor, ax: Axes | None = None
) -> Axes:
    """Accuracy on the rows that are kept, when the most uncertain ones are rejected first.

    The curve ends where fewer than 1 % of the rows, or fewer than 20, are left: what follows is noise. Rows of equal
    uncertainty are rejected in the mean over all their orders.

    Parameters
    ----------
    curves : dict of str to (probs, uncertainty)
        Class probabilities, (batch, K) or (batch,), and any uncertainty, (batch,), that grows with doubt.
    y : Tensor, (batch,), int
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    ax = one_axes(ax, (6.4, 4.2))
    for i, (name, (probs, uncertainty)) in enumerate(curves.items()):
        probs = as_class_probs(probs)
        if uncertainty.shape != y.shape or len(probs) != len(y):
            raise ValueError(
                f"{name}: probs and uncertainty must have one row for each of the {len(y)} in y; "
                f"got {tuple(probs.shape)} and {tuple(uncertainty.shape)}: pass the same test rows"
            )
        coverage, accuracy = map(to_numpy, rejection_curve(probs, y, uncertainty))
        first = min(len(y), max(20, math.ceil(len(y) / 100))) - 1
        ax.plot(1 - coverage[first:], accuracy[first:],
                **line_look(i, label=name, markersize=6, markevery=max(1, (len(y) - first) // 8)))  # fmt: skip
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of rows rejected, most uncertain first")
    ax.set_ylabel("accuracy on the rest")
    finish(ax)
    return ax


def _inward(x: float) -> str:
    """Horizontal alignment that keeps a text at `x` in [0, 1] from leaving the axes."""
    return "left" if x < 0.05 else "right" if x > 0.95 else "center"
