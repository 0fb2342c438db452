"""Microcanonical Langevin Monte Carlo (Robnik, De Luca, Silverstein & Seljak 2023; Robnik & Seljak 2024)."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayesnn.data.batches import Batches, Loader
from bayesnn.diagnostics import ess
from bayesnn.errors import fraction, positive, unknown
from bayesnn.methods.base import Plan, Run
from bayesnn.methods.compiled import Evaluated
from bayesnn.methods.full_batch import Climb, FullBatchMethod, Potential
from bayesnn.model import BayesianModel, State
from bayesnn.rng import Streams
from bayesnn.source import Source

# (share of eps that the direction is turned by, share that the weights then move by), ..., and the last turn.
# "minimal-norm" is McLachlan's (1995): its error is about a fifth of the leapfrog's at twice the gradients.
_LAMBDA = 0.1931833275037836
INTEGRATORS: dict[str, tuple[tuple[tuple[float, float], ...], float]] = {
    "leapfrog": (((0.5, 1.0),), 0.5),
    "minimal-norm": (((_LAMBDA, 0.5), (1 - 2 * _LAMBDA, 0.5)), _LAMBDA),
}
MEMORY = 150  # steps that the running estimate of the step size remembers
TRUST = 1.5  # how far off, in powers of e of eps, a step may be and still count
JUMP = 1e4  # a step of the tuning with so many times the wanted squared energy error is taken back
WATCHED = 64  # coordinates whose autocorrelation sets L
L_FACTOR = 0.4  # of the autocorrelation length
L_RANGE = (0.5, 2.0)  # of the spread: a longer L leaves the energy of some directions where it is
LOUD = 10.0  # times the wanted energy variance: worth a warning
# What a chain's state is beside the weights: see _MCLMCRun.
_STATE = (
    "_step", "_scale", "_L", "_spread", "_size", "_u", "_energy", "_of_priors", "_gradient", "_mean", "_square",
    "_count", "_path", "_errors", "_all_errors",
)  # fmt: skip


@dataclass(frozen=True)
class MCLMC(FullBatchMethod):
    """Microcanonical Langevin: motion of constant speed in a direction u, |u| = 1, that the gradient turns.

    With f = -grad U(w) / (T (D - 1)) over D weights (scaled, see ``precondition``) and P = 1 - u u'

        dw = u dt,    du = P f dt + eta P dW

    leaves p(w, D)^(1/T) invariant, for any eta. A step of size eps first refreshes the direction in part,
    u <- (u + nu xi) / |u + nu xi| with nu^2 = (exp(2 eps / L) - 1) / D, so that it is forgotten over the length L,
    and then splits the motion into w <- w + eps u and the exact turn under a constant gradient, with e = f / |f| and
    delta = eps |f|,

        u <- (u + e (sinh delta + e'u (cosh delta - 1))) / (cosh delta + e'u sinh delta)

    which moves the energy U / T + K by dK = (D - 1) log(cosh delta + e'u sinh delta). There is no Metropolis test, so
    the step leaves a bias. It is controlled by the variance of the energy's error, Var[dU / T + dK] / D a step: eps is
    set for ``energy_variance``. One step of ``fit`` is one such step.

    The part of the burn-in that the warm-up leaves is the tuning, in thirds: eps; eps and the weights' variances, which
    become the scales; eps, and L as 0.4 times the length over which the weights are forgotten, but between a half and
    twice their spread sqrt(sum of variances). After that nothing changes any more.

    Parameters
    ----------
    energy_variance : wanted variance of a step's energy error per weight. 5e-4 is Robnik et al.'s; less is a smaller
        bias for more steps. ``history`` has what was reached.
    warm_up : share of the steps, at the start, in which Adam climbs to the posterior's mode. A run that goes on from
        another posterior (``init=``) has none.
    burn_in : share of the steps whose states are not kept: the warm-up and the tuning.
    integrator : ``"minimal-norm"`` (two gradients a step) or ``"leapfrog"`` (one).
    precondition : whether the weights are scaled by their standard deviations, estimated in the tuning.
    temperature, draws, thin, chunk : T of p(w, D)^(1/T); draws to keep; steps between them; rows in one pass.
    """

    default_steps: ClassVar[int] = 6000

    energy_variance: float = 5e-4
    warm_up: float = 0.1
    burn_in: float = 0.5
    integrator: str = "minimal-norm"
    precondition: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("energy_variance", self.energy_variance)
        fraction("warm_up", self.warm_up)
        if fraction("burn_in", self.burn_in) <= self.warm_up:
            raise ValueError(
                f"Expected burn_in > warm_up ({self.warm_up!r}), got {self.burn_in!r}: between them MCLMC is tuned."
            )
        if self.integrator not in INTEGRATORS:
            raise unknown("integrator", self.integrator, INTEGRATORS)

    def unkept_steps(self, steps: int) -> int:
        return int(max(self.warm_up, self.burn_in) * steps)

    def check(self, model: BayesianModel, plan: Plan) -> None:
        super().check(model, plan)
        if model.num_weights() < 2:
            raise ValueError("Expected at least 2 weights for MCLMC, whose speed is constant, got 1: use NUTS.")

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return _MCLMCRun(self, model, plan, streams, init)


def refresh(u: Tensor, nu: float, generator: torch.Generator) -> Tensor:
    """(u + nu xi) / |u + nu xi| with xi ~ Normal(0, I): the direction, forgotten in part."""
    mixed = torch.empty_like(u).normal_(generator=generator).mul_(nu).add_(u)
    return mixed.div_(mixed.norm())


def turn(u: Tensor, gradient: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """The direction after a time ``eps`` in the constant ``gradient`` of U / T, and the kinetic energy gained.

    The hyperbolic functions are divided by exp(delta) / 2, with zeta = exp(-delta): nothing overflows.
    """
    norm, dims = gradient.norm().double(), u.numel() - 1
    e = gradient / -norm.clamp(min=torch.finfo(gradient.dtype).tiny)
    delta, along = eps * norm / dims, e.dot(u).double().clamp(-1.0, 1.0)
    zeta = torch.exp(-delta)
    turned = e * ((1 - zeta) * (1 + zeta + along * (1 - zeta))) + u * (2 * zeta)
    gained = dims * (delta - math.log(2) + torch.log1p(along + (1 - along) * zeta.square()))
    return turned / turned.norm(), gained


def leap(
    vector: Tensor,
    scale: Tensor,
    u: Tensor,
    gradient: Tensor,
    eps: Tensor,
    integrator: str,
    evaluate: Callable[[Tensor, Any], Evaluated],
    density: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One step of the scaled weights w / scale, after u has been refreshed.

    Returns the new weights, direction and gradient of U / T; U / T, the priors' part of U, and the kinetic energy
    gained, each of shape (), float64.
    """
    parts, last = INTEGRATORS[integrator]
    energy = of_priors = kinetic = torch.zeros((), dtype=torch.float64)
    for turned, moved in parts:
        u, gained = turn(u, gradient * scale, turned * eps)
        vector = vector + moved * eps * scale * u
        energy, gradient, of_priors = evaluate(vector, density)
        kinetic = kinetic + gained
    u, gained = turn(u, gradient * scale, last * eps)
    return vector, u, gradient, energy, of_priors, kinetic + gained


class _StepSize:
    """eps from the energy errors so far: dE^2 grows as eps^6, so each step votes for eps (D v / dE^2)^(1/6).

    v is the wanted variance per weight. A vote counts the less the farther it is from the present eps, and the older.
    """

    def __init__(self, eps: float, wanted: float) -> None:
        self.eps, self._wanted, self._most = eps, wanted, math.inf
        self._sum = self._weight = 0.0

    def update(self, error: float) -> bool:
        """Take the energy error of a step; whether the step can be believed, or has to be taken back."""
        if not math.isfinite(error):
            self._most = self.eps = self.eps / 2
            return False
        excess = error**2 / self._wanted + 1e-8
        vote = math.exp(-0.5 * (math.log(excess) / (6 * TRUST)) ** 2)
        decay = (MEMORY - 1) / (MEMORY + 1)
        self._sum = decay * self._sum + vote * excess / self.eps**6
        self._weight = decay * self._weight + vote
        if self._sum > 0:
            self.eps = min((self._sum / self._weight) ** (-1 / 6), self._most)
        return excess < JUMP


class _MCLMCRun(Run):
    optimizers = ()

    def __init__(self, method: MCLMC, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None) -> None:
        super().__init__(model, plan, streams)
        if init is not None:
            model.load_state(init.last())
        self._method = method
        self._potential = Potential(model, method.temperature, method.chunk, plan.compile)
        self._warm_steps = int(method.warm_up * plan.steps) if init is None else 0
        self._unkept = method.unkept_steps(plan.steps)
        self._kept = method.kept_steps(plan.steps)
        self._climb = Climb(self._potential, self._warm_steps) if self._warm_steps else None
        self._third = (self._unkept - self._warm_steps) // 3
        self._dims = dims = self._potential.vector.numel()
        self._scale = torch.ones_like(self._potential.vector)
        self._L = self._spread = math.sqrt(dims)
        self._size = _StepSize(0.25 * math.sqrt(dims), dims * method.energy_variance)
        self._u: Tensor | None = None
        self._energy, self._of_priors, self._gradient = math.nan, math.nan, torch.empty(0)
        self._mean, self._square, self._count = torch.zeros_like(self._scale), torch.zeros_like(self._scale), 0
        self._watched = torch.linspace(0, dims - 1, min(WATCHED, dims)).long().to(self._scale.device)
        self._path: list[Tensor] = []
        self._errors: list[float] = []
        self._all_errors = (0.0, 0)
        self._step = 0

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        self._potential.on(x, y)
        if self._climb is not None and self._step < self._warm_steps:
            nll = self._potential.mean_nll(*self._climb.step())
        else:
            if self._u is None:
                self._u = refresh(torch.zeros_like(self._scale), 1.0, self.streams.noise)
                self._energy, self._gradient = self._potential()
                self._of_priors = self._potential.prior()
            self._move(tuning=self._step < self._unkept)
            if self._step < self._unkept:
                self._tune(self._step - self._warm_steps)
            nll = self._potential.mean_nll(self._energy, self._of_priors)
        self._step += 1
        self.gradient_evaluations = self._potential.evaluations
        return nll

    def _move(self, tuning: bool) -> None:
        """One step of the scaled weights w / scale, taken back in the tuning where the energy jumps."""
        assert self._u is not None
        vector, eps = self._potential.vector, self._size.eps
        before = (vector.clone(), self._energy, self._of_priors, self._gradient) if tuning else None
        nu = math.sqrt(math.expm1(2 * eps / self._L) / self._dims)
        u, integrator = refresh(self._u, nu, self.streams.noise), self._method.integrator
        moved, self._u, self._gradient, energy, of_priors, gained = self._potential.through(
            leap,
            len(INTEGRATORS[integrator][0]),
            vector,
            self._scale,
            u,
            self._gradient,
            torch.tensor(eps, dtype=torch.float64),
            integrator,
        )
        vector.copy_(moved)
        error = float(energy) + float(gained) - self._energy  # of the sum of potential and kinetic energy
        self._energy, self._of_priors = float(energy), float(of_priors)
        if before is None:
            self._errors.append(error)
        elif not self._size.update(error):
            vector.copy_(before[0])
            self._energy, self._of_priors, self._gradient = before[1:]
            self._u = refresh(torch.zeros_like(u), 1.0, self.streams.noise)

    def _tune(self, step: int) -> None:
        """``step`` of the tuning is done: collect, and at the end of a third set what that third was for."""
        third, vector = self._third, self._potential.vector
        if third <= step < 2 * third:
            self._count += 1
            delta = vector - self._mean
            self._mean.add_(delta, alpha=1 / self._count)
            self._square.addcmul_(delta, vector - self._mean)
        elif step >= 2 * third:
            self._path.append(vector[self._watched])
        if step == 2 * third - 1 and self._count > 1:
            variance = self._square / self._count
            spread = math.sqrt(float(variance.sum()))
            if self._method.precondition and spread > 0:
                # A weight that has hardly moved yet is not taken for one that cannot.
                self._scale = variance.clamp_(min=1e-3 * float(variance.mean())).sqrt_()
                eps, spread = self._size.eps * math.sqrt(self._dims) / spread, math.sqrt(self._dims)
                self._size = _StepSize(eps, self._dims * self._method.energy_variance)
            self._L = self._spread = spread or self._spread
        if step == self._unkept - self._warm_steps - 1 and len(self._path) >= 20:
            path = torch.stack(self._path)[None].double()
            length = float((len(self._path) / torch.as_tensor(ess(path, kind="mean"))).nanmean())
            self._path = []
            least, most = (share * self._spread for share in L_RANGE)
            self._L = min(max(L_FACTOR * self._size.eps * length, least), most)

    def draw(self) -> list[State]:
        return self.snapshot() if self._step in self._kept else []

    def snapshot(self) -> list[State]:
        return [self.model.state()]

    def statistics(self) -> dict[str, float]:
        """Step size, in units of the scaled weights, and temperature."""
        return {"step_size": self._size.eps, "temperature": self._method.temperature}

    def end_epoch(self) -> dict[str, float]:
        """Step size and L, in units of the scaled weights, and the mean square per weight of the energy errors."""
        row = {"step_size": self._size.eps, "L": self._L} if self._u is not None else {}
        if self._errors:
            squares, count = sum(error**2 for error in self._errors), len(self._errors)
            row["energy_variance"] = squares / count / self._dims
            self._all_errors = (self._all_errors[0] + squares, self._all_errors[1] + count)
            self._errors = []
        return row

    def finish(self, batches: Batches | Loader) -> None:
        squares, count = self._all_errors
        loudness = squares / max(count, 1) / self._dims / self._method.energy_variance
        if loudness > LOUD:
            warnings.warn(
                f"The energy errors of MCLMC had {loudness:.2g} times the variance that they were to have: somewhere "
                "the step is too large, and the draws are biased; lower energy_variance, or use NUTS.",
                stacklevel=4,
            )

    def state_dict(self) -> dict[str, Any]:
        own = copy.deepcopy({name: getattr(self, name) for name in _STATE})
        return {**super().state_dict(), **own, "climb": self._climb.state_dict() if self._climb else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name, value in copy.deepcopy({name: state[name] for name in _STATE}).items():
            setattr(self, name, value)
        if self._climb:
            self._climb.load_state_dict(state["climb"])
