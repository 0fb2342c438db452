"""What ``compare`` is given, as it works with it: data, nets, methods, and inputs from elsewhere."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesnn import data as bd
from bayesnn import nets
from bayesnn.data.shift import SEVERITIES
from bayesnn.errors import unknown
from bayesnn.methods import MAP, SGLD, MeanFieldVI, Method
from bayesnn.rng import generator

MakeNet = Callable[[bd.Data], nn.Module]

# The letters are no digits and no clothes: for these two sets they are the usual data from elsewhere.
_OOD_LETTERS = ("mnist", "fashion-mnist")
SHIFT_ROWS = 1000  # each is scored 24 times, by every draw

NETS: dict[str, MakeNet] = {
    "mlp": lambda data: nets.MLP(math.prod(data.in_shape), (50, 50), data.num_outputs),
    "lenet5": lambda data: nets.LeNet5(data.in_shape, data.num_outputs),
    "convnet": lambda data: nets.ConvNet(data.in_shape, data.num_outputs),
}


def named_settings() -> dict[str, tuple[Method, int]]:
    """The methods that ``compare`` knows by name, as (method, chains): the library's defaults, no more."""
    return {"map": (MAP(), 1), "ensemble": (MAP(), 5), "vi": (MeanFieldVI(), 1), "sgld": (SGLD(), 4)}


def check_folder(out: str | Path) -> None:
    """Raise ValueError where ``out`` cannot be a folder, as it or what it should lie in is a file."""
    there = next((path for path in (Path(out), *Path(out).parents) if path.exists()), None)
    if there is not None and not there.is_dir():
        raise ValueError(f"Expected a folder in out, got {out}, but {there} is a file: name another.")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("bayesnn", "torch", "pyro-ppl", "numpy", "torchmetrics", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def parts(data: Any, directory: str | Path | None) -> tuple[bd.Data, bd.Data]:
    """(train, test) by name, or as given."""
    if isinstance(data, str):
        return bd.load(data, directory)
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, bd.Data) for part in data):
        return data[0], data[1]
    raise TypeError(
        f"Expected a name or (train, test) of bayesnn.data.Data, got {type(data).__name__}: split it with "
        "bayesnn.data.split."
    )


def makers(net: Any, train: bd.Data) -> dict[str, MakeNet]:
    """Functions from the training data to a net, by name."""
    if net is None:
        net = "lenet5" if len(train.in_shape) == 3 else "mlp"
    made: dict[str, MakeNet] = {}
    for one in [net] if isinstance(net, str) or callable(net) else net:
        if isinstance(one, nn.Module):
            raise TypeError(f"Expected a function from data to a net, got {type(one).__name__}: pass lambda data: net.")
        if callable(one):
            name, make = getattr(one, "__name__", "net").strip("<>"), one
        elif one in NETS:
            name, make = one, NETS[one]
        else:
            raise unknown("net", one, NETS)
        if name in made:
            raise ValueError(f"Expected nets of different names, got {name!r} twice: leave one out, or name it by def.")
        made[name] = make
    return made


def settings(methods: Any) -> dict[str, tuple[Method, int]]:
    """(method, chains) by name."""
    if isinstance(methods, str):
        raise TypeError(f"Expected a sequence of method names, got the string {methods!r}: pass ({methods!r},).")
    if isinstance(methods, Mapping):
        pairs = {name: one if isinstance(one, tuple) else (one, one.default_chains) for name, one in methods.items()}
    else:
        known, methods = named_settings(), list(methods)
        for name in methods:
            if name not in known:
                raise unknown("method", name, known)
        twice = next((name for i, name in enumerate(methods) if name in methods[:i]), None)
        if twice is not None:
            raise ValueError(f"Expected each method once, got {twice!r} twice: leave one out.")
        pairs = {name: known[name] for name in methods}
    if not pairs:
        raise ValueError(f"Expected at least one method, got none: known are {', '.join(named_settings())}.")
    return pairs


def elsewhere(
    ood: Any, train: bd.Data, test: bd.Data, directory: str | Path | None, rows: int
) -> tuple[str, Tensor] | None:
    """(label, the first so many inputs) from outside of the distribution, or None where there are none."""
    if isinstance(ood, str):
        ood = bd.load_test(ood, directory, like=train)
    elif ood is None and train.name in _OOD_LETTERS:
        try:
            ood = bd.load_test("notmnist", directory, like=train)
        except FileNotFoundError:
            ood = None
    if ood is not None:
        x = ood.x if isinstance(ood, bd.Data) else torch.as_tensor(ood)
        if tuple(x.shape[1:]) != train.in_shape:
            raise ValueError(f"Expected ood inputs of shape {train.in_shape}, got {tuple(x.shape[1:])}: reshape them.")
        return (ood.name if isinstance(ood, bd.Data) and ood.name else "other inputs"), x[:rows]
    if len(train.in_shape) == 3:
        return "test images, pixels shuffled", shuffle_pixels(test.x[:rows])
    return None


def shuffle_pixels(x: Tensor, seed: int = 0) -> Tensor:
    """Images (batch, C, H, W) with the pixels of each in a random order of its own, the same for its channels."""
    flat = x.flatten(2)  # (batch, C, H * W)
    order = torch.rand(len(x), flat.shape[2], generator=generator(seed)).argsort(1).to(x.device)  # (batch, H * W)
    return flat.gather(2, order[:, None].expand_as(flat)).view_as(x)


def shifted_tests(train: bd.Data, test: bd.Data, kind: str) -> dict[tuple[str, int], Tensor]:
    """The first SHIFT_ROWS test images, as the net takes them, by kind of shift and severity; the same for all methods.

    Raises
    ------
    ValueError : the inputs are no images, or the targets no classes.
    """
    if kind != "classes" or len(train.in_shape) != 3:
        raise ValueError(
            f"Expected images (C, H, W) of classes for shifts, got inputs of shape {train.in_shape}: leave shifts out."
        )
    own = (train.inputs.inverse, train.inputs.forward) if train.inputs is not None else (torch.clone, torch.clone)
    pixels = own[0](train.x)
    images, span = own[0](test.x[:SHIFT_ROWS]), (float(pixels.min()), float(pixels.max()))
    return {(kind, s): own[1](bd.shift(images, kind, s, pixel_range=span)) for kind in bd.SHIFTS for s in SEVERITIES}
