"""Weights that somebody has trained, from a file or another net."""

from __future__ import annotations

import copy
import pickle  # for the name of an error: nothing is unpickled that runs code
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesnn.errors import first_line

NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts keep the weights in their checkpoints
MOST_NAMES = 12


def from_pretrained(
    net: nn.Module, weights: str | PathLike[str] | Mapping[str, Any] | nn.Module, strict: bool = True, prefix: str = ""
) -> nn.Module:
    """A copy of ``net`` with the parameters and buffers that ``weights`` hold for it.

    Parameters
    ----------
    net : nn.Module
        Of any architecture; it is not touched.
    weights : path, mapping or nn.Module
        A ``.safetensors`` file; another file, read by ``torch.load(..., weights_only=True)``: nothing in it is run; a
        mapping of names to tensors, such as ``net.state_dict()``, or a checkpoint with one under "state_dict",
        "model_state_dict" or "model"; or a net. Values are cast to the net's dtype and moved to its device.
    strict : bool
        Whether each name must be found, with its shape, and no other be there. False loads what fits, and warns of the
        rest, which stays as it is in ``net``.
    prefix : str
        Cut off from the names in ``weights`` (``"module."`` of DataParallel); names without it are left out.

    Returns
    -------
    nn.Module
        Give ``fit`` ``init="net"``: else it draws fresh initial weights for all that is not frozen.

    Raises
    ------
    ValueError
        If names or shapes differ (none is loaded then), or a file is none of tensors.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> net = from_pretrained(LeNet5(), "lenet.safetensors")  # doctest: +SKIP
    """
    given = {name.removeprefix(prefix): v for name, v in _read(weights).items() if name.startswith(prefix)}
    if not given:
        raise ValueError(f"Expected weights whose names begin with {prefix!r}, got none: leave prefix= out.")
    loaded = copy.deepcopy(net)
    own = {name: value for name, value in loaded.state_dict().items() if isinstance(value, Tensor)}
    fits = [name for name in own if name in given and own[name].shape == given[name].shape]
    written = {own[name].data_ptr() for name in fits}
    missing = [name for name in own if name not in given and not _needless(name, own[name], written)]
    unexpected = [name for name in given if name not in own]
    other = [
        f"{name} {tuple(given[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in given and name not in fits
    ]
    kinds = ((missing, "missing"), (unexpected, "unexpected"), (other, "of another shape"))
    fault = ", ".join(f"{len(names)} {kind} ({_listed(names)})" for names, kind in kinds if names)
    if fault and (strict or not fits):
        raise ValueError(f"Expected the weights of this net, got {fault}: {_remedy(missing, unexpected, bool(fits))}.")
    if fault:
        warnings.warn(f"Loaded {len(fits)} of {len(own)} tensors; {fault}.", stacklevel=2)
    with torch.no_grad():
        for name in fits:
            own[name].copy_(given[name])
    return loaded


def _read(weights: Any) -> dict[str, Tensor]:
    """Names to tensors, from wherever they are."""
    found: Any = weights.state_dict() if isinstance(weights, nn.Module) else weights
    where = type(weights).__name__
    if isinstance(weights, (str, PathLike)):
        found, where = _read_file(Path(weights)), str(weights)
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = {str(name): v for name, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise ValueError(f"Expected names and tensors, got none in {where}: save net.state_dict().")
    return tensors


def _read_file(file: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise FileNotFoundError(f"Expected a file of weights, got {str(file)!r}, which is none: give its path.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"Expected a file of tensors, got {str(file)!r} with code in it, which is not run: save net.state_dict(), "
            "not the net."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"Expected a file written by safetensors or torch.save, got {str(file)!r}: {first_line(error)}"
        ) from error


def _needless(name: str, value: Tensor, written: set[int]) -> bool:
    """Whether a tensor may be missing: a weight under a second name, or the count that old checkpoints lack."""
    return (value.numel() > 0 and value.data_ptr() in written) or name.endswith("num_batches_tracked")


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _remedy(missing: Sequence[str], unexpected: Sequence[str], some: bool) -> str:
    """What to do; where all that is missing is there under a longer name, say the prefix."""
    ends = [name for name in unexpected if missing and name.endswith(missing[0])]
    for prefix in (name.removesuffix(missing[0]) for name in ends):
        if {f"{prefix}{name}" for name in missing} <= set(unexpected):
            return f"pass prefix={prefix!r}"
    return "give the net that was saved" + (", or strict=False to load what fits" if some else "")
