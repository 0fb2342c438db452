"""IVON against the optimum of the factorised Normals on Bayesian linear regression (see test_linear_regression.py)."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bayesnn as bnn
from bayesnn import optim
from tests.posteriors.contract import assert_contract
from tests.posteriors.linear import D, K, Problem
from tests.posteriors.test_linear_regression import LOUDER, case_of

STEPS = 500


@cache
def fitted(name: str, batch: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(means, variances), each (K, D)."""
    return fit(case_of(name), batch)


def fit(case: Problem, batch: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    epochs = STEPS if batch is None else STEPS * batch // case.n
    data = (case.x, case.y)
    method = bnn.IVON(lr=0.2)  # in so few steps, and with one mode, a large one
    posterior = bnn.fit(case.model, data, method, epochs=epochs, batch_size=batch, seed=2, progress=False)
    tensors = posterior.sources[0].tensors()
    return tensors["loc/net.weight"].numpy(), (2 * tensors["log_sd/net.weight"]).exp().numpy()


def assert_variance(case: Problem, variance: np.ndarray) -> None:
    """The average over the columns, which share Lambda, within 4 of its standard errors.

    With u the relative noise of s, s' = s (1 + r + r^2 / 2) adds E[r^2] / 2 to its mean, which in the stationary state
    is Var(u): E[1 / s] is 1 / E[s] (1 + Var(u)) and E[s] is Lambda / N (1 + Var(u)), so what is left is of the next
    order.
    """
    ratio = variance * np.diag(case.precision)
    noise = (ratio / ratio.mean(0)).std()
    error = ratio.std(0) / np.sqrt(K)
    assert noise < 0.2, "too noisy to see a variance that is off by a tenth"
    off = np.abs(ratio.mean(0) - 1)
    assert (off < 4 * error + noise**3).all(), f"{ratio.mean(0)} +- {error} instead of 1"


def assert_mean(case: Problem, mean: np.ndarray) -> None:
    """The means around the exact ones: no share of them is missing, and what is off is small beside the optimum's sd.

    The slope of m on the exact mean has the standard error of its residuals, over the columns.
    """
    exact, residual = case.mean, mean - case.mean
    slope = (mean * exact).sum(0) / (exact**2).sum(0)
    error = np.sqrt((residual**2).mean(0) / (exact**2).sum(0))
    assert (np.abs(slope - 1) < 4 * error + 0.005).all(), f"{slope} +- {error} instead of 1"
    assert np.sqrt(np.mean(residual**2 * np.diag(case.precision))) < 0.15


@pytest.mark.parametrize(
    ("name", "batch"), [("informed", None), ("informed", 10), ("prior", None), ("prior", 5), ("disguised", None)]
)
def test_the_optimum_of_the_family(name: str, batch: int | None) -> None:
    """Mean m, variances 1 / diag(Lambda); ``disguised`` has the prior in the loss, the others as weight decay."""
    case, (mean, variance) = case_of(name), fitted(name, batch)
    assert_variance(case, variance)
    assert_mean(case, mean)
    marginal = np.broadcast_to(np.diag(np.linalg.inv(case.precision)), (K, D))
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_variance(case, variance * marginal * np.diag(case.precision))


def test_a_prior_off_zero_and_of_one_scale_a_weight_is_in_the_loss() -> None:
    """With all weights and targets moved, the posterior of ``prior`` moves along."""
    case, shift = case_of("prior"), 0.5
    prior = bnn.priors.Independent({"weight": torch.full((K, D), shift)}, {"weight": torch.full((K, D), case.s)}, {})
    model = bnn.BayesianModel(case.model.net, prior, case.model.likelihood)
    moved = Problem(model, case.x, case.y + shift * case.x.sum(1, keepdim=True), case.sigma, case.s, case.precision,
                    case.mean + shift)  # fmt: skip
    mean, variance = fit(moved)
    assert_variance(moved, variance)
    assert_mean(case, mean - shift)


def test_a_prior_that_is_off_by_a_fifth_is_seen() -> None:
    mean, variance = fitted("tight")
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_variance(case_of("tight"), variance)
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_mean(case_of("tight"), mean)


def test_a_number_of_rows_that_is_off_by_a_fifth_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the optimizer alone: q is too narrow; the mean has its prior by weight_decay and stays right."""
    make = optim.IVON.__init__

    def more(self: optim.IVON, params: object, lr: float, num_data: int, *rest: object, **options: object) -> None:
        make(self, params, lr, round(LOUDER * num_data), *rest, **options)

    monkeypatch.setattr(optim.IVON, "__init__", more)
    case = case_of("informed")
    mean, variance = fit(case)
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_variance(case, variance)
    assert_variance(case, LOUDER * variance)
    assert_mean(case, mean)


def test_a_run_has_fifteen_memories_of_the_curvature_and_ends_with_a_long_one() -> None:
    """What is left of hess_init is the product of all beta2."""
    memories = [bnn.IVON().memory(step, 5000) for step in range(5000)]
    assert sum(map(math.log, memories)) == pytest.approx(-15, abs=0.1)
    assert memories == sorted(memories)
    assert memories[0] == pytest.approx(1 - 30 / 5000)
    assert bnn.IVON().memory(0, 3) == 0.0
    assert bnn.IVON(beta2=0.5).memory(3, 5000) == 0.5


def test_weights_that_the_data_say_little_of() -> None:
    """A feature of 3 rows in 1,000 and one that is never there: means and sds, averages of 40 columns.

    Of the first, minibatches hold a large push now and then and none else, which a clip that shrinks with lr cuts off;
    the curvature of the second is that of the prior alone, a thousandth of hess_init.
    """
    n, columns, stream = 1000, 40, torch.Generator().manual_seed(1)
    x = torch.zeros(n, 3)
    x[:, 0], x[:3, 1] = 1.0, 1.0
    y = 0.3 + torch.randn(n, 1, generator=stream)
    y[:3] = 2.0 + 0.1 * torch.arange(3.0)[:, None]
    net = nn.Linear(3, columns, bias=False)
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=1.0))
    data = (x, y.expand(n, columns))
    posterior = bnn.fit(model, data, bnn.IVON(), epochs=40, batch_size=20, progress=False)
    precision = x.T @ x + torch.eye(3)
    exact, sd = torch.linalg.solve(precision, x.T @ y)[:, 0], precision.diagonal().rsqrt()
    [source] = posterior.sources
    off = (source.loc["net.weight"] - exact) / sd
    ratio = source.log_sd["net.weight"].exp() / sd
    assert bool((off.mean(0).abs() < 0.05 + 4 * off.std(0) / columns**0.5).all()), off.mean(0)
    assert bool(((ratio.mean(0) - 1).abs() < 0.02 + 4 * ratio.std(0) / columns**0.5).all()), ratio.mean(0)


def test_weights_without_a_prior_are_optimised_beside() -> None:
    """A bias without a prior: at the optimum it is the mean residual, whatever the spread of the weight."""
    x = torch.randn(60, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = 0.5 * x + 2.0 + 0.1 * torch.randn(60, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prior = bnn.priors.ByName({"bias": None}, default=bnn.priors.Normal(1.0))
    model = bnn.BayesianModel(nn.Linear(1, 1), prior, bnn.likelihoods.Normal(scale=0.1)).double()
    method = bnn.IVON(point_lr=0.02, mc_samples=2)
    posterior = bnn.fit(model, (x, y), method, epochs=600, batch_size=None, progress=False)
    [source] = posterior.sources
    assert set(source.log_sd) == {"net.weight"}
    weight, bias = float(source.loc["net.weight"]), float(source.loc["net.bias"])
    assert bias == pytest.approx(float((y - weight * x).mean()), abs=4 * 0.1 / 60**0.5 / 10)
    precision = float((x**2).sum()) / 0.01 + 1
    assert float(source.log_sd["net.weight"].exp()) == pytest.approx(precision**-0.5, rel=0.1)


def elbo(posterior: bnn.Posterior, x: Tensor, y: Tensor, draws: int = 200) -> float:
    """E_q[log p(y | x, w)] - KL(q || Normal(0, 1)), nats."""
    [source], model = posterior.sources, posterior.model.copy()
    divergence = sum(
        float((0.5 * ((2 * s).exp() + source.loc[k] ** 2 - 1) - s).sum()) for k, s in source.log_sd.items()
    )
    total = 0.0
    with torch.no_grad():
        for state in source.states(draws, torch.Generator().manual_seed(0)):
            model.load_state(state)
            total += float(model.log_likelihood(x, y).sum())
    return total / draws - divergence


def test_on_a_net_it_gets_as_high_an_elbo_as_gradients_of_it_do() -> None:
    """Two ways up the same bound. A memory that keeps hess_init ends far below.

    Of a net with 225 weights, many of which the data say little of.
    """
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = bnn.BayesianModel(bnn.nets.MLP(8, (20,), 2), bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    options = {"epochs": 400, "batch_size": 50, "compile": True, "progress": False}
    found = {
        name: elbo(bnn.fit(model, (x, y), method, **options), x, y)
        for name, method in {
            "IVON": bnn.IVON(),
            "gradients": bnn.MeanFieldVI(lr=5e-3),
            "long memory": bnn.IVON(beta2=1 - 5 / 3200),
        }.items()
    }
    assert found["IVON"] > found["gradients"] - 5, found
    assert found["long memory"] < found["IVON"] - 20, found


def test_going_on_starts_from_the_spread_there_is() -> None:
    case = case_of("prior")
    first = bnn.fit(case.model, (case.x, case.y), bnn.IVON(), epochs=30, batch_size=None, progress=False)
    still = bnn.IVON(lr=1e-12, beta2=1 - 1e-12)
    again = bnn.fit(case.model, (case.x, case.y), still, epochs=1, batch_size=None, init=first, progress=False)
    for name, value in first.sources[0].tensors().items():
        torch.testing.assert_close(again.sources[0].tensors()[name], value, rtol=1e-6, atol=1e-6)


def test_contract(tmp_path) -> None:
    assert_contract(bnn.IVON(), bnn.nets.MLP(2, (4,), 1), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0}, "Expected lr > 0 and finite, got 0"),
        ({"hess_init": -1.0}, "Expected hess_init > 0 and finite, got -1.0"),
        ({"beta1": 1.0}, r"Expected beta1 in \[0, 1\), got 1.0"),
        ({"beta2": 1}, r"Expected beta2 in \[0, 1\), got 1: it is the memory of the curvature"),
        ({"mc_samples": 0}, "Expected mc_samples to be an integer >= 1, got 0"),
        ({"clip_radius": 0}, "Expected clip_radius > 0, got 0: inf clips nothing"),
        ({"point_lr": -1.0}, "Expected point_lr > 0 and finite, got -1.0"),
        ({"schedule": "cosin"}, "Unknown schedule 'cosin': did you mean 'cosine'"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bnn.IVON(**options)


def test_a_wild_gradient_moves_a_weight_by_no_more_than_the_clip_radius() -> None:
    """Without clipping, weights of little curvature leave for good, as heteroscedastic fits were seen to do."""
    x = torch.linspace(-1, 1, 8)[:, None]
    model = bnn.BayesianModel(torch.nn.Linear(1, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=1.0))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for radius in (bnn.IVON().clip_radius, math.inf):
        method = bnn.IVON(clip_radius=radius, beta2=0.9999)
        posterior = bnn.fit(model, (x, 1e3 * x[:, 0]), method, epochs=1, init="net", progress=False)
        moved = max(float((value - start[name]).abs().max()) for name, value in posterior.sources[0].loc.items())
        assert moved <= radius * method.lr * method.hess_init * (1 + 1e-5)
        assert moved > 1 or radius < math.inf
