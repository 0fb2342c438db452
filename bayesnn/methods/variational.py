"""What variational families share: w = mu + sigma * z, the gradient of the ELBO written out, and the KL."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayesnn.errors import at_least, fraction, not_negative, positive
from bayesnn.methods.base import (
    Method,
    Plan,
    Run,
    Schedule,
    check_schedule,
    clear_gradients,
    prior_loss,
    prior_terms,
    refuse_dropout,
    refuse_running_statistics,
)
from bayesnn.methods.descent import Descending, Descent
from bayesnn.methods.flat import FlatWeights, normal_priors
from bayesnn.methods.gibbs import sample_precision
from bayesnn.model import BayesianModel, State
from bayesnn.rng import Streams
from bayesnn.source import NormalSource, Source

VALIDATION_DRAWS = 8


@dataclass(frozen=True)
class Variational(Descending):
    """The options of every family whose evidence lower bound is maximised with written-out gradients.

    Parameters
    ----------
    lr : learning rate of ``optimizer``, Adam by default.
    initial_sd : standard deviation of each weight at the start.
    mc_samples : weight samples a step, averaged.
    kl_weight : weight of the KL; 1 is Bayes, anything else is not the posterior.
    schedule : of the learning rate, see :class:`bayesnn.MAP`.
    kl_warm_up : share of the steps over which the KL's weight rises linearly from 0 to ``kl_weight``.
    optimizer, momentum : as of :class:`bayesnn.MAP`.
    clip_grad_norm : the most that the norm of the gradient of -ELBO / N, over all parameters of q together, may be.
    """

    default_steps: ClassVar[int] = 20000  # near the 24,000 of a sampler's four chains
    infers_precisions: ClassVar[bool] = True

    lr: float = 1e-2
    initial_sd: float = 0.01
    mc_samples: int = 1
    kl_weight: float = 1.0
    schedule: Schedule = "cosine"
    kl_warm_up: float = 0.0

    @property
    def compiles(self) -> bool:
        return True

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        positive("initial_sd", self.initial_sd)
        at_least("mc_samples", self.mc_samples, 1)
        not_negative("kl_weight", self.kl_weight, "1 is Bayes")
        check_schedule(self.schedule)
        fraction("kl_warm_up", self.kl_warm_up)
        self.check_descent()

    def check(self, model: BayesianModel, plan: Plan) -> None:
        refuse_variational(model, plan, self)


def refuse_variational(model: BayesianModel, plan: Plan, method: Method) -> None:
    """Raise for what no distribution over the weights alone can stand for."""
    refuse_dropout(plan, method)
    if not model.log_priors:
        name = type(method).__name__
        raise ValueError(f"Expected at least one parameter with a prior for {name}, got none: use MAP.")
    refuse_running_statistics(model, method)


class VariationalRun(Run):
    """One chain of q: w = mu + sigma * z, sigma = exp(rho), z with mean 0 and a law that the family gives.

    Of -ELBO / N the gradients with respect to mu and rho are g and g * sigma * z, g that of the loss at the sampled
    weights, so a step costs one backward pass of the plain net. Under Normal(m, s^2) priors

        KL(q || p) = sum_j (sigma_j^2 E[z_j^2] + (mu_j - m_j)^2) / (2 s_j^2) + log(s_j) - rho_j + const - H(z)

    is closed: it adds (mu - m) / s^2 and sigma^2 E[z^2] / s^2 - 1. Under other priors the entropy stays closed and
    E_q[-log p(w)] is estimated with the same weight samples.

    A family says how z is drawn (:meth:`_direction`), what E[z^2] is, and what comes of it (:meth:`_source`); where the
    law of z has parameters of its own, ``_shape``, also their gradients.
    """

    def __init__(
        self, method: Variational, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None
    ) -> None:
        super().__init__(model, plan, streams)
        if init is not None:
            model.load_state(init.last())
        self._options = method
        self._weights = FlatWeights(model.bayesian_parameters())
        self._mu = self._weights.vector.clone()
        self._rho = torch.full_like(self._mu, math.log(method.initial_sd))
        if isinstance(init, NormalSource):
            self._rho.copy_(self._weights.flat(init.log_sd))
        self._shift, self._sigma = torch.empty_like(self._mu), torch.empty_like(self._mu)
        self._shape: Sequence[Tensor] = self._make_shape(init)
        self._read_priors()
        for tensor in (self._mu, self._rho, *self._shape):
            tensor.grad = torch.empty_like(tensor)
        parameters = dict(model.named_parameters())
        self._free = [parameters[name] for name in model.deterministic]
        self._grad = torch.empty_like(self._mu) if method.mc_samples > 1 else None
        tensors = [self._mu, self._rho, *self._shape, *self._free]
        self._descent = Descent(method, [{"params": tensors}], method.lr)
        self.optimizers = [self._descent.optimizer]
        self._steps = 0

    def _make_shape(self, init: Source | None) -> Sequence[Tensor]:
        """The parameters of the law of z; ``_mu`` and ``_rho`` are there, and may be set otherwise."""
        return ()

    def _read_priors(self) -> None:
        """The Normal priors as vectors, and the others as terms of the loss."""
        loc, precision, self._other_names = normal_priors(self.model, self._weights)
        self._others = prior_terms(self.model, self._other_names)
        self._loc = loc if bool(loc.any()) else None
        # One number where it is one: the elementwise passes read one vector less.
        self._precision: float | Tensor = float(precision[0]) if bool((precision == precision[0]).all()) else precision

    @abstractmethod
    def _direction(self) -> Tensor:
        """A sample of z, written into ``_shift``."""

    def _square(self) -> Tensor | None:
        """E[z^2], a number for each weight; None where it is 1."""
        return None

    def _pull(self, g: Tensor, first: bool) -> None:
        """Write (``first``) or add the gradients of ``_shape``, from g at the last sample."""

    def _pull_kl(self, scale: float) -> None:
        """Add ``scale`` times the gradient of the KL's closed part to those of ``_shape``."""

    def _entropy(self) -> float:
        """H(q): of Normal z with log determinant 0, sum_j rho_j + log(2 pi e) / 2."""
        return float((self._rho.double() + 0.5 * math.log(2 * math.pi * math.e)).sum())

    @abstractmethod
    def _source(self) -> Source:
        """q as it stands."""

    @torch.no_grad()
    def begin_epoch(self, epoch: int, batches: Any) -> None:
        """Empirical Bayes: each precision at the maximum of the ELBO plus the log density of its logarithm."""
        if not self.model.hyperpriors:
            return
        second = self._weights.named(self._mu.square() + self._variance())
        for name, prior in self.model.hyperpriors.items():
            value = second[name]
            tau = sample_precision(prior, value.numel(), value.sum(), 0.0, self.streams.noise)
            self.model.set_precision(name, tau)
        self._read_priors()

    def _variance(self) -> Tensor:
        square = self._square()
        variance = (2 * self._rho).exp()
        return variance if square is None else variance * square

    def _kl_weight(self) -> float:
        rising = self._options.kl_warm_up * self.plan.steps
        return self._options.kl_weight * (min(1.0, self._steps / rising) if rising else 1.0)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        kl_weight = self._kl_weight()
        mu_grad, rho_grad = self._mu.grad, self._rho.grad
        assert mu_grad is not None
        assert rho_grad is not None
        torch.exp(self._rho, out=self._sigma)
        nll = self._expected(x, y, kl_weight, mu_grad, rho_grad)
        self._add_kl(kl_weight / self.plan.num_data, mu_grad, rho_grad)
        self._descent.step()
        self._steps += 1
        self.gradient_evaluations += self._options.mc_samples
        return nll

    def _expected(self, x: Tensor, y: Tensor, kl_weight: float, mu_grad: Tensor, rho_grad: Tensor) -> Tensor:
        """Mean negative log likelihood and, written out, the gradients of it and of the Monte Carlo part of the KL."""
        S, total = self._options.mc_samples, torch.zeros((), dtype=self._mu.dtype, device=self._mu.device)
        clear_gradients(self._free)
        for s in range(S):
            shift = self._direction().mul_(self._sigma)
            torch.add(self._mu, shift, out=self._weights.vector)
            nll = self.backward(x, y, self._others, kl_weight, 1 / S, clear=self._weights.parameters.values())
            g = self._weights.gradient(out=mu_grad if s == 0 else self._grad)
            if s == 0:
                torch.mul(g, shift, out=rho_grad)
            else:
                mu_grad.add_(g)
                rho_grad.addcmul_(g, shift)
            self._pull(g, first=s == 0)
            total += nll
        return total / S

    def _add_kl(self, scale: float, mu_grad: Tensor, rho_grad: Tensor) -> None:
        """``scale`` times the gradient of the closed part; a precision of 0 leaves the entropy's -1."""
        centred = self._mu if self._loc is None else self._mu - self._loc
        square = self._square()
        spread = self._sigma if square is None else self._sigma * square
        if isinstance(self._precision, float):
            mu_grad.add_(centred, alpha=scale * self._precision)
            rho_grad.addcmul_(spread, self._sigma, value=scale * self._precision)
        else:
            mu_grad.addcmul_(centred, self._precision, value=scale)
            rho_grad.addcmul_(spread * self._sigma, self._precision, value=scale)
        rho_grad.sub_(scale)
        self._pull_kl(scale)

    def kl(self, draws: int = 16) -> float:
        """KL(q || p): closed where the prior is Normal, elsewhere its cross-entropy by Monte Carlo."""
        kl = -self._entropy()
        precision = torch.as_tensor(self._precision, dtype=self._mu.dtype, device=self._mu.device).expand_as(self._mu)
        normal = precision > 0
        second_moment = self._variance() + (self._mu if self._loc is None else self._mu - self._loc).square()
        cross = second_moment * precision - torch.log(precision / (2 * math.pi))
        kl += 0.5 * float(cross[normal].double().sum())
        for _ in range(draws if self._others else 0):
            # The sample in the net's weights is replaced by the next step: nothing to restore.
            torch.addcmul(self._mu, self._rho.exp(), self._direction(), out=self._weights.vector)
            kl += float(prior_loss(self._others, 1)) / draws
        return kl

    def end_epoch(self) -> dict[str, float]:
        with torch.no_grad():
            return {"kl": self.kl(), **self._descent.end_epoch()}

    def snapshot(self) -> list[State]:
        # Fixed noise: the validation score of two epochs differs by the fit and not by the draws.
        generator = torch.Generator(device=self._mu.device).manual_seed(0)
        return list(self._source().states(VALIDATION_DRAWS, generator))

    def weights(self) -> State:
        generator = torch.Generator(device=self._mu.device).manual_seed(0)
        return next(iter(self._source().states(1, generator)))

    def finish(self, batches: Any) -> Source:
        return self._source()

    def _centre(self) -> State:
        """The model's state at w = mu."""
        return {**self.model.state(), **self._weights.named(self._mu)}

    def state_dict(self) -> dict[str, Any]:
        own = {"mu": self._mu.clone(), "rho": self._rho.clone(), "steps": self._steps}
        return {**super().state_dict(), **own, "shape": [tensor.clone() for tensor in self._shape]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._mu.data.copy_(state["mu"])
        self._rho.data.copy_(state["rho"])
        for tensor, saved in zip(self._shape, state["shape"], strict=True):
            tensor.data.copy_(saved)
        self._steps = state["steps"]
