"""What happens to the user's data before the first step: checks, validation split, standardised targets."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bayesnn import data as bd
from bayesnn.data.batches import Batches, Loader, Order
from bayesnn.data.dataset import all_finite
from bayesnn.data.weighted import WeightedBatches, row_probabilities
from bayesnn.errors import at_least, first_line, is_real
from bayesnn.model import BayesianModel
from bayesnn.rng import generator, isolated

MOST_SIZE = 50.0  # of targets in the units that the net sees, root mean square
LEAST_SPREAD = 0.02  # standard deviation of targets, likewise


@dataclass(frozen=True)
class Task:
    """Data that a run can start from.

    Attributes
    ----------
    x, y : the training part, y standardised, on ``device`` where it fits there; None where a user's loader gives the
        batches.
    device : the model's: where minibatches are to be.
    loader : that loader, or None.
    validation : Data, y in its own units, or None.
    target : affine map of the standardised targets, or None.
    num_data : N, by which the likelihood is scaled: the rows of the training part, or what the user says.
    out_shape : shape of the net's outputs for one input, () for a number.
    random_net : whether the net in train mode draws random numbers of its own.
    batch_rows : rows of a loader's first minibatch; None in memory.
    row_shape : shape of one input, in a loader that of its first minibatch.
    probs : (N,), with which the rows are drawn; None where they are drawn evenly.
    inputs : affine map of the standardised inputs, or None.
    """

    x: Tensor | None
    y: Tensor | None
    loader: Loader | None
    validation: bd.Data | None
    target: bd.Standardize | None
    num_data: int
    out_shape: tuple[int, ...]
    random_net: bool
    device: torch.device
    batch_rows: int | None = None
    row_shape: tuple[int, ...] = ()
    probs: Tensor | None = None
    inputs: bd.Standardize | None = None

    def batches(self, batch_size: int | None, order: Order, shuffle: torch.Generator) -> Batches | Loader:
        """Minibatches in memory by indexing, or the user's own loader."""
        if self.loader is not None:
            return self.loader
        assert self.x is not None
        assert self.y is not None
        if self.probs is not None:
            return WeightedBatches(self.x, self.y, self.probs, batch_size, shuffle, self.device)
        return Batches(self.x, self.y, batch_size, order, shuffle, self.device)


def prepare(
    model: BayesianModel, data: Any, validation: Any, num_data: int | None, seed: int, sampling: Any = None
) -> Task:
    """Check everything that can be checked before the first step.

    Raises
    ------
    ValueError, TypeError : bad shapes, dtypes, targets, numbers; a net that fails on the inputs. One line each.
    """
    if isinstance(data, (Loader, Dataset)) or (
        isinstance(data, Iterable) and not isinstance(data, (bd.Data, tuple, list, dict, Tensor))
    ):
        if sampling is not None:
            raise ValueError("Expected no sampling= with a loader, which draws its own rows: give data in memory.")
        loader = data if isinstance(data, Loader) else Loader(data, num_data)
        count = loader.num_data if num_data is None else at_least("num_data", num_data, 1)
        if is_real(validation):
            raise ValueError("Expected validation=(x, y) beside a loader, got a share: a loader cannot be split.")
        with isolated(generator(seed)):  # a DataLoader takes a seed from torch's global generator
            x, y = next(loader.peek())
        x, y = model.place(constant(x), constant(y))
        check_numbers(x, y, " in minibatch 1")
        _, outputs = _check(model, x, y)
        model.likelihood.learn(None, (outputs or (1,))[0])
        held_out = _checked_validation(model, _as_data(validation)) if validation is not None else None
        random_net = _is_random(model, x)
        size, shape = len(x), x.shape[1:]
        return Task(None, None, loader, held_out, None, count, outputs, random_net, x.device, size, shape)

    train = _as_data(data)
    held_out = None
    if is_real(validation):
        if not 0 < validation < 1:
            raise ValueError(
                f"validation: expected a fraction in (0, 1), got {validation}: it is the share of the rows to hold out."
            )
        train, held_out = bd.split(train, float(validation), seed=seed)
    elif validation is not None:
        held_out = _as_data(validation)
    if train.target is not None and not model.likelihood.location_scale:
        raise ValueError(
            f"Expected targets in their own units for {type(model.likelihood).__name__}, got standardised ones: "
            "drop the data's target= transform, or use a location-scale likelihood such as Normal()."
        )
    if train.target is not None:  # in the data's own dtype: 1e9 + [0, 1] has two values in float64 and one in float32
        train = replace(train, y=train.target.forward(train.y))
    elif model.likelihood.location_scale and train.y.is_floating_point():
        _warn_of_units(train.y)
    device = next(iter(model.parameters())).device
    placed = _placed(train, model, device if fits(train.x, device) else train.x.device)
    x = placed.x
    y, outputs = _check(model, x, placed.y)
    model.likelihood.learn(y, (outputs or (1,))[0])
    model.likelihood.to(next(model.net.parameters()))
    probs = None if sampling is None else row_probabilities(sampling, y)
    if held_out is not None:
        held_out = _checked_validation(model, held_out, own_units=train.target is not None)
    random_net = _is_random(model, x)
    size = len(train) if num_data is None else at_least("num_data", num_data, 1)
    more: dict[str, Any] = {"row_shape": x.shape[1:], "inputs": train.inputs, "probs": probs}
    return Task(x, y, None, held_out, train.target, size, outputs, random_net, device, **more)


def _warn_of_units(y: Tensor) -> None:
    """Warn of targets that no function of the default prior reaches, or whose whole spread is noise to it.

    Functions of an MLP under ``Layerwise(gain=3)`` have standard deviations of about 6.5 on standardised inputs.
    """
    spread, size = float(y.double().std(correction=0)), float(y.double().square().mean().sqrt())
    if size > MOST_SIZE or 0 < spread < LEAST_SPREAD:
        warnings.warn(
            f"Expected targets of mean 0 and standard deviation 1 or near, as priors are made for them, got "
            f"{float(y.double().mean()):.3g} and {spread:.3g}: pass bayesnn.data.standardize(data)[0], and predictions "
            "come in the targets' own units all the same.",
            stacklevel=4,
        )


def _checked_validation(model: BayesianModel, held_out: bd.Data, own_units: bool = False) -> bd.Data:
    """The validation part on the model's device; its faults show now and not after the first epoch."""
    placed = _placed(held_out, model)
    try:
        _check(model, placed.x, placed.y)
    except ValueError as error:
        raise ValueError(f"In the validation part: {error}") from error
    return replace(placed, y=held_out.y.to(placed.y.device)) if own_units else placed


def _as_data(data: Any) -> bd.Data:
    if isinstance(data, (tuple, list)) and len(data) == 2:
        data = bd.Data.of(*data)
    if isinstance(data, bd.Data):
        return replace(data, x=constant(data.x), y=constant(data.y))
    raise TypeError(
        f"Expected data as bayesnn.data.Data, (x, y) or a loader of (x, y), got {type(data).__name__}: "
        "pass one of these."
    )


def constant(tensor: Tensor) -> Tensor:
    """The user's tensor cut off from the graph it came from: no gradient of ours shall reach it."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def check_numbers(x: Tensor, y: Tensor, where: str) -> None:
    """Raise where inputs or targets are not finite, be it for the dtype of the net."""
    for name, value in (("inputs", x), ("targets", y)):
        if not all_finite(value):
            raise ValueError(f"Expected finite {name}, got NaN or infinity{where}: clean or standardise them.")


def fits(data: Tensor, device: torch.device) -> bool:
    """Whether data may stay on the device as a whole: a GPU has other work for at least half of what is free on it."""
    return device.type != "cuda" or 2 * data.nbytes <= torch.cuda.mem_get_info(device)[0]


def _placed(data: bd.Data, model: BayesianModel, device: torch.device | None = None) -> bd.Data:
    x, y = model.place(data.x, data.y, device=device)
    check_numbers(x, y, f" as {x.dtype}")  # what is finite in float64 may be none in the net's own dtype
    return bd.Data(x, y, data.name, data.classes, data.inputs, data.target)


def _check(model: BayesianModel, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Run two rows through a copy of the net, and hold the targets against its outputs: (targets, outputs' shape)."""
    row = tuple(try_net(model, x[:2]).shape[1:])
    (targets,) = model.place(model.likelihood.targets_for(y, row), device=y.device)
    return targets, row


def try_net(model: BayesianModel, rows: Tensor) -> Tensor:
    """The outputs of a copy of the net for ``rows``; ValueError where it does not take them, or gives no rows."""
    probe = model.copy().eval()
    (rows,) = model.place(rows)
    with torch.no_grad(), isolated(generator(0)):
        try:
            outputs = probe.net(rows)
        except Exception as error:  # a net is the user's own code, and may raise anything
            dtype = next(iter(model.parameters())).dtype
            raise ValueError(
                f"Expected a net that takes inputs of shape (batch, {', '.join(map(str, rows.shape[1:]))}) and "
                f"{rows.dtype}, got from the net (its weights are {dtype}): {first_line(error)}"
            ) from error
    if not isinstance(outputs, Tensor) or outputs.dim() == 0 or len(outputs) != len(rows):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"Expected a net with outputs of shape (batch, outputs) = ({len(rows)}, ...), or (batch, outputs, height, "
            f"width), got {got}: change what it returns."
        )
    return outputs


def _is_random(model: BayesianModel, x: Tensor) -> bool:
    """Whether the net in train mode draws random numbers: dropout, be it a module, a function call or inside attention.

    Seen by forward passes under different seeds, and by modules whose rate is too small to show there. The same passes
    show which buffers training moves; their names are added to ``model.moving``.
    """
    (rows,), outputs = model.place(x[:32]), []
    before = dict(model.named_buffers())
    for seed in range(4):
        probe = model.copy().train()  # a fresh one each time: what moves in it must not pass for randomness
        with torch.no_grad(), isolated(generator(0)):
            for parameter in probe.parameters():  # other weights, or a buffer that has settled on these would not move
                if parameter.requires_grad:
                    parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
        with torch.no_grad(), isolated(generator(seed)):
            try:
                outputs.append(probe.net(rows))
            except Exception as error:  # BatchNorm on a single row, or whatever the user's own code raises
                raise ValueError(f"Expected a net that trains on {len(rows)} rows, got: {first_line(error)}") from error
    model.moving |= {name for name, buffer in probe.named_buffers() if not torch.equal(buffer, before[name])}
    dropped = any(
        isinstance(m, torch.nn.modules.dropout._DropoutNd) and m.p > 0 and m.training for m in probe.modules()
    )
    return dropped or not all(torch.equal(outputs[0], other) for other in outputs[1:])
