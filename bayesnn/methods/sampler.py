"""What every stochastic-gradient sampler shares: warm-up, burn-in, cycles, thinning, and which draws are kept."""

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
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler

from bayesnn.errors import at_least, fraction, positive, unknown
from bayesnn.methods.base import (
    Method,
    Plan,
    Run,
    Schedule,
    check_schedule,
    clear_gradients,
    evenly,
    fill_gradients,
    parameter_groups,
    prior_loss,
    prior_terms,
    refuse_dropout,
)
from bayesnn.methods.gibbs import NOISE, Precisions, check_gibbs_noise
from bayesnn.methods.step_size import LR_MOST, LR_STABILITY, StepSize
from bayesnn.methods.variance_reduction import Anchor
from bayesnn.model import BayesianModel, State
from bayesnn.optim import PSGLD, Sampler
from bayesnn.rng import Streams, generator, isolated
from bayesnn.source import Source

LOOKS = 10
WARM_UP_LR = 3e-3
STATISTICS = 20  # minibatches over which running statistics and gradients' sizes are estimated
ANCHORS = ("control-variate", "svrg")


@dataclass(frozen=True)
class SamplerMethod(Method):
    """A sampler that is a torch optimizer; subclasses make the optimizer.

    Parameters
    ----------
    lr : step size in the units of SGD's, > 0. None, the default, sets it for each chain during the burn-in, to the
        largest that keeps to three bounds along the direction of largest curvature lambda of the mean loss, seen at ten
        points of the chain's way: ``lr * lambda <= stability`` (0.25 for SGLD, whose variance on a quadratic is
        1 / (1 - lr lambda / 2) too large); the noise of a minibatch as a share of the noise injected at most
        ``NOISE_MOST`` = 0.5 (for SGLD ``lr * c * N / (2 B T)``, with c the variance over rows of the slope of a row's
        loss); and ``lr <= LR_MOST`` = 0.1. The share is in ``posterior.info["minibatch_noise"]`` for a given lr as
        well; ``fit`` warns where it exceeds 1.
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
        2020, algorithm 2).
    gibbs_every : steps between the Gibbs steps that draw the precisions of hierarchical priors
        (:class:`bayesnn.priors.HierarchicalNormal`) and, with ``gibbs_noise``, of the noise.
    gibbs_noise : whether inferred Normal noise is drawn by Gibbs steps given all residuals, each a pass over the data,
        instead of by the sampler.
    """

    is_sampler: ClassVar[bool] = True
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
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"Expected temperature >= 0 and finite, got {self.temperature!r}: 1 is the Bayes posterior."
            )
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
        return CosineAnnealingWarmRestarts(optimizer, T_0=max(1, math.ceil(steps / self.cycles)))

    def warm_steps(self, steps: int) -> int:
        """Steps of Adam at the start."""
        return math.ceil(self.warm_up * steps)

    def samples_at(self, step: int, warm_steps: int, steps: int) -> bool:
        """Whether step number ``step`` (from 1) is one at temperature T and not the exploration of a cycle."""
        if step <= warm_steps:
            return False
        if self.cycles is None:
            return True
        length = max(1, math.ceil((steps - warm_steps) / self.cycles))
        return (step - warm_steps - 1) % length >= self.exploration * length

    def kept_steps(self, steps: int, warm_steps: int | None = None) -> Sequence[int]:
        """Numbers (from 1) of the steps after which a draw is kept, evenly spaced; the last is always one of them."""
        warm = self.warm_steps(steps) if warm_steps is None else warm_steps
        first = max(math.ceil(self.burn_in * steps), warm)
        room: Sequence[int] = range(first + 1, steps + 1)
        if self.cycles is not None:
            room = [step for step in room if self.samples_at(step, warm, steps)]
        return evenly(room, self.draws, self.thin)

    def check(self, model: BayesianModel, plan: Plan) -> None:
        refuse_dropout(plan, self)
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


class SamplerRun(Run):
    """One chain: Adam in the warm-up, then the sampler."""

    def __init__(
        self, method: SamplerMethod, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None
    ) -> None:
        super().__init__(model, plan, streams)
        if init is not None:
            model.load_state(init.last())
        groups, others = parameter_groups(model, plan.num_data)
        self._others = prior_terms(model, others)
        self._method = method
        sampled = _split(groups) if method.layerwise else groups
        self._sampler = method.make_optimizer(_cooled(sampled), plan.num_data, streams.noise)
        self._climber = torch.optim.Adam([dict(group) for group in groups], lr=WARM_UP_LR, fused=True)
        self._drawn = [dict(model.named_parameters())[NOISE]] if method.gibbs_noise else []
        self._parameters = [
            p for group in self._sampler.param_groups for p in group["params"] if all(p is not d for d in self._drawn)
        ]
        both = self._sampler.param_groups + self._climber.param_groups
        self._precisions = Precisions(model, both, plan.num_data, streams.noise)
        self._bayesian = list(model.bayesian_parameters().values())
        self.optimizers = [self._sampler]
        self._warm_steps = self.schedule_from = 0 if init is not None else method.warm_steps(plan.steps)
        kept = method.kept_steps(plan.steps, self._warm_steps)
        self._kept, self._first = frozenset(kept), kept[0] if kept else plan.steps
        self._step = 0
        self._looks = self._plan_looks()
        rows = plan.num_data, plan.batch_size
        self._step_size = StepSize(self._sampler, self._parameters, method.lr is None, method.stability, rows)
        self._anchor: Anchor | None = None
        self._batches: Any = None
        self._some: list[tuple[Tensor, Tensor]] = []
        self._has_statistics = any(isinstance(m, _NormBase) and m.track_running_stats for m in model.modules())
        self._needs_some = self._has_statistics or method.layerwise or isinstance(self._sampler, PSGLD)

    def _plan_looks(self) -> range:
        """Steps at which to look at the curvature: ten in the burn-in to set lr, or one at its end to know the
        noise.
        """
        start, end = self._warm_steps, self._first - 1
        if self._method.lr is None:
            return range(start, max(end, start + 1), max(1, -(-(end - start) // LOOKS)))
        exact = self.plan.batch_size >= self.plan.num_data
        return range(end, end + 1) if end > start and not exact and self._method.temperature > 0 else range(0)

    def begin_epoch(self, epoch: int, batches: Any) -> None:
        self._batches = batches
        if self._needs_some and not self._some:
            # Before the epoch's own iterator opens: a second one beside it would restart a user's loader.
            with isolated(generator(0)):
                self._some = [self.model.place(x, y) for x, y in islice(batches.peek(), STATISTICS)]  # type: ignore[misc]
        if self._method.variance_reduction == "svrg":
            self._anchor = None

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        climbing = self._step < self._warm_steps
        if self._step % self._method.gibbs_every == 0:
            self._draw_precisions(climbing)
        if self._step == self._warm_steps:
            self._begin_sampling()
        if self._method.variance_reduction is not None and self._anchor is None and not climbing:
            self._drop_anchor()
        if self._step in self._looks:
            self._look(x, y)
        if self._step + 1 == self._first:
            self._method.end_burn_in(self._sampler)
        if climbing:
            loss = self._backward(x, y)
            self._climber.step()
        else:
            self._set_temperature()
            loss = self._sample(x, y)
        self._step += 1
        return loss

    def _draw_precisions(self, climbing: bool) -> None:
        """The Gibbs steps; on the way to the mode each precision is set to the centre of its conditional law."""
        temperature = 0.0 if climbing else self._method.temperature
        if self.model.hyperpriors:
            self._precisions.weights(temperature)
        if self._drawn:
            self._precisions.noise(self._batches.all_rows(), temperature)
            self.gradient_evaluations += self.plan.steps_per_epoch  # of forward passes alone: an upper bound

    def _sample(self, x: Tensor, y: Tensor) -> Tensor:
        if self._sampler.needs_closure:
            loss: Tensor = self._sampler.step(lambda: self._backward(x, y))
            return loss
        loss = self._backward(x, y)
        self._sampler.step()
        return loss

    def _backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Gradients of the mean loss, less the Normal priors' (weight decay); the mean negative log likelihood."""
        clear_gradients(self._parameters)
        clear_gradients(self._drawn)
        nll = -self.model.log_likelihood(x, y).mean()
        (nll + prior_loss(self._others, self.plan.num_data)).backward()
        fill_gradients(self._bayesian)
        clear_gradients(self._drawn)  # an optimizer leaves alone what has no gradient
        self.gradient_evaluations += 1
        if self._anchor is not None:
            self._anchor.correct(lambda: -self.model.log_likelihood(x, y).mean())
            self.gradient_evaluations += 1
        return nll.detach()

    def _set_temperature(self) -> None:
        if self._method.cycles is None:
            return
        hot = self._method.samples_at(self._step + 1, self._warm_steps, self.plan.steps)
        for group in self._sampler.param_groups:
            if not group.get("deterministic"):
                group["temperature"] = self._method.temperature if hot else 0.0

    def _begin_sampling(self) -> None:
        """Set what the sizes of the gradients at the end of the warm-up decide."""
        if not (self._method.layerwise or isinstance(self._sampler, PSGLD)):
            return
        mean_squares = self._mean_square_gradients()
        if isinstance(self._sampler, PSGLD):
            for p, value in mean_squares.items():
                self._sampler.state[p]["square_avg"] = value
        if self._method.layerwise:
            sizes = {p: max(float(value.mean().sqrt()), 1e-12) for p, value in mean_squares.items()}
            smallest = min((sizes[p] for p in self._bayesian if p in sizes), default=1.0)
            for group in self._sampler.param_groups:
                group["scale"] = min(1.0, smallest / sizes.get(group["params"][0], smallest))
                for key in ("lr", "initial_lr"):
                    if key in group:
                        group[key] *= group["scale"]

    def _mean_square_gradients(self) -> dict[Tensor, Tensor]:
        """Mean square, over minibatches, of the gradient of U / N, element by element.

        Of all rows at once the gradient vanishes at the mode, but not over the posterior: its variance there, T times
        the Hessian of U / N^2, is by Fisher's identity that of a piece's gradient times the piece's share of the rows.
        """
        pieces, share = self._some, 1.0
        if self.plan.batch_size >= self.plan.num_data:
            x, y = self._some[0]
            size = max(1, len(x) // STATISTICS)
            pieces, share = list(zip(x.split(size), y.split(size), strict=True)), size / len(x)
        sums = {p: torch.zeros_like(p) for p in self._parameters}
        for x, y in pieces:
            self._backward(x, y)
            for group in self._sampler.param_groups:
                for p in (p for p in group["params"] if p in sums):
                    sums[p] += share * (p.grad + group["weight_decay"] * p.detach()).square()
        return {p: total / len(pieces) for p, total in sums.items()}

    def _drop_anchor(self) -> None:
        self._anchor = Anchor(self._parameters, self._batches.all_rows(), lambda x, y: -self.model.log_likelihood(x, y))
        self.gradient_evaluations += self.plan.steps_per_epoch

    def _look(self, x: Tensor, y: Tensor) -> None:
        """Measure curvature and noise; adapt lr to the largest seen, in the burn-in only: then it is constant."""

        def row_losses() -> Tensor:
            return -self.model.log_likelihood(x, y) + prior_loss(self._others, self.plan.num_data)

        before = self._step_size.gradient_evaluations
        at_anchor = self._anchor.evaluate if self._anchor is not None else None
        self.minibatch_noise = self._step_size.look(row_losses, self.streams.noise, self._scales(), at_anchor)
        self.gradient_evaluations += self._step_size.gradient_evaluations - before

    def _scales(self) -> list[Tensor] | None:
        """Root of the preconditioner of each parameter, None where it is 1."""
        if isinstance(self._sampler, PSGLD):
            return self._sampler.scales()
        if not self._method.layerwise:
            return None
        return [
            torch.full((), group["scale"] ** 0.5, dtype=p.dtype, device=p.device)
            for group in self._sampler.param_groups
            for p in group["params"]
            if all(p is not d for d in self._drawn)
        ]

    def draw(self) -> list[State]:
        return self.snapshot() if self._step in self._kept else []

    def end_epoch(self) -> dict[str, float]:
        measure = getattr(self._sampler, "kinetic_temperature", None)
        return {"kinetic_temperature": measure()} if measure is not None and self._step > self._warm_steps else {}

    def snapshot(self) -> list[State]:
        if self._has_statistics:
            estimate_statistics(self.model, [x for x, _ in self._some])
        return [self.model.state()]

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "climber": copy.deepcopy(self._climber.state_dict()),
            "step": self._step,
            "step_size": self._step_size.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._climber.load_state_dict(state["climber"])
        self._step = state["step"]
        self._step_size.load_state_dict(state["step_size"])
        self._anchor = None


def _cooled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups for the sampler: parameters without a prior are optimised (T = 0), not sampled."""
    return [{**group, "temperature": 0.0} if group.get("deterministic") else dict(group) for group in groups]


def _split(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One group for each parameter."""
    return [{**group, "params": [p]} for group in groups for p in group["params"]]


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
