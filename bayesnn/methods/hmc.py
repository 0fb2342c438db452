"""Hamiltonian Monte Carlo with exact gradients, by Pyro's kernels: HMC and NUTS, the library's reference."""

from __future__ import annotations

import copy
import math
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.infer import mcmc
from torch import Tensor

from bayesnn.data.batches import Batches, Loader
from bayesnn.errors import at_least, fraction, positive
from bayesnn.methods.base import Plan, Run
from bayesnn.methods.full_batch import Climb, FullBatchMethod, Potential
from bayesnn.model import BayesianModel, State
from bayesnn.rng import Streams
from bayesnn.source import Source

TRIES = 20


@dataclass(frozen=True)
class _Hamiltonian(FullBatchMethod):
    """What HMC and NUTS share."""

    default_steps: ClassVar[int] = 400

    warm_up: float = 0.5
    target_accept: float = 0.8
    map_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("warm_up", self.warm_up)
        if fraction("target_accept", self.target_accept) == 0:
            raise ValueError("Expected target_accept in (0, 1), got 0: 0.8 is usual.")
        at_least("map_steps", self.map_steps, 0)

    def unkept_steps(self, steps: int) -> int:
        return int(self.warm_up * steps)

    @abstractmethod
    def make_kernel(self, energy: _Energy) -> mcmc.HMC:
        """Pyro's kernel on the potential."""

    @abstractmethod
    def begin_transition(self, kernel: mcmc.HMC) -> None:
        """Called before each transition, inside the chain's fence."""

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return _HamiltonianRun(self, model, plan, streams, init)


@dataclass(frozen=True)
class HMC(_Hamiltonian):
    """Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011): exact up to Monte-Carlo error, at full-batch cost.

    With momenta r ~ Normal(0, M), leapfrog steps of size eps

        r <- r - eps/2 * grad U(w) / T,    w <- w + eps * M^-1 r,    r <- r - eps/2 * grad U(w) / T

    lead to a proposal that is accepted with probability min(1, exp(-dH)), H = U(w) / T + r' M^-1 r / 2. A rejected
    proposal repeats the present state. In the warm-up eps is set by dual averaging and M^-1, diagonal, to the variances
    of the weights (Pyro's adaptation, which is Stan's). One step of ``fit`` is one transition.

    Parameters
    ----------
    trajectory : mean length of a trajectory in units of M^-1/2, the adapted standard deviations; the length of each
        is uniform in [1/2, 3/2] of it, which breaks the resonances of a fixed one (Neal 2011). On a Normal
        pi/2 gives an independent draw and 2 pi the same one again.
    max_steps : leapfrog steps in a trajectory at most.
    warm_up : share of the transitions, at the start, in which eps and M are adapted; their states are not kept.
    target_accept : mean acceptance probability that eps is set for.
    map_steps : steps of Adam towards a mode before the first transition; none in a run that goes on (``init=``).
    temperature, draws, thin, chunk : T of p(w, D)^(1/T); draws to keep; transitions between them; rows in one pass.
    """

    trajectory: float = math.pi / 2
    max_steps: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("trajectory", self.trajectory)
        at_least("max_steps", self.max_steps, 1)

    def make_kernel(self, energy: _Energy) -> mcmc.HMC:
        return mcmc.HMC(potential_fn=energy, trajectory_length=self.trajectory, target_accept_prob=self.target_accept)

    def begin_transition(self, kernel: mcmc.HMC) -> None:
        length = self.trajectory * (0.5 + float(torch.rand(())))
        kernel.trajectory_length = min(length, self.max_steps * kernel.step_size)


@dataclass(frozen=True)
class NUTS(_Hamiltonian):
    """The no-U-turn sampler (Hoffman & Gelman 2014; multinomial, Betancourt 2017): HMC that sets its own lengths.

    Each trajectory doubles until it turns back on itself, and the next state is one of its points, drawn with weights
    exp(-H): see :class:`HMC` for H, its leapfrog steps and the warm-up. One step of ``fit`` is one transition, of up to
    2^max_depth - 1 gradients.

    Parameters
    ----------
    max_depth : doublings of a trajectory at most.
    warm_up, target_accept, map_steps, temperature, draws, thin, chunk : as in :class:`HMC`.
    """

    max_depth: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("max_depth", self.max_depth, 1)

    def make_kernel(self, energy: _Energy) -> mcmc.HMC:
        return mcmc.NUTS(potential_fn=energy, target_accept_prob=self.target_accept, max_tree_depth=self.max_depth)

    def begin_transition(self, kernel: mcmc.HMC) -> None:
        """The trajectory has no length to set."""


class _Energy:
    """The potential as Pyro takes it: a function of {"w": vector} that autograd can differentiate.

    Pyro's positions, momenta and energies are float64 on the CPU, whatever the net computes in and wherever: its random
    numbers then come from torch's CPU generator, which ``fit`` fences, and an energy of 1e5 still has its digits.
    """

    def __init__(self, potential: Potential) -> None:
        self.potential = potential

    def __call__(self, site: dict[str, Tensor]) -> Tensor:
        energy: Tensor = _ValueAndGradient.apply(site["w"], self.potential)  # type: ignore[no-untyped-call]
        return energy


class _ValueAndGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, potential: Potential) -> Tensor:
        potential.vector.copy_(w)
        energy, gradient = potential()
        ctx.save_for_backward(gradient.to(w))
        return w.new_tensor(energy)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return outer[0] * gradient, None


class _HamiltonianRun(Run):
    optimizers = ()

    def __init__(
        self, method: _Hamiltonian, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None
    ) -> None:
        super().__init__(model, plan, streams)
        if init is not None:
            model.load_state(init.last())
        self._method = method
        self._climbs = method.map_steps if init is None else 0
        self._potential = Potential(model, method.temperature, method.chunk, plan.compile)
        self._energy = _Energy(self._potential)
        self._kernel = method.make_kernel(self._energy)
        self._z: dict[str, Tensor] | None = None
        self._start: Tensor | None = None  # until it is left
        self._kept = method.kept_steps(plan.steps)
        self._unkept = method.unkept_steps(plan.steps)
        self._step = 0
        self._accepted = math.nan  # probability, of the last transition

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        self._potential.on(x, y)
        if self._z is None:
            self._z = self._set_up()
        if not math.isfinite(self._present_energy()):  # at the start: no proposal is ever compared with it
            return self._potential.mean_nll(math.nan)
        self._method.begin_transition(self._kernel)
        self._z = self._transition(self._z)
        self._step += 1
        if self._step > self._unkept:
            self._leave_start(self._z)
        self._potential.vector.copy_(self._z["w"])  # the last point of the trajectory is seldom the one that is taken
        self.gradient_evaluations = self._potential.evaluations
        return self._potential.mean_nll(self._present_energy())

    def _transition(self, z: dict[str, Tensor]) -> dict[str, Tensor]:
        kernel = self._kernel
        mean = kernel._mean_accept_prob
        z = kernel.sample(z)
        # Pyro keeps the mean over the transitions of the warm-up, or since it: the last one's is what it moved by.
        since = kernel._t - (kernel._warmup_steps or 0)
        count = since if since > 0 else kernel._t
        self._accepted = min(1.0, max(0.0, mean + count * (kernel._mean_accept_prob - mean)))  # rounding
        return z

    def _present_energy(self) -> float:
        energy = self._kernel._potential_energy_last
        assert isinstance(energy, Tensor)
        return float(energy)

    def _leave_start(self, z: dict[str, Tensor]) -> None:
        """Where a warm-up was too short to find a step size that gets anywhere: halve it until a proposal is taken.

        A start that is left at a random time is still a start: this belongs to the warm-up, and happens once.
        """
        start, tries = self._start, TRIES
        while start is not None and tries and torch.equal(z["w"], start):
            tries -= 1
            self._kernel._adapter.step_size /= 2
            self._kernel._divergences.clear()  # they were the warm-up's
            self._z = z = self._transition(z)
        self._start = None

    def _set_up(self) -> dict[str, Tensor]:
        if self._climbs:
            climb = Climb(self._potential, self._climbs)
            for _ in range(self._climbs):
                climb.step()
        self._kernel.initial_params = {"w": self._potential.vector.to("cpu", torch.float64, copy=True)}
        self._start = self._kernel.initial_params["w"]
        self._kernel.setup(self._unkept)
        z: dict[str, Tensor] = self._kernel.initial_params
        return z

    def draw(self) -> list[State]:
        return self.snapshot() if self._step in self._kept else []

    def snapshot(self) -> list[State]:
        return [self.model.state()]

    def statistics(self) -> dict[str, float]:
        """Step size, temperature, and the acceptance probability of the transition, or its mean over a trajectory."""
        row = {"step_size": self._kernel.step_size, "temperature": self._method.temperature}
        return {**row, "acceptance_rate": self._accepted}

    def end_epoch(self) -> dict[str, float]:
        """Mean acceptance probability (of the warm-up, or since it), step size, divergences since the warm-up."""
        return {
            "accept": self._kernel._mean_accept_prob,
            "step_size": self._kernel.step_size,
            "divergent": len(self._kernel._divergences),
        }

    def finish(self, batches: Batches | Loader) -> None:
        diverged = len(self._kernel._divergences)
        if diverged:
            name = type(self._method).__name__
            warnings.warn(
                f"{diverged} of {self._step - self._unkept} trajectories of {name} diverged after the warm-up: the "
                f"posterior has places that it does not reach; raise target_accept (now {self._method.target_accept}).",
                stacklevel=4,
            )

    def state_dict(self) -> dict[str, Any]:
        own = {"z": self._z, "start": self._start, "step": self._step}
        return {**super().state_dict(), **own, "kernel": self._copied(self._kernel)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._kernel = self._copied(state["kernel"])
        self._z, self._start, self._step = state["z"], state["start"], state["step"]

    def _copied(self, kernel: mcmc.HMC) -> mcmc.HMC:
        """A copy that shares the potential, and with it the net."""
        copied: mcmc.HMC = copy.deepcopy(kernel, {id(self._energy): self._energy})
        return copied
