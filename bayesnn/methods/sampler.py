"""What every stochastic-gradient sampler shares: warm-up, burn-in, thinning, and which draws are kept."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from bayesnn.errors import at_least, fraction, positive
from bayesnn.methods.base import (
    Method,
    Plan,
    Run,
    Schedule,
    check_schedule,
    clear_gradients,
    normalisation_layers,
    parameter_groups,
    prior_loss,
    refuse_dropout,
)
from bayesnn.methods.curvature import largest_curvature
from bayesnn.model import BayesianModel, State
from bayesnn.rng import Streams, generator, isolated
from bayesnn.source import Source

LR_STABILITY = 0.25
LR_MOST = 0.1
LOOKS = 10


@dataclass(frozen=True)
class SamplerMethod(Method):
    """A sampler that is a torch optimizer; subclasses make the optimizer.

    Parameters
    ----------
    lr : step size in the units of SGD's, > 0. None, the default, sets it for each chain during the burn-in: to
        ``LR_STABILITY`` / lambda, at most ``LR_MOST``, where lambda is the largest curvature of the mean loss seen on
        the chain's way. On a quadratic, lr * lambda = c inflates the variance of the stiffest direction by
        1 / (1 - c / 2).
    temperature : T of p(w, D)^(1/T); 1 is the Bayes posterior.
    warm_up : share of the steps, at the start, in which Adam climbs to the posterior's mode: the chain starts where
        the mass is. A run that goes on from another posterior (``init=``) has none.
    burn_in : share of the steps whose states are not kept, the warm-up included.
    draws : number of draws to keep a chain, evenly spaced over the steps after the burn-in.
    thin : steps between kept draws, instead of ``draws``.
    schedule : of ``lr`` over the steps after the warm-up: ``"constant"``, ``"cosine"``, ``"linear"``, ``"sqrt"``, or a
        factory ``(optimizer, steps) -> LRScheduler``.
    """

    is_sampler: ClassVar[bool] = True
    default_chains: ClassVar[int] = 4
    default_steps: ClassVar[int] = 6000

    lr: float | None = None
    temperature: float = 1.0
    warm_up: float = 0.2
    burn_in: float = 0.5
    draws: int = 100
    thin: int | None = None
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        if self.lr is not None:
            positive("lr", self.lr)
        elif self.schedule not in (None, "constant"):
            raise ValueError(f"Expected lr= with schedule={self.schedule!r}, got none: a schedule scales a given step.")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"Expected temperature >= 0 and finite, got {self.temperature!r}: 1 is the Bayes posterior."
            )
        fraction("burn_in", self.burn_in)
        fraction("warm_up", self.warm_up)
        at_least("draws", self.draws, 1)
        if self.thin is not None:
            at_least("thin", self.thin, 1)

    @abstractmethod
    def make_optimizer(self, groups: list[dict[str, Any]], num_data: int, noise: torch.Generator) -> Optimizer:
        """The sampler over parameter groups, which carry the Normal prior as ``weight_decay``."""

    def kept_steps(self, steps: int) -> range:
        """Numbers (from 1) of the steps after which a draw is kept; the last step is always one of them."""
        first = max(math.ceil(self.burn_in * steps), math.ceil(self.warm_up * steps))
        room = steps - first
        gap = self.thin if self.thin is not None else max(1, room // self.draws)
        count = min(room // gap, self.draws if self.thin is None else room)
        return range(steps - gap * (count - 1), steps + 1, gap)

    def check(self, model: BayesianModel, plan: Plan) -> None:
        refuse_dropout(plan, self)
        if not len(self.kept_steps(plan.steps)):
            raise ValueError(
                f"Expected at least one draw to keep, got thin={self.thin} with {plan.steps} steps and "
                f"burn_in={self.burn_in}: raise epochs, or lower thin or burn_in."
            )

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        return len(self.kept_steps(plan.steps)) * super().draw_bytes(model, plan)

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return _SamplerRun(self, model, plan, streams, init)


class _SamplerRun(Run):
    def __init__(
        self, method: SamplerMethod, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None
    ) -> None:
        super().__init__(model, plan, streams)
        if init is not None:
            model.load_state(init.last())
        groups, self._others = parameter_groups(model, plan.num_data)
        self._sampler = method.make_optimizer(_cooled(groups), plan.num_data, streams.noise)
        self._climber = torch.optim.Adam([dict(group) for group in groups], lr=3e-3, fused=True)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizers = [self._sampler]
        self._warm_steps = self.schedule_from = 0 if init is not None else math.ceil(method.warm_up * plan.steps)
        self._kept = method.kept_steps(plan.steps)
        self._step = 0
        burn_in = self._kept[0] - 1 - self._warm_steps
        looks = range(self._warm_steps, self._warm_steps + max(burn_in, 1), max(1, -(-burn_in // LOOKS)))
        self._looks = looks if method.lr is None else range(0)
        self._direction: list[Tensor] | None = None
        self._curvature = 0.0
        self._batches: Any = None
        self._has_statistics = bool(normalisation_layers(model))

    def begin_epoch(self, epoch: int, batches: Any) -> None:
        self._batches = batches

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        optimizer = self._climber if self._step < self._warm_steps else self._sampler
        if self._step in self._looks:
            self._set_lr(x, y)
        clear_gradients(self._parameters)
        nll = -self.model.log_likelihood(x, y).mean()
        (nll + prior_loss(self.model, self._others, self.plan.num_data)).backward()
        optimizer.step()
        self._step += 1
        self.gradient_evaluations += 1
        return nll.detach()

    def _set_lr(self, x: Tensor, y: Tensor) -> None:
        """Adapt the step to the largest curvature seen so far; after the burn-in it stays, as a Markov chain needs."""

        def loss() -> Tensor:
            nll = -self.model.log_likelihood(x, y).mean()
            return nll + prior_loss(self.model, self._others, self.plan.num_data)

        if self._direction is None:
            noise = self.streams.noise
            self._direction = [torch.empty_like(p).normal_(generator=noise) for p in self._parameters]
        iterations = 8
        value, self._direction = largest_curvature(loss, self._parameters, self._direction, iterations)
        self.gradient_evaluations += 2 * iterations
        self._curvature = max(self._curvature, value)
        for group in self._sampler.param_groups:
            group["lr"] = min(LR_MOST, LR_STABILITY / max(self._curvature, 1e-12))

    def draw(self) -> list[State]:
        return self.snapshot() if self._step in self._kept else []

    def snapshot(self) -> list[State]:
        if self._has_statistics:
            estimate_statistics(self.model, self._batches)
        return [self.model.state()]

    def state_dict(self) -> dict[str, Any]:
        own = {"step": self._step, "climber": self._climber.state_dict(), "curvature": self._curvature}
        return {**super().state_dict(), **own, "direction": self._direction}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._step, self._curvature, self._direction = state["step"], state["curvature"], state["direction"]
        self._climber.load_state_dict(state["climber"])


def _cooled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups for the sampler: parameters without a prior are optimised (T = 0), not sampled."""
    return [{**group, "temperature": 0.0} if group.get("deterministic") else dict(group) for group in groups]


def estimate_statistics(model: BayesianModel, batches: Any, most: int = 20) -> None:
    """Running statistics of normalisation layers for the present weights: the plain average over up to ``most``
    batches.

    The moving average that training leaves behind belongs to a mixture of past weights and not to this draw.
    """
    layers = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's cumulative average
    with torch.no_grad(), isolated(generator(0)):  # a shuffling loader: the same batches for every draw
        for index, (x, _) in enumerate(batches.peek()):
            model.net(x)
            if index + 1 == most:
                break
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
