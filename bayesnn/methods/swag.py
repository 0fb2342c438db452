"""SWAG: a Normal whose moments are those of stochastic gradient descent at a constant learning rate."""

from __future__ import annotations

import copy
import math
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayesnn.data.batches import Batches
from bayesnn.errors import at_least, fraction, positive
from bayesnn.methods.base import (
    Method,
    Plan,
    Run,
    parameter_groups,
    prior_loss,
    refuse_dropout,
    refuse_running_statistics,
)
from bayesnn.methods.curvature import largest_curvature
from bayesnn.methods.flat import FlatWeights
from bayesnn.methods.map import MAP, MAPRun
from bayesnn.model import BayesianModel, State
from bayesnn.rng import Streams
from bayesnn.source import Draws, LowRankNormal, NormalSource, Source

LR_MOST = 0.1  # of lr / (1 - momentum)
LR_STABILITY = 0.5  # of lr * lambda / (1 - momentum)
LOOK_BATCHES, ITERATIONS = 5, 20
VALIDATION_DRAWS = 8


@dataclass(frozen=True)
class SWAG(Method):
    """Stochastic weight averaging, Gaussian (Maddox et al. 2019): w ~ Normal(mean, (Sigma_diag + D D' / (K - 1)) / 2).

    Adam climbs to the mode; from there SGD with momentum goes on at a constant learning rate, and its iterates
    w_1, ..., w_T, ``collect_every`` steps apart, give

        mean = sum_t w_t / T,   Sigma_diag = diag(sum_t (w_t - mean)^2 / T),   D = the last K of w_t - mean_t

    with mean_t the mean up to w_t. A draw is

        w = mean + sqrt(scale / 2) * Sigma_diag^(1/2) xi + sqrt(scale / (2 (K - 1))) * D zeta

    The prior is in the gradient as in :class:`bayesnn.MAP`. The spread is that of SGD and not of the posterior: it
    comes from the minibatches' noise, grows with ``lr``, and is that of the posterior only as far as ``lr`` makes it so
    (Mandt et al. 2017). Multi-SWAG (Wilson & Izmailov 2020) is ``chains=4``.

    Parameters
    ----------
    lr : SGD's constant learning rate. None, the default, is measured at the mode, on up to five minibatches:
        2 (1 - momentum) B / (N c) with c the variance over rows of the slope of a row's loss along the direction of
        largest curvature lambda of the mean loss. SGD with independent minibatches then has the posterior's variance
        1 / (N lambda) along that direction, to first order in lr. At most (1 - momentum) * LR_STABILITY / lambda and
        (1 - momentum) * LR_MOST.
    momentum : of SGD.
    rank : K, the most deviations to keep; 2 or more.
    diagonal : leave D out: q(w) = Normal(mean, scale * Sigma_diag).
    scale : factor of the covariance.
    warm_up : share of the steps, at the start, in which Adam climbs, its learning rate falling from ``warm_up_lr`` to 0
        as a cosine. A run that goes on from another posterior (``init=``) has none.
    burn_in : share of the steps before the collection begins, the warm-up included.
    collect_every : steps between updates of the moments, the last step always one of them. None, the default, spreads
        4 K updates evenly over the collection (or takes every step where there are fewer), so that the deviations
        kept come from its last quarter. The paper's once an epoch would be one step where the data are few.
    warm_up_lr : Adam's.

    References
    ----------
    Maddox et al. 2019, A simple baseline for Bayesian uncertainty in deep learning, NeurIPS.
    Mandt, Hoffman & Blei 2017, Stochastic gradient descent as approximate Bayesian inference, JMLR 18(134).
    """

    compiles = True
    default_steps: ClassVar[int] = 6000
    weighs_rows: ClassVar[bool] = False

    lr: float | None = None
    momentum: float = 0.9
    rank: int = 20
    diagonal: bool = False
    scale: float = 1.0
    warm_up: float = 0.4
    burn_in: float = 0.5
    collect_every: int | None = None
    warm_up_lr: float = 3e-3

    def __post_init__(self) -> None:
        if self.lr is not None:
            positive("lr", self.lr)
        fraction("momentum", self.momentum)
        at_least("rank", self.rank, 2)
        positive("scale", self.scale)
        fraction("warm_up", self.warm_up)
        fraction("burn_in", self.burn_in)
        positive("warm_up_lr", self.warm_up_lr)
        if self.collect_every is not None:
            at_least("collect_every", self.collect_every, 1)

    def updates(self, steps: int) -> range:
        """Numbers (from 1) of the steps after which the moments are updated."""
        room = steps - max(math.ceil(self.burn_in * steps), math.ceil(self.warm_up * steps))
        gap = self.collect_every if self.collect_every is not None else max(1, room // (4 * self.rank))
        return range(steps - gap * (room // gap - 1), steps + 1, gap)

    def check(self, model: BayesianModel, plan: Plan) -> None:
        refuse_dropout(plan, self)
        refuse_running_statistics(model, self)
        if not model.log_priors:
            raise ValueError("Expected at least one parameter with a prior for SWAG, got none: use MAP.")
        if len(self.updates(plan.steps)) < 2:
            raise ValueError(
                f"Expected at least two updates of the moments, got {len(self.updates(plan.steps))} from {plan.steps} "
                f"steps with burn_in={self.burn_in} and collect_every={self.collect_every}: raise epochs."
            )

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        return (2 + (0 if self.diagonal else self.rank)) * super().draw_bytes(model, plan)

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return _SWAGRun(self, model, plan, streams, init)


class _SWAGRun(MAPRun):
    def __init__(self, method: SWAG, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None) -> None:
        self._weights = FlatWeights({name: p for name, p in model.named_parameters() if p.requires_grad})
        super().__init__(MAP(lr=method.warm_up_lr), model, plan, streams, init)
        self._method = method
        self._climber = self._descent.optimizer
        groups, _ = parameter_groups(model, plan.num_data)
        start_lr = method.lr if method.lr is not None else (1 - method.momentum) * LR_MOST
        self._sgd = torch.optim.SGD(groups, lr=start_lr, momentum=method.momentum)
        self.optimizers = [self._sgd]
        self._warm_steps = self.schedule_from = 0 if init is not None else math.ceil(method.warm_up * plan.steps)
        self._updates = method.updates(plan.steps)
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._step = self._count = 0
        self._mean, self._squares = torch.zeros_like(self._weights.vector), torch.zeros_like(self._weights.vector)
        self._deviations: deque[Tensor] = deque(maxlen=method.rank)

    def begin_epoch(self, epoch: int, batches: Any) -> None:
        if epoch > 0:
            return
        if isinstance(batches, Batches) and len(batches) == 1 and batches.order != "iid":
            raise ValueError(
                f"Expected minibatches for SWAG, whose spread is their noise, got all {batches.num_data} rows in each "
                "step: lower batch_size."
            )
        if self._method.lr is None:
            self._rows = [self._checked(x, y) for x, y in self.peek(batches, LOOK_BATCHES)]

    def _checked(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            outputs = self.model.net(x[:1])
        return x, self.model.likelihood.targets_for(y, outputs.shape[1:])

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        if self._step < self._warm_steps:
            share = self._step / self._warm_steps
            for group in self._climber.param_groups:
                group["lr"] = self._method.warm_up_lr * 0.5 * (1 + math.cos(math.pi * share))
        elif self._descent.optimizer is self._climber:
            self._descent.optimizer = self._sgd
            if self._method.lr is None:
                self._set_lr()
        nll = super().step(x, y)
        self._step += 1
        if self._step in self._updates:
            self._collect()
        return nll

    def _set_lr(self) -> None:
        """The lr at which SGD's variance along the stiffest direction is the posterior's, and that is stable."""
        N, B, slow = self.plan.num_data, self.plan.rows_a_step, 1 - self._method.momentum

        def row_losses() -> Tensor:
            prior = prior_loss(self._others, N)
            return torch.cat([-self.model.log_likelihood(x, y) + prior for x, y in self._rows])

        direction = [torch.empty_like(p).normal_(generator=self.streams.noise) for p in self._parameters]
        with self.model.at_full_precision():  # a curvature is a difference of gradients
            curvature, slopes, _ = largest_curvature(row_losses, self._parameters, direction, ITERATIONS)
        self.gradient_evaluations += 2 * ITERATIONS * len(self._rows)
        curvature += max(group["weight_decay"] for group in self._sgd.param_groups)
        noise = float(slopes.var()) if len(slopes) > 1 else 0.0
        lr = slow * min(LR_MOST, LR_STABILITY / max(curvature, 1e-12), 2 * B / max(N * noise, 1e-12))
        for group in self._sgd.param_groups:
            group["lr"] = lr
        self._rows = []

    def _collect(self) -> None:
        """Welford's update: the difference of two large numbers, E[w^2] - E[w]^2, would leave nothing in float32."""
        vector = self._weights.vector.detach()
        self._count += 1
        before = vector - self._mean
        self._mean.add_(before, alpha=1 / self._count)
        after = vector - self._mean
        self._squares.addcmul_(before, after)
        if not self._method.diagonal:
            self._deviations.append(after)

    def _source(self) -> Source:
        """What was collected, as a distribution; too little of it is the present weights."""
        if self._count < 2:
            return Draws.stack([self.model.state()])
        bayesian, scale = self.model.log_priors.keys(), self._method.scale
        loc = {**self.model.state(), **self._weights.named(self._mean)}
        sd = self._named((self._squares / self._count).sqrt() * math.sqrt(scale))
        if self._method.diagonal:
            return NormalSource(loc, {name: sd[name].log() for name in bayesian})
        K = len(self._deviations)
        rows = [self._named(deviation * math.sqrt(scale / (2 * (K - 1)))) for deviation in self._deviations]
        factor = {name: torch.stack([row[name] for row in rows]) for name in bayesian}
        return LowRankNormal(loc, {name: sd[name] * math.sqrt(0.5) for name in bayesian}, factor)

    def _named(self, vector: Tensor) -> State:
        return self._weights.named(vector)

    def snapshot(self) -> list[State]:
        source = self._source()
        if isinstance(source, Draws):
            return [source.last()]
        # Fixed noise: the validation score of two epochs differs by the fit and not by the draws.
        stream = torch.Generator(device=self._mean.device).manual_seed(0)
        return list(source.states(VALIDATION_DRAWS, stream))

    def finish(self, batches: Any) -> Source:
        return self._source()

    def state_dict(self) -> dict[str, Any]:
        moments = {"mean": self._mean, "squares": self._squares, "deviations": list(self._deviations)}
        return {
            **super().state_dict(),
            "climber": copy.deepcopy(self._climber.state_dict()),
            "climbing": self._descent.optimizer is self._climber,
            "step": self._step,
            "count": self._count,
            **copy.deepcopy(moments),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._climber.load_state_dict(state["climber"])
        self._descent.optimizer = self._climber if state["climbing"] else self._sgd
        self._step, self._count = state["step"], state["count"]
        self._mean.copy_(state["mean"])
        self._squares.copy_(state["squares"])
        self._deviations = deque((d.clone() for d in state["deviations"]), maxlen=self._method.rank)
