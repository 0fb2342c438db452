"""Bayesian linear regression with known noise: many independent regressions on the same inputs at once.

One ``nn.Linear(d, K)`` without bias under ``Normal(scale=sigma)`` is K regressions y_k = X w_k + noise. Each has

    Lambda = X'X / sigma^2 + I / s^2,        m_k = Lambda^-1 X' y_k / sigma^2

and U(w) = -log p(w, D) = (w - m)' Lambda (w - m) / 2 + const. The K columns are K chances to see a wrong variance.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import bayesnn as bnn

D, K = 3, 200


@dataclass
class Problem:
    """The data, the model and the posterior in closed form; float64 throughout."""

    model: bnn.BayesianModel
    x: torch.Tensor  # (N, D)
    y: torch.Tensor  # (N, K)
    sigma: float
    s: float
    precision: np.ndarray  # Lambda (D, D)
    mean: np.ndarray  # (K, D)

    @property
    def n(self) -> int:
        return len(self.x)

    @property
    def h(self) -> float:
        """A step, in the units of U, that is large enough for discretisation to show."""
        return 0.6 / float(np.linalg.eigvalsh(self.precision).max())

    @property
    def prior_share(self) -> np.ndarray:
        """Share (D,) of the prior in the diagonal of Lambda."""
        return 1 / self.s**2 / np.diag(self.precision)


def problem(n: int = 40, s: float = 1.3, sigma: float = 0.7, *, columns: int = K, prior: object = None) -> Problem:
    """K regressions whose weights come from Normal(s); ``prior`` is the model's, where it is not that one."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, D, generator=generator, dtype=torch.float64)
    x[:, 1] += 0.6 * x[:, 0]  # correlated inputs: a posterior that is not a multiple of the identity
    w = s * torch.randn(D, columns, generator=generator, dtype=torch.float64)
    y = x @ w + sigma * torch.randn(n, columns, generator=generator, dtype=torch.float64)
    net = nn.Linear(D, columns, bias=False)
    likelihood = bnn.likelihoods.Normal(scale=sigma)
    model = bnn.BayesianModel(net, prior or bnn.priors.Normal(s), likelihood).double()
    precision = x.T @ x / sigma**2 + torch.eye(D) / s**2
    mean = torch.linalg.solve(precision, x.T @ y / sigma**2).T
    return Problem(model, x, y, sigma, s, precision.numpy(), mean.numpy())


def exact_covariance(case: Problem, temperature: float = 1.0) -> np.ndarray:
    """Stationary covariance (D, D) of SGLD with exact gradients.

    delta' = A delta + sqrt(2 h T) xi, A = I - h Lambda, has V = A V A + 2 h T I. All commute:
    V = 2 h T (I - A^2)^-1 = T Lambda^-1 (I - h Lambda / 2)^-1.
    """
    return temperature * np.linalg.inv(case.precision @ (np.eye(D) - case.h * case.precision / 2))


def iid_covariance(case: Problem, batch: int, temperature: float = 1.0, probs: np.ndarray | None = None) -> np.ndarray:
    """Stationary covariances (K, D, D) of SGLD with minibatches of ``batch`` rows drawn with replacement.

    Row i comes with probability p_i = 1 / N, or ``probs``, and counts 1 / (N p_i). With h_i = x_i x_i' / (p_i sigma^2)
    + I / s^2, H_B = mean of h_i over the batch and g_B(m) the minibatch gradient of U at the mode, delta' =
    (I - h H_B) delta - h g_B(m) + sqrt(2 h T) xi. delta is independent of the batch and has mean 0 in the stationary
    law, as has g_B(m), so the cross terms vanish:

        V = E[A V A'] + h^2 Cov(g_B(m)) + 2 h T I,     A = I - h H_B
        E[A V A'] = (I - h Lambda) V (I - h Lambda) + h^2 / B * (E_i[h_i V h_i] - Lambda V Lambda)
        Cov(g_B(m)) = 1 / B * E_i[g_i g_i'],           g_i = x_i (x_i'm - y_i) / (p_i sigma^2) + m / s^2

    a linear system in V, solved by its vectorisation: vec(P V Q) = (P kron Q') vec(V) with rows first.
    """
    x, y, h, n = case.x.numpy(), case.y.numpy(), case.h, case.n
    identity = np.eye(D)
    p = np.full(n, 1 / n) if probs is None else probs
    h_i = x[:, :, None] * x[:, None, :] / case.sigma**2 / p[:, None, None] + identity / case.s**2
    a = identity - h * case.precision
    mean_square = np.average([np.kron(one, one) for one in h_i], axis=0, weights=p)
    transition = np.kron(a, a) + h**2 / batch * (mean_square - np.kron(case.precision, case.precision))
    covariances = []
    for k, m in enumerate(case.mean):
        g_i = x * (x @ m - y[:, k])[:, None] / case.sigma**2 / p[:, None] + m / case.s**2
        source = h**2 / batch * (g_i.T * p @ g_i) + 2 * h * temperature * identity
        solution = np.linalg.solve(np.eye(D * D) - transition, source.ravel())
        covariances.append(solution.reshape(D, D))
    return np.stack(covariances)


def draws_of(posterior: bnn.Posterior) -> np.ndarray:
    """Weights (draw, K, D) of the first chain."""
    return posterior.sources[0].tensors()["net.weight"].numpy()


def second_moment(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """A series (draw,): mean over regressions of (w - m)' V^-1 (w - m) / D, whose expectation is 1 if V is right."""
    inverse = np.linalg.inv(np.broadcast_to(covariance, (len(mean), D, D)))
    delta = draws - mean
    return np.einsum("tkd,kde,tke->tk", delta, inverse, delta).mean(1) / D


def assert_one(series: np.ndarray) -> None:
    """The mean of a correlated series is 1 within 4 Monte-Carlo standard errors, effective draws counted."""
    effective = float(bnn.diagnostics.ess(series[None], kind="mean"))
    error = series.std() / np.sqrt(effective)
    assert error < 0.05, f"{effective:.0f} effective draws are too few to see a variance that is off by 20 %"
    assert abs(series.mean() - 1) < 4 * error, f"{series.mean():.4f} +- {error:.4f} instead of 1"
