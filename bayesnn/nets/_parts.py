"""Parts of a net: its parameters by name, pattern or predicate, and the layer that makes its outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bayesnn.errors import first_line, unknown

Part = str | Sequence[str] | Callable[[str, Tensor, nn.Module], bool] | None


def select_part(net: nn.Module, part: Part, option: str = "bayesian=") -> frozenset[str] | None:
    """Names of the net's parameters that ``part`` selects, None for all; see :class:`bayesnn.BayesianModel`.

    ``option`` is what an error calls the argument that ``part`` came as.
    """
    if part is None:
        return None
    owners = {name: module for prefix, module in net.named_modules() for name in _own_names(prefix, module)}
    parameters = dict(net.named_parameters())
    if callable(part):
        names = {name for name, p in parameters.items() if part(name, p.detach(), owners[name])}
    elif part == "last-layer":
        last = _with_weights(net)[-1]
        names = {name for name in parameters if owners[name] is last}
    else:
        names = set()
        for pattern in [part] if isinstance(part, str) else part:
            found = {n for n in parameters if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")}
            if not found:
                raise unknown("part of the net", pattern, {n.rpartition(".")[0] for n in parameters} | set(parameters))
            names |= found
    if not names:
        raise ValueError(f"Expected {option} to select a parameter, got none of {len(parameters)}: name a layer.")
    return frozenset(names)


def _own_names(prefix: str, module: nn.Module) -> list[str]:
    names = [name for name, _ in module.named_parameters(recurse=False)]
    return [f"{prefix}.{name}" if prefix else name for name in names]


def _with_weights(net: nn.Module) -> list[nn.Module]:
    """The modules that have parameters of their own, in the order in which they were registered."""
    return [module for module in net.modules() if next(module.parameters(recurse=False), None) is not None]


def frozen_modules(net: nn.Module) -> set[nn.Module]:
    """Submodules that have parameters, none of which is trained, and all that is inside them."""
    return {
        inner
        for module in net.modules()
        if (parameters := list(module.parameters())) and not any(p.requires_grad for p in parameters)
        for inner in module.modules()
    }


def find_head(net: nn.Module, layer: str | None, rows: Tensor | None) -> str:
    """Name of the linear or convolution layer that makes the net's outputs.

    Parameters
    ----------
    net : any net.
    layer : its name where the user knows; it is checked alone.
    rows : a few inputs, no two alike. With them the layer with weights that a forward pass comes to last is looked for,
        without them the one that was registered last.

    Raises
    ------
    ValueError : there is no such layer, it is of another kind, or which one it is cannot be told.
    """
    modules = dict(net.named_modules())
    if layer is not None:
        if layer not in modules:
            raise unknown("layer", layer, (name for name, module in modules.items() if is_layer(module)))
        if not is_layer(modules[layer]):
            raise _no_head(f"{layer!r}, a {type(modules[layer]).__name__}", net)
        return layer
    called, out = (_with_weights(net), None) if rows is None else _pass(net, rows)
    out_shape = None if out is None else out.shape[1:]
    if not called:
        raise _no_head("a net that calls none", net)
    last = called[-1]
    name: str = next(key for key, module in modules.items() if module is last)
    outputs = _outputs(last)
    if not is_layer(last):
        raise _no_head(f"{name!r}, a {type(last).__name__}, as the last one with weights", net)
    if out_shape is not None and outputs not in (*out_shape, out_shape.numel()):
        raise _no_head(f"{name!r} of {outputs} outputs in a net of {out_shape.numel()}", net)
    if sum(module is last for module in called) > 1:
        raise _no_head(f"{name!r}, which is called more than once", net)
    if rows is not None and _differ(_pass(net, rows, held=last)[1]):
        raise _no_head(f"{name!r} and a way from inputs to outputs beside it", net)
    twins = [k for k, m in modules.items() if is_layer(m) and m is not last and _outputs(m) == outputs]
    if out_shape is None and twins:
        raise _no_head(f"{name!r} and {twins[0]!r} of {outputs} outputs each", net)
    return name


def _no_head(got: str, net: nn.Module) -> ValueError:
    layers = [name for name, module in net.named_modules() if name and is_layer(module)]
    known = f", one of {', '.join(layers[-4:])}" if layers else ""
    return ValueError(
        f"Expected one linear or convolution layer that makes the net's outputs, got {got}: name it, layer={known}."
    )


def is_layer(module: nn.Module) -> bool:
    """Whether it is a linear or convolution layer with a weight of its own."""
    return isinstance(module, (nn.Linear, _ConvNd)) and isinstance(module._parameters.get("weight"), nn.Parameter)


def _outputs(module: nn.Module) -> int:
    return int(getattr(module, "out_features", getattr(module, "out_channels", 0)))


def _pass(net: nn.Module, rows: Tensor, held: nn.Module | None = None) -> tuple[list[nn.Module], Tensor]:
    """The modules with weights of their own as a forward pass in eval mode comes to them, and the net's outputs.

    Where a module is ``held``, what it returns is 1 whatever comes in.
    """
    probe, seen = copy.deepcopy(net).eval(), []
    own = dict(zip(probe.modules(), net.modules(), strict=True))
    for module in _with_weights(probe):
        module.register_forward_pre_hook(lambda module, _: seen.append(own[module]))
        if own[module] is held:
            module.register_forward_hook(lambda _, args, output: torch.ones_like(output))
    try:
        with torch.no_grad():
            outputs: Tensor = probe(rows)
        if not isinstance(outputs, Tensor):
            raise TypeError(f"outputs that are a {type(outputs).__name__} and no tensor")
        return seen, outputs
    except Exception as error:  # a net is the user's own code, and may raise anything
        raise ValueError(
            f"Expected a net that takes inputs of shape (batch, {', '.join(map(str, rows.shape[1:]))}), got from the "
            f"net: {first_line(error)}"
        ) from error


def _differ(outputs: Tensor) -> bool:
    """Whether the rows differ by more than rounding."""
    if not outputs.is_floating_point():
        return not torch.equal(outputs, outputs[:1].expand_as(outputs))
    apart = (outputs - outputs[:1]).abs().max()
    return bool(apart > 100 * torch.finfo(outputs.dtype).eps * outputs.abs().max())
