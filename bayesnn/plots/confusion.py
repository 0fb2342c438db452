"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from bayesnn.metrics import as_class_probs
from bayesnn.plots._style import finish, one_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def confusion_matrix(
    probs: torch.Tensor, y: torch.Tensor, classes: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Counts of the predicted class for each true class; the shade is the share of the true class's rows.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
        Class probabilities; the most probable class is the predicted one.
    y : Tensor, (batch,), int
    classes : sequence of str, optional
        Names of the K classes.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the shapes do not match, or the number of names is not the number of classes.
    """
    from sklearn import metrics

    probs = as_class_probs(probs)
    count = probs.shape[1]
    if y.shape != probs.shape[:1]:
        raise ValueError(f"y must have one class for each of the {len(probs)} rows in probs; got {tuple(y.shape)}")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < count:
        raise ValueError(f"y must be classes in [0, {count}); got {int(y.min())} to {int(y.max())}: count from 0")
    names = [str(k) for k in range(count)] if classes is None else list(classes)
    if len(names) != count:
        raise ValueError(f"classes must be {count} names, one to a class; got {len(names)}")
    table = metrics.confusion_matrix(y.cpu().numpy(), probs.argmax(1).cpu().numpy(), labels=range(count))
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = 1.8 + 0.55 * count
    ax = one_axes(ax, (side + 0.6, side))
    shades = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (true, predicted), number in np.ndenumerate(table):
        if number:  # an empty cell says it best by being empty
            colour = "white" if share[true, predicted] > 0.5 else "black"
            ax.text(predicted, true, f"{number:,}", ha="center", va="center", fontsize=10, color=colour)
    longest = max(map(len, names))
    ax.set_xticks(range(count), names, rotation=45 if longest > 3 else 0, ha="right" if longest > 3 else "center")
    ax.set_yticks(range(count), names)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    ax.set_title(f"accuracy {100 * np.trace(table) / max(1, table.sum()):.1f} % of {table.sum():,} rows")
    bar = ax.figure.colorbar(shades, ax=ax, shrink=0.8)
    bar.set_label("share of the true class", fontsize=12)
    finish(ax, legend=False)
    ax.grid(False)
    return ax
