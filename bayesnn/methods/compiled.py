"""A potential and its gradient over all weights as one compiled function of the flat vector."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.func import functional_call, grad_and_value

from bayesnn.errors import first_line
from bayesnn.methods.flat import FlatWeights
from bayesnn.model import BayesianModel

# What is compiled is kept for the process, by the form of the net and the shapes of the data: chains and later fits of
# the same form compile nothing. torch's own limit, all that an older one knows, is eight forms.
FORMS = 64
Names = tuple[tuple[str, Size], ...]
Priors = tuple[tuple[str, Any], ...]
Evaluated = tuple[Tensor, tuple[Tensor, Tensor]]  # gradient, (potential, the priors' part of it)


class CompiledPotential:
    """-log p(w) - sum_i log p(y_i | x_i, w), in float64, and its gradient as one vector: one call of compiled code.

    One call has the overhead of one operation, where the plain backward pass has that of every operation of the net:
    it pays where nets and data are small. The net is the model's own, at whatever the flat weights hold.

    Parameters
    ----------
    model, weights : the model, and all its weights with a prior.
    loc, precision : of the Normal priors, a number for each weight; precision 0 where the prior is another.
    others : names of the parameters with other priors.
    """

    def __init__(
        self, model: BayesianModel, weights: FlatWeights, loc: Tensor, precision: Tensor, others: Sequence[str]
    ) -> None:
        self._likelihood, self._vector = _LogLikelihood(model), weights.vector
        self._names: Names = tuple((f"model.{name}", p.shape) for name, p in weights.parameters.items())
        self._loc, self._precision = loc, precision
        self._others: Priors = tuple((f"model.{name}", _unvalidated(model.log_priors[name])) for name in others)

    def __call__(self, rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float, Tensor]:
        """(the potential, infinite where a weight is not finite; the part of it that is the priors'; its gradient).

        Raises
        ------
        RuntimeError : torch.compile cannot capture the net or a prior, or there is no C++ compiler.
        """
        priors: tuple[Tensor, Priors] = self._precision, self._others
        energy, of_priors, gradient = 0.0, 0.0, torch.zeros_like(self._vector)
        for x, y in rows:
            try:
                with torch.no_grad():
                    arguments = (self._vector, self._likelihood, self._names, self._loc, *priors, x, y)
                    slope, (value, prior) = _compiled()(*arguments)
            except Exception as error:  # of the compiler, in whichever of its stages
                raise RuntimeError(
                    f"Expected a net that torch.compile can capture, got {first_line(error)}: leave compile=True out."
                ) from error
            energy, of_priors, gradient = energy + float(value), of_priors + float(prior), gradient.add_(slope)
            priors = torch.zeros_like(self._precision), ()  # they are counted once
        return energy, of_priors, gradient


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


def _potential(
    vector: Tensor,
    likelihood: nn.Module,
    names: Names,
    loc: Tensor,
    precision: Tensor,
    others: Priors,
    x: Tensor,
    y: Tensor,
) -> tuple[Tensor, Tensor]:
    parts = vector.split([shape.numel() for _, shape in names])
    weights = {name: part.view(shape) for (name, shape), part in zip(names, parts, strict=True)}
    rows: Tensor = functional_call(likelihood, weights, (x, y))
    of_priors = 0.5 * ((vector - loc).square() * precision).sum(dtype=torch.float64)
    for name, prior in others:
        of_priors = of_priors - prior.log_prob(weights[name]).sum(dtype=torch.float64)
    energy = of_priors - rows.sum(dtype=torch.float64)
    return torch.where(torch.isfinite(vector).all(), energy, math.inf), of_priors.detach()


def _gradient_and_value(*arguments: Any) -> Evaluated:
    evaluated: Evaluated = grad_and_value(_potential, has_aux=True)(*arguments)
    return evaluated


@functools.cache
def _compiled() -> Callable[..., Evaluated]:
    known = inspect.signature(torch.compile).parameters
    limit: dict[str, Any] = {"recompile_limit": FORMS} if "recompile_limit" in known else {}
    # Of fixed shapes: a full batch has but one, and code for any shape is slower.
    return torch.compile(_gradient_and_value, fullgraph=True, dynamic=False, **limit)
