"""What full-batch samplers share: the potential of all weights, the models they take, the draws they keep."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bayesnn.errors import at_least, positive
from bayesnn.methods.base import (
    Method,
    Plan,
    clear_gradients,
    evenly,
    prior_loss,
    prior_terms,
    refuse_dropout,
    refuse_running_statistics,
)
from bayesnn.methods.compiled import Density, Evaluated, aside, call_compiled, check_agreement, density_of, evaluate
from bayesnn.methods.flat import FlatWeights, normal_priors
from bayesnn.model import BayesianModel

CLIMB_LR = 1e-2


@dataclass(frozen=True)
class FullBatchMethod(Method):
    """A sampler each of whose steps takes exact gradients over all rows.

    Parameters
    ----------
    temperature : T of p(w, D)^(1/T), > 0; 1 is the Bayes posterior.
    draws : number of draws to keep a chain, evenly spaced over the steps after the warm-up.
    thin : steps between kept draws, instead of ``draws``.
    chunk : rows in one pass through the net. It bounds the memory and changes nothing else; with ``compile=True`` each
        piece takes seconds more to compile.
    """

    access: ClassVar[Literal["minibatch", "full"]] = "full"
    is_sampler: ClassVar[bool] = True
    compiles = True
    default_chains: ClassVar[int] = 4

    temperature: float = 1.0
    draws: int = 200
    thin: int | None = None
    chunk: int = 4096

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        at_least("draws", self.draws, 1)
        if self.thin is not None:
            at_least("thin", self.thin, 1)
        at_least("chunk", self.chunk, 1)

    @abstractmethod
    def unkept_steps(self, steps: int) -> int:
        """Of ``steps`` steps, how many at the start are spent on finding the posterior and on tuning."""

    def kept_steps(self, steps: int) -> Sequence[int]:
        """Numbers (from 1) of the steps after which a draw is kept; the last step is always one of them."""
        return evenly(range(self.unkept_steps(steps) + 1, steps + 1), self.draws, self.thin)

    def check(self, model: BayesianModel, plan: Plan) -> None:
        name = type(self).__name__
        refuse_dropout(plan, self)
        refuse_running_statistics(model, self)
        if model.deterministic:
            raise ValueError(
                f"Expected a prior on every trainable parameter for {name}, got none on {model.deterministic[0]!r}: "
                "give it one, set its requires_grad=False, or use SGLD, which optimises it."
            )
        if not model.log_priors:
            raise ValueError(f"Expected at least one parameter with a prior for {name}, got none: use MAP.")
        if not len(self.kept_steps(plan.steps)):
            raise ValueError(
                f"Expected at least one draw to keep, got thin={self.thin} with {plan.steps} steps, "
                f"{self.unkept_steps(plan.steps)} of which are not kept: raise epochs, or lower thin."
            )

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        return len(self.kept_steps(plan.steps)) * super().draw_bytes(model, plan)


class Potential:
    """U(w) / T = -(log p(w) + sum_i log p(y_i | x_i, w)) / T and its gradient, at the weights in ``vector``.

    One evaluation is one forward and one backward pass of the net over all rows, on its own parameters. With
    ``compile`` both are one call of compiled code, which has the overhead of one operation, where the plain backward
    pass has that of every operation of the net: it pays where nets and data are small. A Normal prior is added in
    closed form and without its constant: a potential is known up to a constant anyway.

    Attributes
    ----------
    weights : the parameters; ``weights.vector`` holds their values, and writing into it moves them.
    evaluations : gradients asked for over all rows; at weights that are not finite none is taken.
    """

    def __init__(self, model: BayesianModel, temperature: float, chunk: int, compile: bool = False) -> None:
        self._model, self._T, self._chunk = model, temperature, chunk
        self.weights = FlatWeights(model.bayesian_parameters())
        self.vector = self.weights.vector
        self.evaluations = 0
        self._loc, self._precision, others = normal_priors(model, self.weights)
        self._others = prior_terms(model, others)
        self._has_normal = bool(self._precision.any())
        self._density = (
            density_of(model, self.weights, self._loc, self._precision, others, temperature) if compile else None
        )
        self._rows: Sequence[tuple[Tensor, Tensor]] = ()
        self._x: Tensor | None = None

    def on(self, x: Tensor, y: Tensor) -> None:
        """Take these rows for the data; the same ones as before cost nothing."""
        if x is not self._x:
            self._x, self.num_data = x, len(x)
            self._rows = list(zip(x.split(self._chunk), y.split(self._chunk), strict=True))
            if self._density is not None:
                self._density = self._density._replace(rows=tuple(self._rows))
                with aside([self.vector]):
                    found = call_compiled(_at, self.vector, evaluate, self._density)
                    check_agreement(self._plain(self.vector, None)[1:2], found[1:2])

    def __call__(self) -> tuple[float, Tensor]:
        """(U / T, its gradient as a new vector); the sum over rows is in float64, whatever the net computes in.

        Infinity where the weights are not finite, a trajectory that has flown off: no density would take them.
        """
        energy, gradient, _ = self.through(_at, 1, self.vector)
        return float(energy), gradient

    def through(self, function: Callable[..., Any], evaluations: int, *arguments: Any) -> Any:
        """``function(*arguments, evaluate, density)``, which evaluates the potential so often, compiled if that is so.

        It gets the potential as ``evaluate(vector, density)``, see :func:`bayesnn.methods.compiled.evaluate`, and has
        to be pure: what is compiled changes nothing in place.
        """
        self.evaluations += evaluations
        if self._density is not None:
            return call_compiled(function, *arguments, evaluate, self._density)
        return function(*arguments, self._plain, None)

    def _plain(self, vector: Tensor, _: None) -> Evaluated:
        """The potential at ``vector``, where the weights then are, by one backward pass of the net as it is."""
        if vector is not self.vector:
            self.vector.copy_(vector)
        if not bool(torch.isfinite(vector).all()):
            infinity = torch.tensor(math.inf, dtype=torch.float64)
            return infinity, torch.zeros_like(vector), infinity
        clear_gradients(self.weights.parameters.values())
        energy = of_priors = 0.0
        with torch.enable_grad():
            prior = prior_loss(self._others, 1)
            of_priors += float(prior) if isinstance(prior, float) else float(prior.detach())
            for x, y in self._rows:
                log_likelihood = self._model.log_likelihood(x, y)
                (prior - log_likelihood.sum()).backward()
                energy -= float(log_likelihood.detach().sum(dtype=torch.float64))
                prior = 0.0  # it is counted once
        gradient = self.weights.gradient(out=None)
        if self._has_normal:
            normal, pull = self._normal_prior()
            of_priors += normal
            gradient.add_(pull)
        both = torch.tensor(((energy + of_priors) / self._T, of_priors), dtype=torch.float64)
        return both[0], gradient.div_(self._T), both[1]

    def _normal_prior(self) -> tuple[float, Tensor]:
        """sum (w - m)^2 / (2 s^2) over the weights with a Normal(m, s^2) prior, and its gradient."""
        delta = self.vector - self._loc
        pull = delta * self._precision
        return 0.5 * float(delta.mul_(pull).sum(dtype=torch.float64)), pull

    def prior(self) -> float:
        """-log p(w) at the present weights, without the constants of Normal priors."""
        with torch.no_grad():
            normal = self._normal_prior()[0] if self._has_normal else 0.0
            return normal + float(prior_loss(self._others, 1))

    def mean_nll(self, energy: float, of_priors: float | None = None) -> Tensor:
        """Mean negative log likelihood of the rows where U / T is ``energy``, shape ().

        ``of_priors`` is -log p(w) there; by default it is that of the present weights.
        """
        if not math.isfinite(energy):
            return torch.tensor(energy, dtype=torch.float64)
        prior = self.prior() if of_priors is None else of_priors
        return torch.tensor((self._T * energy - prior) / self.num_data, dtype=torch.float64)


def _at(vector: Tensor, evaluate: Callable[..., Evaluated], density: Density | None) -> Evaluated:
    return evaluate(vector, density)


class Climb:
    """Adam on U / N from the present weights towards a mode, its learning rate falling from CLIMB_LR to zero."""

    def __init__(self, potential: Potential, steps: int) -> None:
        self._potential, self._steps, self._taken = potential, steps, 0
        self._adam = torch.optim.Adam([potential.vector], lr=CLIMB_LR)

    def step(self) -> tuple[float, float]:
        """One step; U / T and -log p(w) before it."""
        energy, gradient, of_priors = self._potential.through(_at, 1, self._potential.vector)
        self._potential.vector.grad = gradient.div_(self._potential.num_data)
        self._adam.param_groups[0]["lr"] = CLIMB_LR * (1 - self._taken / self._steps)
        self._adam.step()
        self._potential.vector.grad = None
        self._taken += 1
        return float(energy), float(of_priors)

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self._taken, "adam": copy.deepcopy(self._adam.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._taken = state["taken"]
        self._adam.load_state_dict(copy.deepcopy(state["adam"]))
