"""RadialVI against the optimum of its family, in closed form, and its entropy against draws."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma
from torch import nn

import bayesnn as bnn
from bayesnn.methods.radial import entropy_of_direction
from bayesnn.source import RadialSource
from tests.posteriors.contract import assert_contract
from tests.posteriors.families import (
    LOUDER,
    S_PRIOR,
    K,
    assert_deterministic_part_is_optimised,
    assert_goes_on_from_a_state,
    assert_goes_on_with_its_covariance,
    assert_gradient_of_the_elbo,
    assert_same_bits_on_cuda,
    case_of,
    net,
)

METHOD = bnn.RadialVI(lr=0.01)


@cache
def with_bias() -> tuple[bnn.BayesianModel, torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    """(model, x, y, Lambda, means): K regressions of ``prior`` with an intercept each: a second parameter tensor."""
    case = case_of("prior")
    likelihood, prior = bnn.likelihoods.Normal(scale=case.sigma), bnn.priors.Normal(S_PRIOR)
    model = bnn.BayesianModel(nn.Linear(3, K), prior, likelihood).double()
    x = np.concatenate((case.x.numpy(), np.ones((case.n, 1))), 1)
    precision = x.T @ x / case.sigma**2 + np.eye(4) / S_PRIOR**2
    return model, case.x, case.y, precision, np.linalg.solve(precision, x.T @ case.y.numpy() / case.sigma**2).T


def radial_fit(batch: int | None = None, kl_weight: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(means, sigma^2), each (K, 4)."""
    model, x, y, _, _ = with_bias()
    method = bnn.RadialVI(lr=0.015, initial_sd=0.1, mc_samples=4, kl_weight=kl_weight)
    steps = 800
    epochs = steps if batch is None else steps * batch // len(x)
    posterior = bnn.fit(model, (x, y), method, epochs=epochs, batch_size=batch, progress=False)
    tensors = posterior.sources[0].tensors()
    mean, log_scale = (
        torch.cat((tensors[f"{part}/net.weight"], tensors[f"{part}/net.bias"][:, None]), 1)
        for part in ("loc", "log_scale")
    )
    return mean.numpy(), (2 * log_scale).exp().numpy()


def assert_radial_optimum(mean: np.ndarray, square: np.ndarray) -> None:
    """E q of (w - m)' Lambda (w - m) / 2 is sum_j Lambda_jj sigma_j^2 / (2 D) + (mu - m)' Lambda (mu - m) / 2, with
    Cov = diag(sigma^2) / D in a tensor of D weights and none between tensors; minus sum_j log sigma_j, it is least at
    mu = m and sigma_j^2 = D / Lambda_jj.
    """
    _, _, _, precision, exact = with_bias()
    ratio = square * np.diag(precision) / np.array([3 * K] * 3 + [K])
    noise = ratio.std(0, ddof=1)
    error = noise / np.sqrt(K)
    assert (error < 0.04).all(), f"{error}: too noisy"
    assert (np.abs(ratio.mean(0) - 1) < 4 * error + noise**2).all(), f"{ratio.mean(0)} +- {error} instead of 1"
    shift = (mean - exact) * np.sqrt(np.diag(precision))
    assert np.sqrt((shift**2).mean()) < 0.15


@pytest.mark.parametrize("batch", [None, 5])
def test_radial_reaches_the_optimum_of_its_family(batch: int | None) -> None:
    assert_radial_optimum(*radial_fit(batch))


def test_radial_with_a_kl_that_is_off_by_a_fifth_is_seen() -> None:
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_radial_optimum(*radial_fit(kl_weight=LOUDER))


@pytest.mark.parametrize("D", [1, 2, 3])
def test_the_entropy_of_a_radial_direction(D: int) -> None:
    """Against draws of the source, by the distances of nearest neighbours (Kozachenko & Leonenko 1987)."""
    n, zero = 5_000, {"w": torch.zeros(D, dtype=torch.float64)}
    source = RadialSource(zero, zero)
    draws = np.stack([state["w"].numpy() for state in source.states(n, torch.Generator().manual_seed(1))])
    distance = cKDTree(draws).query(draws, k=2)[0][:, 1]
    volume = {1: 2, 2: np.pi, 3: 4 * np.pi / 3}[D]
    terms = D * np.log(distance) + np.log(volume) + digamma(n) - digamma(1)
    error = terms.std() / np.sqrt(n)
    assert error < 0.05
    assert abs(terms.mean() - entropy_of_direction(D)) < 4 * error
    variance = draws.var(0)
    assert (np.abs(variance * D - 1) < 4 * (draws**2).std(0) * D / np.sqrt(n)).all()  # Cov z = I / D


def test_the_gradient_is_that_of_the_elbo() -> None:
    assert_gradient_of_the_elbo(bnn.RadialVI)


def test_the_contract(tmp_path: Path) -> None:
    assert_contract(METHOD, net(), tmp_path / "saved")


def test_a_run_goes_on() -> None:
    assert_goes_on_from_a_state(METHOD)
    assert_goes_on_with_its_covariance(METHOD)
    assert_deterministic_part_is_optimised(METHOD)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda() -> None:
    assert_same_bits_on_cuda(METHOD)


def test_a_normal_number_that_is_zero_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of float32 one in ten million is: a tensor of one weight then has no direction."""
    x = torch.linspace(-1, 1, 8)[:, None]
    model = bnn.BayesianModel(torch.nn.Linear(1, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=0.1))
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, *_, **__: self.zero_())
    posterior = bnn.fit(model, (x, x[:, 0]), METHOD, epochs=2, progress=False)
    assert posterior.predict(x).mean.isfinite().all()
    assert torch.isfinite(torch.tensor([row["loss"] for row in posterior.history])).all()
