"""The course of a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from bayesnn.plots._style import COLOURS, GREY, MARKERS, STYLES, finish, one_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

History: TypeAlias = Sequence[Mapping[str, float]]

_NATS = {
    "loss": "training NLL", "train_nll": "training NLL", "val_loss": "validation loss", "val_nll": "validation NLL"
}  # fmt: skip


def training_curves(
    history: History | Mapping[str, History], metric: str | None = None, ax: Axes | None = None
) -> Axes:
    """Training and validation NLL by epoch, a thin line to each chain.

    Of a single method the gap between the two at the end, in the mean over chains, is marked with its size.

    Parameters
    ----------
    history : list of dict, or dict of str to list of dict
        Rows {"chain": int, "epoch": int, "loss": float, "val_nll": float, ...}; a row without the wanted number (no
        validation in that epoch) is passed over. A dict draws one colour per method.
    metric : str, optional
        The one column to draw. By default the mean minibatch negative log likelihood, nats per row ("loss", of
        standardised targets "train_nll", in whose units the other one is; solid) and, where there is one, "val_nll"
        (nats per row; dashed).
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If there is no row with the column.
    """
    from matplotlib.ticker import MaxNLocator

    methods = history if isinstance(history, Mapping) else {"": history}
    rows = [row for one in methods.values() for row in one]
    own = "train_nll" if any(row.get("train_nll") is not None for row in rows) else "loss"
    wanted = [own, "val_nll"] if metric is None else [metric]
    columns = [column for column in wanted if any(row.get(column) is not None for row in rows)]
    if not columns:
        have = sorted({key for row in rows for key in row})
        raise ValueError(
            f"history must have rows with {' or '.join(map(repr, wanted))}; got columns {have}: pass metric"
        )
    ax = one_axes(ax, (7.0, 4.2))
    several = len(methods) > 1
    for i, one in enumerate(methods.values()):
        for j, column in enumerate(columns):
            colour = COLOURS[(i if several else j) % len(COLOURS)]
            style = STYLES[(j if len(columns) > 1 else i) % len(STYLES)]
            kept = [row for row in one if row.get(column) is not None]
            for chain in dict.fromkeys(row.get("chain", 0) for row in kept):
                points = sorted((row["epoch"], row[column]) for row in kept if row.get("chain", 0) == chain)
                epoch, value = zip(*points, strict=True)
                ax.plot(epoch, value, color=colour, linestyle=style, linewidth=1.3, alpha=0.85, markersize=4.5,
                        marker=MARKERS[i % len(MARKERS)] if several else None,
                        markevery=max(1, len(epoch) // 6))  # fmt: skip
    # Lines without data for the legend: one entry per method and per column, instead of one per pair and chain.
    for i, method in enumerate(methods):
        if several:
            style = STYLES[0 if len(columns) > 1 else i % len(STYLES)]
            ax.plot([], [], color=COLOURS[i % len(COLOURS)], linestyle=style, linewidth=2, label=method,
                    marker=MARKERS[i % len(MARKERS)], markersize=5)  # fmt: skip
    for j, column in enumerate(columns):
        if len(columns) > 1:
            colour = GREY if several else COLOURS[j]
            ax.plot([], [], color=colour, linestyle=STYLES[j], linewidth=1.5,
                    label=f"{_NATS[column]} (nats)")  # fmt: skip
    if len(columns) == 2 and not several:
        _mark_gap(ax, rows, *columns)
    name = _NATS.get(columns[0], columns[0].replace("_", " "))
    ax.set_xlabel("epoch")
    ax.set_ylabel("nats per row" if len(columns) > 1 else f"{name} / nats per row" if columns[0] in _NATS else name)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(ax)
    return ax


def _mark_gap(ax: Axes, rows: History, training: str, validation: str) -> None:
    """An arrow from the training NLL to the validation NLL at the last epoch that has both."""
    both = [row for row in rows if row.get(training) is not None and row.get(validation) is not None]
    if not both:
        return
    last = max(row["epoch"] for row in both)
    ends = [sum(row[column] for row in both if row["epoch"] == last) for column in (training, validation)]
    low, high = (end / sum(row["epoch"] == last for row in both) for end in ends)
    arrow = {"arrowstyle": "<->", "color": GREY, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (last, high), (last, low), annotation_clip=False, arrowprops=arrow)
    ax.annotate(f"gap\n{high - low:.3g} nats", (last, (low + high) / 2), (7, 0), textcoords="offset points", ha="left",
                va="center", fontsize=11, color=GREY, annotation_clip=False)  # fmt: skip
