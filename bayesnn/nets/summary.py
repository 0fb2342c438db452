"""What a net is made of: layers, shapes, numbers of parameters and of multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Layer:
    """One layer as it was called.

    Attributes
    ----------
    name : of the module in the net.
    kind : its class.
    shape : of its output for one input, (channels, height, width) of a feature map.
    parameters : its own, without those of the modules inside that were called.
    multiply_adds : for one input, a bias counted as one of them; None where they are not counted.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int | None


@dataclass(frozen=True)
class Summary:
    """What :func:`summary` returns; ``print`` it for a table.

    Attributes
    ----------
    layers : those without modules inside, and those with parameters beside the modules inside (attention), in the order
        in which they were called.
    parameters, trainable : numbers of all parameters of the net, and of those that are trained.
    multiply_adds : of one input, all layers together of which they are counted.
    priors : of a BayesianModel, (name, shape, prior) of each parameter; prior is "deterministic" where there is none.
    variational : of a BayesianModel, parameters of a mean-field q: a mean and a standard deviation for each weight.
    draw_bytes : of a BayesianModel, bytes of one stored draw.
    """

    layers: tuple[Layer, ...]
    parameters: int
    trainable: int
    multiply_adds: int
    priors: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    variational: int | None = None
    draw_bytes: int | None = None

    def __str__(self) -> str:
        head = ("layer", "kind", "output", "parameters", "multiply-adds")
        rows = [
            (one.name, one.kind, " x ".join(map(str, one.shape)), f"{one.parameters:,}",
             "" if one.multiply_adds is None else f"{one.multiply_adds:,}")
            for one in self.layers
        ]  # fmt: skip
        rows.append(("", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}"))
        lines = _table([head, *rows], numbers=(3, 4))
        if self.priors:
            shown = [(name, " x ".join(map(str, shape)), prior) for name, shape, prior in self.priors]
            lines += ["", *_table([("parameter", "shape", "prior"), *shown])]
            lines.append(f"\nmean-field q: {self.variational:,} numbers; one draw: {self.draw_bytes:,} bytes")
        return "\n".join(lines)


def summary(net: nn.Module, in_shape: Sequence[int], dtype: torch.dtype | None = None) -> Summary:
    """Layers, output shapes, parameters and multiply-adds of a net for one input, by one forward pass (torchinfo).

    Parameters
    ----------
    net : a module, or a BayesianModel: then with the prior of each parameter, and what its posterior takes to store.
    in_shape : of one input, such as (channels, height, width).
    dtype : of an input, ``torch.long`` where the net begins with an embedding; by default that of its parameters.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError
        If the net does not take such an input, of zeros.

    Examples
    --------
    >>> summary(MLP(3, (4, 3), 1), (3,)).parameters
    35
    """
    import torchinfo

    bayesian: Any = net if hasattr(net, "log_priors") else None
    module: nn.Module = bayesian.net if bayesian is not None else net
    first = next(iter(module.parameters()), torch.zeros(()))
    row = first.new_zeros(1, *in_shape, dtype=dtype)
    # torchinfo puts back the net's mode, and no part's own.
    training = [(one, one.training) for one in module.modules()]
    try:
        found = torchinfo.summary(module, input_data=row, verbose=0, mode="eval", device=first.device)
    except RuntimeError as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(
            f"Expected a net that takes an input of shape {tuple(in_shape)} and {row.dtype}, got: {cause}: give "
            "in_shape= and dtype= as the net takes them."
        ) from error
    finally:
        for one, mode in training:
            one.training = mode
    names = {id(one): name for name, one in module.named_modules()}
    called = {info.layer_id for info in found.summary_list}
    layers = tuple(
        Layer(
            names.get(info.layer_id) or info.var_name,
            info.class_name,
            tuple(info.output_size[1:]),
            own,
            _multiply_adds(info) if info.is_leaf_layer and (info.macs or not own) else None,
        )
        for info in found.summary_list
        if (own := max(info.num_params, 0) if info.is_leaf_layer else _beside(info.module, called))
        or info.is_leaf_layer
    )
    total = sum(p.numel() for p in module.parameters())
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    plain = Summary(layers, total, trainable, sum(one.multiply_adds or 0 for one in layers))
    if bayesian is None:
        return plain
    state = bayesian.state()
    weights = sum(state[name].numel() for name in bayesian.log_priors)
    stored = sum(value.nbytes for value in state.values())
    return replace(plain, priors=_priors(bayesian), variational=2 * weights, draw_bytes=stored)


def _multiply_adds(info: Any) -> int:
    """As torchinfo counts them, but for embeddings, of which it takes a look-up for a product with the whole table, and
    for linear layers on sequences, of which it counts one position.
    """
    if isinstance(info.module, (nn.Embedding, nn.EmbeddingBag)):
        return 0
    return int(info.macs) * (math.prod(info.output_size[1:-1]) if isinstance(info.module, nn.Linear) else 1)


def _beside(module: nn.Module, called: set[int]) -> int:
    """Parameters that a module with others inside uses itself: its own, and those of parts that are never called."""
    inside = sum(_beside(one, called) for one in module.children() if id(one) not in called)
    return inside + sum(p.numel() for p in module.parameters(recurse=False))


def _priors(model: Any) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return tuple(
        (name.removeprefix("net."), tuple(p.shape), _said(model.log_priors[name]) if name in model.log_priors
         else "deterministic")
        for name, p in named
    )  # fmt: skip


def _said(prior: Any) -> str:
    """``Normal(0, 0.15)`` where it is one for all weights, else the kind alone."""
    base = getattr(prior, "base_dist", prior)
    kind = type(base).__name__.lstrip("_")
    values = []
    for name in getattr(base, "arg_constraints", {}):
        value = getattr(base, name, None)
        if not isinstance(value, torch.Tensor) or not bool((value == value.flatten()[0]).all()):
            return kind
        values.append(f"{float(value.flatten()[0]):.3g}")
    return f"{kind}({', '.join(values)})" if values else kind


def _table(rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
