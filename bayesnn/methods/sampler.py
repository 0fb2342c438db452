"""The options that every stochastic-gradient sampler has: burn-in, cycles, thinning, and which draws are kept."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler

from bayesnn.errors import at_least, fraction, not_negative, positive, unknown
from bayesnn.methods.base import Method, Plan, Run, Schedule, check_schedule, evenly, refuse_dropout
from bayesnn.methods.gibbs import check_gibbs_noise
from bayesnn.methods.sampler_run import SamplerRun
from bayesnn.methods.step_size import LR_MOST, LR_STABILITY
from bayesnn.model import BayesianModel
from bayesnn.optim import Sampler
from bayesnn.rng import Streams
from bayesnn.source import Source

ANCHORS = ("control-variate", "svrg")


@dataclass(frozen=True)
class SamplerMethod(Method):
    """A sampler that is a torch optimizer; subclasses make the optimizer.

    Parameters
    ----------
    lr : step size in the units of SGD's, > 0. None, the default, sets it for each chain during the burn-in, in ten
        looks on its way, to the largest that keeps to three bounds: ``lr * lambda <= stability``, with lambda the
        largest curvature of the mean loss that was seen (0.25 for SGLD, whose variance on a quadratic is
        1 / (1 - lr lambda / 2) too large); the noise of a minibatch as a share of the noise injected, in the mean over
        weights, at most ``NOISE_MOST`` = 0.05 (for SGLD ``lr * c * N / (2 B T)``, with c the variance over rows of a
        row's gradient): by so much the temperature is too high on average, and by more along stiff directions; and
        ``lr <= LR_MOST`` = 0.1. The share is in ``posterior.info["minibatch_noise"]`` for a given lr as well (not with
        ``cycles``); ``fit`` warns where it exceeds 0.2.
    temperature : T of p(w, D)^(1/T); 1 is the Bayes posterior.
    warm_up : share of the steps, at the start, in which Adam (learning rate WARM_UP_LR) climbs to the posterior's mode:
        the chain starts where the mass is. A run that goes on from another posterior (``init=``) has none.
    burn_in : share of the steps whose states are not kept, the warm-up included.
    draws : number of draws to keep a chain, evenly spaced over the steps after the burn-in.
    thin : steps between kept draws, instead of ``draws``.
    schedule : of ``lr`` over the steps after the warm-up: ``"constant"``, ``"cosine"``, ``"linear"``, ``"sqrt"``, or a
        factory ``(optimizer, steps) -> LRScheduler``.
    cycles : number of cycles of a cosine schedule with restarts over the steps after the warm-up (cSG-MCMC: Zhang et
        al. 2020); needs a given lr, which is where each cycle begins. The first ``exploration`` share of a cycle runs
        at T = 0, the rest at ``temperature``; draws are kept from the latter, and ``burn_in`` drops the cycles
        that it covers. Steps that shrink to nothing weight the posterior of each cycle's mode, not of the modes.
    exploration : see ``cycles``.
    variance_reduction : None; ``"control-variate"``, with its anchor where the warm-up ends (Baker et al. 2019); or
        ``"svrg"``, with a new anchor each epoch (Dubey et al. 2016). A step then costs two gradients.
    layerwise : whether each parameter tensor has a step of its own, lr * G with G the smallest root mean square
        gradient of all tensors over its own, measured where the warm-up ends and constant from there (Wenzel et al.
        2020).
    gibbs_every : steps between the Gibbs steps that draw the precisions of hierarchical priors
        (:class:`bayesnn.priors.HierarchicalNormal`) and, with ``gibbs_noise``, of the noise.
    gibbs_noise : whether inferred Normal noise is drawn by Gibbs steps given all residuals, each a pass over the data,
        instead of by the sampler.
    """

    is_sampler: ClassVar[bool] = True
    compiles = True
    infers_precisions: ClassVar[bool] = True
    default_chains: ClassVar[int] = 4
    default_steps: ClassVar[int] = 6000
    stability: ClassVar[float] = LR_STABILITY

    lr: float | None = None
    temperature: float = 1.0
    warm_up: float = 0.2
    burn_in: float = 0.5
    draws: int = 100
    thin: int | None = None
    schedule: Schedule = "constant"
    cycles: int | None = None
    exploration: float = 0.8
    variance_reduction: str | None = None
    layerwise: bool = False
    gibbs_every: int = 10
    gibbs_noise: bool = False

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        changing = self.schedule not in (None, "constant")
        if self.lr is not None:
            positive("lr", self.lr)
        elif changing or self.cycles is not None:
            raise ValueError(
                f"Expected lr= with {'schedule' if changing else 'cycles'}, got none: a schedule scales a given step."
            )
        not_negative("temperature", self.temperature, "1 is the Bayes posterior")
        for name in ("burn_in", "warm_up", "exploration"):
            fraction(name, getattr(self, name))
        at_least("draws", self.draws, 1)
        at_least("gibbs_every", self.gibbs_every, 1)
        if self.thin is not None:
            at_least("thin", self.thin, 1)
        if self.cycles is not None:
            at_least("cycles", self.cycles, 1)
            if changing:
                raise ValueError(f"Expected cycles or a schedule, got both ({self.schedule!r}): cycles have their own.")
        if self.variance_reduction is not None and self.variance_reduction not in ANCHORS:
            raise unknown("variance_reduction", self.variance_reduction, ANCHORS)

    @property
    def vectorizes(self) -> bool:
        """Precisions are drawn from the weights of one chain."""
        return not self.gibbs_noise

    @property
    def full_passes(self) -> bool:  # type: ignore[override]
        """Anchors need the gradient of all rows, Gibbs steps for the noise all residuals."""
        return self.variance_reduction is not None or self.gibbs_noise

    @abstractmethod
    def make_optimizer(self, groups: list[dict[str, Any]], num_data: int, noise: torch.Generator) -> Sampler:
        """The sampler over parameter groups, which carry the Normal prior as ``weight_decay``."""

    def end_burn_in(self, sampler: Any) -> None:
        """Stop what the sampler adapts: called before the first step whose state is kept."""

    @property
    def first_lr(self) -> float:
        """lr until the burn-in has set it."""
        return self.lr if self.lr is not None else LR_MOST

    def make_schedule(self, optimizer: Optimizer, steps: int) -> LRScheduler | None:
        if self.cycles is None:
            return super().make_schedule(optimizer, steps)
        return CosineAnnealingWarmRestarts(optimizer, T_0=self._cycle(steps))

    def warm_steps(self, steps: int) -> int:
        """Steps of Adam at the start."""
        return math.ceil(self.warm_up * steps)

    def _cycle(self, steps: int) -> int:
        """Steps of one cycle of those that ``steps`` are divided into; a rest at the end begins another."""
        return max(1, steps // (self.cycles or 1))

    def samples_at(self, step: int, warm_steps: int, steps: int) -> bool:
        """Whether step number ``step`` (from 1) is one at temperature T and not the exploration of a cycle."""
        if step <= warm_steps:
            return False
        if self.cycles is None:
            return True
        length = self._cycle(steps - warm_steps)
        return (step - warm_steps - 1) % length >= self.exploration * length

    def kept_steps(self, steps: int, warm_steps: int | None = None) -> Sequence[int]:
        """Numbers (from 1) of the steps after which a draw is kept, evenly spaced; the last that may be is one."""
        warm = self.warm_steps(steps) if warm_steps is None else warm_steps
        first = max(math.ceil(self.burn_in * steps), warm)
        room: Sequence[int] = range(first + 1, steps + 1)
        if self.cycles is not None:
            room = [step for step in room if self.samples_at(step, warm, steps)]
        return evenly(room, self.draws, self.thin)

    def check(self, model: BayesianModel, plan: Plan) -> None:
        refuse_dropout(plan, self)
        if self.lr is None and plan.batch_size == 1 and plan.unseen > 0 and self.temperature > 0:
            raise ValueError(
                "Expected lr= with minibatches of one row, got none: their noise, to which lr=None keeps, cannot be "
                "measured in one row; give lr, or raise batch_size."
            )
        if self.gibbs_noise:
            check_gibbs_noise(model)
        if not len(self.kept_steps(plan.steps)):
            raise ValueError(
                f"Expected at least one draw to keep, got thin={self.thin} with {plan.steps} steps and "
                f"burn_in={self.burn_in}: raise epochs, or lower thin or burn_in."
            )
        if self.variance_reduction is not None and model.moving:
            raise ValueError(
                f"Expected a net without running statistics for {self.variance_reduction!r}, got {min(model.moving)!r}:"
                " batch normalisation couples the rows, so their gradients do not add up; use GroupNorm."
            )

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        return len(self.kept_steps(plan.steps)) * super().draw_bytes(model, plan)

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return SamplerRun(self, model, plan, streams, init)
