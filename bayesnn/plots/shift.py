"""How scores fall as the test images leave the distribution: the question of Ovadia et al. 2019."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bayesnn.plots._style import COLOURS, AxesArray, finish, layout, line_look, share_legend

_LABELS = {"accuracy": "accuracy", "nll": "NLL (nats)", "brier": "Brier", "ece": "ECE"}


def shift_curves(
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[str] = ("accuracy", "nll", "ece"),
    by_kind: bool = False,
) -> AxesArray:
    """Scores on shifted images against the severity of the shift, a line to each method.

    Parameters
    ----------
    rows : sequence of dict
        ``{"method", "seed", "kind", "severity", ...}`` and the metrics, of one net: the ``shifted`` of what
        ``bayesnn.compare(..., shifts=True)`` gives. A bar is one standard
        error over the seeds, where there are several.
    metrics : which of them to draw, each on a scale of its own.
    by_kind : one column of panels to each kind of shift, and one row to each metric; otherwise one panel to each
        metric, of the mean over the kinds.

    Returns
    -------
    ndarray of Axes, (metric,), or (metric, kind) with ``by_kind``

    Raises
    ------
    ValueError
        If there are no rows, or no metrics.
    """
    from matplotlib.figure import Figure

    if not rows or not metrics:
        raise ValueError(f"Expected rows and metrics to draw, got {len(rows)} and {len(metrics)}: compare with shifts.")
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    grid: AxesArray
    if by_kind:
        figure = Figure(figsize=(3.0 * len(kinds), 2.6 * len(metrics) + 0.5), layout=layout())
        grid = figure.subplots(len(metrics), len(kinds), squeeze=False, sharex=True, sharey="row")
    else:
        figure = Figure(figsize=(4.2 * len(metrics), 4.2), layout=layout())
        grid = figure.subplots(1, len(metrics), squeeze=False).T
    for i, metric in enumerate(metrics):
        for j, ax in enumerate(grid[i]):
            of_kind = [row for row in rows if not by_kind or row["kind"] == kinds[j]]
            _panel(ax, of_kind, metric)
            if i == len(metrics) - 1 or not by_kind:
                ax.set_xlabel("severity")
            if j == 0:
                ax.set_ylabel(_LABELS.get(metric, metric))
            if i == 0 and by_kind:
                ax.set_title(kinds[j])
            finish(ax)
    share_legend(grid.ravel(), made=True)
    return grid if by_kind else grid[:, 0]


def _panel(ax: Any, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    severities = sorted({row["severity"] for row in rows})
    for k, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == method]
        seeds = list(dict.fromkeys(row["seed"] for row in own))
        means = np.array([
            [np.mean([r[metric] for r in own if (r["seed"], r["severity"]) == (seed, s)]) for s in severities]
            for seed in seeds
        ])  # (seed, severity)  # fmt: skip
        ax.plot(severities, means.mean(0), **line_look(k, label=method))
        if len(seeds) > 1:
            error = means.std(0, ddof=1) / math.sqrt(len(seeds))
            ax.errorbar(severities, means.mean(0), error, fmt="none", color=COLOURS[k % len(COLOURS)], capsize=3)
    ax.set_xticks(severities)
    ax.set_ylim(bottom=0)
    if metric == "accuracy":
        ax.set_ylim(top=1.02)
