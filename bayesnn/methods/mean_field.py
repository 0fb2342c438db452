"""Mean-field variational inference: an independent Normal for every weight (Graves 2011; Blundell et al. 2015)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bayesnn.errors import positive, unknown
from bayesnn.methods.base import Plan, Run, clear_gradients, prior_loss
from bayesnn.methods.estimators import ESTIMATORS, Estimator
from bayesnn.methods.variational import Variational, VariationalRun
from bayesnn.model import BayesianModel
from bayesnn.rng import Streams
from bayesnn.source import NormalSource, Source


@dataclass(frozen=True)
class MeanFieldVI(Variational):
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
    lr : Adam's learning rate, for mu and rho alike: rho is a logarithm, so a step changes sigma by a share. Adam moves
        each by about lr a step where all gradients agree, and far less where they are noisy: over S steps of a cosine
        schedule rho comes ``lr * S / 2`` far at best, and from ``initial_sd`` to the prior's sd it is some 5. A run too
        short for its lr ends with standard deviations that are too small, whatever its NLL is.
    initial_sd : sigma at the start.
    mc_samples : weight samples a step, averaged.
    kl_weight : weight of the KL; 1 is Bayes, anything else is not the posterior.
    schedule : of the learning rate, see :class:`bayesnn.MAP`.
    kl_warm_up : share of the steps over which the KL's weight rises linearly from 0 to ``kl_weight``.
    estimator : ``"reparam"``, ``"local"`` (Kingma, Salimans & Welling 2015) or ``"flipout"`` (Wen et al. 2018), for the
        weights and biases of linear and convolution calls wherever the net makes them. For convolutions ``"local"``
        takes the positions of an output for independent and so fits an approximation of the ELBO; ``"flipout"`` is
        unbiased. Parameters that an estimator cannot serve are taken by ``"reparam"``, and a warning names them; those
        of the likelihood always are.
    moped : sigma at the start as a share of abs(mu), at least ``initial_sd / 100``, for ``init=`` a fitted point
        estimate or ``"net"`` (MOPED: Krishnan, Subedar & Tickoo 2020). Initialisation only: the paper also centres the
        prior at the point estimate, which uses the data twice.
    max_sd : the most that sigma can become.
    """

    estimator: Literal["reparam", "local", "flipout"] = "reparam"
    moped: float | None = None
    max_sd: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator not in tuple(ESTIMATORS):  # a list has no place in a dict, and would raise of itself
            raise unknown("estimator", self.estimator, ESTIMATORS)
        if self.moped is not None:
            positive("moped", self.moped)
        if self.max_sd is not None and positive("max_sd", self.max_sd) < self.initial_sd:
            raise ValueError(
                f"Expected max_sd >= initial_sd ({self.initial_sd}), got {self.max_sd!r}: lower initial_sd or raise it."
            )

    @property
    def compiles(self) -> bool:
        """The other estimators act inside of the net's calls."""
        return self.estimator == "reparam"

    def check(self, model: BayesianModel, plan: Plan) -> None:
        super().check(model, plan)
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


class _MeanFieldRun(VariationalRun):
    """z ~ Normal(0, I)."""

    def __init__(
        self, method: MeanFieldVI, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None
    ) -> None:
        self._method = method
        super().__init__(method, model, plan, streams, init)
        self._estimator = self._make_estimator()

    def _make_shape(self, init: Source | None) -> tuple[()]:
        if self._method.moped is not None:
            for name, rho in self._weights.views(self._rho).items():
                if name.startswith("net."):  # a noise scale's logarithm has no size to take a share of
                    share = self._method.moped * self._weights.parameters[name].detach().abs()
                    rho.copy_(share.clamp_(min=self._method.initial_sd / 100).log_())
        self._clamp()
        return ()

    def _make_estimator(self) -> Estimator | None:
        make = ESTIMATORS[self._method.estimator]
        if make is None:
            return None
        candidates = [name for name in self._weights.parameters if name.startswith("net.")]
        vectors = self._mu, self._sigma, self._shift
        return make(self._weights, *vectors, candidates, self._other_names, self.streams.noise)

    def _clamp(self) -> None:
        if self._method.max_sd is not None:
            self._rho.clamp_(max=math.log(self._method.max_sd))

    def _direction(self) -> Tensor:
        return self._shift.normal_(generator=self.streams.noise)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        nll = super().step(x, y)
        self._clamp()
        return nll

    def _expected(self, x: Tensor, y: Tensor, kl_weight: float, mu_grad: Tensor, rho_grad: Tensor) -> Tensor:
        if self._estimator is None:
            return super()._expected(x, y, kl_weight, mu_grad, rho_grad)
        nll = self._estimated(self._estimator, x, y, kl_weight, mu_grad, rho_grad)
        if self._estimator.refused:
            names, of = self._estimator.refused, len(self._weights.parameters)
            warnings.warn(
                f"estimator={self._method.estimator!r} cannot serve {len(names)} of {of} parameters, which are "
                f"taken by plain reparameterization: {', '.join(names)}.",
                stacklevel=7,
            )
            names.clear()
        return nll

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

    def _source(self) -> NormalSource:
        return NormalSource(self._centre(), self._weights.named(self._rho))

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self._estimator is not None:
            state["served"] = sorted(self._estimator.served) if self._estimator.probed else None
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self._estimator is not None and state["served"] is not None:
            self._estimator.restore(state["served"])
