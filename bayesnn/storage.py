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
from bayesnn.source import SOURCES, Source, read_tensors, write_tensors
from bayesnn.source_shards import DamagedShardError

VERSION = 2
MANIFEST, DRAFT = "manifest.json", "manifest.json.new"
_SAME = "give the architecture that was saved."
_KEYS = ("dtype", "chains", "constants", "prior", "likelihood", "num_data", "target", "info", "history")


def save(posterior: Posterior, path: Path) -> None:
    """Write ``posterior``. A save that fails leaves the one before it whole: the new manifest takes over at the end."""
    old = _files(path)
    # Another name beside the files of the posterior that was saved here before, which stay until the end.
    tag = f"-{token_hex(4)}" if (path / MANIFEST).exists() else ""
    path.mkdir(parents=True, exist_ok=True)
    before = set(path.iterdir())
    try:
        chains = [_write_chain(source, path, f"chain-{k}{tag}") for k, source in enumerate(posterior.sources)]
        constants = _write_constants(posterior, path, f"constants{tag}.safetensors")
        _write_manifest(_describe(posterior, chains, constants), path)
    except BaseException:
        for file in set(path.iterdir()) - before:
            if file.name.startswith(("chain-", "constants", "manifest")):
                file.unlink()
        raise
    for name in set(old) - {constants, *(name for chain in chains for name in chain["files"])}:
        (path / name).unlink(missing_ok=True)


def _write_chain(source: Source, path: Path, stem: str) -> dict[str, Any]:
    return {"kind": source.kind, "files": source.write(path, stem)}


def _write_constants(posterior: Posterior, path: Path, name: str) -> str:
    """Frozen parameters and fixed buffers of the net: they belong to the answer as much as the draws do.

    What a module keeps beside tensors (``get_extra_state``) is that of the net which is given to load().
    """
    model = posterior.model
    drawn = posterior.sources[0].last().keys() & dict(model.named_parameters()).keys()
    tensors = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    write_tensors({key: value.clone() for key, value in tensors.items() if key not in drawn}, path / name)
    return name


def _write_manifest(manifest: dict[str, Any], path: Path) -> None:
    (path / DRAFT).write_text(json.dumps(manifest, indent=1, default=_plain))
    (path / DRAFT).replace(path / MANIFEST)


def _files(path: Path) -> list[str]:
    """Files of tensors of the posterior saved at ``path``, as its manifest names them; none where it cannot be read."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        names = [name for chain in manifest["chains"] for name in chain["files"]] + [manifest["constants"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [name for name in names if isinstance(name, str) and Path(name).name == name]


class Store:
    """A directory to which draws go as they are made: at each moment it holds a posterior that can be loaded.

    Parameters
    ----------
    path : an empty directory, or one that is not there yet; it is claimed, so that no other fit writes there.
    posterior : what is being fitted; its sources, history and info grow.

    Raises
    ------
    ValueError : ``path`` is no directory, or one with something in it.
    """

    def __init__(self, path: str | Path, posterior: Posterior) -> None:
        if not str(path):
            raise ValueError("Expected a directory for store=, got '': name one.")
        self._path, self._posterior = Path(path).absolute(), posterior
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            if any(self._path.iterdir()):
                raise FileExistsError
            (self._path / DRAFT).touch(exist_ok=False)  # of two fits that are here at once, one succeeds
        except (FileExistsError, NotADirectoryError) as error:
            got = "one with files in it" if self._path.is_dir() else "a file"
            raise ValueError(
                f"Expected an empty directory for store=, got {got}, {str(path)!r}: give another."
            ) from error
        self._chains: list[dict[str, Any]] = []
        self._constants: str | None = None
        self._unfinished: dict[int, Source] = {}

    def keep(self, numbers: Sequence[int]) -> list[KeptOnDisk]:
        """Where the draws go of the chains that run now; those before them are among the posterior's sources."""
        device = next(self._posterior.model.parameters()).device
        self._unfinished = {}
        return [KeptOnDisk(self._path, f"chain-{n}", device, partial(self._update, n)) for n in numbers]

    def _update(self, number: int, unfinished: Source) -> None:
        """The manifest of what there is, should the run end here."""
        self._unfinished[number] = unfinished
        self._describe(interrupted=True)

    def abandon(self) -> None:
        """Give the directory back, where nothing has come into it."""
        (self._path / DRAFT).unlink(missing_ok=True)

    def whole(self) -> None:
        """The manifest of the chains that are whole, should the run end before the next one is."""
        self._unfinished = {}
        self._describe(interrupted=True)

    def close(self) -> None:
        """The manifest of all there is."""
        self._unfinished = {}
        self._describe(interrupted=self._posterior.info["interrupted"])

    def _describe(self, interrupted: bool) -> None:
        sources = self._posterior.sources
        for number, source in enumerate(sources[len(self._chains) :], len(self._chains)):
            self._chains.append(_write_chain(source, self._path, f"chain-{number}"))
        unfinished = [_write_chain(source, self._path, "") for source in self._unfinished.values()]
        if not (self._chains or unfinished):
            return
        so_far = copy(self._posterior)
        so_far.sources = [*sources, *self._unfinished.values()]
        so_far.info = {**so_far.info, "interrupted": interrupted}
        if self._constants is None:
            self._constants = _write_constants(so_far, self._path, "constants.safetensors")
        _write_manifest(_describe(so_far, self._chains + unfinished, self._constants), self._path)


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
    device = next(model.parameters()).device  # the net's: the likelihood follows, and the draws
    model.to(device, getattr(torch, manifest["dtype"]))
    sources = [_source(path, chain, device) for chain in manifest["chains"]]
    for source in reversed(sources):
        model.load_state(source.last())
    constants = _name(path, manifest["constants"])
    with _readable(path / constants):
        tensors = read_tensors(path / constants, device)
    _load_constants(model, tensors, set(sources[0].last()))
    target = Standardize.from_dict(manifest["target"]) if manifest["target"] is not None else None
    return Posterior(model, sources, manifest["num_data"], target, manifest["history"], manifest["info"])


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
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


def _source(path: Path, chain: Any, device: torch.device) -> Source:
    kind, names = (chain.get("kind"), chain.get("files")) if isinstance(chain, dict) else (None, None)
    if kind not in SOURCES or not isinstance(names, list) or not names:
        raise _damaged(path / MANIFEST, f"a chain {chain!r}")
    files = [path / _name(path, name) for name in names]
    with _readable(files[0]):
        try:
            return SOURCES[kind].read(files, device)
        except DamagedShardError as error:
            raise _damaged(error.file, str(error)) from error
        except (KeyError, ValueError, TypeError, StopIteration) as error:
            raise _damaged(files[0], f"tensors that are not those of {kind!r}") from error


def _name(path: Path, name: Any) -> str:
    """The name of a file; one with a folder in it would read from outside of the directory."""
    if not isinstance(name, str) or Path(name).name != name:
        raise _damaged(path / MANIFEST, f"a file {name!r}")
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
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
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
