"""Variational inference with a Normal whose covariance is diagonal plus low rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesnn.errors import at_least
from bayesnn.methods.base import Plan, Run
from bayesnn.methods.variational import Variational, VariationalRun
from bayesnn.model import BayesianModel
from bayesnn.rng import Streams
from bayesnn.source import LowRankNormal, Source

INITIAL_SHARE = 0.1  # of the factor in a weight's variance


@dataclass(frozen=True)
class LowRankVI(Variational):
    """q(w) = Normal(mu, diag(sigma^2) + F F'), F of ``rank`` columns, fitted by maximising the evidence lower bound.

    With F = diag(sigma) G and sigma = exp(rho), a sample is

        w = mu + sigma * (eps + G zeta),    eps ~ Normal(0, I_n),    zeta ~ Normal(0, I_rank)

    and one step of Adam over mu, rho and G minimises an unbiased estimate of

        mean_i -log p(y_i | x_i, w) + kl_weight * KL(q || p) / N

    With g the gradient at the sampled weights, those with respect to mu, rho and G are g, g * (w - mu) and
    (g * sigma) zeta'. The entropy is closed by the matrix determinant lemma, at a cost of rank^2 n,

        H(q) = sum_j rho_j + log det(K) / 2 + n log(2 pi e) / 2,    K = I + G'G,    dH / dG = G K^-1

    and so is the KL under Normal(m, s^2) priors, E_q (w_j - m_j)^2 being sigma_j^2 (1 + sum_k G_jk^2) + (mu_j - m_j)^2;
    elsewhere E_q[-log p(w)] is estimated with the same weight samples. G has no units, and so one learning rate
    serves all.

    Parameters
    ----------
    rank : columns of F; more than there are weights gains nothing.
    lr : Adam's learning rate.
    initial_sd : standard deviation of each weight at the start, a tenth of its variance that of a random F: F = 0
        would be a saddle. A posterior of this method and rank, or of MeanFieldVI, as ``init=`` goes on.
    mc_samples, kl_weight, schedule, kl_warm_up : as in :class:`bayesnn.MeanFieldVI`.

    References
    ----------
    Miller, Foti & Adams 2017, Variational boosting: iteratively refining posterior approximations, ICML.
    Ong, Nott & Smith 2018, Gaussian variational approximation with a factor covariance structure, JCGS 27(3).
    """

    rank: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("rank", self.rank, 1)

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        return (2 + self.rank) * super().draw_bytes(model, plan)

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return _LowRankRun(self, model, plan, streams, init, self.rank)


class _LowRankRun(VariationalRun):
    """z = eps + G zeta; ``_shape`` is G', (rank, n)."""

    def __init__(
        self, method: Variational, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None, rank: int
    ) -> None:
        self._rank = rank
        super().__init__(method, model, plan, streams, init)

    def _make_shape(self, init: Source | None) -> list[Tensor]:
        n = len(self._mu)
        self._zeta, self._scaled = self._mu.new_empty(self._rank), torch.empty_like(self._mu)
        if isinstance(init, LowRankNormal) and all(len(factor) == self._rank for factor in init.factor.values()):
            sd = self._weights.flat(init.sd)
            if bool((sd > 0).all()):
                self._rho.copy_(sd.log())
                factor = [init.factor[name].reshape(self._rank, -1) for name in self._weights.parameters]
                return [torch.cat(factor, 1).to(self._mu).div_(sd)]
        # Of each variance F takes its share, in the mean over G, and sigma keeps the rest.
        self._rho.add_(0.5 * math.log(1 - INITIAL_SHARE))
        G = self._mu.new_empty(self._rank, n).normal_(generator=self.streams.noise)
        return [G.mul_((INITIAL_SHARE / (1 - INITIAL_SHARE) / self._rank) ** 0.5)]

    def _direction(self) -> Tensor:
        (G,) = self._shape
        eps = self._shift.normal_(generator=self.streams.noise)
        return torch.addmv(eps, G.T, self._zeta.normal_(generator=self.streams.noise), out=self._shift)

    def _square(self) -> Tensor:
        square = torch.ones_like(self._mu)
        for row in self._shape[0]:  # a reduction over the short axis of (rank, n) is fifty times as slow
            square.addcmul_(row, row)
        return square

    def _capacitance(self) -> Tensor:
        (G,) = self._shape
        return G @ G.T + torch.eye(self._rank, dtype=G.dtype, device=G.device)

    def _pull(self, g: Tensor, first: bool) -> None:
        (G,) = self._shape
        assert G.grad is not None
        G.grad.addr_(self._zeta, torch.mul(g, self._sigma, out=self._scaled), beta=0 if first else 1)

    def _pull_kl(self, scale: float) -> None:
        (G,) = self._shape
        assert G.grad is not None
        G.grad.addcmul_(G, self._sigma.square() * self._precision, value=scale)
        # The inverse of a small matrix whose eigenvalues are at least 1 is safe; a solve for n columns is slow.
        G.grad.addmm_(torch.linalg.inv(self._capacitance()), G, alpha=-scale)

    def _entropy(self) -> float:
        return super()._entropy() + 0.5 * float(torch.logdet(self._capacitance().double()))

    def _source(self) -> LowRankNormal:
        (G,) = self._shape
        sigma = self._rho.exp()
        rows = [self._weights.named(row) for row in G * sigma]
        factor = {name: torch.stack([row[name] for row in rows]) for name in self._weights.parameters}
        return LowRankNormal(self._centre(), self._weights.named(sigma), factor)
