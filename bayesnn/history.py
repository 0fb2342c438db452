"""The history of a fit: its rows as a table to look at, and as CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

SHOWN = 20  # rows of the table; of more, the first and the last half of so many
GRADIENT = "gradient_norm/"  # before a layer's name: a column for each layer is more than a table can show


class History(list[dict[str, Any]]):
    """A list of rows, a dict for each epoch of each chain: ``print`` it for a table.

    Examples
    --------
    >>> print(posterior.history)
    >>> posterior.history[-1]["val_nll"]
    >>> posterior.history.to_csv("history.csv")
    """

    @property
    def columns(self) -> list[str]:
        """Names of all numbers, in the order in which they first come."""
        return list(dict.fromkeys(key for row in self for key in row))

    def __str__(self) -> str:
        if not self:
            return "History of no epochs"
        columns = [name for name in self.columns if not name.startswith(GRADIENT)]
        half = SHOWN // 2
        rows = list(self) if len(self) <= SHOWN else [*self[:half], None, *self[-half:]]
        cells = [["..." if row is None else _text(row.get(name)) for name in columns] for row in rows]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        head = "  ".join(name.rjust(width) for name, width in zip(columns, widths, strict=True))
        layers = len(self.columns) - len(columns)
        more = [f"and the gradient norms of {layers} layers, {GRADIENT}..., in some rows"] if layers else []
        return "\n".join([head, *lines, *more])

    def to_csv(self, path: str | Path | None = None) -> str:
        """All columns as CSV, a line to each row, empty where a row has no such number; written to ``path``, if any."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self)
        if path is not None:
            Path(path).write_text(text.getvalue(), encoding="utf-8")
        return text.getvalue()


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
