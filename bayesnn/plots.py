"""One function, one picture: each returns the matplotlib axes it drew on.

Without `ax`, a new `matplotlib.figure.Figure` is made: it belongs to nobody but the caller, is not registered with
pyplot and needs no closing. `ax.figure.savefig("picture.png")` writes it; in a notebook, `ax.figure` as the last
expression of a cell shows it. Axes of one's own want a figure with `layout="constrained"`, which leaves room for the
legends underneath. No global style is changed. Colours are those of Okabe & Ito (2008), told apart by every
common kind of colour vision; line styles, markers and hatches tell the same in grey.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray

from bayesnn.metrics import as_class_probs, confidence_bins, ece

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.layout_engine import LayoutEngine

__all__ = [
    "accuracy_rejection",
    "certainty_gallery",
    "entropy_histogram",
    "predictive_band",
    "reliability",
    "rhat_histogram",
    "traces",
    "training_curves",
]

History: TypeAlias = Sequence[Mapping[str, float]]
Values: TypeAlias = torch.Tensor | NDArray[Any]
AxesArray: TypeAlias = NDArray[np.object_]

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
# Neighbours in this order differ in lightness too.
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
GREY, LIGHT = "#595959", "#D9D9D9"
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1)))

_NATS = {"loss": "training NLL", "val_loss": "validation loss", "val_nll": "validation NLL"}


def training_curves(
    history: History | Mapping[str, History], metric: str | None = None, ax: Axes | None = None
) -> Axes:
    """Training and validation NLL by epoch, a thin line to each chain.

    Parameters
    ----------
    history : list of dict, or dict of str to list of dict
        Rows {"chain": int, "epoch": int, "loss": float, "val_nll": float, ...}; a row without the wanted number (no
        validation in that epoch) is passed over. A dict draws one colour per method.
    metric : str, optional
        The one column to draw. By default "loss" (the mean minibatch negative log likelihood, nats per row; solid)
        and, where there is one, "val_nll" (nats per row; dashed).
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
    wanted = ["loss", "val_nll"] if metric is None else [metric]
    columns = [column for column in wanted if any(row.get(column) is not None for row in rows)]
    if not columns:
        have = sorted({key for row in rows for key in row})
        raise ValueError(
            f"history must have rows with {' or '.join(map(repr, wanted))}; got columns {have}: pass metric"
        )
    ax = _axes(ax, (7.0, 4.2))
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
    name = _NATS.get(columns[0], columns[0].replace("_", " "))
    ax.set_xlabel("epoch")
    ax.set_ylabel("nats per row" if len(columns) > 1 else f"{name} / nats per row" if columns[0] in _NATS else name)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(ax)
    return ax


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
        panels = _panels(ax, len(probs), (4.3, 4.6))
        for i, (panel, (name, one)) in enumerate(zip(panels, probs.items(), strict=True)):
            reliability(one, y, bins, panel, name)
            if i > 0:
                panel.set_ylabel("")
        _share_legend(panels, made=ax is None)
        return panels
    from scipy import stats

    single = _axes(ax, (4.9, 5.0))
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
    _finish(single)
    return single


def accuracy_rejection(
    curves: Mapping[str, tuple[torch.Tensor, torch.Tensor]], y: torch.Tensor, ax: Axes | None = None
) -> Axes:
    """Accuracy on the rows that are kept, when the most uncertain ones are rejected first.

    The curve ends where fewer than 1 % of the rows, or fewer than 20, are left: what follows is noise. Rows of equal
    uncertainty are rejected from the end of the data.

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
    ax = _axes(ax, (6.4, 4.2))
    for i, (name, (probs, uncertainty)) in enumerate(curves.items()):
        probs = as_class_probs(probs)
        if uncertainty.shape != y.shape or len(probs) != len(y):
            raise ValueError(
                f"{name}: probs and uncertainty must have one row for each of the {len(y)} in y; "
                f"got {tuple(probs.shape)} and {tuple(uncertainty.shape)}: pass the same test rows"
            )
        correct = _numpy(probs.argmax(1) == y.to(probs.device))
        order = np.argsort(_numpy(uncertainty), kind="stable")
        rows = len(order)
        kept = np.arange(min(rows, max(20, math.ceil(rows / 100))), rows + 1)
        accuracy = np.cumsum(correct[order])[kept - 1] / kept
        rejected = 1 - kept / rows
        ax.plot(rejected, accuracy, color=COLOURS[i % len(COLOURS)], linestyle=STYLES[i % len(STYLES)], linewidth=2,
                label=name, marker=MARKERS[i % len(MARKERS)], markersize=6,
                markevery=max(1, len(kept) // 8))  # fmt: skip
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of rows rejected, most uncertain first")
    ax.set_ylabel("accuracy on the rest")
    _finish(ax)
    return ax


@overload
def entropy_histogram(
    inside: Values,
    outside: Values,
    ax: Axes | None = None,
    labels: tuple[str, str] = ("in distribution", "out of distribution"),
    max_entropy: float | None = None,
) -> Axes: ...
@overload
def entropy_histogram(
    inside: Mapping[str, Values],
    outside: Mapping[str, Values],
    ax: Sequence[Axes] | AxesArray | None = None,
    labels: tuple[str, str] = ("in distribution", "out of distribution"),
    max_entropy: float | None = None,
) -> AxesArray: ...
def entropy_histogram(
    inside: Values | Mapping[str, Values],
    outside: Values | Mapping[str, Values],
    ax: Axes | Sequence[Axes] | AxesArray | None = None,
    labels: tuple[str, str] = ("in distribution", "out of distribution"),
    max_entropy: float | None = None,
) -> Axes | AxesArray:
    """Predictive entropy of data like the training data and of other data, as two histograms on the same bins.

    The title gives the AUROC: the probability that a row from outside has the larger entropy of the two (ties count
    one half).

    Parameters
    ----------
    inside, outside : Tensor or ndarray, (batch,), or dicts of them with the same keys
        Entropy of each row, nats. The batches may differ in size; dicts draw one panel per method.
    ax : Axes, or for dicts a sequence of as many, optional
    labels : (str, str)
        Names of the two data sets.
    max_entropy : float, optional
        Entropy of the uniform prediction, log K, nats: marked, and the end of the axis.

    Returns
    -------
    Axes, or for dicts an array of Axes, (method,)

    Raises
    ------
    ValueError
        If the keys of the dicts differ, a batch is empty, or the number of axes is not the number of methods.
    """
    if isinstance(inside, Mapping) or isinstance(outside, Mapping):
        if not (isinstance(inside, Mapping) and isinstance(outside, Mapping) and inside.keys() == outside.keys()):
            got = f"{_keys(inside)} and {_keys(outside)}"
            raise ValueError(f"inside and outside must be dicts with the same keys; got {got}: name the same methods")
        panels = _panels(ax, len(inside), (4.3, 3.9))
        if max_entropy is None:
            end = max(float(_numpy(one).max()) for one in (*inside.values(), *outside.values()))
        else:
            end = max_entropy
        for i, (panel, name) in enumerate(zip(panels, inside, strict=True)):
            _entropy_panel(panel, inside[name], outside[name], labels, max_entropy, end, name)
            if i > 0:
                panel.set_ylabel("")
        top = max(panel.get_ylim()[1] for panel in panels)
        for panel in panels:
            panel.set_ylim(0, top)
        _share_legend(panels, made=ax is None)
        return panels
    end = max(float(_numpy(inside).max()), float(_numpy(outside).max())) if max_entropy is None else max_entropy
    single = _axes(ax, (6.0, 4.0))
    _entropy_panel(single, inside, outside, labels, max_entropy, end, "")
    return single


def _entropy_panel(
    ax: Axes, inside: Values, outside: Values, labels: tuple[str, str], marked: float | None, end: float, name: str
) -> None:
    from scipy import stats

    known, other = _numpy(inside).ravel(), _numpy(outside).ravel()
    edges = np.linspace(0, max(end, 1e-6), 31)
    for values, colour, filled, label in ((known, BLUE, True, labels[0]), (other, VERMILLION, False, labels[1])):
        share = np.histogram(np.clip(values, 0, edges[-1]), edges)[0] / len(values)
        ax.stairs(share, edges, fill=filled, color=colour, alpha=0.45 if filled else 1, linewidth=0 if filled else 2,
                  label=label)  # fmt: skip
    if marked is not None:
        ax.axvline(marked, color=GREY, linestyle=STYLES[1], linewidth=1.2, label="uniform prediction")
    ranks = stats.rankdata(np.concatenate([known, other]))[len(known) :]
    auroc = (ranks.mean() - (len(other) + 1) / 2) / len(known)
    ax.set_title(f"{name}: AUROC {auroc:.3f}" if name else f"AUROC {auroc:.3f}")
    ax.set_xlim(0, 1.02 * edges[-1])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("predictive entropy / nats")
    ax.set_ylabel("share of rows")
    ax.locator_params(axis="y", nbins=5)
    _finish(ax)


def certainty_gallery(
    images: Values,
    probs: torch.Tensor,
    y: torch.Tensor,
    uncertainty: Values,
    classes: Sequence[str],
    count: int = 5,
    unit: str = "nats",
) -> AxesArray:
    """Draw the most certain images (top) and the least certain ones (bottom), each over its class probabilities.

    The bar of the predicted class is blue where it is right and orange and hatched where it is wrong. With more than
    12 classes each image shows its own five most probable ones (without hatches). Names are cut after 14 characters.

    Parameters
    ----------
    images : Tensor or ndarray, (n, C, H, W)
        C = 1 (grey) or 3 (red, green, blue), any scale: each image is stretched from its least to its largest value.
    probs : Tensor, (n, K) or (n,)
    y : Tensor, (n,), int
    uncertainty : Tensor or ndarray, (n,)
        What the images are ordered by, for instance the epistemic part.
    classes : sequence of K str
    count : int
        Images in a row; fewer when there are not 2 `count` of them.
    unit : str
        Of `uncertainty`, written beside its value.

    Returns
    -------
    array of Axes, (4, count)
        Rows: most certain images, their probabilities, least certain images, their probabilities.

    Raises
    ------
    ValueError
        If the shapes do not match, or there are fewer than two images.
    """
    from matplotlib.figure import Figure

    pictures, certainty, truth = _numpy(images), _numpy(uncertainty), _numpy(y).astype(int)
    p = _numpy(as_class_probs(probs))
    n = len(pictures)
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or n < 2:
        raise ValueError(f"images must be (n, 1, H, W) or (n, 3, H, W) with n >= 2; got {pictures.shape}")
    if p.shape != (n, len(classes)) or truth.shape != (n,) or certainty.shape != (n,):
        raise ValueError(
            f"probs, y and uncertainty must be ({n}, {len(classes)}), ({n},) and ({n},) for {n} images and "
            f"{len(classes)} classes; got {p.shape}, {truth.shape} and {certainty.shape}"
        )
    count = max(1, min(count, n // 2))
    order = np.argsort(certainty, kind="stable")
    few = len(classes) <= 12
    shown = len(classes) if few else 5
    high = 0.5 + 0.165 * shown
    figure = Figure(figsize=(1.2 + 1.9 * count, 2 * (2.4 + high)), layout=_layout())
    grid = figure.add_gridspec(5, count, height_ratios=[1.6, high, 0.12, 1.6, high])
    axes: AxesArray = np.array([[figure.add_subplot(grid[row, i]) for i in range(count)] for row in (0, 1, 3, 4)])
    short = [name if len(name) <= 14 else name[:13] + "…" for name in classes]
    for row, chosen, name in ((0, order[:count], "most certain"), (2, order[::-1][:count], "least certain")):
        for column, i in enumerate(chosen):
            image, bars = axes[row, column], axes[row + 1, column]
            picture = pictures[i].transpose(1, 2, 0)
            span = picture.max() - picture.min()
            picture = (picture - picture.min()) / (span if span > 0 else 1)
            image.imshow(picture[..., 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            image.set(xticks=[], yticks=[])
            top, true = int(p[i].argmax()), truth[i]
            image.set_title(f"predicted {short[top]}\ntrue {short[true]}", fontsize=11,
                            color="black" if top == true else "#A34700")  # fmt: skip
            image.set_xlabel(f"{certainty[i]:.2g} {unit}", fontsize=11)
            which = np.arange(shown) if few else np.argsort(-p[i], kind="stable")[:shown]
            colours = [SKY if k != top else BLUE if top == true else ORANGE for k in which]
            drawn = bars.barh(np.arange(shown), p[i][which], color=colours, height=0.8, alpha=1 if few else 0.5)
            if top != true and few:
                drawn[top].set(hatch="////", edgecolor="#7A3600", linewidth=0)
            bars.set_xlim(0, 1)
            bars.set_ylim(shown - 0.4, -0.6)
            bars.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=9)
            if few:
                bars.set_yticks(np.arange(shown), short if column == 0 else [""] * shown, fontsize=9)
            else:
                bars.set_yticks([])
                for place, k in enumerate(which):
                    bars.text(0.03, place, short[k], va="center", fontsize=9)
            bars.grid(axis="x", color=LIGHT, linewidth=0.7)
            bars.set_axisbelow(True)
            bars.tick_params(length=0)
            bars.spines[["top", "right"]].set_visible(False)
            bars.set_xlabel("probability" if column == count // 2 else "", fontsize=11)
        axes[row, 0].set_ylabel(name, fontsize=13, fontweight="bold", labelpad=10)
    return axes


def predictive_band(
    x: Values,
    mean: Values,
    lower: Values,
    upper: Values,
    epistemic_lower: Values | None = None,
    epistemic_upper: Values | None = None,
    data: tuple[Values, Values] | None = None,
    truth: Values | None = None,
    ax: Axes | None = None,
    level: float | None = None,
) -> Axes:
    """Predictive mean and interval over one input, with the epistemic part of the interval inside.

    Parameters
    ----------
    x : Tensor or ndarray, (n,)
        Inputs, in any order.
    mean, lower, upper : Tensor or ndarray, (n,)
        Predictive mean and ends of the predictive interval, units of y.
    epistemic_lower, epistemic_upper : Tensor or ndarray, (n,), optional
        The interval without the noise: of the draws' means.
    data : (x, y), optional
        Training data, (m,) each.
    truth : Tensor or ndarray, (n,), optional
        The noiseless function at `x`.
    ax : Axes, optional
    level : float, optional
        Of the intervals, in (0, 1), for the legend.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the shapes differ, or one end of the epistemic interval is missing.
    """
    if (epistemic_lower is None) != (epistemic_upper is None):
        raise ValueError("epistemic_lower and epistemic_upper belong together; got one of them: pass both or none")
    at = _numpy(x)
    order = np.argsort(at, kind="stable")
    given = {"x": x, "mean": mean, "lower": lower, "upper": upper, "epistemic_lower": epistemic_lower,
             "epistemic_upper": epistemic_upper, "truth": truth}  # fmt: skip
    curves = {}
    for name, values in given.items():
        if values is not None:
            if at.ndim != 1 or _numpy(values).shape != at.shape:
                raise ValueError(f"{name} must be (n,) like x; got {tuple(values.shape)} for x {at.shape}: squeeze it")
            curves[name] = _numpy(values)[order]
    ax = _axes(ax, (7.0, 4.2))
    prefix = "" if level is None else f"{100 * level:g} % "
    ax.fill_between(curves["x"], curves["lower"], curves["upper"], color="#CFE3F0", linewidth=0,
                    label=f"{prefix}predictive interval")  # fmt: skip
    if "epistemic_lower" in curves:
        ax.fill_between(curves["x"], curves["epistemic_lower"], curves["epistemic_upper"], color="#7FB5D6", linewidth=0,
                        label=f"{prefix}epistemic interval")  # fmt: skip
    if data is not None:
        ax.plot(_numpy(data[0]).ravel(), _numpy(data[1]).ravel(), linestyle="none", marker="o", markersize=4,
                color="#333333", alpha=0.7, markeredgewidth=0, label="data")  # fmt: skip
    if "truth" in curves:
        ax.plot(curves["x"], curves["truth"], color=VERMILLION, linestyle=STYLES[1], linewidth=1.8, label="truth")
    ax.plot(curves["x"], curves["mean"], color="#004B75", linewidth=2.2, label="predictive mean")
    ax.set_xlim(float(curves["x"][0]), float(curves["x"][-1]))
    ax.set_xlabel("x")
    ax.set_ylabel("y")
    _finish(ax)
    return ax


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
    from bayesnn.diagnostics import ess, rhat

    draws = _numpy(values)
    if draws.ndim != 3 or not 1 <= draws.shape[2] <= 8:
        raise ValueError(f"values must be (chain, draw, quantity), 1 to 8 quantities; got {draws.shape}: choose a few")
    chains, length, quantities = draws.shape
    titles = [f"quantity {i}" for i in range(quantities)] if names is None else list(names)
    if len(titles) != quantities:
        raise ValueError(f"names must be {quantities}, one to a quantity; got {len(titles)}: {titles}")
    panels = _panels(axes, quantities, (8.0, 1.9 if quantities > 1 else 3.2), vertical=True)
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
        _finish(ax, legend=False)
        ax.title.set_fontsize(12)
        if i < quantities - 1:
            ax.tick_params(labelbottom=False)
    panels[-1].set_xlabel("draw" if chains == 1 else f"draw (a colour to each of {chains} chains)")
    return panels


def rhat_histogram(rhat_values: Values, ax: Axes | None = None, threshold: float = 1.05) -> Axes:
    """Histogram of R-hat over many quantities, with the share above the threshold in the title.

    Values above 2 (two chains in two places) are counted in the last bin. Those that are nan are left out, and counted
    in the title.

    Parameters
    ----------
    rhat_values : Tensor or ndarray, any shape
        As from `bayesnn.diagnostics.rhat`.
    ax : Axes, optional
    threshold : float
        What is still called converged.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If no value is a number (R-hat of a single chain).
    """
    everything = _numpy(rhat_values).ravel()
    values = everything[~np.isnan(everything)]
    if len(values) == 0:
        raise ValueError(f"rhat_values must hold a number; got {len(everything)} nan: fit with at least two chains")
    ax = _axes(ax, (6.4, 4.0))
    start = min(1.0, float(values.min()))
    end = max(2 * threshold - 1.0, min(float(values.max()), 2.0))
    edges = np.linspace(start, end, 51)
    counts = np.histogram(np.minimum(values, end), edges)[0]
    ax.stairs(counts, edges, fill=True, color=SKY, edgecolor=BLUE, linewidth=0.8)
    ax.axvline(threshold, color=VERMILLION, linestyle=STYLES[1], linewidth=1.8, label=f"threshold {threshold:g}")
    above = float((values > threshold).mean())
    unknown = len(everything) - len(values)
    missing = f", {unknown:,} nan" if unknown else ""
    ax.set_title(f"{100 * above:.1f} % of {len(values):,} above {threshold:g}{missing}")
    ax.set_xlim(start, end)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("R-hat (2 and more in the last bin)" if values.max() > 2.0 else "R-hat")
    ax.set_ylabel("number of quantities")
    _finish(ax)
    return ax


def _numpy(values: Values) -> NDArray[np.float64]:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _keys(values: Any) -> str:
    return str(list(values)) if isinstance(values, Mapping) else type(values).__name__


def _inward(x: float) -> str:
    """Horizontal alignment that keeps a text at `x` in [0, 1] from leaving the axes."""
    return "left" if x < 0.05 else "right" if x > 0.95 else "center"


def _axes(ax: Any, size: tuple[float, float]) -> Axes:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    if ax is None:
        return Figure(figsize=size, layout=_layout()).subplots()
    if not isinstance(ax, Axes):
        raise ValueError(f"ax must be one matplotlib Axes; got {type(ax).__name__}: pass a dict to draw several panels")
    return ax


def _panels(axes: Any, count: int, size: tuple[float, float], vertical: bool = False) -> AxesArray:
    from matplotlib.figure import Figure

    if count == 0:
        raise ValueError("there must be at least one method to draw; got an empty dict")
    if axes is None:
        rows, columns = (count, 1) if vertical else (1, count)
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout=_layout())
        grid: AxesArray = figure.subplots(rows, columns, squeeze=False)
        return grid.ravel()
    panels = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
    if len(panels) != count:
        raise ValueError(f"axes must be {count}, one to a panel; got {len(panels)}: leave them out to have them made")
    return panels


def _layout() -> LayoutEngine:
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)


def _finish(ax: Axes, legend: bool = True) -> None:
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
        # As many columns as fit, at 0.085 inch to a letter of 11 points and 0.6 to a handle.
        letters = [0.6 + 0.085 * len(label) for label in labels]
        columns = len(labels)
        while columns > 1 and sum(max(letters[i::columns]) for i in range(columns)) > width:
            columns -= 1
        # 0.55 inch clears the ticks and the x label, whatever the height of the axes.
        ax.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.55 / height), fontsize=11, frameon=False,
                  ncols=columns, handlelength=2.4, columnspacing=1.2, borderaxespad=0)  # fmt: skip


def _share_legend(panels: AxesArray, made: bool) -> None:
    """One legend for all panels: below a figure of our own, below the first panel in somebody else's."""
    handles, labels = panels[0].get_legend_handles_labels()
    for panel in panels[0 if made else 1 :]:
        if panel.get_legend() is not None:
            panel.get_legend().remove()
    if made:
        columns = 1 if len(panels) == 1 else len(handles)
        panels[0].figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=12, frameon=False)
