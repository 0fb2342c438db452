"""CSV files as inputs and targets."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

TargetKind = Literal["auto", "classes", "regression"]
_INTEGER = re.compile(r"[+-]?\d+")
_GAPS = ("NA", "N/A", "nan", "NaN", "null", "NULL", "None", "?")
FEW = 10  # rows a class, in the mean, below which integers may have been meant as numbers


@dataclass(frozen=True)
class Table:
    """A CSV file in memory: for each column its cells as they are written, and the line of the file of each row."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def numbers(self, names: Sequence[str]) -> Tensor:
        """Columns as numbers, (rows, columns), float64.

        Raises
        ------
        ValueError
            If a column is missing, or one of its cells is no finite number: the error names both.
        """
        missing = [name for name in names if name not in self.columns]
        if missing:
            known = ", ".join(self.columns)
            raise ValueError(f"Expected a column {missing[0]!r} in {self.path}, got {known}: name it so in the header.")
        return torch.from_numpy(np.stack([self._column(name) for name in names], axis=1))

    def _column(self, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        values = np.array([_number(cell) for cell in self.columns[name]])
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"Expected numbers in column {name!r} of {self.path}, got {self.columns[name][row]!r} in line "
                f"{self.lines[row]}: fill or drop such rows, number what is text, or leave the column out."
            )
        return values

    def target(self, name: str, kind: TargetKind = "auto") -> tuple[Tensor, tuple[str, ...] | None]:
        """A column as targets, (rows,), and the names of its classes; None for real numbers.

        Integers and text are classes, 0 for the first in their order, other numbers a regression; ``kind`` decides
        otherwise.

        Raises
        ------
        ValueError
            If the column is missing, has gaps or one class only, or is asked for as numbers and has none.
        """
        if name not in self.columns:
            raise ValueError(f"Expected a target among the columns of {self.path}, got {name!r}: {_known(self)}")
        cells = self.columns[name]
        # Among numbers "NA" is a gap; among words it may be a class.
        gaps = {"", *_GAPS} if np.isfinite([_number(cell) for cell in cells]).any() else {""}
        gap = next((line for line, cell in zip(self.lines, cells, strict=True) if cell in gaps), None)
        if gap is not None:
            raise ValueError(f"Expected a target in every row of {self.path}, got none in line {gap}: drop such rows.")
        integers = all(_INTEGER.fullmatch(cell) for cell in cells)
        if kind == "regression" or (kind == "auto" and not integers and np.isfinite([_number(c) for c in cells]).all()):
            return torch.from_numpy(self._column(name)), None
        labels = [str(int(cell)) for cell in cells] if integers else cells
        classes = sorted(set(labels), key=int) if integers else sorted(set(labels))
        if len(classes) < 2:
            raise ValueError(f"Expected at least two classes in column {name!r} of {self.path}, got {classes[0]!r}.")
        if kind == "auto" and len(labels) < FEW * len(classes):
            warnings.warn(
                f"Column {name!r} has {len(classes)} classes in {len(labels)} rows: of a number, ask for a regression.",
                stacklevel=2,
            )
        number = {label: index for index, label in enumerate(classes)}
        return torch.tensor([number[label] for label in labels]), tuple(classes)


def read_table(path: str | Path) -> Table:
    """Read a CSV file with a header; between cells are commas, semicolons or tabs, whichever the header has most of.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is no UTF-8 text, has no rows, columns without a name or with the same, or rows of another length.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=header.count), skipinitialspace=True, strict=True)
            read = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Expected a CSV file in UTF-8, got {path}: {error}") from error
    names = read[0][1] if read else []
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if not names or "" in names or twice is not None:
        got = "an empty one" if not names else "one without" if twice is None or twice == "" else f"{twice!r} twice"
        raise ValueError(f"Expected a header with a name for each column in {path}, got {got}: give each its own name.")
    rows = read[1:]
    if not rows:
        raise ValueError(f"Expected rows below the header of {path}, got none: add rows.")
    for line, row in rows:
        if len(row) != len(names):
            raise ValueError(f"Expected {len(names)} cells in line {line} of {path}, got {len(row)}: fill or cut it.")
    columns = {name: [row[i] for _, row in rows] for i, name in enumerate(names)}
    return Table(path, columns, [line for line, _ in rows])


def _known(table: Table) -> str:
    return f"it has {', '.join(table.columns)}."


def _number(cell: str) -> float:
    """The cell as a number; nan where it is none. (``1_010`` is one to Python, and none in a table.)"""
    try:
        return float("nan") if "_" in cell else float(cell)
    except ValueError:
        return float("nan")
