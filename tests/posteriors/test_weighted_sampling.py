"""Rows drawn unevenly, each with its weight: the posterior is that of the data as they are."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn.data.weighted import WeightedBatches
from bayesnn.methods import Method
from tests.posteriors.linear import Problem, assert_one, draws_of, iid_covariance, problem, second_moment
from tests.posteriors.test_linear_regression import _assert_optimal_variance, _assert_slope_of_one

BATCH = 10


@cache
def case() -> Problem:
    return problem()


# A third of the rows comes four times as often as the others.
NUMBERS = np.where(np.arange(case().n) % 3 == 0, 4.0, 1.0)
PROBS = NUMBERS / NUMBERS.sum()


def sample(steps: int = 3000) -> np.ndarray:
    method = bnn.SGLD(lr=case().h * case().n, warm_up=0.05, burn_in=0.2, thin=2)
    options = {"epochs": steps * BATCH // case().n, "batch_size": BATCH, "chains": 1, "seed": 3, "progress": False}
    return draws_of(bnn.fit(case().model, (case().x, case().y), method, sampling=NUMBERS, **options))


@pytest.mark.filterwarnings("ignore:Minibatches add")  # that much noise is what the test is about
def test_sgld_has_the_stationary_law_of_weighted_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    covariance = iid_covariance(case(), BATCH, probs=PROBS)
    draws = sample()
    assert_one(second_moment(draws, case().mean, covariance))
    with pytest.raises(AssertionError, match="instead of 1"):  # the noise of rows drawn evenly is another
        assert_one(second_moment(draws, case().mean, iid_covariance(case(), BATCH)))

    evenly = WeightedBatches.weighted
    monkeypatch.setattr(
        WeightedBatches, "weighted", lambda self: ((x, y, torch.ones_like(w)) for x, y, w in evenly(self))
    )
    with pytest.raises(AssertionError, match="instead of 1"):  # without the weights it is the posterior of other data
        assert_one(second_moment(sample(), case().mean, covariance))


@pytest.mark.filterwarnings("ignore:Minibatches add")  # it is what is measured
def test_a_given_step_has_its_share_of_noise_by_weighted_minibatches() -> None:
    """``minibatch_noise`` of a given lr: lr c / (2 B / N), c the variance of a drawn row's weighted gradient."""
    large = problem(n=400)
    numbers = np.where(np.arange(large.n) % 3 == 0, 4.0, 1.0)
    p, lr = numbers / numbers.sum(), 0.02
    method = bnn.SGLD(lr=lr, warm_up=0.3, burn_in=0.9)
    posterior = bnn.fit(
        large.model, (large.x, large.y), method, sampling=numbers, epochs=60, batch_size=40, chains=1, progress=False
    )
    x, y, mean = large.x.numpy(), large.y.numpy(), large.mean
    residuals = (x @ mean.T - y) / large.sigma**2
    squares = np.einsum("nd,nk,n->dk", x**2, residuals**2, 1 / (large.n**2 * p))  # E of the weighted gradient's square
    share = lr * squares.mean() * large.n / (2 * 40)
    assert posterior.info["minibatch_noise"][0] == pytest.approx(share, rel=0.15)


def test_mean_field_vi_reaches_the_optimum() -> None:
    posterior = None
    for lr, steps in ((0.05, 300), (0.01, 600)):
        method = bnn.MeanFieldVI(lr=lr, initial_sd=0.1)
        options = {"epochs": steps * BATCH // case().n, "batch_size": BATCH, "init": posterior or "fresh"}
        posterior = bnn.fit(case().model, (case().x, case().y), method, sampling=NUMBERS, progress=False, **options)
    tensors = posterior.sources[0].tensors()
    _assert_slope_of_one(case(), tensors["loc/net.weight"].numpy())
    _assert_optimal_variance(case(), (2 * tensors["log_sd/net.weight"]).exp().numpy())


@pytest.mark.parametrize("method", [bnn.MAP(lr=0.05, schedule="cosine"), bnn.IVON(lr=0.1, schedule="cosine")])
def test_the_mode_of_a_logistic_regression_is_the_same(method: Method) -> None:
    """Nine rows in ten are of one class; drawn unweighted, the intercept would move by log 9."""
    stream = torch.Generator().manual_seed(2)
    y = (torch.rand(600, generator=stream) < 0.1).long()
    x = torch.randn(600, 1, generator=stream) + y[:, None]
    net = nn.Linear(1, 1)
    model = bnn.BayesianModel(net, bnn.priors.Normal(3.0), bnn.likelihoods.Bernoulli())

    def intercept(method: Method, **options: object) -> float:
        posterior = bnn.fit(model, (x, y), method, progress=False, **options)
        return float(posterior.predict(torch.zeros(1, 1), draws=50).mean.logit())

    mode = intercept(bnn.MAP(lr=0.05), epochs=500, batch_size=None)
    found = intercept(method, epochs=150, batch_size=60, sampling="balanced")
    assert abs(found - mode) < 0.15
    assert mode < -2


@pytest.mark.parametrize(
    "method",
    [
        bnn.SGLD(), bnn.SGHMC(layerwise=True), bnn.SGNHT(), bnn.PSGLD(), bnn.MeanFieldVI(estimator="flipout"),
        bnn.FullRankVI(), bnn.LowRankVI(), bnn.RadialVI(), bnn.SVGD(), bnn.PyroVI(), bnn.MCDropout(),
    ],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
def test_other_methods_take_weighted_rows(method: Method) -> None:
    """Of two classes 1 : 19 the net learns 0.05 for inputs that say nothing; unweighted it would be a half."""
    y = (torch.arange(200) % 20 == 0).long()
    drops = isinstance(method, bnn.MCDropout)
    net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.2), nn.Linear(4, 2)) if drops else nn.Linear(1, 2)
    model = bnn.BayesianModel(net, bnn.priors.Normal(3.0), bnn.likelihoods.Categorical())
    options = {"epochs": 80, "batch_size": 20, "chains": 1, "sampling": "balanced", "progress": False}
    posterior = bnn.fit(model, (torch.zeros(200, 1), y), method, **options)
    assert float(posterior.predict(torch.zeros(1, 1)).mean[0, 1]) < 0.2
