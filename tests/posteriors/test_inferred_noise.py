"""An inferred noise scale against quadrature: its prior, the Jacobian of its logarithm, and the likelihood's scale."""

import numpy as np
import pytest
import torch
from torch import nn

import bayesnn as bnn

N, SIGMA, S = 12, 0.5, 1.0


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(N, 2, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -0.5], dtype=torch.float64)
    return x, y + SIGMA * torch.randn(N, generator=generator, dtype=torch.float64)


def _log_scale_by_quadrature(x: torch.Tensor, y: torch.Tensor, log_density) -> tuple[float, float]:
    """Mean and sd of l = log sigma given the data: p(l | y) is prior(l) N(y; 0, sigma^2 I + S^2 X X')."""
    grid = np.linspace(np.log(0.1), np.log(3.0), 1501)
    gram = (S**2 * x @ x.T).numpy()
    logs = []
    for value in grid:
        covariance = gram + np.exp(2 * value) * np.eye(N)
        _, logdet = np.linalg.slogdet(covariance)
        quadratic = y.numpy() @ np.linalg.solve(covariance, y.numpy())
        logs.append(log_density(value) - 0.5 * (logdet + quadratic))
    weight = np.exp(np.array(logs) - np.max(logs))
    weight /= weight.sum()
    mean = float(weight @ grid)
    return mean, float(np.sqrt(weight @ (grid - mean) ** 2))


def _gamma(value: float) -> float:
    """Gamma(2, 0.5) on the precision t = exp(-2 l): density t^(a-1) exp(-b t) times |dt / dl| = 2 t."""
    t = np.exp(-2 * value)
    return 2.0 * np.log(t) - 0.5 * t


def _lognormal(value: float) -> float:
    return -0.5 * ((value - np.log(0.3)) / 0.4) ** 2


CASES = {
    "gamma": (bnn.likelihoods.GammaPrecision(2.0, 0.5), _gamma),
    "lognormal": (bnn.likelihoods.LogNormalScale(0.3, 0.4), _lognormal),
}


@pytest.mark.parametrize("name", CASES)
def test_sgld_samples_the_posterior_of_the_noise(name: str) -> None:
    prior, log_density = CASES[name]
    x, y = _data()
    mean, sd = _log_scale_by_quadrature(x, y, log_density)
    net = nn.Linear(2, 1, bias=False)
    model = bnn.BayesianModel(net, bnn.priors.Normal(S), bnn.likelihoods.Normal(prior=prior)).double()
    # h times the curvature of l (2 N) is 0.06: the discretisation inflates its variance by 1 / (1 - 0.03).
    sampler = bnn.SGLD(lr=0.03, warm_up=0.1, burn_in=0.2, thin=5)
    posterior = bnn.fit(model, (x, y), sampler, epochs=8_000, batch_size=None, chains=1, progress=False)
    draws = posterior.sources[0].tensors()["likelihood.log_scale"].numpy()
    effective = float(bnn.diagnostics.ess(draws[None], kind="mean"))
    assert abs(draws.mean() - mean) < 4 * sd / np.sqrt(effective) + 0.05 * sd
    assert abs(draws.std() / sd - 1) < 4 / np.sqrt(2 * effective) + 0.03
    # Without the Jacobian of the precision, 2 exp(-2 l), the law is another, and the test can tell.
    shifted, _ = _log_scale_by_quadrature(x, y, lambda value: log_density(value) + 2 * value)
    assert abs(draws.mean() - shifted) > 4 * sd / np.sqrt(effective)


def test_prediction_uses_the_inferred_noise() -> None:
    x, y = _data()
    model = bnn.BayesianModel(nn.Linear(2, 1), bnn.priors.Normal(S), bnn.likelihoods.Normal()).double()
    sampler = bnn.SGLD(lr=0.02, warm_up=0.2, draws=50)
    posterior = bnn.fit(model, (x, y), sampler, epochs=1000, batch_size=None, chains=2, progress=False)
    scales = torch.cat([source.tensors()["likelihood.log_scale"].exp() for source in posterior.sources])
    predictive = posterior.predict(x)
    torch.testing.assert_close(predictive.aleatoric, scales.square().mean().expand(N))
    assert 0.3 < float(scales.mean()) < 0.8
