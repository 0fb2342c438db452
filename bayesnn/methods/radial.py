"""Radial variational inference: the length of a weight tensor's noise does not grow with the number of its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesnn.methods.base import Plan, Run
from bayesnn.methods.variational import Variational, VariationalRun
from bayesnn.model import BayesianModel
from bayesnn.rng import Streams
from bayesnn.source import RadialSource, Source

EULER = 0.5772156649015329


@dataclass(frozen=True)
class RadialVI(Variational):
    """q of Farquhar, Osborne & Gal (2020), for each parameter tensor of D weights on its own:

        w = mu + sigma * z,    z = r xi / |xi|,    xi ~ Normal(0, I_D),    r ~ Normal(0, 1)

    fitted by maximising the evidence lower bound: one step of Adam over mu and rho = log(sigma) minimises an unbiased
    estimate of

        mean_i -log p(y_i | x_i, w) + kl_weight * KL(q || p) / N

    whose gradients are g and g * (w - mu), g the gradient at the sampled weights. A sample lies at a distance abs(r) of
    the mean, in units of sigma, and not at sqrt(D) as a Normal one: most of the mass is near the mean.

    xi / |xi| is uniform on the sphere and independent of r, so E[z] = 0 and E[z z'] = I / D: under Normal(m, s^2)
    priors, whose log density is quadratic, the cross-entropy is closed,

        E_q[-log p(w)] = sum_j (sigma_j^2 / D + (mu_j - m_j)^2) / (2 s_j^2) + log(2 pi s_j^2) / 2

    and elsewhere it is estimated with the same weight samples. At a distance t from 0 the density of z is that of
    abs(r) over the area of the sphere, 2 phi(t) / (S_D t^(D-1)) with S_D = 2 pi^(D/2) / Gamma(D/2), so that
    with E[r^2] = 1 and E[log abs(r)] = -(gamma + log 2) / 2, gamma Euler's constant, the entropy is

        H(q) = sum_j rho_j + log(S_D / 2) + log(2 pi e) / 2 - (D - 1) (gamma + log 2) / 2

    Weights of one tensor are uncorrelated, but not independent: they share r.

    Parameters
    ----------
    lr : Adam's learning rate.
    initial_sd : standard deviation of each weight at the start: sigma = sqrt(D) * initial_sd. A posterior of this
        method or of MeanFieldVI as ``init=`` goes on, with its standard deviations.
    mc_samples, kl_weight, schedule, kl_warm_up : as in :class:`bayesnn.MeanFieldVI`.

    References
    ----------
    Farquhar, Osborne & Gal 2020, Radial Bayesian neural networks: beyond discrete support in large-scale Bayesian deep
    learning, AISTATS.
    """

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        return 2 * super().draw_bytes(model, plan)

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return _RadialRun(self, model, plan, streams, init)


class _RadialRun(VariationalRun):
    def _make_shape(self, init: Source | None) -> tuple[()]:
        parameters = self._weights.parameters
        self._sizes = [p.numel() for p in parameters.values()]
        size = self._weights.flat({name: torch.tensor(float(p.numel())) for name, p in parameters.items()})
        self._share = 1 / size
        self._parts = list(self._shift.split(self._sizes))
        self._r = self._mu.new_empty(len(self._sizes))
        if isinstance(init, RadialSource):
            self._rho.copy_(self._weights.flat(init.log_scale))
        else:
            self._rho.add_(0.5 * size.log())
        return ()

    def _direction(self) -> Tensor:
        self._shift.normal_(generator=self.streams.noise)
        # A number of float32 is exactly 0 once in some ten million: of a tensor of one weight that is the length.
        lengths = torch.stack(torch._foreach_norm(self._parts)).clamp_min(torch.finfo(self._shift.dtype).tiny)
        torch._foreach_mul_(self._parts, (self._r.normal_(generator=self.streams.noise) / lengths).unbind())
        return self._shift

    def _square(self) -> Tensor:
        return self._share

    def _entropy(self) -> float:
        return float(self._rho.double().sum()) + sum(entropy_of_direction(D) for D in self._sizes)

    def _source(self) -> RadialSource:
        return RadialSource(self._centre(), self._weights.named(self._rho))


def entropy_of_direction(D: int) -> float:
    """H(z) of z = r xi / |xi| in D dimensions, nats."""
    half_area = 0.5 * D * math.log(math.pi) - math.lgamma(0.5 * D)
    return half_area + 0.5 * math.log(2 * math.pi * math.e) - 0.5 * (D - 1) * (EULER + math.log(2))
