"""From one task to another: a new head, frozen parts, and what a frozen part makes of the data."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bayesnn.data.dataset import Data, in_memory
from bayesnn.errors import at_least
from bayesnn.nets._parts import Part, find_head, select_part
from bayesnn.rng import generator, isolated

FEW = 8  # inputs that show which layer makes the outputs, and whether it alone does


def replace_head(
    net: nn.Module, num_outputs: int, layer: str | None = None, in_shape: Sequence[int] | None = None, seed: int = 0
) -> nn.Module:
    """A copy of ``net`` whose last layer has other outputs and fresh weights; the rest is the same to the bit.

    Parameters
    ----------
    net : nn.Module
        It is not touched.
    num_outputs : int
        Outputs of the new head; as many as before make a fresh one all the same.
    layer : str, optional
        Name of the head, an ``nn.Linear`` or convolution. By default the one that a forward pass comes to last, where
        the shape of an input is known, else the one that was registered last.
    in_shape : sequence of int, optional
        Shape of one input; by default what ``net.in_shape`` or ``net.in_features`` says, which the nets of
        :mod:`bayesnn.nets` have. Without it no pass is made, and a sum of two heads is not noticed.
    seed : int
        Of the new weights, which are drawn as the layer draws its own.

    Raises
    ------
    ValueError
        If the last layer with weights is of another kind, is called several times, shares its weight or does not make
        the net's outputs, or not alone (two heads, a skip around it): then ``layer`` has to say which one it is.

    Examples
    --------
    >>> replace_head(LeNet5(), num_outputs=3).dense3
    Linear(in_features=84, out_features=3, bias=True)
    """
    at_least("num_outputs", num_outputs, 1)
    changed = copy.deepcopy(net)
    name = find_head(changed, layer, _few_rows(changed, in_shape))
    head = changed.get_submodule(name)
    weight = head._parameters["weight"]
    assert weight is not None
    users = [prefix for prefix, module in changed.named_modules() for p in module._parameters.values() if p is weight]
    if len(users) > 1:
        raise ValueError(
            f"Expected a head with a weight of its own, got {name!r}, which shares it with "
            f"{next(user for user in users if user != name)!r}: untie them first."
        )
    key, axis = ("out_features", 0) if isinstance(head, nn.Linear) else ("out_channels", 0)
    groups = int(getattr(head, "groups", 1))
    if getattr(head, "transposed", False):
        axis = 1  # (in, out / groups, *kernel)
    if num_outputs % groups:
        raise ValueError(f"Expected num_outputs divisible by the {groups} groups of {name!r}, got {num_outputs}.")
    shape = list(weight.shape)
    shape[axis] = num_outputs // groups if axis else num_outputs
    if getattr(changed, "num_outputs", None) == getattr(head, key):
        changed.num_outputs = num_outputs  # type: ignore[assignment]
    setattr(head, key, num_outputs)
    head.weight = nn.Parameter(weight.new_empty(shape))
    if isinstance(head.bias, nn.Parameter):
        head.bias = nn.Parameter(head.bias.new_empty(num_outputs))
    with isolated(generator(at_least("seed", seed, 0), device=weight.device)):
        head.reset_parameters()  # type: ignore[operator]
    return changed


def freeze(net: nn.Module, part: Part = None, but: Part = None) -> nn.Module:
    """A copy of ``net`` with parameters that are not trained: constants of a model, without a prior.

    In ``fit`` a submodule all of whose parameters are frozen computes as it does at prediction: the running statistics
    of its normalisation layers stay put, and its dropout drops nothing. (torch's own train mode goes on moving them.)

    Parameters
    ----------
    net : nn.Module
        It is not touched.
    part : str, sequence of str or callable, optional
        What to freeze: names or shell-style patterns of modules or parameters, ``"last-layer"``, or a function
        ``(name, parameter, module) -> bool``; everything by default.
    but : as ``part``, optional
        What of it to leave as it is: ``freeze(net, but="last-layer")``.

    Raises
    ------
    ValueError
        If ``part`` or ``but`` meets no parameter.
    """
    return _set(net, part, but, trained=False)


def unfreeze(net: nn.Module, part: Part = None, but: Part = None) -> nn.Module:
    """A copy of ``net`` with parameters that are trained (again); arguments and errors as in :func:`freeze`."""
    return _set(net, part, but, trained=True)


def _set(net: nn.Module, part: Part, but: Part, trained: bool) -> nn.Module:
    changed = copy.deepcopy(net)
    chosen = select_part(changed, part, "part=")
    left = select_part(changed, but, "but=") if but is not None else None
    for name, parameter in changed.named_parameters():
        if (chosen is None or name in chosen) and (left is None or name not in left):
            parameter.requires_grad_(trained)
    return changed


def features(net: nn.Module, data: Data | Sequence[Any], layer: str | None = None, batch_size: int = 1000) -> Data:
    """What comes into the last layer, for each row: a frozen trunk computed once, and not anew in every epoch.

    A model of the head alone on these inputs, ``nn.Linear(features.in_shape[0], num_outputs)``, is the model of the
    whole net with all but the head frozen.

    Parameters
    ----------
    net : nn.Module
        It computes in eval mode, as a copy: its own state is not touched.
    data : Data, or a pair (x, y)
        Inputs as the net takes them.
    layer : str, optional
        Name of the module whose (first) inputs are the features; by default the linear or convolution layer that a
        forward pass comes to last.
    batch_size : int
        Rows in one forward pass.

    Returns
    -------
    Data
        The same targets; x (N, ...) on the device of ``data.x``, not standardised.

    Raises
    ------
    ValueError
        If there is no such layer, the one that is found does not make the outputs alone, or it is not called once a
        pass with the rows along axis 0.
    TypeError
        If ``data`` is a loader or anything else.
    """
    data, first = in_memory(data), next(net.parameters())

    def placed(rows: Tensor) -> Tensor:
        return rows.to(first) if rows.is_floating_point() else rows.to(first.device)

    trunk = copy.deepcopy(net).eval()
    if layer is None:
        layer = find_head(trunk, None, placed(data.x[:FEW]))
    elif layer not in dict(trunk.named_modules()):
        find_head(trunk, layer, None)  # raises
    seen: list[Any] = []
    trunk.get_submodule(layer).register_forward_pre_hook(
        lambda _, args, named: seen.append(next(iter((*args, *named.values())), None)), with_kwargs=True
    )
    parts = []
    with torch.no_grad():
        for rows in data.x.split(at_least("batch_size", batch_size, 1)):
            trunk(placed(rows))
            if len(seen) != 1 or not isinstance(seen[0], Tensor) or seen[0].shape[:1] != rows.shape[:1]:
                shapes = ", ".join(str(tuple(getattr(value, "shape", ()))) for value in seen) or "no call"
                raise ValueError(
                    f"Expected {layer!r} to be called once with {len(rows)} rows, got {shapes}: name another, layer=."
                )
            parts.append(seen.pop().to(data.x.device, copy=True))
    return replace(data, x=torch.cat(parts), inputs=None)


def _few_rows(net: nn.Module, in_shape: Sequence[int] | None) -> Tensor | None:
    """Inputs of noise in [0, 1), where the shape is known."""
    known = in_shape
    if known is None and isinstance(getattr(net, "in_shape", None), tuple):
        known = net.in_shape  # type: ignore[assignment]
    if known is None and isinstance(getattr(net, "in_features", None), int):
        known = (int(net.in_features),)  # type: ignore[arg-type]
    return None if known is None else torch.rand(FEW, *known, generator=generator(0)).to(next(net.parameters()))
