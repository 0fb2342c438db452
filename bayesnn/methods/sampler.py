"""What every stochastic-gradient sampler shares: warm-up, burn-in, thinning, and which draws are kept."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from bayesnn.errors import at_least, fraction, positive
from bayesnn.methods.base import (
    Method,
    Plan,
    Run,
    Schedule,
    check_schedule,
    clear_gradients,
    fill_gradients,
    parameter_groups,
    prior_loss,
    prior_terms,
    refuse_dropout,
)
from bayesnn.methods.curvature import largest_curvature
from bayesnn.model import BayesianModel, State
from bayesnn.rng import Streams, generator, isolated
from bayesnn.source import Source

# What lr=None keeps to. The first is the bias of the discretisation, the second that of minibatches.
LR_STABILITY = 0.25
NOISE_MOST = 0.5
LR_MOST = 0.1
LOOKS, ITERATIONS = 10, 8
WARM_UP_LR = 3e-3
STATISTICS = 20  # minibatches over which running statistics are estimated


@dataclass(frozen=True)
class SamplerMethod(Method):
    """A sampler that is a torch optimizer; subclasses make the optimizer.

    Parameters
    ----------
    lr : step size in the units of SGD's, > 0. None, the default, sets it for each chain during the burn-in, to the
        largest that keeps to three bounds along the direction of largest curvature lambda of the mean loss, seen at ten
        points of the chain's way: ``lr * lambda <= LR_STABILITY`` (on a quadratic the discretisation inflates the
        variance by 1 / (1 - lr lambda / 2)); ``lr * c * N / (2 B T) <= NOISE_MOST``, the noise of a minibatch as a
        share of the noise injected, with c the variance over rows of the slope of a row's loss; and ``lr <= LR_MOST``.
        The share is in ``posterior.info["minibatch_noise"]`` for a given lr as well; ``fit`` warns where it exceeds 1.
    temperature : T of p(w, D)^(1/T); 1 is the Bayes posterior.
    warm_up : share of the steps, at the start, in which Adam (learning rate WARM_UP_LR) climbs to the posterior's mode:
        the chain starts where the mass is. A run that goes on from another posterior (``init=``) has none.
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
        groups, others = parameter_groups(model, plan.num_data)
        self._others = prior_terms(model, others)
        self._method = method
        self._sampler = method.make_optimizer(_cooled(groups), plan.num_data, streams.noise)
        self._climber = torch.optim.Adam([dict(group) for group in groups], lr=WARM_UP_LR, fused=True)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._bayesian = list(model.bayesian_parameters().values())
        self.optimizers = [self._sampler]
        self._warm_steps = self.schedule_from = 0 if init is not None else math.ceil(method.warm_up * plan.steps)
        self._kept = method.kept_steps(plan.steps)
        self._step = 0
        self._looks = self._plan_looks()
        self._direction: list[Tensor] | None = None
        self._curvature = self._row_noise = 0.0
        self._statistics_batches: list[Tensor] = []
        self._has_statistics = any(isinstance(m, _NormBase) and m.track_running_stats for m in model.modules())

    def _plan_looks(self) -> range:
        """Steps at which to look at the curvature: ten in the burn-in to set lr, or one at its end to know the
        noise.
        """
        start, end = self._warm_steps, self._kept[0] - 1
        if self._method.lr is None:
            return range(start, max(end, start + 1), max(1, -(-(end - start) // LOOKS)))
        exact = self.plan.batch_size >= self.plan.num_data
        return range(end, end + 1) if end > start and not exact and self._method.temperature > 0 else range(0)

    def begin_epoch(self, epoch: int, batches: Any) -> None:
        if self._has_statistics and not self._statistics_batches:
            # Before the epoch's own iterator opens: a second one beside it would restart a user's loader.
            with isolated(generator(0)):
                self._statistics_batches = [self.model.place(x)[0] for x, _ in islice(batches.peek(), STATISTICS)]

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        optimizer = self._climber if self._step < self._warm_steps else self._sampler
        if self._step in self._looks:
            self._look(x, y)
        clear_gradients(self._parameters)
        nll = -self.model.log_likelihood(x, y).mean()
        (nll + prior_loss(self._others, self.plan.num_data)).backward()
        fill_gradients(self._bayesian)
        optimizer.step()
        self._step += 1
        self.gradient_evaluations += 1
        return nll.detach()

    def _look(self, x: Tensor, y: Tensor) -> None:
        """Measure curvature and noise; adapt lr to the largest seen, in the burn-in only: then it is constant."""

        def row_losses() -> Tensor:
            prior = prior_loss(self._others, self.plan.num_data)
            return -self.model.log_likelihood(x, y) + prior

        if self._direction is None:
            noise = self.streams.noise
            self._direction = [torch.empty_like(p).normal_(generator=noise) for p in self._parameters]
        curvature, row_noise, self._direction = largest_curvature(
            row_losses, self._parameters, self._direction, ITERATIONS
        )
        self.gradient_evaluations += 2 * ITERATIONS
        curvature += max(group["weight_decay"] for group in self._sampler.param_groups)
        self._curvature, self._row_noise = max(self._curvature, curvature), max(self._row_noise, row_noise)
        group = self._sampler.param_groups[0]
        share = self._noise_share(group["lr"])
        if self._method.lr is None:
            lr = min(LR_MOST, LR_STABILITY / max(self._curvature, 1e-12), group["lr"] * NOISE_MOST / max(share, 1e-12))
            for each in self._sampler.param_groups:
                each["lr"] = lr
            share = self._noise_share(lr)
        self.minibatch_noise = share

    def _noise_share(self, lr: float) -> float:
        """Variance that a minibatch adds to a step over that of the noise injected, (h N)^2 c / B over 2 h T."""
        N, B, T = self.plan.num_data, self.plan.batch_size, self._method.temperature
        unseen = (N - B) / max(N - 1, 1)  # of rows drawn without replacement
        return lr * N * self._row_noise * unseen / (2 * B * T) if T > 0 else 0.0

    def draw(self) -> list[State]:
        return self.snapshot() if self._step in self._kept else []

    def snapshot(self) -> list[State]:
        if self._has_statistics:
            estimate_statistics(self.model, self._statistics_batches)
        return [self.model.state()]

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "climber": copy.deepcopy(self._climber.state_dict()),
            "step": self._step,
            "look": copy.deepcopy((self._curvature, self._row_noise, self._direction)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._climber.load_state_dict(state["climber"])
        self._step = state["step"]
        self._curvature, self._row_noise, self._direction = state["look"]


def _cooled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups for the sampler: parameters without a prior are optimised (T = 0), not sampled."""
    return [{**group, "temperature": 0.0} if group.get("deterministic") else dict(group) for group in groups]


def estimate_statistics(model: BayesianModel, batches: Sequence[Tensor]) -> None:
    """Running statistics of normalisation layers for the present weights: the plain average over ``batches``.

    The moving average that training leaves behind belongs to a mixture of past weights and not to this draw.
    """
    layers = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's cumulative average
    with torch.no_grad():
        for x in batches:
            model.net(x)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
