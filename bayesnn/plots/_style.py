"""Colours, axes and legends that all pictures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.layout_engine import LayoutEngine

Values: TypeAlias = torch.Tensor | NDArray[Any]
AxesArray: TypeAlias = NDArray[np.object_]

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
# Neighbours in this order differ in lightness too.
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
GREY, LIGHT = "#595959", "#D9D9D9"
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1)))


def line_look(k: int, **own: Any) -> dict[str, Any]:
    """How the line of method number ``k`` looks: no two of the first 36 have both colour and style in common."""
    turn = k // len(COLOURS)
    look = {"color": COLOURS[k % len(COLOURS)], "linestyle": STYLES[(k + turn) % len(STYLES)], "linewidth": 2}
    marker = {"marker": MARKERS[k % len(MARKERS)], "markerfacecolor": "white" if turn % 2 else look["color"]}
    return {**look, **marker, "markersize": 5, **own}


def to_numpy(values: Values) -> NDArray[np.float64]:
    """Numbers as an array in float64, wherever they lie."""
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def one_axes(ax: Any, size: tuple[float, float]) -> Axes:
    """``ax``, or axes on a new figure of that size (inches) where it is None."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    if ax is None:
        return Figure(figsize=size, layout=layout()).subplots()
    if not isinstance(ax, Axes):
        raise ValueError(f"ax must be one matplotlib Axes; got {type(ax).__name__}: pass a dict to draw several panels")
    return ax


def panels_for(axes: Any, count: int, size: tuple[float, float], vertical: bool = False) -> AxesArray:
    """``axes``, or ``count`` on a new figure where they are None, each of that size (inches): (count,)."""
    from matplotlib.figure import Figure

    if count == 0:
        raise ValueError("there must be at least one method to draw; got an empty dict")
    if axes is None:
        rows, columns = (count, 1) if vertical else (1, count)
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout=layout())
        grid: AxesArray = figure.subplots(rows, columns, squeeze=False)
        return grid.ravel()
    panels = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
    if len(panels) != count:
        raise ValueError(f"axes must be {count}, one to a panel; got {len(panels)}: leave them out to have them made")
    return panels


def quantities_of(values: Values, names: Sequence[str] | None, least: int = 1) -> tuple[NDArray[np.float64], list[str]]:
    """Draws (chain, draw, quantity) of 1 to 8 quantities as float64, and a title for each."""
    draws = to_numpy(values)
    if draws.ndim != 3 or not 1 <= draws.shape[2] <= 8:
        raise ValueError(f"values must be (chain, draw, quantity), 1 to 8 quantities; got {draws.shape}: choose a few")
    if draws.shape[1] < least:
        raise ValueError(f"values must have {least} draws to a chain or more; got {draws.shape[1]}: keep more")
    titles = [f"quantity {i}" for i in range(draws.shape[2])] if names is None else list(names)
    if len(titles) != draws.shape[2]:
        raise ValueError(f"names must be {draws.shape[2]}, one to a quantity; got {len(titles)}: {titles}")
    return draws, titles


def layout() -> LayoutEngine:
    """A new figure's layout, which leaves room for the legends underneath."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)


def finish(ax: Axes, legend: bool = True) -> None:
    """Give the axes the common look. The legend stands below, where it can hide no data and meet no title."""
    ax.xaxis.label.set_fontsize(13)
    ax.yaxis.label.set_fontsize(13)
    ax.title.set_fontsize(14)
    ax.tick_params(labelsize=11, length=3, color=GREY)
    ax.grid(True, color=LIGHT, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    if legend and handles:
        width, height = ax.bbox.width / ax.figure.dpi, ax.bbox.height / ax.figure.dpi
        # 0.55 inch clears the ticks and the x label, whatever the height of the axes.
        ax.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.55 / height), fontsize=11, frameon=False,
                  ncols=_columns(labels, width, 11), handlelength=2.4, columnspacing=1.2, borderaxespad=0)  # fmt: skip


def _columns(labels: Sequence[str], width: float, size: float) -> int:
    """As many columns of a legend in letters of ``size`` points as fit into a width in inches."""
    letters = [(0.058 + 0.0077 * len(label)) * size for label in labels]  # a handle, and the letters
    columns = len(labels)
    while columns > 1 and sum(max(letters[i::columns]) for i in range(columns)) > width:
        columns -= 1
    return columns


def plain_ticks(ax: Axes) -> None:
    """Numbers along a logarithmic x axis as people write them, at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = ax.get_xlim()
    steps = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(subs=steps))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def share_legend(panels: AxesArray, made: bool) -> None:
    """One legend for all panels: below a figure of our own, below the first panel in somebody else's."""
    named: dict[str, Any] = {}  # of all panels: a line may be missing in one of them
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    labels, handles = list(named), list(named.values())
    for panel in panels[0 if made else 1 :]:
        if panel.get_legend() is not None:
            panel.get_legend().remove()
    if made:
        figure = panels[0].figure
        columns = _columns(labels, figure.get_figwidth(), 12)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=12, frameon=False,
                      handlelength=2.4, columnspacing=1.2)  # fmt: skip
