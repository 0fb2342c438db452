"""What ``compare`` returns: scores by net, method and seed, as a table, as JSON and on disk."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bayesnn import data as bd
from bayesnn import metrics
from bayesnn.posterior import Posterior
from bayesnn.predictive import Predictive

Row = dict[str, Any]

INTERVAL = (0.05, 0.95)
CRPS_SAMPLES = 1000
SCORES: dict[str, tuple[str, ...]] = {
    "classes": ("accuracy", "nll", "brier", "ece"),
    "other": ("rmse", "nll", "crps", "coverage"),
}
_HEADINGS = {
    "accuracy": "accuracy ↑", "nll": "NLL ↓", "brier": "Brier ↓", "ece": "ECE ↓", "rmse": "RMSE ↓", "crps": "CRPS ↓",
    "coverage": "90 % coverage", "seconds": "seconds", "gradient_evaluations": "gradients",
}  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """What the pictures need of one method: its posterior, and the answers on the test part.

    Attributes
    ----------
    posterior : of the first seed.
    mean : predictive mean on the test part, (batch, class) or (batch, ...).
    total : classes: the predictive entropy on it, (batch,), in nats.
    """

    posterior: Posterior
    mean: Tensor
    total: Tensor | None


@dataclass
class Comparison:
    """What :func:`bayesnn.compare.compare` returns.

    Attributes
    ----------
    rows : for each net, method and seed: the scores on the test part, seconds of fitting and gradient evaluations
        (minibatch gradients of all chains). The scores of a fit that diverged, or that an error ended, are nan, and
        the row has an ``error``: its first line.
    settings : data, methods with all their options, budget, seeds and versions.
    fitted : posteriors of the first seed, by (net, method).
    train, test : the data.
    ood : (label, inputs) from outside the distribution, or None.
    interrupted : whether Ctrl-C ended it early; the fit that it fell into is left out.
    """

    rows: list[Row]
    settings: dict[str, Any]
    fitted: dict[tuple[str, str], Fitted]
    train: bd.Data
    test: bd.Data
    ood: tuple[str, Tensor] | None = None
    interrupted: bool = False

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores in ``rows``."""
        return _score_names(self.settings["kind"])

    def table(self) -> str:
        """Markdown, a line to each net and method; "mean ± standard error over the seeds" where there are several."""
        several = len(self.settings["nets"]) > 1
        columns = (*self.scores, "seconds", "gradient_evaluations")
        head = [*(["net"] if several else []), "method", *(_HEADINGS[column] for column in columns)]
        lines = [head]
        for net, method in dict.fromkeys((row["net"], row["method"]) for row in self.rows):
            own = [row for row in self.rows if (row["net"], row["method"]) == (net, method)]
            cells = [self._cell(column, [row[column] for row in own]) for column in columns]
            lines.append([*([net] if several else []), method, *cells])
        texts = 1 + several
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        rule = ["-" * width if i < texts else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
        padded = [
            [cell.ljust(width) if i < texts else cell.rjust(width) for i, (cell, width) in enumerate(pairs)]
            for pairs in (list(zip(line, widths, strict=True)) for line in lines)
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))

    def _cell(self, column: str, values: list[float]) -> str:
        decimals = {"seconds": 1, "gradient_evaluations": 0}.get(column)
        if decimals is None:
            # Three digits of the largest, and never fewer than three decimals below 10.
            largest = max((abs(row[column]) for row in self.rows if math.isfinite(row[column])), default=0.0)
            decimals = 3 if largest < 10 else 2 if largest < 100 else 1
        if not all(math.isfinite(value) for value in values):
            return "failed"
        text = f"{statistics.fmean(values):,.{decimals}f}"
        # A count of the budget has no spread to tell of.
        return text if len(values) == 1 or decimals == 0 else f"{text} ± {standard_error(values):,.{decimals}f}"

    def to_json(self) -> str:
        """Settings and rows as JSON; what failed is null, with its ``error`` beside."""
        rows = [{key: _plain(value) for key, value in row.items()} for row in self.rows]
        return json.dumps({**self.settings, "interrupted": self.interrupted, "rows": rows}, indent=2)

    def save(self, directory: str | Path) -> list[Path]:
        """Write table.md, results.json and the pictures; with several nets the pictures of each go to a subfolder.

        Returns
        -------
        list of Path
            What was written.
        """
        from bayesnn.report import pictures

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        budget = f"{self.settings['epochs']} epochs in batches of {self.settings['batch_size'] or 'all rows'}"
        seeds = self.settings["seeds"]
        spread = f"; mean ± standard error over {len(seeds)} seeds" if len(seeds) > 1 else ""
        note = f"{self.train.name or 'data'}: {self.settings['num_test']} test rows, {budget}{spread}."
        table, results = directory / "table.md", directory / "results.json"
        table.write_text(f"{self.table()}\n\n{note}\n", encoding="utf-8")
        results.write_text(self.to_json() + "\n", encoding="utf-8")
        written = [table, results]
        several = len(self.settings["nets"]) > 1
        for net in dict.fromkeys(net for net, _ in self.fitted):
            written += pictures(self, net, directory / net if several else directory)
        return written


def score(predictive: Predictive, y: Tensor, kind: str = "classes") -> dict[str, float]:
    """The scores of one predictive distribution, by name.

    Classes: accuracy, NLL (nats a row), Brier and ECE of the mixture's probabilities. Otherwise RMSE of the mean, NLL
    of the mixture's density, CRPS of 1,000 samples, and the share of targets between the 5 % and 95 % quantiles.
    """
    if kind == "classes":
        return metrics.classification_table(predictive.mean, y)
    y = y.view_as(predictive.mean)
    lower, upper = predictive.quantile(INTERVAL)
    return {
        "rmse": metrics.rmse(predictive.mean, y),
        "nll": -float(predictive.log_prob(y).double().mean()),
        "crps": metrics.crps_samples(predictive.sample(CRPS_SAMPLES), y),
        "coverage": metrics.coverage(lower, upper, y),
    }


def standard_error(values: Sequence[float]) -> float:
    """Standard deviation (n - 1) over the root of n."""
    return statistics.stdev(values) / math.sqrt(len(values))


def _plain(value: Any) -> Any:
    """NaN and infinity as None: JSON has neither."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _score_names(kind: str) -> tuple[str, ...]:
    return SCORES["classes" if kind == "classes" else "other"]
