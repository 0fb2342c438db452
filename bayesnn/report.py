"""The pictures of a comparison: one file, one picture, of the first seed's posteriors."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bayesnn import plots
from bayesnn.diagnostics import rhat
from bayesnn.plots._style import panels_for, share_legend

if TYPE_CHECKING:
    from bayesnn.comparison import Comparison, Fitted

DPI = 150
_DIAGNOSED_ROWS, _GRID = 1000, 200  # the first is of what costs a diagnostic for each row
_MOST_CLASSES = 20  # in a confusion matrix: of more, nothing can be read


def pictures(comparison: Comparison, net: str, directory: Path) -> list[Path]:
    """Draw what the data and the methods of one net allow; returns the files that were written (PNG, 150 dpi).

    Always training_curves.png, and cost.png of all seeds. Classes: reliability.png, accuracy_rejection.png (rejecting
    by the total predictive uncertainty), confusion.png, entropy.png where there are data from elsewhere, certainty.png
    for images, and shift_curves.png and shift_kinds.png where shifted images were scored (these of all seeds). One real
    target of one input: band.png. Samplers: traces.png and rhat.png, of predictions on the test part.
    """
    directory.mkdir(parents=True, exist_ok=True)
    fitted = {method: one for (name, method), one in comparison.fitted.items() if name == net}
    figures = {"training_curves": _training_curves(fitted), **_cost(comparison, net)}
    if comparison.settings["kind"] == "classes":
        figures |= _class_figures(comparison, fitted)
    elif comparison.train.x[0].numel() == 1 and comparison.test.y.dim() == 1:
        figures["band"] = _bands(comparison, fitted)
    shifted = [row for row in comparison.shifted if row["net"] == net]
    if shifted:
        figures["shift_curves"] = plots.shift_curves(shifted)[0].figure
        figures["shift_kinds"] = plots.shift_curves(shifted, by_kind=True)[0, 0].figure
    samplers = [name for name, one in fitted.items() if min(n or 0 for n in one.posterior.num_draws) >= 4]
    for name in samplers:
        suffix = f"_{name}" if len(samplers) > 1 else ""
        drawn = _sampler_figures(comparison, fitted[name], name)
        figures |= {f"{key}{suffix}": figure for key, figure in drawn.items()}
    paths: list[Path] = []
    for name, figure in figures.items():
        safe = re.sub(r"[^\w .,()=+-]", "_", name)  # a method may have any name, and a file may not
        taken = sum(path.stem == safe or path.stem.startswith(f"{safe}~") for path in paths)
        paths.append(directory / (f"{safe}~{taken + 1}.png" if taken else f"{safe}.png"))
        figure.savefig(paths[-1], dpi=DPI)
    return paths


def _cost(comparison: Comparison, net: str) -> dict[str, Any]:
    """NLL against seconds; of a method that failed with some seeds, those with which it did not."""
    points: dict[str, tuple[list[float], list[float]]] = {}
    for row in comparison.rows:
        if row["net"] == net and math.isfinite(row["nll"]) and math.isfinite(row["seconds"]):
            seconds, nll = points.setdefault(row["method"], ([], []))
            seconds.append(row["seconds"])
            nll.append(row["nll"])
    return {"cost": plots.nll_against_seconds(points).figure} if points else {}


def _training_curves(fitted: dict[str, Fitted]) -> Any:
    histories = {name: one.posterior.history for name, one in fitted.items()}
    rows = [row for history in histories.values() for row in history]
    metrics = [metric for metric in ("loss", "val_nll") if any(metric in row for row in rows)]
    axes = panels_for(None, len(metrics), (5.2, 4.4))
    for ax, metric in zip(axes, metrics, strict=True):
        plots.training_curves(histories, metric=metric, ax=ax)
        if min(row[metric] for row in rows if metric in row) > 0:
            ax.set_yscale("log")
    share_legend(axes, made=True)
    return axes[0].figure


def _class_figures(comparison: Comparison, fitted: dict[str, Fitted]) -> dict[str, Any]:
    test, train = comparison.test, comparison.train
    probs = {name: one.mean for name, one in fitted.items()}
    entropy = {name: one.total for name, one in fitted.items() if one.total is not None}
    curves = {name: (probs[name], total) for name, total in entropy.items()}
    figures: dict[str, Any] = {
        "reliability": plots.reliability(probs, test.y)[0].figure,
        "accuracy_rejection": plots.accuracy_rejection(curves, test.y).figure,
    }
    if comparison.ood is not None:
        label, _ = comparison.ood
        outside = {name: one.outside for name, one in fitted.items() if one.outside is not None}
        some = next(iter(probs.values()))
        top = float(np.log(some.shape[1] if some.dim() > 1 else 2))
        labels = (f"{test.name or 'data'}, test part", label)
        axes = plots.entropy_histogram(entropy, outside, labels=labels, max_entropy=top)
        figures["entropy"] = axes[0].figure
    # The last method is the one that the others lead up to.
    name, one = list(fitted.items())[-1]
    classes = test.classes or tuple(str(k) for k in range(max(2, one.mean.shape[-1] if one.mean.dim() > 1 else 2)))
    if len(classes) <= _MOST_CLASSES:
        ax = plots.confusion_matrix(one.mean, test.y, classes)
        ax.set_title(f"{name}: {ax.get_title()}")
        figures["confusion"] = ax.figure
    if len(train.in_shape) == 3 and train.in_shape[0] in (1, 3):
        images = test.x if test.inputs is None else test.inputs.inverse(test.x)
        gallery = plots.certainty_gallery(images, one.mean, test.y, entropy[name], classes)
        gallery[0, 0].figure.suptitle(f"{name}: most and least certain, by predictive entropy", fontsize=14)
        figures["certainty"] = gallery[0, 0].figure
    return figures


def _bands(comparison: Comparison, fitted: dict[str, Fitted]) -> Any:
    train = comparison.train
    low, high = float(train.x.min()), float(train.x.max())
    margin = 0.15 * (high - low)
    grid = torch.linspace(low - margin, high + margin, _GRID).reshape(-1, *train.in_shape)  # (grid, 1)
    own = train.inputs.inverse if train.inputs is not None else torch.clone
    axes = panels_for(None, len(fitted), (4.6, 4.2))
    for ax, (name, one) in zip(axes, fitted.items(), strict=True):
        predictive = one.posterior.predict(grid)
        (lower, upper), inner = predictive.quantile((0.05, 0.95)), predictive.quantile((0.05, 0.95), noise=False)
        plots.predictive_band(own(grid).flatten(), predictive.mean, lower, upper, inner[0], inner[1],
                              data=(own(train.x).flatten(), train.y), ax=ax, level=0.9)  # fmt: skip
        ax.set_title(name)
        if ax is not axes[0]:
            ax.sharey(axes[0])
            ax.set_ylabel("")
    # On one axis the methods' widths compare; what explodes away from the data must not flatten the rest.
    spread = float(train.y.max() - train.y.min())
    axes[0].set_ylim(float(train.y.min()) - 0.75 * spread, float(train.y.max()) + 0.75 * spread)
    share_legend(axes, made=True)
    return axes[0].figure


def four_predictions(comparison: Comparison, one: Fitted) -> tuple[Tensor, Tensor, list[str]]:
    """The draws of the predictions at the test rows, those of four from hard to easy, and the names of the four.

    (chain, draw, batch) or (chain, draw, batch, class); (chain, draw, 4).
    """
    test = comparison.test
    draws = one.posterior.predict(test.x[:_DIAGNOSED_ROWS]).draws  # (chain, draw, batch) or (chain, draw, batch, class)
    order = draws.flatten(0, 1).var(0).reshape(draws.shape[2], -1).sum(1).argsort()  # rows by the spread of their draws
    chosen = [int(order[round(share * (len(order) - 1))]) for share in (1.0, 0.9, 0.75, 0.5)]
    if comparison.settings["kind"] == "classes" and draws.dim() == 4:
        likeliest = one.mean.argmax(-1)
        values = torch.stack([draws[:, :, row, likeliest[row]] for row in chosen], dim=-1)
        names = [f"test row {row}: p(class {int(likeliest[row])})" for row in chosen]
    else:
        values = draws.flatten(3)[..., 0][:, :, chosen] if draws.dim() > 3 else draws[:, :, chosen]
        first = ", first target" if draws.dim() > 3 else ""
        names = [f"test row {row}: mean{first}" for row in chosen]
    return draws, values, names


def _sampler_figures(comparison: Comparison, one: Fitted, name: str) -> dict[str, Any]:
    """Traces of four predictions, and R-hat of all: the function converges, weights need not."""
    draws, values, names = four_predictions(comparison, one)
    figures = {"traces": plots.traces(values, names)[0].figure}
    if draws.shape[0] > 1:
        ax = plots.rhat_histogram(rhat(draws))
        ax.set_title(f"{name}, predictions: {ax.get_title()}")
        figures["rhat"] = ax.figure
    return figures
