"""Variational inference with a Normal of full covariance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesnn.methods.base import Plan, Run
from bayesnn.methods.variational import Variational, VariationalRun
from bayesnn.model import BayesianModel
from bayesnn.rng import Streams
from bayesnn.source import FullRankNormal, Source

FACTOR_BYTES = 2**30
ROWS = 256


@dataclass(frozen=True)
class FullRankVI(Variational):
    """q(w) = Normal(mu, L L'), L lower triangular, fitted by maximising the evidence lower bound.

    With L = diag(sigma) (I + A), sigma = exp(rho) and A strictly lower triangular, a sample is

        w = mu + sigma * (eps + A eps),    eps ~ Normal(0, I)

    and one step of Adam over mu, rho and A minimises an unbiased estimate of

        mean_i -log p(y_i | x_i, w) + kl_weight * KL(q || p) / N

    With g the gradient at the sampled weights, those with respect to mu, rho and A are g, g * (w - mu) and the strictly
    lower part of (g * sigma) eps'. Under Normal(m, s^2) priors the KL is closed,

        KL = sum_j (sigma_j^2 (1 + sum_k A_jk^2) + (mu_j - m_j)^2) / (2 s_j^2) - 1/2 - log(sigma_j / s_j)

    because log det L = sum_j rho_j; elsewhere E_q[-log p(w)] is estimated with the same weight samples. sigma_j is the
    standard deviation of a weight given those before it; A has no units, and so one learning rate serves all.

    Parameters
    ----------
    lr : Adam's learning rate; smaller than mean field's, as the noise of A's many numbers goes at the cost of sigma.
    initial_sd : L = initial_sd * I at the start; a posterior of this method or of MeanFieldVI as ``init=`` goes on.
    mc_samples, kl_weight, schedule, kl_warm_up : as in :class:`bayesnn.MeanFieldVI`.

    Raises
    ------
    ValueError : A, its gradient and Adam's two moments would take more than FACTOR_BYTES.

    References
    ----------
    Titsias & Lazaro-Gredilla 2014, Doubly stochastic variational Bayes for non-conjugate inference, ICML.
    Kucukelbir et al. 2017, Automatic differentiation variational inference, JMLR 18(14).
    """

    lr: float = 2e-3

    def check(self, model: BayesianModel, plan: Plan) -> None:
        super().check(model, plan)
        n, item = model.num_weights(), next(iter(model.bayesian_parameters().values())).element_size()
        needed = 4 * item * sum((stop - start) * stop for start, stop in blocks(n))
        if needed > FACTOR_BYTES:
            raise ValueError(
                f"Expected a full Cholesky factor, its gradient and Adam's moments in at most {FACTOR_BYTES:,} bytes, "
                f"got {needed:,} for {n:,} weights: use LowRankVI, MeanFieldVI, or bayesian='last-layer'."
            )

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        return (1 + model.num_weights()) * super().draw_bytes(model, plan)

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return _FullRankRun(self, model, plan, streams, init)


def blocks(n: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the rows of each block of A: a block has ``stop`` columns, so that all are half of n x n."""
    return ((start, min(start + ROWS, n)) for start in range(0, n, ROWS))


class _FullRankRun(VariationalRun):
    """z = eps + A eps; ``_shape`` are the blocks of A, zero on and above its diagonal."""

    def _make_shape(self, init: Source | None) -> list[Tensor]:
        n = len(self._mu)
        self._eps, self._scaled = torch.empty_like(self._mu), torch.empty_like(self._mu)
        self._rows = [slice(start, stop) for start, stop in blocks(n)]
        if not isinstance(init, FullRankNormal):
            return [self._mu.new_zeros(rows.stop - rows.start, rows.stop) for rows in self._rows]
        root = torch.cat([init.root[name].reshape(-1, n) for name in self._weights.parameters]).to(self._mu)
        sigma = root.diagonal()
        self._rho.copy_(sigma.log())
        return [(root[rows, : rows.stop] / sigma[rows, None]).tril_(rows.start - 1) for rows in self._rows]

    def _direction(self) -> Tensor:
        eps = self._eps.normal_(generator=self.streams.noise)
        for rows, block in zip(self._rows, self._shape, strict=True):
            torch.addmv(eps[rows], block, eps[: rows.stop], out=self._shift[rows])
        return self._shift

    def _square(self) -> Tensor:
        return 1 + torch.cat([torch.linalg.vector_norm(block, dim=1) for block in self._shape]).square_()

    def _pull(self, g: Tensor, first: bool) -> None:
        torch.mul(g, self._sigma, out=self._scaled)
        for rows, block in zip(self._rows, self._shape, strict=True):
            assert block.grad is not None
            block.grad.addr_(self._scaled[rows], self._eps[: rows.stop], beta=0 if first else 1)

    def _pull_kl(self, scale: float) -> None:
        weight = self._sigma.square() * self._precision
        for rows, block in zip(self._rows, self._shape, strict=True):
            assert block.grad is not None
            block.grad.addcmul_(block, weight[rows, None], value=scale).tril_(rows.start - 1)

    def _source(self) -> FullRankNormal:
        n = len(self._mu)
        root = self._mu.new_zeros(n, n)
        for rows, block in zip(self._rows, self._shape, strict=True):
            root[rows, : rows.stop] = block
        root.diagonal().fill_(1)
        root.mul_(self._rho.exp()[:, None])
        parts = zip(self._weights.parameters.items(), root.split(self._weights.sizes), strict=True)
        return FullRankNormal(self._centre(), {name: part.clone().view(*p.shape, n) for (name, p), part in parts})
