"""Whether doubt tells inputs of another kind apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from bayesnn.metrics.detection import auroc, roc_curve
from bayesnn.plots._style import GREY, finish, line_look, one_axes, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def detection_roc(scores: Mapping[str, tuple[torch.Tensor, torch.Tensor]], ax: Axes | None = None) -> Axes:
    """ROC curves: the share of other inputs that is flagged, against the share of one's own that is flagged wrongly.

    Parameters
    ----------
    scores : dict of str to (inside, outside), each (batch,)
        Scores that grow with doubt, of inputs of the kind that the net was fitted to and of another kind.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If a score is no vector, is empty, or holds NaN.
    """
    ax = one_axes(ax, (5.2, 5.2))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="tells nothing")
    for k, (name, (inside, outside)) in enumerate(scores.items()):
        flagged, detected = roc_curve(inside, outside)
        label = f"{name}: area {auroc(inside, outside):.3f}"
        ax.plot(to_numpy(flagged), to_numpy(detected), **line_look(k, marker=None, label=label))
    ax.set_xlim(-0.01, 1.01)
    ax.set_ylim(-0.01, 1.01)
    ax.set_aspect("equal")
    ax.set_xlabel("share of own inputs flagged")
    ax.set_ylabel("share of other inputs flagged")
    finish(ax)
    return ax
