"""Data that a run is fitted to: a data set that has a name, or a CSV file; and how to find them again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayesnn.data import Data, load, names, split, standardize
from bayesnn.data.tables import TargetKind, read_table
from bayesnn.errors import unknown

KINDS = ("auto", "classes", "regression")


@dataclass(frozen=True)
class Source:
    """Standardised data and where they came from.

    Attributes
    ----------
    train : the training part.
    test : the test part, standardised by the training part, or None.
    columns : names of the inputs in the order that the net takes them; None for images.
    origin : JSON from which :func:`find_again` gives the same.
    """

    train: Data
    test: Data | None
    columns: tuple[str, ...] | None
    origin: dict[str, Any]


def from_name(name: str, directory: str | Path | None = None) -> Source:
    """A data set that has a name."""
    train, test = load(name, directory)
    origin = {"name": name, "directory": str(Path(directory).absolute()) if directory is not None else None}
    return Source(train, test, _columns(name, train), origin)


def from_csv(
    path: Path, target: str | None, kind: TargetKind = "auto", leave_out: Sequence[str] = (), test_fraction: float = 0.2
) -> Source:
    """A CSV file, of which always the same rows are the test part."""
    if kind not in KINDS:
        raise unknown("kind of target", kind, KINDS)
    if not 0 <= test_fraction < 1:
        raise ValueError(f"Expected a test fraction in [0, 1), got {test_fraction}: 0.2 tests on a fifth.")
    table = read_table(path)
    if target is None:
        raise ValueError(f"Expected --target with a CSV file, got none: name one of {', '.join(table.columns)}.")
    y, classes = table.target(target, kind)
    for name in leave_out:
        if name not in table.columns:
            raise unknown("column to leave out", name, table.columns)
    columns = tuple(name for name in table.columns if name != target and name not in leave_out)
    if not columns:
        raise ValueError(f"Expected columns beside {target!r} in {path}, got none: nothing is left to predict from.")
    data = Data(table.numbers(columns), y, path.stem, classes)
    train, *rest = split(data, test_fraction) if test_fraction else (data,)
    if classes is not None and len(train.y.unique()) < len(classes):
        raise ValueError(f"Expected rows of every class of {target!r} to train on, got one without: add rows.")
    train, *rest = standardize(train, *rest)
    origin = {
        "csv": str(path.absolute()), "sha256": _checksum(path), "target": target, "kind": kind,
        "leave_out": list(leave_out), "test_fraction": test_fraction,
    }  # fmt: skip
    return Source(train, rest[0] if rest else None, columns, origin)


def from_argument(
    text: str,
    directory: Path | None,
    target: str | None,
    kind: TargetKind,
    leave_out: Sequence[str],
    test_fraction: float | None,
) -> Source:
    """What the user means: a name where there is one of it, else a file."""
    if text in names():
        of_files = {"--target": target, "--ignore": leave_out or None, "--test-fraction": test_fraction}
        given = [flag for flag, value in of_files.items() if value is not None]
        given += ["--kind"] if kind != "auto" else []
        if given:
            raise ValueError(f"Expected {given[0]} with a CSV file alone, got it for {text!r}: leave it out.")
        return from_name(text, directory)
    path = Path(text)
    if not path.is_file():
        if path.suffix:
            raise FileNotFoundError(f"Expected a data set or a CSV file, got {text!r}: there is no such file.")
        raise unknown("data set", text, names())
    return from_csv(path, target, kind, leave_out, 0.2 if test_fraction is None else test_fraction)


def find_again(origin: dict[str, Any], directory: Path | None = None) -> Source:
    """The data of a run.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is gone, or is not what it was.
    """
    if "name" in origin:
        return from_name(origin["name"], directory or origin["directory"])
    path = Path(origin["csv"])
    if not path.is_file():
        raise FileNotFoundError(f"Expected the data of this run in {path}, found no such file: give other inputs.")
    if _checksum(path) != origin["sha256"]:
        raise ValueError(f"Expected {path} as it was when the run was made, got another: fit anew, or give inputs.")
    return from_csv(path, origin["target"], origin["kind"], origin["leave_out"], origin["test_fraction"])


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _columns(name: str, data: Data) -> tuple[str, ...] | None:
    """Names of the inputs: scikit-learn's where it has them, else x0, x1, ..."""
    if len(data.in_shape) != 1:
        return None
    if name in ("diabetes", "breast-cancer"):
        from sklearn import datasets

        bunch = datasets.load_diabetes() if name == "diabetes" else datasets.load_breast_cancer()
        return tuple(str(column) for column in bunch.feature_names)
    return tuple(f"x{i}" for i in range(data.in_shape[0]))
