"""One chain of a stochastic-gradient sampler: Adam in the warm-up, then the sampler."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.lr_scheduler import LRScheduler

from bayesnn.methods.base import Plan, Run, clear_gradients, fill_gradients, parameter_groups, prior_loss, prior_terms
from bayesnn.methods.gibbs import NOISE, Precisions
from bayesnn.methods.step_size import StepSize
from bayesnn.methods.variance_reduction import Anchor
from bayesnn.model import BayesianModel, State
from bayesnn.rng import Streams
from bayesnn.source import Source

if TYPE_CHECKING:
    from bayesnn.methods.sampler import SamplerMethod

LOOKS = 10
WARM_UP_LR = 3e-3
STATISTICS = 20  # minibatches over which running statistics and gradients' sizes are estimated


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
        self._step_size = StepSize(self._sampler, self._parameters, method.lr is None, method.stability, plan)
        self._anchor: Anchor | None = None
        self._batches: Any = None
        self._some: list[tuple[Tensor, Tensor]] = []
        self._has_statistics = bool(_with_statistics(model))
        self._gradient_norm: Tensor | float = float("nan")  # of the step that led to the last draw
        self._needs_some = self._has_statistics or method.layerwise or self._sampler.preconditioned

    def _plan_looks(self) -> frozenset[int]:
        """Steps of the burn-in at which to set lr, or to measure the noise that a given lr has: more of them early."""
        start, end = self._warm_steps, self._first - 1
        if self._method.lr is not None:
            cold = self._method.temperature == 0 or self._method.cycles is not None
            if self.plan.unseen == 0 or end <= start or cold:
                return frozenset()
        return frozenset(start + (end - start) * k**2 // LOOKS**2 for k in range(LOOKS))

    def begin_epoch(self, epoch: int, batches: Any) -> None:
        self._batches = batches
        if self._needs_some and not self._some:
            self._some = self.peek(batches, STATISTICS)
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

    def _backward(self, x: Tensor, y: Tensor, once: bool = False) -> Tensor:
        """Gradients of the mean loss, less the Normal priors' (weight decay); the mean negative log likelihood."""
        nll = self.backward(x, y, self._others, once=once, clear=[*self._parameters, *self._drawn])
        fill_gradients(self._bayesian)
        clear_gradients(self._drawn)  # an optimizer leaves alone what has no gradient
        self.gradient_evaluations += 1
        if self._anchor is not None:
            self._anchor.correct(lambda: -self.model.log_likelihood(x, y).mean())
            self.gradient_evaluations += 1
        if self._step + 1 in self._kept:
            self._gradient_norm = self._norm_of_gradient()
        return nll

    def _set_temperature(self) -> None:
        if self._method.cycles is None:
            return
        hot = self._method.samples_at(self._step + 1, self._warm_steps, self.plan.steps)
        for group in self._sampler.param_groups:
            if not group.get("deterministic"):
                group["temperature"] = self._method.temperature if hot else 0.0

    def _begin_sampling(self) -> None:
        """Set what the sizes of the gradients at the end of the warm-up decide."""
        if not (self._method.layerwise or self._sampler.preconditioned):
            return
        with self.model.evenly():
            mean_squares = self._mean_square_gradients()
        self._sampler.set_mean_squares(mean_squares)
        if self._method.layerwise:
            sizes = {p: max(float(value.mean().sqrt()), 1e-12) for p, value in mean_squares.items()}
            smallest = min((sizes[p] for p in self._bayesian if p in sizes), default=1.0)
            for group in self._sampler.param_groups:
                group["scale"] = min(1.0, smallest / sizes.get(group["params"][0], smallest))
                for key in ("lr", "initial_lr"):
                    if key in group:
                        group[key] *= group["scale"]
            for scheduler in self.schedulers:
                _rescale(scheduler, [group["scale"] for group in self._sampler.param_groups])

    def _mean_square_gradients(self) -> dict[Tensor, Tensor]:
        """Mean square, over minibatches, of the gradient of U / N, element by element.

        Of all rows at once the gradient vanishes at the mode, but not over the posterior: its variance there, T times
        the Hessian of U / N^2, is by Fisher's identity that of a piece's gradient times the piece's share of the rows.
        """
        pieces, share, divided = self._some, 1.0, self.plan.batch_size >= (self.plan.rows or self.plan.num_data)
        if divided:
            x, y = self._some[0]
            size = max(1, len(x) // STATISTICS)
            whole = len(x) // size * size
            pieces, share = (
                list(zip(x[:whole].split(size), y[:whole].split(size), strict=True)),
                size / self.plan.num_data,
            )
        sums = {p: torch.zeros_like(p) for p in self._parameters}
        for x, y in pieces:
            self._backward(x, y, once=divided)
            for group in self._sampler.param_groups:
                for p in (p for p in group["params"] if p in sums and p.grad is not None):
                    sums[p] += share * (p.grad + group["weight_decay"] * p.detach()).square()
        # The prior's own share of T H / N^2: at the mode of a weight of which the data say nothing all else is zero.
        N, T = self.plan.num_data, self._method.temperature
        for group in self._sampler.param_groups:
            for p in (p for p in group["params"] if p in sums):
                sums[p] += len(pieces) * T * group["weight_decay"] / N
        return {p: total / len(pieces) for p, total in sums.items()}

    def _drop_anchor(self) -> None:
        rows = self._batches.all_rows()
        self._anchor = Anchor(self._parameters, rows, lambda x, y: -self.model.log_likelihood(x, y), self._drawn)
        self.gradient_evaluations += self.plan.steps_per_epoch

    def _look(self, x: Tensor, y: Tensor) -> None:
        """Measure noise and curvature and adapt lr to them, in the burn-in only: then it is constant."""

        def row_losses() -> Tensor:
            return -self.model.log_likelihood(x, y) + prior_loss(self._others, self.plan.num_data)

        before = self._step_size.gradient_evaluations
        at_anchor = self._anchor.evaluate if self._anchor is not None else None
        scales = self._scales()
        with self.model.at_full_precision():  # a curvature is a difference of gradients
            self.minibatch_noise = self._step_size.look(row_losses, len(x), self.streams.noise, scales, at_anchor)
        self.gradient_evaluations += self._step_size.gradient_evaluations - before

    def _scales(self) -> list[Tensor] | None:
        """Root of the preconditioner of each parameter, None where it is 1."""
        members = [(group, p) for group in self._sampler.param_groups for p in group["params"]]
        if self._method.layerwise:
            scales = [torch.full((), group["scale"] ** 0.5, dtype=p.dtype, device=p.device) for group, p in members]
        else:
            found = self._sampler.scales()
            if found is None:
                return None
            scales = found
        moved = [all(p is not d for d in self._drawn) for _, p in members]  # what Gibbs steps draw has no gradient
        return list(compress(scales, moved))

    def draw(self) -> list[State]:
        return self.snapshot() if self._step in self._kept else []

    def statistics(self) -> dict[str, float]:
        """The step and its temperature, the norm of the gradient of U that the minibatch gave, kinetic temperature."""
        group = next(group for group in self._sampler.param_groups if not group.get("deterministic"))
        row = {"lr": group["lr"], "temperature": group["temperature"], **self.end_epoch()}
        return {**row, "gradient_norm": float(self._gradient_norm)}

    @torch.no_grad()
    def _norm_of_gradient(self) -> Tensor:
        """Norm of the gradient of U at the weights as they are, shape ()."""
        parts: list[Tensor] = []
        for group in self._sampler.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and not group.get("deterministic"):
                grads = torch._foreach_add([p.grad for p in params], params, alpha=group["weight_decay"])
                parts += torch._foreach_norm(grads)
        return self.plan.num_data * torch.stack(parts).norm() if parts else torch.zeros(())

    def end_epoch(self) -> dict[str, float]:
        measure = getattr(self._sampler, "kinetic_temperature", None)
        return {"kinetic_temperature": measure()} if measure is not None and self._step > self._warm_steps else {}

    def weights(self) -> State:
        return self.model.state()

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
    layers = _with_statistics(model)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's cumulative average
    with torch.no_grad():
        for x in batches:
            model.net(x)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def _rescale(scheduler: LRScheduler, factors: Sequence[float]) -> None:
    """Multiply the rates that a schedule starts from, which it keeps from when it was made; of several, of each."""
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [lr * factor for lr, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for inner in getattr(scheduler, "_schedulers", ()):
        _rescale(inner, factors)


def _with_statistics(model: BayesianModel) -> list[_NormBase]:
    """Normalisation layers whose running statistics move; those of frozen parts are in eval mode."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats and m.training]
