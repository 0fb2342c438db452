"""What ``compare`` returns: scores by net, method and seed, as a table, as JSON, CSV and HTML, and on disk."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bayesnn import data as bd
from bayesnn import metrics
from bayesnn.blind import blind_sentence
from bayesnn.budget import Budget
from bayesnn.posterior import Posterior
from bayesnn.predictive import Predictive
from bayesnn.table import COST, Line, Row, lines, markdown, terminal

if TYPE_CHECKING:
    from rich.table import Table

INTERVAL = (0.05, 0.95)
CRPS_SAMPLES = 1000
SCORES: dict[str, tuple[str, ...]] = {
    "classes": ("accuracy", "nll", "brier", "ece"),
    "other": ("rmse", "nll", "crps", "coverage"),
}


@dataclass(frozen=True)
class Fitted:
    """What the pictures need of one method: its posterior, and the answers on the test part.

    Attributes
    ----------
    posterior : of the first seed.
    mean : predictive mean on the test part, (batch, class) or (batch, ...).
    total : classes: the predictive entropy on it, (batch,), in nats.
    outside : classes: that of the inputs from outside the distribution, (inputs,), where there are any.
    """

    posterior: Posterior
    mean: Tensor
    total: Tensor | None
    outside: Tensor | None = None


@dataclass
class Comparison:
    """What :func:`bayesnn.compare.compare` returns.

    Attributes
    ----------
    rows : for each net, method and seed: epochs of a chain, the scores on the test part, seconds of fitting and
        gradient evaluations (minibatch gradients of all chains; of full-batch methods, gradients of all rows). The
        scores of a fit that diverged, or that an error ended, are nan, and the row has an ``error``: its first line.
    settings : data, methods with all their options, budget, seeds and versions.
    fitted : posteriors of the first seed, by (net, method).
    train, test : the data.
    ood : (label, inputs) from outside the distribution, or None.
    shifted : for each net, method, seed, kind of shift and severity: the scores on so shifted test images.
    interrupted : whether Ctrl-C ended it early; the fit that it fell into is left out.
    """

    rows: list[Row]
    settings: dict[str, Any]
    fitted: dict[tuple[str, str], Fitted]
    train: bd.Data
    test: bd.Data
    ood: tuple[str, Tensor] | None = None
    shifted: list[Row] = field(default_factory=list)
    interrupted: bool = False

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores in ``rows``."""
        names = SCORES["classes" if self.settings["kind"] == "classes" else "other"]
        return names if self.settings["ood"] is None else (*names, "ood_auroc")

    @property
    def lines(self) -> list[Line]:
        """The lines of the table, a cell to each of ``columns``; see :func:`bayesnn.table.lines`."""
        return lines(self.rows, self.columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys of the table's columns: the scores, seconds and gradients."""
        return (*self.scores, *COST)

    @property
    def note(self) -> str:
        """What was compared, in a sentence."""
        settings, seeds = self.settings, self.settings["seeds"]
        budget = Budget.parse(settings["budget"]).sentence(settings["epochs"])
        spread = f"; mean ± standard error over {len(seeds)} seeds" if len(seeds) > 1 else ""
        batches = f"in batches of {settings['batch_size'] or 'all rows'}"
        what = f"{settings['data'] or 'data'}: {settings['num_test']} test rows, {budget} {batches}{spread}."
        return f"{what} {blind_sentence(settings['blind'])}".rstrip()

    def table(self) -> str:
        """Markdown, a line to each net and method; "mean ± standard error over the seeds" where there are several."""
        return markdown(self.lines, self.columns, len(self.settings["nets"]) > 1)

    def rich_table(self) -> Table:
        """The same for a terminal: ``rich.print(comparison.rich_table())``."""
        return terminal(self.lines, self.columns, len(self.settings["nets"]) > 1)

    def to_json(self) -> str:
        """Settings and rows as JSON; what failed is null, with its ``error`` beside."""
        kept = {"rows": self.rows, **({"shifted": self.shifted} if self.shifted else {})}
        plain = {name: [{k: _plain(v) for k, v in row.items()} for row in rows] for name, rows in kept.items()}
        return json.dumps({**self.settings, "interrupted": self.interrupted, **plain}, indent=2)

    def to_csv(self) -> str:
        """``rows`` as CSV, a line to each; what failed is empty, with its error in the last column."""
        keys = ("net", "method", "seed", "epochs", *self.columns, "error")
        return _csv(keys, self.rows)

    def save(self, directory: str | Path) -> list[Path]:
        """Write report.html, table.md, results.json, results.csv and the pictures, of several nets into a folder each.

        With shifts, shifts.csv has the scores on shifted images, a line to each net, method, seed, kind and severity.

        Returns
        -------
        list of Path
            What was written. The report has the pictures inside: it can be moved alone.
        """
        from bayesnn.html_report import html_report
        from bayesnn.report import pictures

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        texts: dict[str, Callable[[], str]] = {
            "results.json": lambda: self.to_json() + "\n",
            "results.csv": self.to_csv,
            "table.md": lambda: f"{self.table()}\n\n{self.note}\n",
        }
        if self.shifted:
            texts["shifts.csv"] = lambda: _csv(tuple(self.shifted[0]), self.shifted)
        for name, text in texts.items():
            (directory / name).write_text(text(), encoding="utf-8")
        several = len(self.settings["nets"]) > 1
        drawn = {
            net: pictures(self, net, directory / net if several else directory)
            for net in dict.fromkeys(net for net, _ in self.fitted)
        }
        report = directory / "report.html"
        report.write_text(html_report(self, drawn), encoding="utf-8")
        return [*(directory / name for name in texts), *(path for paths in drawn.values() for path in paths), report]


def score(predictive: Predictive, y: Tensor, kind: str = "classes") -> dict[str, float]:
    """The scores of one predictive distribution, by name.

    Classes: accuracy, NLL (nats a row), Brier and ECE of the mixture's probabilities. Otherwise RMSE of the mean, NLL
    of the mixture's density, CRPS of 1,000 samples, and the share of targets between the 5 % and 95 % quantiles.
    """
    y = y.to(predictive.mean.device)
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


def _csv(keys: Sequence[str], rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _plain(row.get(key)) for key in keys} for row in rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """NaN and infinity as None: JSON has neither."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
