"""Mean-field variational inference: an independent Normal for every weight (Graves 2011; Blundell et al. 2015)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bayesnn.errors import at_least, fraction, positive, unknown
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
from bayesnn.methods.estimators import ESTIMATORS, Estimator
from bayesnn.methods.flat import FlatWeights, normal_priors
from bayesnn.methods.gibbs import sample_precision
from bayesnn.model import BayesianModel, State
from bayesnn.rng import Streams
from bayesnn.source import NormalSource, Source

VALIDATION_DRAWS = 8


@dataclass(frozen=True)
class MeanFieldVI(Method):
    """q(w) = prod_j Normal(mu_j, sigma_j^2), sigma = exp(rho), fitted by maximising the evidence lower bound.

    One step minimises an unbiased estimate of -ELBO / N on the rows of a minibatch, with w = mu + sigma * eps:

        mean_i -log p(y_i | x_i, w) + kl_weight * KL(q || p) / N

    Where the prior is Normal(m, s^2), KL = sum_j (sigma^2 + (mu - m)^2) / (2 s^2) - 1/2 - log(sigma / s) is
    closed; elsewhere the entropy of q stays closed and E_q[-log p(w)] is estimated with the same weight samples.
    The gradients with respect to mu and rho are g and g * eps * sigma, g the gradient at the sampled weights
    (reparameterization, Kingma & Welling 2014), so a step costs one backward pass of the plain net.

    Two other estimates of the same expectation have gradients of less variance, at twice the calls of every layer:
    ``"local"`` samples pre-activations, ``"flipout"`` gives each row of the batch a weight sample of its own.

    Parameters
    ----------
    lr : Adam's learning rate, for mu and rho alike: rho is a logarithm, so a step changes sigma by a share.
    initial_sd : sigma at the start.
    mc_samples : weight samples a step, averaged.
    kl_weight : weight of the KL; 1 is Bayes, anything else is not the posterior.
    schedule : of the learning rate, see :class:`bayesnn.MAP`.
    estimator : ``"reparam"``, ``"local"`` (Kingma, Salimans & Welling 2015) or ``"flipout"`` (Wen et al. 2018), for the
        weights and biases of linear and convolution calls wherever the net makes them. For convolutions ``"local"``
        takes the positions of an output for independent and so fits an approximation of the ELBO; ``"flipout"`` is
        unbiased. Parameters that an estimator cannot serve are taken by ``"reparam"``, and a warning names them; those
        of the likelihood always are.
    moped : sigma at the start as a share of abs(mu), at least ``initial_sd / 100``, for ``init=`` a fitted point
        estimate or ``"net"`` (MOPED: Krishnan, Subedar & Tickoo 2020). Initialisation only: the paper also centres the
        prior at the point estimate, which uses the data twice.
    max_sd : the most that sigma can become.
    kl_warm_up : share of the steps over which the KL's weight rises linearly from 0 to ``kl_weight``.
    """

    default_steps: ClassVar[int] = 5000
    infers_precisions: ClassVar[bool] = True

    lr: float = 2e-3
    initial_sd: float = 0.01
    mc_samples: int = 1
    kl_weight: float = 1.0
    schedule: Schedule = "cosine"
    estimator: Literal["reparam", "local", "flipout"] = "reparam"
    moped: float | None = None
    max_sd: float | None = None
    kl_warm_up: float = 0.0

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        positive("initial_sd", self.initial_sd)
        at_least("mc_samples", self.mc_samples, 1)
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"Expected kl_weight >= 0 and finite, got {self.kl_weight!r}: 1 is Bayes.")
        check_schedule(self.schedule)
        if self.estimator not in ESTIMATORS:
            raise unknown("estimator", self.estimator, ESTIMATORS)
        if self.moped is not None:
            positive("moped", self.moped)
        if self.max_sd is not None and positive("max_sd", self.max_sd) < self.initial_sd:
            raise ValueError(
                f"Expected max_sd >= initial_sd ({self.initial_sd}), got {self.max_sd!r}: lower initial_sd or raise it."
            )
        fraction("kl_warm_up", self.kl_warm_up)

    def check(self, model: BayesianModel, plan: Plan) -> None:
        refuse_dropout(plan, self)
        if not model.log_priors:
            raise ValueError("Expected at least one parameter with a prior for MeanFieldVI, got none: use MAP.")
        refuse_running_statistics(model, self)
        if self.moped is not None and plan.fresh:
            raise ValueError(
                "Expected init= to be a posterior of MAP() or 'net' with moped, got 'fresh': a share of random weights "
                "says nothing; fit a point estimate first, or drop moped."
            )

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        return 2 * super().draw_bytes(model, plan)

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        if self.moped is not None and isinstance(init, NormalSource):
            raise ValueError(
                "Expected init= to be a point estimate with moped, got a posterior with standard deviations of its "
                "own: drop moped to go on with them."
            )
        return _MeanFieldRun(self, model, plan, streams, init)


class _MeanFieldRun(Run):
    def __init__(
        self, method: MeanFieldVI, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None
    ) -> None:
        super().__init__(model, plan, streams)
        if init is not None:
            model.load_state(init.last())
        self._method = method
        self._weights = FlatWeights(model.bayesian_parameters())
        self._mu = self._weights.vector.clone()
        self._rho = torch.full_like(self._mu, math.log(method.initial_sd))
        if method.moped is not None:
            for name, rho in self._weights.views(self._rho).items():
                if name.startswith("net."):  # a noise scale's logarithm has no size to take a share of
                    share = method.moped * self._weights.parameters[name].detach().abs()
                    rho.copy_(share.clamp_(min=method.initial_sd / 100).log_())
        if isinstance(init, NormalSource):
            self._rho.copy_(self._weights.flat(init.log_sd))
        self._clamp()
        others = self._read_priors()
        self._mu.grad, self._rho.grad = torch.empty_like(self._mu), torch.empty_like(self._rho)
        parameters = dict(model.named_parameters())
        self._free = [parameters[name] for name in model.deterministic]
        self._shift, self._sigma = torch.empty_like(self._mu), torch.empty_like(self._mu)
        self._grad = torch.empty_like(self._mu) if method.mc_samples > 1 else None
        self._optimizer = torch.optim.Adam([self._mu, self._rho, *self._free], lr=method.lr, fused=True)
        self.optimizers = [self._optimizer]
        self._steps = 0
        self._estimator = self._make_estimator(others)

    def _read_priors(self) -> list[str]:
        """The Normal priors as vectors, and the names of the others."""
        loc, precision, others = normal_priors(self.model, self._weights)
        self._others = prior_terms(self.model, others)
        self._loc = loc if bool(loc.any()) else None
        # One number where it is one: the elementwise passes read one vector less.
        self._precision: float | Tensor = float(precision[0]) if bool((precision == precision[0]).all()) else precision
        return others

    @torch.no_grad()
    def begin_epoch(self, epoch: int, batches: Any) -> None:
        """Empirical Bayes: each precision at the maximum of the ELBO plus the log density of its logarithm."""
        if not self.model.hyperpriors:
            return
        second = self._weights.named(self._mu.square() + (2 * self._rho).exp())
        for name, prior in self.model.hyperpriors.items():
            value = second[name]
            tau = sample_precision(prior, value.numel(), value.sum(), 0.0, self.streams.noise)
            self.model.set_precision(name, tau)
        self._read_priors()

    def _make_estimator(self, others: list[str]) -> Estimator | None:
        make = ESTIMATORS[self._method.estimator]
        if make is None:
            return None
        candidates = [name for name in self._weights.parameters if name.startswith("net.")]
        vectors = self._mu, self._sigma, self._shift
        return make(self._weights, *vectors, candidates, others, self.streams.noise)

    def _clamp(self) -> None:
        if self._method.max_sd is not None:
            self._rho.clamp_(max=math.log(self._method.max_sd))

    def _kl_weight(self) -> float:
        rising = self._method.kl_warm_up * self.plan.steps
        return self._method.kl_weight * (min(1.0, self._steps / rising) if rising else 1.0)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        kl_weight = self._kl_weight()
        kl_scale = kl_weight / self.plan.num_data
        mu_grad, rho_grad = self._mu.grad, self._rho.grad
        assert mu_grad is not None
        assert rho_grad is not None
        torch.exp(self._rho, out=self._sigma)
        if self._estimator is None:
            nll = self._sampled(x, y, kl_weight, mu_grad, rho_grad)
        else:
            nll = self._estimated(self._estimator, x, y, kl_weight, mu_grad, rho_grad)
            if self._estimator.refused:
                names, of = self._estimator.refused, len(self._weights.parameters)
                warnings.warn(
                    f"estimator={self._method.estimator!r} cannot serve {len(names)} of {of} parameters, which are "
                    f"taken by plain reparameterization: {', '.join(names)}.",
                    stacklevel=5,
                )
                names.clear()
        # d KL / d mu = (mu - m) / s^2, d KL / d rho = sigma^2 / s^2 - 1; a precision of 0 leaves the entropy's -1.
        centred = self._mu if self._loc is None else self._mu - self._loc
        if isinstance(self._precision, float):
            mu_grad.add_(centred, alpha=kl_scale * self._precision)
            rho_grad.addcmul_(self._sigma, self._sigma, value=kl_scale * self._precision)
        else:
            mu_grad.addcmul_(centred, self._precision, value=kl_scale)
            rho_grad.addcmul_(self._sigma.square(), self._precision, value=kl_scale)
        rho_grad.sub_(kl_scale)
        self._optimizer.step()
        self._clamp()
        self._steps += 1
        self.gradient_evaluations += self._method.mc_samples
        return nll

    def _sampled(self, x: Tensor, y: Tensor, kl_weight: float, mu_grad: Tensor, rho_grad: Tensor) -> Tensor:
        """Mean negative log likelihood and, written out, the gradients of it and of the Monte Carlo part of the KL."""
        S, total = self._method.mc_samples, torch.zeros((), dtype=self._mu.dtype, device=self._mu.device)
        clear_gradients(self._free)
        for s in range(S):
            shift = self._shift.normal_(generator=self.streams.noise).mul_(self._sigma)  # sigma * eps
            torch.add(self._mu, shift, out=self._weights.vector)
            clear_gradients(self._weights.parameters.values())
            nll = -self.model.log_likelihood(x, y).mean()
            loss = nll + kl_weight * prior_loss(self._others, self.plan.num_data)
            (loss / S).backward()
            g = self._weights.gradient(out=mu_grad if s == 0 else self._grad)
            if s == 0:
                torch.mul(g, shift, out=rho_grad)
            else:
                mu_grad.add_(g)
                rho_grad.addcmul_(g, shift)
            total += nll.detach()
        return total / S

    def _estimated(
        self, estimator: Estimator, x: Tensor, y: Tensor, kl_weight: float, mu_grad: Tensor, rho_grad: Tensor
    ) -> Tensor:
        """The same by an estimator."""
        S, s, total = self._method.mc_samples, 0, torch.zeros((), dtype=self._mu.dtype, device=self._mu.device)
        estimator.probe(self.model.net, x)
        while s < S:
            if s == 0:
                clear_gradients(self._free)
            nll = estimator.take(lambda: -self.model.log_likelihood(x, y).mean() / S, len(x))
            if nll is None:  # a parameter was served that cannot be: all samples anew
                s, total = 0, torch.zeros_like(total)
                continue
            if self._others:
                torch.as_tensor(kl_weight / S * prior_loss(self._others, self.plan.num_data)).backward()
            estimator.write(mu_grad, rho_grad, first=s == 0)
            s, total = s + 1, total + nll
        return total

    def kl(self, draws: int = 16) -> float:
        """KL(q || p): closed where the prior is Normal, elsewhere its cross-entropy by Monte Carlo."""
        kl = -float((self._rho.double() + 0.5 * math.log(2 * math.pi * math.e)).sum())  # minus the entropy of q
        precision = torch.as_tensor(self._precision, dtype=self._mu.dtype, device=self._mu.device).expand_as(self._mu)
        normal = precision > 0
        second_moment = (2 * self._rho).exp() + (self._mu if self._loc is None else self._mu - self._loc).square()
        cross = second_moment * precision - torch.log(precision / (2 * math.pi))
        kl += 0.5 * float(cross[normal].double().sum())
        for _ in range(draws if self._others else 0):
            # The sample in the net's weights is replaced by the next step: nothing to restore.
            self._shift.normal_(generator=self.streams.noise)
            torch.addcmul(self._mu, self._rho.exp(), self._shift, out=self._weights.vector)
            kl += float(prior_loss(self._others, 1)) / draws
        return kl

    def end_epoch(self) -> dict[str, float]:
        with torch.no_grad():
            return {"kl": self.kl()}

    def snapshot(self) -> list[State]:
        # Fixed noise: the validation score of two epochs differs by the fit and not by the draws.
        generator = torch.Generator(device=self._mu.device).manual_seed(0)
        return list(self._source().states(VALIDATION_DRAWS, generator))

    def finish(self, batches: Any) -> NormalSource:
        return self._source()

    def _source(self) -> NormalSource:
        return NormalSource({**self.model.state(), **self._weights.named(self._mu)}, self._weights.named(self._rho))

    def state_dict(self) -> dict[str, Any]:
        own = {"mu": self._mu.clone(), "rho": self._rho.clone(), "steps": self._steps}
        if self._estimator is not None:
            own["served"] = sorted(self._estimator.served) if self._estimator.probed else None
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._mu.data.copy_(state["mu"])
        self._rho.data.copy_(state["rho"])
        self._steps = state["steps"]
        if self._estimator is not None and state["served"] is not None:
            self._estimator.restore(state["served"])
