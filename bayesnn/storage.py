"""Posteriors on disk: a directory of a JSON manifest and one safetensors file a chain. Nothing is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesnn import likelihoods, priors
from bayesnn.data import Standardize
from bayesnn.model import BayesianModel
from bayesnn.posterior import Posterior
from bayesnn.source import SOURCES

VERSION = 1


def save(posterior: Posterior, path: Path) -> None:
    """Write ``posterior``; a manifest is written last, so that a directory with one is whole."""
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    files = []
    for chain, source in enumerate(posterior.sources):
        files.append({"file": f"chain-{chain}.safetensors", "kind": source.kind})
        save_file({k: v.contiguous() for k, v in source.tensors().items()}, path / files[-1]["file"])
    model = posterior.model
    # Constants of the net (frozen parameters, fixed buffers) belong to the answer as much as the draws do.
    drawn = {name for name, p in model.named_parameters() if name in _drawn(posterior)}
    constants = {
        name: tensor.contiguous().clone() for name, tensor in model.state_dict().items() if name not in drawn
    }
    save_file(constants, path / "constants.safetensors")
    manifest = {
        "format": "bayesnn-posterior",
        "version": VERSION,
        "dtype": str(next(iter(model.parameters())).dtype).removeprefix("torch."),
        "chains": files,
        "prior": priors.to_config(model.prior),
        "likelihood": model.likelihood.config(),
        "num_data": posterior.num_data,
        "target": posterior.target.to_dict() if posterior.target is not None else None,
        "info": posterior.info,
        "history": posterior.history,
    }
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _drawn(posterior: Posterior) -> set[str]:
    return set(posterior.sources[0].last())


def load(path: Path, net: nn.Module, prior: Any = None, likelihood: Any = None) -> Posterior:
    """Read what :func:`save` wrote.

    Raises
    ------
    FileNotFoundError : no manifest there.
    ValueError : another format or version, or a net of another architecture.
    """
    from safetensors.torch import load_file

    if not (path / "manifest.json").is_file():
        raise FileNotFoundError(f"Expected a posterior saved by posterior.save() in {path}, found no manifest.json there.")
    manifest = json.loads((path / "manifest.json").read_text())
    if manifest.get("format") != "bayesnn-posterior" or manifest.get("version") != VERSION:
        raise ValueError(
            f"Expected format bayesnn-posterior, version {VERSION}, got {manifest.get('format')!r}, "
            f"version {manifest.get('version')!r} in {path}: load it with the version of bayesnn that wrote it."
        )
    model = BayesianModel(
        net,
        prior if prior is not None else priors.from_config(manifest["prior"]),
        likelihood if likelihood is not None else likelihoods.from_config(manifest["likelihood"]),
    ).copy()
    model.to(getattr(torch, manifest["dtype"]))
    sources = [
        SOURCES[chain["kind"]].from_tensors(load_file(path / chain["file"])) for chain in manifest["chains"]
    ]
    model.load_state(sources[0].last())
    constants = load_file(path / "constants.safetensors")
    tensors = model.state_dict()
    for name, value in constants.items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise ValueError(f"Expected a net with {name!r} of shape {tuple(value.shape)}: give the architecture that was saved.")
        with torch.no_grad():
            tensors[name].copy_(value)
    target = Standardize.from_dict(manifest["target"]) if manifest["target"] is not None else None
    return Posterior(model, sources, manifest["num_data"], target, manifest["history"], manifest["info"])
