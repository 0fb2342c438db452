"""A run on disk: a saved posterior, and run.json with all that it takes to predict without the user's code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bayesnn.cli._named import build_net
from bayesnn.cli._sources import Source, find_again
from bayesnn.data import Data, Standardize
from bayesnn.errors import first_line
from bayesnn.fit import _device
from bayesnn.posterior import Posterior
from bayesnn.prepare import prepare

FILE, FORMAT, VERSION = "run.json", "bayesnn-run", 1
_KEYS = ("net", "in_shape", "columns", "classes", "inputs", "data", "settings")
_SETTINGS = ("method", "validation", "seed")


@dataclass(frozen=True)
class Run:
    """A posterior, and what its net was fitted to.

    Attributes
    ----------
    path : the folder.
    posterior : on the device asked for.
    inputs : how inputs were standardised.
    in_shape : of one input.
    columns : names of the inputs, or None for images.
    classes : names of the classes, or None.
    origin : of the data, see :class:`bayesnn.cli._sources.Source`.
    settings : of the command that made the run.
    """

    path: Path
    posterior: Posterior
    inputs: Standardize
    in_shape: tuple[int, ...]
    columns: tuple[str, ...] | None
    classes: tuple[str, ...] | None
    origin: dict[str, Any]
    settings: dict[str, Any]

    @property
    def kind(self) -> str:
        """What the likelihood is of: "classes", or what is not."""
        return self.posterior.model.likelihood.kind

    def data(self, directory: Path | None = None) -> Source:
        """The data of the run; its training rows are given back to the posterior, which a file does not hold."""
        source, posterior = find_again(self.origin, directory), self.posterior
        task = prepare(posterior.model, source.train, self.settings["validation"], None, self.settings["seed"])
        now, then = source.train.inputs, self.inputs
        same = now is not None and now.mean.shape == then.mean.shape and torch.allclose(now.mean, then.mean)
        if task.num_data != posterior.num_data or not same or task.x is None or task.y is None:
            raise ValueError(f"Expected the data that {self.path} was fitted to, got others: fit anew, or give inputs.")
        posterior.train = (task.x, task.y)
        return source

    def test(self, directory: Path | None = None) -> tuple[Data, Data]:
        """Training and test part, both standardised."""
        source = self.data(directory)
        if source.test is None:
            raise ValueError(f"Expected a run with a test part, got {self.path} without: give a file with inputs.")
        return source.train, source.test


def check_out(path: Path, force: bool) -> None:
    """Refuse a folder that is something else, and a run that is there unless it is to be overwritten."""
    from bayesnn.compare_setup import check_folder

    check_folder(path)
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / FILE).exists() and not (path / "manifest.json").exists():
        raise ValueError(f"Expected a folder for this run alone, got {path} with other files in it: name another.")
    if not force:
        raise ValueError(f"Expected a new folder, got {path} with a run in it: name another, or overwrite by --force.")


def save(path: Path, posterior: Posterior, source: Source, description: dict[str, Any]) -> None:
    """Write the posterior, then run.json: a folder without it is no run, whatever stopped the writing."""
    (path / FILE).unlink(missing_ok=True)
    posterior.save(path)
    describe(path, posterior, source, description)


def describe(path: Path, posterior: Posterior, source: Source, description: dict[str, Any]) -> None:
    """Write run.json, as a whole or not at all."""
    assert source.train.inputs is not None
    written = {
        "format": FORMAT,
        "version": VERSION,
        "in_shape": list(source.train.in_shape),
        "columns": list(source.columns) if source.columns is not None else None,
        "classes": list(source.train.classes) if source.train.classes is not None else None,
        "inputs": source.train.inputs.to_dict(),
        "target": posterior.target.to_dict() if posterior.target is not None else None,
        "data": source.origin,
        "likelihood": posterior.model.likelihood.config(),
        **description,
    }
    draft = path / f"{FILE}.new"
    draft.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    draft.replace(path / FILE)


def load(path: Path, device: str | None = None) -> Run:
    """Read what :func:`save` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no run in the folder.
    ValueError
        If it is damaged, of another version, or the device is not here.
    """
    file = path / FILE
    if not file.is_file():
        raise FileNotFoundError(f"Expected a folder that `bayesnn fit` wrote, got {path} without {FILE}: name another.")
    try:
        read: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected JSON in {file}, got {first_line(error)}: it is damaged, fit anew.") from error
    read = read if isinstance(read, dict) else {}
    if read.get("format") != FORMAT or read.get("version") != VERSION:
        raise ValueError(
            f"Expected format {FORMAT}, version {VERSION}, got {read.get('format')!r}, version {read.get('version')!r} "
            f"in {file}: read it with the version of bayesnn that wrote it."
        )
    for part, keys in ((read, _KEYS), (read.get("settings"), _SETTINGS)):
        missing = [key for key in keys if not isinstance(part, dict) or key not in part]
        if missing:
            raise ValueError(f"Expected {', '.join(keys)} in {file}, got no {missing[0]}: it is damaged, fit anew.")
    net = build_net(read["net"])
    posterior = Posterior.load(path, net.to(_device(device, net)))
    return Run(
        path=path,
        posterior=posterior,
        inputs=Standardize.from_dict(read["inputs"]),
        in_shape=tuple(read["in_shape"]),
        columns=tuple(read["columns"]) if read["columns"] is not None else None,
        classes=tuple(read["classes"]) if read["classes"] is not None else None,
        origin=read["data"],
        settings=read["settings"],
    )
