"""Where a classifier is in doubt: by data set, and image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from bayesnn.metrics import as_class_probs
from bayesnn.plots._style import (
    BLUE,
    GREY,
    LIGHT,
    ORANGE,
    SKY,
    STYLES,
    VERMILLION,
    AxesArray,
    Values,
    finish,
    layout,
    one_axes,
    panels_for,
    share_legend,
    to_numpy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        panels = panels_for(ax, len(inside), (4.3, 3.9))
        if max_entropy is None:
            end = max(float(to_numpy(one).max()) for one in (*inside.values(), *outside.values()))
        else:
            end = max_entropy
        for i, (panel, name) in enumerate(zip(panels, inside, strict=True)):
            _entropy_panel(panel, inside[name], outside[name], labels, max_entropy, end, name)
            if i > 0:
                panel.set_ylabel("")
        top = max(panel.get_ylim()[1] for panel in panels)
        for panel in panels:
            panel.set_ylim(0, top)
        share_legend(panels, made=ax is None)
        return panels
    end = max(float(to_numpy(inside).max()), float(to_numpy(outside).max())) if max_entropy is None else max_entropy
    single = one_axes(ax, (6.0, 4.0))
    _entropy_panel(single, inside, outside, labels, max_entropy, end, "")
    return single


def _entropy_panel(
    ax: Axes, inside: Values, outside: Values, labels: tuple[str, str], marked: float | None, end: float, name: str
) -> None:
    from scipy import stats

    known, other = to_numpy(inside).ravel(), to_numpy(outside).ravel()
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
    finish(ax)


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

    pictures, certainty, truth = to_numpy(images), to_numpy(uncertainty), to_numpy(y).astype(int)
    p = to_numpy(as_class_probs(probs))
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
    figure = Figure(figsize=(1.2 + 1.9 * count, 2 * (2.4 + high)), layout=layout())
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


def _keys(values: Any) -> str:
    return str(list(values)) if isinstance(values, Mapping) else type(values).__name__
