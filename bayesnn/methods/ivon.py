"""Mean-field variational inference by natural gradients: IVON (Shen et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayesnn import optim
from bayesnn.errors import at_least, fraction, is_real, positive
from bayesnn.methods.base import (
    Method,
    Plan,
    Run,
    Schedule,
    check_schedule,
    clear_gradients,
    parameter_groups,
    prior_terms,
)
from bayesnn.methods.variational import VALIDATION_DRAWS, refuse_variational
from bayesnn.model import BayesianModel, State
from bayesnn.rng import Streams
from bayesnn.source import NormalSource, Source

MEMORIES = 15  # of the curvature in a run: what is left of hess_init is e^-15


@dataclass(frozen=True)
class IVON(Method):
    """q(w) = prod_j Normal(m_j, 1 / (N s_j)), the optimum of :class:`bayesnn.MeanFieldVI` at the cost of Adam.

    The precision follows a running mean of the curvature, h_hat = g * eps / sigma at a sample w = m + sigma * eps, and
    the mean goes down the gradient divided by it: see :class:`bayesnn.optim.IVON` for the formula. At the end

        s = E_q[grad^2 (mean_i -log p(y_i | x_i, w) - log p(w) / N)],    0 = E_q[grad (the same)]

    A Normal(0, s_0^2) prior is the weight decay delta = 1 / (N s_0^2): its curvature is known and is not estimated. Any
    other prior is part of the loss, with delta = 0, and s is the estimated curvature of both. Nothing else changes: the
    entropy of q makes 1 / sigma^2 the expected curvature of the whole -log p(w, D), whichever part of it is known.

    Parameters
    ----------
    lr : step size: that of SGD as long as the curvature is ``hess_init``.
    hess_init : h at the start, and with ``lr`` the size of a step, lr * (hess_init + delta) of Newton's.
    beta1 : memory of the gradient.
    beta2 : memory of the curvature. None, the default, makes it longer and longer on the way, as a cosine schedule does
        with a step: 1 - beta2 = 15 / steps (1 + cos(pi t / steps)). The first half of the run forgets ``hess_init``, to
        e^-15 in all, which is little even beside the delta of a weight that the data say nothing of; the second half is
        what s is an average over, and the minibatches' noise moves it by about sqrt(2.5 / epochs) of itself at most.
    mc_samples : weight samples a step, averaged.
    clip_radius : the most that a weight moves in a step, in units of lr * hess_init as given: a single gradient that is
        far too large, as those of heteroscedastic noise are, would else throw a weight of little curvature out of all
        bounds, from where it does not come back. Once lr has fallen on its schedule no step is so long any more.
        ``math.inf`` clips nothing.
    schedule : of the learning rate, see :class:`bayesnn.MAP`.
    point_lr : learning rate of the Adam that optimises the parameters without a prior beside, on the same schedule.

    References
    ----------
    Shen et al. 2024, Variational learning is effective for large deep networks, ICML, algorithm 1.
    """

    compiles = True
    default_steps: ClassVar[int] = 5000

    lr: float = 0.05
    hess_init: float = 1.0
    beta1: float = 0.9
    beta2: float | None = None
    mc_samples: int = 1
    clip_radius: float = 0.1
    schedule: Schedule = "cosine"
    point_lr: float = 1e-3

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        positive("hess_init", self.hess_init)
        fraction("beta1", self.beta1, "it is the memory of the gradient")
        if self.beta2 is not None:
            fraction("beta2", self.beta2, "it is the memory of the curvature")
        at_least("mc_samples", self.mc_samples, 1)
        if not is_real(self.clip_radius) or not self.clip_radius > 0:
            raise ValueError(f"Expected clip_radius > 0, got {self.clip_radius!r}: inf clips nothing.")
        check_schedule(self.schedule)
        positive("point_lr", self.point_lr)

    def check(self, model: BayesianModel, plan: Plan) -> None:
        refuse_variational(model, plan, self)

    def memory(self, step: int, steps: int) -> float:
        """beta2 at a step (from 0) of so many."""
        if self.beta2 is not None:
            return self.beta2
        return 1 - min(1.0, MEMORIES / steps * (1 + math.cos(math.pi * step / steps)))

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        return 2 * super().draw_bytes(model, plan)

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return _IVONRun(self, model, plan, streams, init)


class _IVONRun(Run):
    def __init__(self, method: IVON, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None) -> None:
        super().__init__(model, plan, streams)
        if init is not None:
            model.load_state(init.last())
        self._method, self._weights = method, model.bayesian_parameters()
        groups, others = parameter_groups(model, plan.num_data)
        self._others = prior_terms(model, others)
        self._optimizer = optim.IVON(
            [group for group in groups if "deterministic" not in group],
            method.lr,
            plan.num_data,
            method.hess_init,
            method.beta1,
            method.memory(0, plan.steps),
            clip_radius=method.clip_radius * method.lr * method.hess_init,
            generator=streams.noise,
        )
        if isinstance(init, NormalSource):
            self._optimizer.set_log_sd({p: init.log_sd[name] for name, p in self._weights.items()})
        self.optimizers = [self._optimizer]
        self._free = [p for group in groups if "deterministic" in group for p in group["params"]]
        if self._free:
            self.optimizers.append(torch.optim.Adam(self._free, lr=method.point_lr, fused=True))

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        S, losses = self._method.mc_samples, []
        clear_gradients(self._free)
        for _ in range(S):
            with self._optimizer.sampled():
                losses.append(self.backward(x, y, self._others))
        for p in self._free if S > 1 else ():
            if p.grad is not None:
                p.grad /= S
        for group in self._optimizer.param_groups:
            group["beta2"] = self._method.memory(group["steps"], self.plan.steps)
        for optimizer in self.optimizers:
            optimizer.step()
        self.gradient_evaluations += S
        return torch.stack(losses).mean()

    def snapshot(self) -> list[State]:
        # Fixed noise: the validation score of two epochs differs by the fit and not by the draws.
        generator = torch.Generator(device=next(iter(self._weights.values())).device).manual_seed(0)
        return list(self._source().states(VALIDATION_DRAWS, generator))

    def finish(self, batches: Any) -> NormalSource:
        return self._source()

    def _source(self) -> NormalSource:
        log_sd = self._optimizer.log_sd()
        return NormalSource(self.model.state(), {name: log_sd[p] for name, p in self._weights.items()})
