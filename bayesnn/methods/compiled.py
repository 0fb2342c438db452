"""A potential as a pure function of the flat vector of weights, which torch can compile, alone or inside of another."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn
from torch.func import functional_call, grad_and_value

from bayesnn.errors import first_line
from bayesnn.methods.flat import FlatWeights
from bayesnn.model import BayesianModel

# What is compiled is kept for the process, by the form of the net and the shapes of the data: chains and later fits of
# the same form compile nothing. torch's own limit, all that an older one knows, is eight forms.
FORMS = 64
Evaluated = tuple[Tensor, Tensor, Tensor]  # U / T, its gradient, and the priors' part of U


class Density(NamedTuple):
    """What a potential is made of, in a form that compiled code takes. The net is the model's own.

    Attributes
    ----------
    likelihood : module whose forward pass is the model's log likelihood.
    names : of the parameters in the module, with their shapes, in the order of the vector.
    loc, precision : of the Normal priors, a number for each weight; precision 0 where the prior is another.
    others : the other priors, by name.
    rows : the data, in the pieces that go through the net at once.
    temperature : T.
    """

    likelihood: nn.Module
    names: tuple[tuple[str, Size], ...]
    loc: Tensor
    precision: Tensor
    others: tuple[tuple[str, Any], ...]
    rows: tuple[tuple[Tensor, Tensor], ...]
    temperature: float


def density_of(
    model: BayesianModel,
    weights: FlatWeights,
    loc: Tensor,
    precision: Tensor,
    others: Sequence[str],
    temperature: float,
) -> Density:
    """The density without its rows; ``weights`` are all that have a prior."""
    names = tuple((f"model.{name}", parameter.shape) for name, parameter in weights.parameters.items())
    priors = tuple((f"model.{name}", _unvalidated(model.log_priors[name])) for name in others)
    return Density(_LogLikelihood(model), names, loc, precision, priors, (), temperature)


def evaluate(vector: Tensor, density: Density) -> Evaluated:
    """U / T, with U = -log p(w) - sum_i log p(y_i | x_i, w) in float64, its gradient, and -log p(w).

    Infinite where a weight is not finite. The constants of Normal priors are left out.
    """
    gradient, of_priors = grad_and_value(_prior_part)(vector, density)
    energy = of_priors
    for x, y in density.rows:
        slope, value = grad_and_value(_data_part)(vector, density, x, y)
        gradient, energy = gradient + slope, energy + value
    energy = torch.where(torch.isfinite(vector).all(), energy, math.inf)
    return energy / density.temperature, gradient / density.temperature, of_priors


def _prior_part(vector: Tensor, density: Density) -> Tensor:
    value = 0.5 * ((vector - density.loc).square() * density.precision).sum(dtype=torch.float64)
    weights = _named(vector, density)
    for name, prior in density.others:
        value = value - prior.log_prob(weights[name]).sum(dtype=torch.float64)
    return value


def _data_part(vector: Tensor, density: Density, x: Tensor, y: Tensor) -> Tensor:
    rows: Tensor = functional_call(density.likelihood, _named(vector, density), (x, y))
    return -rows.sum(dtype=torch.float64)


def _named(vector: Tensor, density: Density) -> dict[str, Tensor]:
    parts = vector.split([shape.numel() for _, shape in density.names])
    return {name: part.view(shape) for (name, shape), part in zip(density.names, parts, strict=True)}


class _LogLikelihood(nn.Module):
    """The model's log likelihood as a forward pass: what ``functional_call`` can call."""

    def __init__(self, model: BayesianModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.model.log_likelihood(x, y)


def _unvalidated(prior: Any) -> Any:
    """A copy whose density does not look at values before it takes them: a branch that no graph can hold."""
    part = prior = copy.deepcopy(prior)
    while part is not None:
        part._validate_args = False
        part = getattr(part, "base_dist", None)
    return prior


def call_compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` without gradients, compiled at the first call.

    Raises
    ------
    RuntimeError : torch.compile cannot capture the function's net or priors, or there is no C++ compiler.
    """
    try:
        with torch.no_grad():
            return _compiled(function)(*arguments)
    except Exception as error:  # of the compiler, in whichever of its stages
        raise RuntimeError(
            f"Expected a net that torch.compile can capture, got {first_line(error)}: leave compile=True out."
        ) from error


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    known = inspect.signature(torch.compile).parameters
    limit: dict[str, Any] = {"recompile_limit": FORMS} if "recompile_limit" in known else {}
    # Of fixed shapes: a full batch has but one, and code for any shape is slower.
    return torch.compile(function, fullgraph=True, dynamic=False, **limit)
