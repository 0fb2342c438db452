"""Every method against the posterior of Bayesian linear regression, known in closed form.

Two problems: ``informed``, in which the likelihood is 99 % of the posterior's precision, has the discretisation and the
minibatches to see; ``prior``, in which it is half, has the prior: a prior or a KL that is off by a fifth fails there.
"""

from functools import cache

import numpy as np
import pytest
import torch

import bayesnn as bnn
from bayesnn.methods.step_size import LR_STABILITY, NOISE_MOST
from tests.posteriors.linear import (
    D,
    K,
    Problem,
    assert_one,
    draws_of,
    exact_covariance,
    iid_covariance,
    problem,
    second_moment,
)

S_PRIOR = 0.2
LOUDER = 1.2  # the factor of a precision or a standard deviation that every test of it must see


@cache
def case_of(name: str) -> Problem:
    """``tight`` is ``prior`` with a model whose prior precision is a fifth too large: a fault to be seen."""
    if name == "informed":
        return problem()
    prior = bnn.priors.Normal(S_PRIOR / LOUDER**0.5) if name == "tight" else None
    if name == "disguised":  # two equal components are the Normal prior, but the closed form does not know it
        prior = bnn.priors.ScaleMixture(pi=0.5, wide=S_PRIOR, narrow=S_PRIOR)
    return problem(n=10, s=S_PRIOR, prior=prior)


def sample(
    case: Problem, batch: int | None = None, order: str = "iid", steps: int = 800, temperature: float = 1.0
) -> np.ndarray:
    """Weights (draw, K, D) of one SGLD chain of ``steps`` steps at the problem's step size, every second state kept."""
    method = bnn.SGLD(lr=case.h * case.n, warm_up=0.05, burn_in=0.2, thin=2, temperature=temperature)
    size = case.n if batch is None else batch
    epochs = steps // -(-case.n // size)
    data = (case.x, case.y)
    posterior = bnn.fit(
        case.model, data, method, epochs=epochs, batch_size=batch, chains=1, order=order, seed=3, progress=False
    )
    return draws_of(posterior)


@cache
def exact_chain(name: str, temperature: float = 1.0) -> np.ndarray:
    return sample(case_of(name), order="sequential", temperature=temperature)


def test_the_problems_have_what_they_are_for() -> None:
    informed, prior = case_of("informed"), case_of("prior")
    assert (informed.prior_share < 0.01).all()
    assert ((prior.prior_share > 0.4) & (prior.prior_share < 0.65)).all()
    assert (np.diag(prior.precision) == np.diag(case_of("tight").precision)).all()


@pytest.mark.parametrize(("name", "temperature"), [("informed", 1.0), ("informed", 0.5), ("prior", 1.0)])
def test_sgld_with_exact_gradients(name: str, temperature: float) -> None:
    case, draws = case_of(name), exact_chain(name, temperature)
    covariance = exact_covariance(case, temperature)
    assert_one(second_moment(draws, case.mean, covariance))
    error = np.sqrt(np.diag(covariance) / (len(draws) * K / 20))  # at most 20 draws for one
    assert (np.abs((draws - case.mean).mean((0, 1))) < 4 * error).all()


def test_variance_is_proportional_to_temperature() -> None:
    """The same noise at T = 0.5 and 1: deviations from the mode scale by sqrt(1/2) exactly, but for the start."""
    spread = {t: (exact_chain("informed", t) - case_of("informed").mean).var(0) for t in (0.5, 1.0)}
    np.testing.assert_allclose(spread[0.5] / spread[1.0], 0.5, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:Minibatches add")  # that much noise is what the test is about
@pytest.mark.parametrize(("batch", "steps"), [(5, 4000), (20, 1500)])
def test_sgld_with_independent_minibatches(batch: int, steps: int) -> None:
    case = case_of("informed")
    draws = sample(case, batch=batch, steps=steps)
    series = second_moment(draws, case.mean, iid_covariance(case, batch))
    assert_one(series)
    # The minibatch term is not small here: without it the test would fail.
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(second_moment(draws, case.mean, exact_covariance(case)))


@pytest.mark.filterwarnings("ignore:Minibatches add")  # that much noise is what the test is about
def test_reshuffled_minibatches_lie_between_exact_and_independent_ones() -> None:
    case = case_of("informed")
    draws = sample(case, batch=5, order="reshuffle", steps=4000)
    against_exact = second_moment(draws, case.mean, exact_covariance(case))
    against_iid = second_moment(draws, case.mean, iid_covariance(case, 5))
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(against_exact)
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(against_iid)
    assert against_exact.mean() > 1 > against_iid.mean()


@pytest.mark.filterwarnings("ignore:Minibatches add")  # that much noise is what the test is about
def test_noise_that_is_off_by_a_fifth_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("informed")
    make = bnn.SGLD.make_optimizer

    def louder(self, *args, **options):
        optimizer = make(self, *args, **options)
        for group in optimizer.param_groups:
            group["temperature"] *= LOUDER**2
        return optimizer

    monkeypatch.setattr(bnn.SGLD, "make_optimizer", louder)
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(second_moment(sample(case, order="sequential"), case.mean, exact_covariance(case)))
    draws = sample(case, batch=5, steps=3000)
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(second_moment(draws, case.mean, iid_covariance(case, 5)))


def test_a_prior_that_is_off_by_a_fifth_is_seen() -> None:
    """``tight`` has the data and the closed form of ``prior`` and another prior in its model."""
    case = case_of("tight")
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(second_moment(exact_chain("tight"), case.mean, exact_covariance(case)))
    with pytest.raises(AssertionError, match="instead of 1"):
        _assert_optimal_variance(case, vi_fit("tight")[1])
    with pytest.raises(AssertionError):
        _assert_slope_of_one(case, vi_fit("tight")[0])
    with pytest.raises(AssertionError):
        _assert_slope_of_one(case, _map_fit("tight"))


def test_a_chosen_step_keeps_the_variance_in_its_stated_bounds() -> None:
    """SGLD() sets lr by two bounds: on a quadratic, discretisation inflates the variance of any direction by at most
    1 / (1 - LR_STABILITY / 2), and a minibatch's noise adds the share NOISE_MOST, in the mean over directions.

    The columns are independent regressions: the spread of their variances is the Monte-Carlo standard error, however
    slowly each chain moves.
    """
    case = problem(n=2000)
    data, method = (case.x, case.y), bnn.SGLD(draws=200)
    # Independent minibatches are the worst case: reshuffled ones add less.
    posterior = bnn.fit(case.model, data, method, chains=1, order="iid", seed=5, progress=False)
    values, directions = np.linalg.eigh(case.precision)
    ratio = (np.square((draws_of(posterior) - case.mean) @ directions) * values).mean(0)  # (K, D)
    error = ratio.std(0, ddof=1) / np.sqrt(K)
    assert (error < 0.07).all()
    most = (1 + NOISE_MOST) / (1 - LR_STABILITY / 2)
    assert (ratio.mean(0) > 1 - 4 * error).all(), ratio.mean(0)
    assert ratio.mean() < most + 4 * np.sqrt((error**2).mean() / D), ratio.mean(0)
    # The second bound is at work: the first alone would have allowed a far larger step.
    lr, curvature = posterior.history[-1]["lr"], values.max() / case.n
    assert lr < 0.5 * LR_STABILITY / curvature
    # Of independent rows, g = x (x'm - y) / sigma^2 at the mode and its variance; N / (2 B) lr of it is the share.
    residuals = case.x.numpy() @ case.mean.T - case.y.numpy()
    variance = (np.square(case.x.numpy())[:, :, None] * np.square(residuals)[:, None]).mean() / case.sigma**4
    assert lr * variance * case.n / (2 * 64) == pytest.approx(NOISE_MOST, rel=0.1)


def _slope(mean: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Regression (D,) of the fitted means on the exact ones, over the columns."""
    slope: np.ndarray = (mean * exact).sum(0) / (exact**2).sum(0)
    return slope


def _assert_slope_of_one(case: Problem, mean: np.ndarray) -> None:
    np.testing.assert_allclose(_slope(mean, case.mean), 1, atol=0.02)


@cache
def _map_fit(name: str) -> np.ndarray:
    case, method = case_of(name), bnn.MAP(lr=0.05)
    return draws_of(bnn.fit(case.model, (case.x, case.y), method, epochs=1500, batch_size=None, progress=False))[0]


@pytest.mark.parametrize("name", ["informed", "prior"])
def test_map_is_the_posterior_mean(name: str) -> None:
    np.testing.assert_allclose(_map_fit(name), case_of(name).mean, atol=1e-4)


@cache
def vi_fit(name: str, batch: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(means, variances) of the fitted factors, each (K, D): a fast approach, then a slow one that averages the
    noise.
    """
    case, posterior = case_of(name), None
    for lr, steps in ((0.05, 300), (0.01, 600)):
        epochs = steps if batch is None else steps * batch // case.n
        method, start = bnn.MeanFieldVI(lr=lr, initial_sd=0.1), posterior or "fresh"
        posterior = bnn.fit(
            case.model, (case.x, case.y), method, epochs=epochs, batch_size=batch, init=start, progress=False
        )
    tensors = posterior.sources[0].tensors()
    return tensors["loc/net.weight"].numpy(), (2 * tensors["log_sd/net.weight"]).exp().numpy()


def _assert_optimal_variance(case: Problem, variance: np.ndarray) -> None:
    """The average over the columns, which share Lambda, within 4 standard errors of the optimisation's noise.

    The noise is in the logarithms: it raises the average by half of its own square, about.
    """
    ratio = variance * np.diag(case.precision)
    noise = (ratio / ratio.mean(0)).std()
    error = noise / np.sqrt(K)
    assert noise < 0.15, "too noisy to see a variance that is off by a tenth"
    off = np.abs(ratio.mean(0) - 1)
    assert (off < 4 * error + noise**2).all(), f"{ratio.mean(0)} +- {error:.4f} instead of 1"


@pytest.mark.parametrize(
    ("name", "batch"), [("informed", None), ("informed", 10), ("prior", None), ("disguised", None)]
)
def test_mean_field_vi_reaches_the_optimum_of_its_family(name: str, batch: int | None) -> None:
    """argmin KL(q || p) over factorised Normals: mean m, variances 1 / diag(Lambda) (Bishop 2006, eq. 10.12-13).

    ``disguised`` takes the KL's cross-entropy by Monte Carlo, the others take it closed.
    """
    case, (mean, variance) = case_of(name), vi_fit(name, batch)
    _assert_optimal_variance(case, variance)
    _assert_slope_of_one(case, mean)
    optimum = 1 / np.diag(case.precision)
    assert np.sqrt(np.mean((mean - case.mean) ** 2 / optimum)) < 0.2
    # The optimum is not the marginal variance of the posterior, and the test can tell the two apart.
    marginal = np.broadcast_to(np.diag(np.linalg.inv(case.precision)), (K, D))
    with pytest.raises(AssertionError, match="instead of 1"):
        _assert_optimal_variance(case, variance * marginal / optimum)


def test_the_defaults_of_mean_field_vi_arrive() -> None:
    """Nothing given but the data: also the sd of a weight that the data do not inform is reached, that of its prior.

    Its logarithm goes from log 0.01 to log 3. Gradients are noisy only in the other weights: this holds what is
    necessary, and benchmarks/defaults.py what nets need.
    """
    case = problem(s=3.0, columns=50)
    x = case.x.clone()
    x[:, 2] = 0.0

    def fitted(method: bnn.MeanFieldVI, epochs: int | None) -> np.ndarray:
        posterior = bnn.fit(case.model, (x, case.y), method, epochs=epochs, compile=True, progress=False)
        sd: np.ndarray = posterior.sources[0].tensors()["log_sd/net.weight"].exp().numpy()
        return sd

    sd = fitted(bnn.MeanFieldVI(), None)
    optimum = 1 / np.sqrt(np.diag((x.T @ x).numpy() / case.sigma**2 + np.eye(D) / case.s**2))
    assert optimum[2] == case.s
    # The noise of the last steps, at a vanishing lr, is all that is left; without data there is none.
    np.testing.assert_allclose(sd.mean(0), optimum, rtol=0.005)
    np.testing.assert_allclose(sd[:, 2], case.s, rtol=1e-6)
    # The former defaults are seen.
    assert (fitted(bnn.MeanFieldVI(lr=2e-3), 5000)[:, 2] < 0.8 * case.s).all()


def test_the_closed_kl_is_the_kl() -> None:
    """The reported KL against torch's own KL of Normals."""
    case = problem(columns=4)
    posterior = bnn.fit(case.model, (case.x, case.y), bnn.MeanFieldVI(), epochs=20, batch_size=None, progress=False)
    tensors = posterior.sources[0].tensors()
    q = torch.distributions.Normal(tensors["loc/net.weight"], tensors["log_sd/net.weight"].exp())
    scale = torch.tensor(case.s, dtype=torch.float64)
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros_like(scale), scale)).sum()
    np.testing.assert_allclose(posterior.history[-1]["kl"], float(expected), rtol=1e-9)


@pytest.mark.parametrize("fault", ["num_data", "kl_weight"])
def test_a_likelihood_or_a_kl_of_mean_field_vi_that_is_off_by_a_fifth_is_seen(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The N that scales the likelihood, or the weight of the KL, times ``LOUDER``: the variance is off by as much."""
    case, make = case_of("informed"), bnn.MeanFieldVI
    if fault == "num_data":
        log_likelihood = bnn.BayesianModel.log_likelihood
        monkeypatch.setattr(bnn.BayesianModel, "log_likelihood", lambda *args: LOUDER * log_likelihood(*args))
    else:
        monkeypatch.setattr(bnn, "MeanFieldVI", lambda **options: make(kl_weight=LOUDER, **options))
    with pytest.raises(AssertionError, match="instead of 1"):
        _assert_optimal_variance(case, vi_fit.__wrapped__("informed")[1])
