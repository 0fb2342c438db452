"""Methods, priors, nets and transforms by name: ``sgld``, ``sghmc:temperature=0.5``, ``rotation:15``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from torch import nn

from bayesnn import nets, priors
from bayesnn.compare_setup import named_settings
from bayesnn.data import Compose, Crop, Data, Flip, Noise, Rotation, Shift
from bayesnn.data.augment import Augment
from bayesnn.errors import unknown
from bayesnn.methods import METHODS, Method

_WORDS = {"true": True, "false": False, "none": None}
NETS: dict[str, type[nn.Module]] = {
    "mlp": nets.MLP,
    "lenet5": nets.LeNet5,
    "convnet": nets.ConvNet,
    "linear": nn.Linear,
}
AUGMENTS: dict[str, Any] = {cls.__name__.lower(): cls for cls in (Rotation, Shift, Flip, Crop, Noise)}
PRIORS = {
    prior.__name__.lower(): prior
    for prior in (
        priors.Normal,
        priors.Layerwise,
        priors.HierarchicalNormal,
        priors.Laplace,
        priors.StudentT,
        priors.ScaleMixture,
        priors.Deterministic,
    )
}


def method_named(text: str, lr: float | None = None) -> tuple[Method, int]:
    """The method of ``NAME`` or ``NAME:OPTION=VALUE,...``, and its number of chains.

    NAME is one that ``compare`` knows, or that of a class of :mod:`bayesnn.methods` in upper or lower case.
    """
    name, options = _parsed(text)
    settings, classes = named_settings(), {key.lower(): cls for key, cls in METHODS.items()}
    if name in settings:
        method, chains = settings[name]
    elif name.lower() in classes:
        method = classes[name.lower()]()
        chains = method.default_chains
    else:
        raise unknown("method", name, {*METHODS, *(key for key in settings if key not in classes)})
    if lr is not None:
        if not any(field.name == "lr" for field in fields(method)):  # type: ignore[arg-type]
            raise ValueError(f"Expected no learning rate for {type(method).__name__}, got lr {lr}: leave it out.")
        options["lr"] = lr
    _check_options(type(method), options)
    return replace(method, **options), chains  # type: ignore[type-var]


def augment_named(texts: Sequence[str] | None) -> Augment | None:
    """The transforms of ``NAME``, ``NAME:AMOUNT`` or ``NAME:OPTION=VALUE,...`` each, in their order; None of none."""
    found: list[Augment] = []
    for text in texts or ():
        name, colon, rest = text.partition(":")
        if name.lower() not in AUGMENTS:
            raise unknown("augment", name, AUGMENTS)
        cls = AUGMENTS[name.lower()]
        short = f"{name}:{fields(cls)[0].name}={rest}"  # the amount comes first
        options = _parsed(short if colon and rest and "=" not in rest else text)[1]
        _check_options(cls, options)
        found.append(cls(**options))
    return None if not found else found[0] if len(found) == 1 else Compose(*found)


def prior_named(text: str | None) -> priors.PriorRule | None:
    """The prior of ``NAME`` or ``NAME:OPTION=VALUE,...``, a class of :mod:`bayesnn.priors`; None is the default."""
    if text is None:
        return None
    name, options = _parsed(text)
    key = name.lower().replace("-", "")
    if key not in PRIORS:
        raise unknown("prior", name, PRIORS)
    _check_options(PRIORS[key], options)
    return PRIORS[key](**options)


def net_options(name: str | None, data: Data, widths: str | None, dropout: float) -> dict[str, Any]:
    """What :func:`build_net` makes the net of, as JSON; by default LeNet5 for images and the MLP for all else."""
    name = name or ("lenet5" if len(data.in_shape) == 3 else "mlp")
    if name not in NETS:
        raise unknown("net", name, NETS)
    if name != "mlp" and widths is not None:
        raise ValueError(f"Expected widths for the mlp alone, got them for {name}: leave them out.")
    if name == "mlp":
        hidden = [50, 50] if widths is None else _integers(widths)
        shape: dict[str, Any] = {"in_features": math.prod(data.in_shape), "widths": hidden}
    elif name == "linear":
        if len(data.in_shape) != 1:
            raise ValueError(f"Expected rows of numbers for linear, got inputs of shape {data.in_shape}: take another.")
        shape = {"in_features": data.in_shape[0]}
    else:
        if len(data.in_shape) != 3:
            raise ValueError(f"Expected images for {name}, got inputs of shape {data.in_shape}: take the mlp.")
        shape = {"in_shape": list(data.in_shape)}
    if name in ("mlp", "convnet"):
        shape["dropout"] = dropout
    elif dropout:
        raise ValueError(f"Expected no dropout for {name}, got {dropout}: take convnet or mlp.")
    outputs = "out_features" if name == "linear" else "num_outputs"
    return {"kind": name, **shape, outputs: data.num_outputs}


def build_net(options: dict[str, Any]) -> nn.Module:
    """The net that :func:`net_options` describes."""
    if options.get("kind") not in NETS:
        raise unknown("net", options.get("kind"), NETS)
    return NETS[options["kind"]](**{key: value for key, value in options.items() if key != "kind"})


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    name, _, rest = text.strip().partition(":")
    options = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            raise ValueError(f"Expected NAME:OPTION=VALUE,OPTION=VALUE, got {text!r}: write options so.")
        options[key] = _value(value)
    return name, options


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _integers(text: str) -> Sequence[int]:
    if text.strip().lower() in ("", "none"):
        return []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"Expected widths as whole numbers with commas between, got {text!r}: 50,50.") from error


def _check_options(cls: type, options: dict[str, Any]) -> None:
    known = [field.name for field in fields(cls)]
    for name in options:
        if name not in known:
            if not known:
                raise ValueError(f"Expected no options for {cls.__name__}, got {name!r}: leave it out.")
            raise unknown(f"option of {cls.__name__}", name, known)
