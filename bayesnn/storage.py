"""Posteriors on disk: a directory of a JSON manifest and one safetensors file a chain. Nothing is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesnn import likelihoods, priors
from bayesnn.data import Standardize
from bayesnn.errors import first_line
from bayesnn.model import BayesianModel
from bayesnn.posterior import Posterior
from bayesnn.source import SOURCES, Source

VERSION = 1
CONSTANTS = "constants.safetensors"
_SAME = "give the architecture that was saved."
_KEYS = ("dtype", "chains", "prior", "likelihood", "num_data", "target", "info", "history")


def save(posterior: Posterior, path: Path) -> None:
    """Write ``posterior``. A save that fails leaves the one before it whole: the new manifest takes over at the end."""
    from safetensors.torch import save_file

    old = _files(path)
    # Another name beside the files of the posterior that was saved here before, which stay until the end.
    tag = f"-{token_hex(4)}" if (path / "manifest.json").exists() else ""
    chains = [
        {"file": f"chain-{chain}{tag}.safetensors", "kind": source.kind}
        for chain, source in enumerate(posterior.sources)
    ]
    constants = f"constants{tag}.safetensors"
    text = json.dumps(_describe(posterior, chains, constants), indent=1, default=_plain)
    new, draft = [*(chain["file"] for chain in chains), constants], path / f"manifest{tag}.json.new"
    path.mkdir(parents=True, exist_ok=True)
    try:
        for name, source in zip(new, posterior.sources, strict=False):
            save_file({k: v.contiguous() for k, v in source.tensors().items()}, path / name)
        save_file(_constants(posterior), path / constants)
        draft.write_text(text)
        draft.replace(path / "manifest.json")
    except BaseException:
        for name in (*new, draft.name):
            (path / name).unlink(missing_ok=True)
        raise
    for name in set(old) - set(new):
        (path / name).unlink(missing_ok=True)


def _files(path: Path) -> list[str]:
    """Files of tensors of the posterior saved at ``path``, as its manifest names them; none where it cannot be read."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        names = [chain["file"] for chain in manifest["chains"]] + [manifest.get("constants", CONSTANTS)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [name for name in names if isinstance(name, str) and Path(name).name == name]


def _constants(posterior: Posterior) -> dict[str, Tensor]:
    """Frozen parameters and fixed buffers of the net: they belong to the answer as much as the draws do."""
    model = posterior.model
    drawn = posterior.sources[0].last().keys() & dict(model.named_parameters()).keys()
    return {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items() if name not in drawn}


def _describe(posterior: Posterior, chains: list[dict[str, str]], constants: str) -> dict[str, Any]:
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
    _load_constants(model, _tensors(path, _name(path, manifest.get("constants", CONSTANTS))), set(sources[0].last()))
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
    kind, name = (chain.get("kind"), chain.get("file")) if isinstance(chain, dict) else (None, None)
    if kind not in SOURCES:
        raise _damaged(path / "manifest.json", f"a chain {chain!r}")
    tensors = _tensors(path, _name(path, name))
    try:
        return SOURCES[kind].from_tensors(tensors)
    except (KeyError, ValueError, TypeError, StopIteration) as error:
        raise _damaged(path / str(name), f"tensors that are not those of {kind!r}") from error


def _name(path: Path, name: Any) -> str:
    """The name of a file; one with a folder in it would read from outside of the directory."""
    if not isinstance(name, str) or Path(name).name != name:
        raise _damaged(path / "manifest.json", f"a file {name!r}")
    return name


def _tensors(path: Path, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        # Copies, as tensors lie in the file at any byte: a product's last bits depend on how memory is aligned.
        return {key: value.clone() for key, value in load_file(path / name).items()}
    except (OSError, SafetensorError) as error:
        raise _damaged(path / name, first_line(error)) from error


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
