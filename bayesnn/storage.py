"""Posteriors on disk: a directory of a JSON manifest and safetensors files of the chains. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesnn import likelihoods, priors
from bayesnn.data import Standardize
from bayesnn.errors import first_line
from bayesnn.kept import KeptOnDisk
from bayesnn.model import BayesianModel
from bayesnn.posterior import Posterior
from bayesnn.source import SOURCES, Source, read_tensors

VERSION = 2
_SAME = "give the architecture that was saved."
_KEYS = ("dtype", "chains", "constants", "prior", "likelihood", "num_data", "target", "info", "history")


def save(posterior: Posterior, path: Path) -> None:
    """Write ``posterior``. A save that fails leaves the one before it whole: the new manifest takes over at the end."""
    from safetensors.torch import save_file

    old = _files(path)
    # Another name beside the files of the posterior that was saved here before, which stay until the end.
    tag = f"-{token_hex(4)}" if (path / "manifest.json").exists() else ""
    constants, draft = f"constants{tag}.safetensors", path / f"manifest{tag}.json.new"
    path.mkdir(parents=True, exist_ok=True)
    before = set(path.iterdir())
    try:
        chains = [
            {"kind": source.kind, "files": source.write(path, f"chain-{chain}{tag}")}
            for chain, source in enumerate(posterior.sources)
        ]
        save_file(_constants(posterior), path / constants)
        draft.write_text(json.dumps(_describe(posterior, chains, constants), indent=1, default=_plain))
        draft.replace(path / "manifest.json")
    except BaseException:
        for file in set(path.iterdir()) - before:
            if file.name.startswith(("chain-", "constants", "manifest")):
                file.unlink()
        raise
    for name in set(old) - {constants, *(name for chain in chains for name in chain["files"])}:
        (path / name).unlink(missing_ok=True)


def _files(path: Path) -> list[str]:
    """Files of tensors of the posterior saved at ``path``, as its manifest names them; none where it cannot be read."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        names = [name for chain in manifest["chains"] for name in chain["files"]] + [manifest["constants"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [name for name in names if isinstance(name, str) and Path(name).name == name]


class Store:
    """A directory to which draws go as they are made: at each moment it holds a posterior that can be loaded.

    Parameters
    ----------
    path : a directory in which no posterior is saved.
    posterior : what is being fitted; its sources, history and info grow.

    Raises
    ------
    ValueError : there is a posterior in ``path``.
    """

    def __init__(self, path: Path, posterior: Posterior) -> None:
        if (path / "manifest.json").exists():
            raise ValueError(f"Expected a directory without a posterior for store=, got {str(path)!r}: give another.")
        path.mkdir(parents=True, exist_ok=True)
        self._path, self._posterior = path, posterior
        self._unfinished: dict[int, Source] = {}

    def keep(self, numbers: Sequence[int]) -> list[KeptOnDisk]:
        """Where the draws go of the chains that run now; those before them are among the posterior's sources."""
        device = next(self._posterior.model.parameters()).device
        self._unfinished = {}
        return [KeptOnDisk(self._path, f"chain-{n}", device, partial(self._update, n)) for n in numbers]

    def _update(self, number: int, unfinished: Source) -> None:
        """The manifest of what there is, should the run end here."""
        self._unfinished[number] = unfinished
        so_far = copy(self._posterior)
        so_far.sources = [*so_far.sources, *self._unfinished.values()]
        so_far.info = {**so_far.info, "interrupted": True}
        save(so_far, self._path)

    def close(self) -> None:
        """The manifest of all there is."""
        save(self._posterior, self._path)


def _constants(posterior: Posterior) -> dict[str, Tensor]:
    """Frozen parameters and fixed buffers of the net: they belong to the answer as much as the draws do."""
    model = posterior.model
    drawn = posterior.sources[0].last().keys() & dict(model.named_parameters()).keys()
    return {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items() if name not in drawn}


def _describe(posterior: Posterior, chains: list[dict[str, Any]], constants: str) -> dict[str, Any]:
    model = posterior.model
    return {
        "format": "bayesnn-posterior",
        "version": VERSION,
        "dtype": str(next(iter(model.parameters())).dtype).removeprefix("torch."),
        "chains": chains,
        "constants": constants,
        "prior": priors.to_config(model.prior),
        "likelihood": model.likelihood.config(),
        "bayesian": sorted(model.part) if model.part is not None else None,
        "num_data": posterior.num_data,
        "target": posterior.target.to_dict() if posterior.target is not None else None,
        "info": posterior.info,
        "history": posterior.history,
    }


def _plain(value: Any) -> Any:
    """A number of numpy's or torch's as Python's own, which JSON takes."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.dim() == 0):
        return value.item()
    raise TypeError(f"Expected options that JSON can hold, got {type(value).__name__} {value!r}: give plain numbers.")


def load(path: Path, net: nn.Module, prior: Any = None, likelihood: Any = None) -> Posterior:
    """Read what :func:`save` wrote.

    Raises
    ------
    FileNotFoundError : no manifest there.
    ValueError : another format or version, a damaged file, or a net of another architecture.
    """
    manifest = _manifest(path)
    model = BayesianModel(
        net,
        prior if prior is not None else priors.from_config(manifest["prior"]),
        likelihood if likelihood is not None else likelihoods.from_config(manifest["likelihood"]),
        manifest.get("bayesian"),  # a name in brackets is a pattern to fnmatch, and no module's name has them
    ).copy()
    model.to(getattr(torch, manifest["dtype"]))
    sources = [_source(path, chain) for chain in manifest["chains"]]
    for source in reversed(sources):
        model.load_state(source.last())
    constants = _name(path, manifest["constants"])
    with _readable(path / constants):
        tensors = read_tensors(path / constants)
    _load_constants(model, tensors, set(sources[0].last()))
    target = Standardize.from_dict(manifest["target"]) if manifest["target"] is not None else None
    return Posterior(model, sources, manifest["num_data"], target, manifest["history"], manifest["info"])


def _manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        raise FileNotFoundError(f"Expected a posterior saved by posterior.save() in {path}, found no manifest.json.")
    try:
        manifest: Any = json.loads(file.read_text())
    except ValueError as error:
        raise _damaged(file, f"no JSON ({first_line(error)})") from error
    read = manifest if isinstance(manifest, dict) else {}
    if read.get("format") != "bayesnn-posterior" or read.get("version") != VERSION:
        raise ValueError(
            f"Expected format bayesnn-posterior, version {VERSION}, got {read.get('format')!r}, "
            f"version {read.get('version')!r} in {path}: load it with the version of bayesnn that wrote it."
        )
    missing = [key for key in _KEYS if key not in read]
    if missing:
        raise _damaged(file, f"no {', '.join(missing)}")
    if not isinstance(getattr(torch, str(read["dtype"]), None), torch.dtype):
        raise _damaged(file, f"dtype {read['dtype']!r}")
    if not isinstance(read["chains"], list) or not read["chains"]:
        raise _damaged(file, f"chains {read['chains']!r}")
    return read


def _source(path: Path, chain: Any) -> Source:
    kind, names = (chain.get("kind"), chain.get("files")) if isinstance(chain, dict) else (None, None)
    if kind not in SOURCES or not isinstance(names, list) or not names:
        raise _damaged(path / "manifest.json", f"a chain {chain!r}")
    files = [path / _name(path, name) for name in names]
    with _readable(files[0]):
        try:
            return SOURCES[kind].read(files)
        except (KeyError, ValueError, TypeError, StopIteration) as error:
            raise _damaged(files[0], f"tensors that are not those of {kind!r}") from error


def _name(path: Path, name: Any) -> str:
    """The name of a file; one with a folder in it would read from outside of the directory."""
    if not isinstance(name, str) or Path(name).name != name:
        raise _damaged(path / "manifest.json", f"a file {name!r}")
    return name


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _damaged(file, first_line(error)) from error


def _damaged(file: Path, got: str) -> ValueError:
    return ValueError(f"Expected {file} as posterior.save() writes it, got {got}: it is damaged, save it again.")


def _load_constants(model: BayesianModel, constants: dict[str, Tensor], drawn: set[str]) -> None:
    """Write the tensors that belong to no draw, after holding the net's own tensors against those that were saved."""
    tensors = model.state_dict()
    for name, value in constants.items():
        if name not in tensors or tensors[name].shape != value.shape:
            got = tuple(tensors[name].shape) if name in tensors else "none"
            raise ValueError(f"Expected {name!r} of shape {tuple(value.shape)} in the net, got {got}: {_SAME}")
        with torch.no_grad():
            tensors[name].copy_(value)
    unknown = sorted(set(tensors) - set(constants) - drawn)
    if unknown:
        raise ValueError(f"Expected a net without {unknown[0]!r}, which was not saved: {_SAME}")
    frozen = [name for name, p in model.named_parameters() if name in drawn and not p.requires_grad]
    if frozen:
        raise ValueError(f"Expected {frozen[0]!r} to be trainable, as when saved, got a frozen one: unfreeze it.")
