"""Stein variational gradient descent (Liu & Wang 2016): particles that descend together and keep apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bayesnn.errors import at_least, positive
from bayesnn.initial import initialise
from bayesnn.methods.base import (
    Plan,
    Run,
    Schedule,
    check_schedule,
    clear_gradients,
    prior_loss,
    prior_terms,
)
from bayesnn.methods.descent import Descending, Descent
from bayesnn.methods.flat import FlatWeights, normal_priors
from bayesnn.methods.variational import refuse_variational
from bayesnn.model import BayesianModel, State
from bayesnn.rng import Streams
from bayesnn.source import Draws, Source

JITTER = 1e-2  # standard deviation of what sets particles apart that would start alike


@dataclass(frozen=True)
class SVGD(Descending):
    """P particles w_1, ..., w_P, moved along the direction that lowers KL(particles || posterior) fastest.

    Among the functions of an RBF kernel's space that direction is, with all weights of a net in one vector,

        phi(w_i) = 1/P sum_j k(w_j, w_i) grad log p(w_j, D) / N + grad_{w_j} k(w_j, w_i) / N
                 = 1/P sum_j k_ji (grad log p(w_j, D) + (2 / b) (w_i - w_j)) / N
        k_ji     = exp(-|w_j - w_i|^2 / b),    b = median over pairs of |w_j - w_i|^2 / log P

    and the optimizer takes -phi for its gradient. The first term drives every particle uphill, the second apart. One
    particle has k = 1 and no other: it is :class:`bayesnn.MAP`. The bandwidth b follows the particles at every step.

    All particles are one chain, of ``particles`` draws; ``chains=`` gives independent sets of them. Parameters without
    a prior are shared by the particles and go down their mean gradient.

    Parameters
    ----------
    particles : P.
    lr : learning rate of ``optimizer``, Adam by default; the paper took Adagrad.
    schedule, optimizer, momentum : as of :class:`bayesnn.MAP`.
    clip_grad_norm : the most that the norm of -phi, over all particles together, may be.

    Notes
    -----
    The particles' gradients are taken at once (``torch.func.vmap``), or one after another where the net has
    convolutions, which is faster on the CPU, or does what vmap cannot do.

    References
    ----------
    Liu & Wang 2016, Stein variational gradient descent: a general purpose Bayesian inference algorithm, NeurIPS.
    Ba et al. 2022, Understanding the variance collapse of SVGD in high dimensions, ICLR.
    """

    coupled: ClassVar[bool] = True
    default_steps: ClassVar[int] = 4000

    particles: int = 20
    lr: float = 1e-2
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        at_least("particles", self.particles, 1)
        positive("lr", self.lr)
        check_schedule(self.schedule)
        self.check_descent()

    def check(self, model: BayesianModel, plan: Plan) -> None:
        refuse_variational(model, plan, self)

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        return self.particles * super().draw_bytes(model, plan)

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return _SVGDRun(self, model, plan, streams, init)


def median_bandwidth(squares: Tensor) -> Tensor:
    """b = median of |w_i - w_j|^2 over the pairs i < j / log P, shape (); ``squares`` (P, P), P >= 2.

    Liu & Wang's: sum_j k(w_j, w_i) is then about P exp(-log P) = 1 beside the particle's own, so that the others weigh
    as much as it does itself.
    """
    P = len(squares)
    above = torch.ones_like(squares, dtype=torch.bool).triu(1)
    return squares[above].median() / math.log(P)


def stein_direction(w: Tensor, slope: Tensor, num_data: int) -> Tensor:
    """-phi for particles w (P, D) with ``slope`` (P, D) = -grad log p(w_j, D) / N: what an optimizer takes."""
    P = len(w)
    if P == 1:
        return slope
    # Differences, not |w|^2 + |v|^2 - 2 w'v: particles may be near one another and far from 0.
    squares = torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist").square()
    bandwidth = median_bandwidth(squares)
    kernel = torch.exp(-squares / bandwidth)
    apart = kernel.sum(1, keepdim=True) * w - kernel @ w  # sum_j k_ji (w_i - w_j)
    return (kernel @ slope - (2 / (num_data * bandwidth)) * apart) / P


class _Loss(nn.Module):
    """Mean negative log likelihood with the priors of ``names``, and without: a module, for ``functional_call``."""

    def __init__(self, model: BayesianModel, names: list[str], num_data: int) -> None:
        super().__init__()
        self.model, self.names, self.num_data = model, names, num_data

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        nll = -self.model.log_likelihood(x, y).mean()
        return nll + prior_loss(prior_terms(self.model, self.names), self.num_data), nll


class _SVGDRun(Run):
    def __init__(self, method: SVGD, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None) -> None:
        super().__init__(model, plan, streams)
        self._weights = FlatWeights(model.bayesian_parameters())
        self._particles = torch.stack(list(self._starts(method.particles, init)))  # (P, D)
        self._loc, self._precision, others = normal_priors(model, self._weights)
        parameters = dict(model.named_parameters())
        self._free = [parameters[name] for name in model.deterministic]
        self._particles.grad = torch.zeros_like(self._particles)
        self._descent = Descent(method, [{"params": [self._particles, *self._free]}], method.lr)
        self.optimizers = [self._descent.optimizer]
        self._loss = _Loss(model, others, plan.num_data)
        convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in model.net.modules())
        self._at_once = method.particles > 1 and not convolves

    def _starts(self, count: int, init: Source | None) -> Iterator[Tensor]:
        """The weights that each particle starts from, (D,): fresh ones, or the draws of ``init`` in turn."""
        states: list[State] = []
        if init is not None:
            known = count if init.num_draws is None else min(count, init.num_draws)
            states = [init.last()] if count == 1 else list(init.states(known, self.streams.noise))
        for k in range(count):
            if states:
                self.model.load_state(states[k % len(states)])
            elif k > 0 and self.plan.initial is not None:
                initialise(self.model, self.plan.initial, self.streams.fence)
            w = self._weights.vector.clone()
            yield w if k == 0 else w + JITTER * torch.empty_like(w).normal_(generator=self.streams.noise)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        w, N, slope = self._particles, self.plan.num_data, self._particles.grad
        assert slope is not None
        losses = self._vectorised(x, y, slope) if self._at_once else None
        if losses is None:
            losses = self._in_turn(x, y, slope)
        for p in self._free:
            if p.grad is not None:
                p.grad /= len(w)
        slope.addcmul_(w - self._loc, self._precision, value=1 / N)
        slope.copy_(stein_direction(w, slope, N))
        self._descent.step()
        self.gradient_evaluations += len(w)
        return losses.mean()

    def _vectorised(self, x: Tensor, y: Tensor, slope: Tensor) -> Tensor | None:
        """Losses (P,) and, written out, their gradients; None, for good, where vmap has no rule for what the net does.

        Which is an error of its own kind for each case: in-place changes, values that decide the way, custom functions.
        """
        clear_gradients(self._free)
        w = self._particles.detach().requires_grad_()
        shapes = self._weights.parameters.items()
        parts = w.split(self._weights.sizes, 1)
        stacked = {f"model.{n}": part.view(-1, *p.shape) for part, (n, p) in zip(parts, shapes, strict=True)}
        try:
            losses, nlls = vmap(lambda one: functional_call(self._loss, one, (x, y)))(stacked)
        except RuntimeError:
            self._at_once = False
            return None
        losses.sum().backward()
        assert w.grad is not None
        slope.copy_(w.grad)
        found: Tensor = nlls.detach()
        return found

    def _in_turn(self, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        """The same, one particle after another."""
        clear_gradients(self._free)
        nlls = []
        for w, row in zip(self._particles, slope, strict=True):
            self._weights.vector.copy_(w)
            clear_gradients(self._weights.parameters.values())
            loss, nll = self._loss(x, y)
            loss.backward()
            row.copy_(self._weights.gradient(out=None))
            nlls.append(nll.detach())
        return torch.stack(nlls)

    def end_epoch(self) -> dict[str, float]:
        return self._descent.end_epoch()

    def snapshot(self) -> list[State]:
        state = self.model.state()
        return [{**state, **self._weights.named(w)} for w in self._particles]

    def finish(self, batches: Any) -> Draws:
        return Draws.stack(self.snapshot())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "particles": self._particles.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._particles.copy_(state["particles"])
