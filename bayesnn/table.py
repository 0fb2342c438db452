"""The table of a comparison: one line a net and method, in Markdown, in the terminal, and as cells for the report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
Good = Literal["high", "low", "near 0.9", ""]


@dataclass(frozen=True)
class Column:
    """One column of numbers.

    Attributes
    ----------
    key : of the rows.
    heading : what stands above it; an arrow says which direction is good.
    good : that direction: ``"high"``, ``"low"``, ``"near 0.9"``, or nothing where neither is.
    help : what it is, in a sentence.
    """

    key: str
    heading: str
    good: Good
    help: str

    def loss(self, value: float) -> float:
        """How far from good a value is: lower is better."""
        return {"high": -value, "low": value, "near 0.9": abs(value - 0.9), "": 0.0}[self.good]


COLUMNS = {
    column.key: column
    for column in (
        Column("accuracy", "accuracy ↑", "high", "Share of test rows whose most probable class is the right one."),
        Column("nll", "NLL ↓", "low", "Mean negative log likelihood of the test targets, nats a row: a proper score."),
        Column("brier", "Brier ↓", "low", "Squared distance of the probabilities to what came true: a proper score."),
        Column("ece", "ECE ↓", "low", "How far stated confidence is from the share that is right, in 15 bins."),
        Column("ood_auroc", "OOD AUROC ↑", "high",
               "Probability that an input from elsewhere has the larger predictive entropy of the two; 0.5 is chance."),
        Column("rmse", "RMSE ↓", "low", "Root mean squared error of the predictive mean, in the target's units."),
        Column("crps", "CRPS ↓", "low", "Continuous ranked probability score, in the target's units: a proper score."),
        Column("coverage", "90 % coverage", "near 0.9", "Share of targets between the 5 % and 95 % quantiles: 0.9."),
        Column("seconds", "seconds", "", "Wall time of fitting all chains."),
        Column("gradient_evaluations", "gradients", "", "Minibatch gradients of all chains; of full-batch methods, "
               "gradients of all rows."),
    )
}  # fmt: skip
COST = ("seconds", "gradient_evaluations")


@dataclass(frozen=True)
class Cell:
    """One number of the table: its text, the mean (nan where no fit gave one), and whether it is among the best."""

    text: str
    value: float
    best: bool


@dataclass(frozen=True)
class Line:
    """One net and method: its cells by the columns' keys."""

    net: str
    method: str
    cells: dict[str, Cell]


def lines(rows: Sequence[Row], keys: Sequence[str]) -> list[Line]:
    """The lines of the table in the order of the rows; "mean ± standard error over the seeds" where there are several.

    A cell is among the best of its column where its mean is the best, or is within one standard error of it: of the
    mean difference between the two, seed by seed. With one seed there is no such error, and no cell is marked.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["net"], row["method"]), []).append(row)
    found: list[dict[str, Cell]] = [{} for _ in groups]
    for key in keys:
        column = COLUMNS[key]
        best = _best(column, list(groups.values()))
        for cells, own, marked in zip(found, groups.values(), best, strict=True):
            values = [row[key] for row in own if not math.isnan(row[key])]
            mean = statistics.fmean(values) if values else math.nan
            cells[key] = Cell(_text(key, values, len(own), rows), mean, marked)
    return [Line(net, method, cells) for (net, method), cells in zip(groups, found, strict=True)]


def _best(column: Column, groups: list[list[Row]]) -> list[bool]:
    losses = [{row["seed"]: column.loss(row[column.key]) for row in group} for group in groups]
    seeds = max(losses, key=len, default={}).keys()  # after Ctrl-C some have fewer
    whole = [own.keys() == seeds and all(map(math.isfinite, own.values())) for own in losses]
    if not column.good or len(seeds) < 2 or sum(whole) < 2:
        return [False] * len(groups)
    means = [statistics.fmean(own.values()) if ok else math.inf for own, ok in zip(losses, whole, strict=True)]
    leader = losses[means.index(min(means))]
    marks = []
    for own, ok in zip(losses, whole, strict=True):
        behind = [own[seed] - leader[seed] for seed in seeds] if ok else [math.inf]
        marks.append(ok and statistics.fmean(behind) <= standard_error(behind))
    return marks


def standard_error(values: Sequence[float]) -> float:
    """Standard deviation (n - 1) over the root of n."""
    return statistics.stdev(values) / math.sqrt(len(values))


def _text(key: str, values: list[float], fits: int, rows: Sequence[Row]) -> str:
    """Of the fits that gave a number; how many did where that is not all of them."""
    decimals = {"seconds": 1, "gradient_evaluations": 0}.get(key)
    if decimals is None:
        # Three digits of the largest, and never fewer than three decimals below 10.
        largest = max((abs(row[key]) for row in rows if math.isfinite(row[key])), default=0.0)
        decimals = 3 if largest < 10 else 2 if largest < 100 else 1
    if not values:
        return "failed"
    text = f"{statistics.fmean(values):,.{decimals}f}"
    # A count of the budget has no spread to tell of.
    if len(values) > 1 and decimals > 0 and all(map(math.isfinite, values)):
        text += f" ± {standard_error(values):,.{decimals}f}"
    return text if len(values) == fits else f"{text} ({len(values)} of {fits})"


def markdown(body: Sequence[Line], keys: Sequence[str], several: bool) -> str:
    """The table in Markdown, aligned; ``several`` nets have a column."""
    head = [*(["net"] if several else []), "method", *(COLUMNS[key].heading for key in keys)]
    texts = 1 + several
    cells = [head]
    cells += [[*([line.net] if several else []), line.method, *(line.cells[k].text for k in keys)] for line in body]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    rule = ["-" * width if i < texts else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    padded = [
        [cell.ljust(width) if i < texts else cell.rjust(width) for i, (cell, width) in enumerate(pairs)]
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


def terminal(body: Sequence[Line], keys: Sequence[str], several: bool) -> Table:
    """The same table for a terminal, by rich: the best of a column are bold green, what failed is red."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in [*(["net"] if several else []), "method"]:
        table.add_column(name, overflow="fold")
    for key in keys:
        table.add_column(COLUMNS[key].heading, justify="right", overflow="fold")
    for line in body:
        names = [*([line.net] if several else []), line.method]
        cells = [line.cells[key] for key in keys]
        styles = ["red" if math.isnan(cell.value) else "bold green" if cell.best else "" for cell in cells]
        # Text and not str: rich would read a name such as "[sgld]" as markup.
        table.add_row(*map(Text, names), *(Text(c.text, style) for c, style in zip(cells, styles, strict=True)))
    if any(cell.best for line in body for cell in line.cells.values()):
        table.caption = Text("bold: the best, and what is within a standard error of it", "dim")
        table.caption_justify = "left"
    return table
