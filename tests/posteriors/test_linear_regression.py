"""Every method against the posterior of Bayesian linear regression, known in closed form."""

import numpy as np
import pytest
import torch

import bayesnn as bnn
from tests.posteriors.linear import (
    K,
    N,
    Problem,
    assert_one,
    draws_of,
    exact_covariance,
    iid_covariance,
    problem,
    second_moment,
)

H = 0.004  # the step in the units of U: h times the largest eigenvalue of Lambda is about 0.6


def sample(case: Problem, batch: int | None = None, order: str = "iid", steps: int = 2500, **options) -> np.ndarray:
    """Weights (draw, K, D) of one SGLD chain of ``steps`` steps at step size H, every second state kept."""
    method = bnn.SGLD(lr=H * N, warm_up=0.1, burn_in=0.2, thin=2, **options)
    size = N if batch is None else batch
    epochs = steps // -(-N // size)
    data = (case.x, case.y)
    posterior = bnn.fit(
        case.model, data, method, epochs=epochs, batch_size=batch, chains=1, order=order, seed=3, progress=False
    )
    return draws_of(posterior)


def test_the_step_is_large_enough_for_discretisation_to_show() -> None:
    case = problem()
    largest = np.linalg.eigvalsh(case.precision).max()
    assert 0.3 < H * largest < 1.5


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sgld_with_exact_gradients(temperature: float) -> None:
    case = problem()
    draws = sample(case, order="sequential", temperature=temperature)
    assert_one(second_moment(draws, case.mean, exact_covariance(case, H, temperature)))
    error = np.sqrt(np.diag(exact_covariance(case, H, temperature)) / (len(draws) * K / 20))  # at most 20 draws for one
    assert (np.abs((draws - case.mean).mean((0, 1))) < 4 * error).all()


def test_variance_is_proportional_to_temperature() -> None:
    """The same noise at T = 0.5 and 1: deviations from the mode scale by sqrt(1/2) exactly, but for the start."""
    case = problem()
    spread = {t: (sample(case, order="sequential", temperature=t) - case.mean).var(0) for t in (0.5, 1.0)}
    np.testing.assert_allclose(spread[0.5] / spread[1.0], 0.5, rtol=1e-3)


@pytest.mark.parametrize("batch", [5, 20])
def test_sgld_with_independent_minibatches(batch: int) -> None:
    case = problem()
    draws = sample(case, batch=batch, steps=8000 if batch == 5 else 4000)
    series = second_moment(draws, case.mean, iid_covariance(case, H, batch))
    assert_one(series)
    # The minibatch term is not small here: without it the test would fail.
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(second_moment(draws, case.mean, exact_covariance(case, H)))


def test_reshuffled_minibatches_lie_between_exact_and_independent_ones() -> None:
    case = problem()
    draws = sample(case, batch=5, order="reshuffle", steps=12_000)
    against_exact = second_moment(draws, case.mean, exact_covariance(case, H))
    against_iid = second_moment(draws, case.mean, iid_covariance(case, H, 5))
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(against_exact)
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(against_iid)
    assert against_exact.mean() > 1 > against_iid.mean()


def test_noise_that_is_off_by_a_fifth_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = problem()
    make = bnn.SGLD.make_optimizer

    def louder(self, groups, num_data, noise):
        optimizer = make(self, groups, num_data, noise)
        for group in optimizer.param_groups:
            group["temperature"] *= 1.2**2
        return optimizer

    monkeypatch.setattr(bnn.SGLD, "make_optimizer", louder)
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(second_moment(sample(case, order="sequential"), case.mean, exact_covariance(case, H)))
    draws = sample(case, batch=5, steps=6000)
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(second_moment(draws, case.mean, iid_covariance(case, H, 5)))


def test_map_is_the_posterior_mean() -> None:
    case = problem()
    method = bnn.MAP(lr=0.05)
    posterior = bnn.fit(case.model, (case.x, case.y), method, epochs=2000, batch_size=None, progress=False)
    np.testing.assert_allclose(draws_of(posterior)[0], case.mean, atol=1e-4)


def _fit_vi(case: Problem, batch: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(means, variances) of the fitted factors, each (K, D): a fast approach, then a slow one that averages the
    noise.
    """
    data, posterior = (case.x, case.y), None
    for lr, steps in ((0.05, 1000), (2e-3, 5000)):
        epochs = steps if batch is None else steps * batch // N
        method, start = bnn.MeanFieldVI(lr=lr, initial_sd=0.1), posterior or "fresh"
        posterior = bnn.fit(case.model, data, method, epochs=epochs, batch_size=batch, init=start, progress=False)
    tensors = posterior.sources[0].tensors()
    return tensors["loc/net.weight"].numpy(), (2 * tensors["log_sd/net.weight"]).exp().numpy()


def _assert_optimum(case: Problem, mean: np.ndarray, variance: np.ndarray) -> None:
    """argmin KL(q || p) over factorised Normals: mean m, variances 1 / diag(Lambda) (Bishop 2006, eq. 10.12-13).

    The K regressions share Lambda: their average has the optimisation's Monte-Carlo noise divided by sqrt(K).
    """
    optimum = 1 / np.diag(case.precision)
    np.testing.assert_allclose(variance.mean(0), optimum, rtol=0.02)
    assert np.sqrt(np.mean((variance / optimum - 1) ** 2)) < 0.06
    slope = (mean * case.mean).sum(0) / (case.mean**2).sum(0)
    np.testing.assert_allclose(slope, 1, atol=0.02)
    assert np.sqrt(np.mean((mean - case.mean) ** 2 / optimum)) < 0.2
    # The optimum is not the marginal variance of the posterior, and the test can tell the two apart.
    assert (optimum < 0.9 * np.diag(np.linalg.inv(case.precision))).any()


@pytest.mark.parametrize("batch", [None, 10])
def test_mean_field_vi_reaches_the_optimum_of_its_family(batch: int | None) -> None:
    case = problem()
    _assert_optimum(case, *_fit_vi(case, batch))


def test_mean_field_vi_with_a_monte_carlo_kl_reaches_the_same_optimum() -> None:
    """Two equal components are the Normal prior, but the closed form does not know it."""
    case = problem(prior=bnn.priors.ScaleMixture(pi=0.5, wide=1.3, narrow=1.3))
    _assert_optimum(case, *_fit_vi(case))


def test_the_closed_kl_is_the_kl() -> None:
    """The reported KL against torch's own KL of Normals."""
    case = problem(columns=4)
    posterior = bnn.fit(
        case.model, (case.x, case.y), bnn.MeanFieldVI(), epochs=20, batch_size=None, progress=False
    )
    tensors = posterior.sources[0].tensors()
    q = torch.distributions.Normal(tensors["loc/net.weight"], tensors["log_sd/net.weight"].exp())
    scale = torch.tensor(1.3, dtype=torch.float64)
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros_like(scale), scale)).sum()
    np.testing.assert_allclose(posterior.history[-1]["kl"], float(expected), rtol=1e-9)
