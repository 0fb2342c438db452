"""SVGD against posteriors known in closed form, and against fixed points of the particles found in another way."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

import bayesnn as bnn
from bayesnn.methods import Plan
from bayesnn.rng import Streams
from tests.posteriors.linear import Problem

S, SIGMA, LOUDER = 0.2, 0.7, 1.2
DIMENSIONS = (1, 2, 5, 20, 100)


def regression(d: int, seed: int, wrong: float = 1.0) -> Problem:
    """One regression with d weights; half of the precision is the prior's. The model has its sd by ``wrong``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(10, d, generator=generator, dtype=torch.float64)
    x[:, 1:] += 0.6 * x[:, :1]
    w = S * torch.randn(d, 1, generator=generator, dtype=torch.float64)
    y = x @ w + SIGMA * torch.randn(10, 1, generator=generator, dtype=torch.float64)
    prior, likelihood = bnn.priors.Normal(wrong * S), bnn.likelihoods.Normal(scale=SIGMA)
    model = bnn.BayesianModel(nn.Linear(d, 1, bias=False), prior, likelihood).double()
    precision = x.T @ x / SIGMA**2 + torch.eye(d) / S**2
    mean = torch.linalg.solve(precision, x.T @ y / SIGMA**2).T
    return Problem(model, x, y, SIGMA, S, precision.numpy(), mean.numpy())


@cache
def particles(d: int, count: int, seed: int = 0, wrong: float = 1.0, batch: int | None = None) -> np.ndarray:
    """(P, d), after Adam and a rate that falls to 0."""
    case, method = regression(d, seed, wrong), bnn.SVGD(particles=count, lr=0.05)
    epochs = 300 if batch is None else 300 * batch // case.n
    posterior = bnn.fit(case.model, (case.x, case.y), method, epochs=epochs, batch_size=batch, progress=False)
    assert posterior.num_draws == [count]
    found: np.ndarray = posterior.sources[0].tensors()["net.weight"][:, 0].numpy()
    return found


def whitened(case: Problem, w: np.ndarray) -> np.ndarray:
    """(w - mean) in coordinates in which the posterior is the standard normal."""
    white: np.ndarray = (w - case.mean) @ np.linalg.cholesky(case.precision)
    return white


@cache
def variance_of_one_weight(count: int) -> float:
    """Variance of the particles for N(0, 1), by the plain flow z' = phi(z) from quantiles.

    It holds for every Normal posterior of one weight: phi only changes its unit when w does.
    """
    probability = (np.arange(count) + 0.5) / count
    z, pairs = norm.ppf(probability), np.triu_indices(count, 1)
    for _ in range(3000):
        gap = z[:, None] - z
        b = np.quantile((gap**2)[pairs], 0.5, method="lower") / math.log(count)
        z = z + 0.2 * (np.exp(-(gap**2) / b) * (-z + 2 / b * gap)).mean(1)
    return float(z.var())


def assert_two(case: Problem, w: np.ndarray) -> None:
    """Two particles, m +- a: the score pulls by (1 - k) Lambda a, the kernel pushes by (2 / b) k 2 a.

    b = 4 |a|^2 / ln 2 makes k = 1/2, and Lambda a / 2 = ln 2 / (2 |a|^2) a: a lies along an eigenvector of Lambda, and
    lambda |a|^2 = ln 2.
    """
    np.testing.assert_allclose(w.mean(0), case.mean[0], atol=1e-5)
    a = (w[0] - w[1]) / 2
    np.testing.assert_allclose(case.precision @ a * (a @ a), math.log(2) * a, rtol=1e-4, atol=1e-5)


def assert_variance(case: Problem, w: np.ndarray) -> None:
    white = whitened(case, w)[:, 0]
    assert abs(white.mean()) < 0.01
    np.testing.assert_allclose(white.var(), variance_of_one_weight(len(w)), rtol=0.01)


def assert_stationary(case: Problem, w: np.ndarray) -> None:
    """phi by autograd of the kernel, in units of the score that a particle feels: 0 within what Adam leaves."""
    points = torch.as_tensor(w)
    P = len(w)
    squares = (points[:, None] - points).square().sum(2)
    b = squares[torch.triu_indices(P, P, 1).unbind()].median() / math.log(P)
    score = -(points - torch.as_tensor(case.mean)) @ torch.as_tensor(case.precision)
    phi = torch.empty_like(points)
    for i in range(P):
        others = points.clone().requires_grad_()
        kernel = torch.exp(-(others - points[i]).square().sum(1) / b)
        [push] = torch.autograd.grad(kernel.sum(), others)
        phi[i] = (kernel.detach() @ score + push.sum(0)) / P
    share = float(phi.square().mean().sqrt() / score.square().mean().sqrt())
    assert share < 0.01, f"{share:.4f} of the score is left"


@pytest.mark.parametrize(("d", "seed"), [(1, 0), (2, 1)])
def test_two_particles_are_those_of_the_closed_form(d: int, seed: int) -> None:
    assert_two(regression(d, seed), particles(d, 2, seed))


@pytest.mark.parametrize("count", [20, 100])
def test_one_weight_has_the_mean_and_the_known_variance(count: int) -> None:
    """Which is short of 1 by what few particles cost, and goes there."""
    assert_variance(regression(1, 0), particles(1, count))
    assert abs(variance_of_one_weight(count) - {20: 0.88, 100: 0.965}[count]) < 0.01


def test_two_weights_have_the_mean_and_nearly_the_covariance() -> None:
    case, w = regression(2, 0), particles(2, 60)
    assert_stationary(case, w)
    white = whitened(case, w)
    assert np.abs(white.mean(0)).max() < 0.01
    values = np.linalg.eigvalsh(np.cov(white.T, bias=True))
    assert 0.86 < values.min() < values.max() < 1.0  # 0.89 measured: the bias of 60 particles


def test_minibatches_leave_it_where_it_was() -> None:
    """The noise of the last steps is small beside the spread of the particles."""
    case, w = regression(1, 0), particles(1, 20, batch=5)
    white = whitened(case, w)[:, 0]
    assert abs(white.mean()) < 0.1
    np.testing.assert_allclose(white.var(), variance_of_one_weight(20), rtol=0.04)


def test_a_prior_that_is_off_by_a_fifth_is_seen() -> None:
    with pytest.raises(AssertionError):
        assert_two(regression(1, 0), particles(1, 2, wrong=LOUDER))
    with pytest.raises(AssertionError):
        assert_variance(regression(1, 0), particles(1, 20, wrong=LOUDER))
    with pytest.raises(AssertionError, match="of the score is left"):
        assert_stationary(regression(2, 0), particles(2, 60, wrong=LOUDER))


def test_one_particle_is_map_and_the_mode() -> None:
    case = regression(2, 0)
    np.testing.assert_allclose(particles(2, 1)[0], case.mean[0], atol=1e-6)
    x, y = torch.randn(40, 3), torch.randn(40, 1)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model = bnn.BayesianModel(net, bnn.priors.Normal(0.5), bnn.likelihoods.Normal()).double()
    point, alone = (
        bnn.fit(model, (x, y), method, epochs=20, batch_size=10, progress=False).states()[0][0]
        for method in (bnn.MAP(lr=0.01), bnn.SVGD(particles=1, lr=0.01))
    )
    for name, value in point.items():
        torch.testing.assert_close(alone[name], value, rtol=1e-9, atol=1e-10)


class InPlace(nn.Module):
    """What vmap has no rule for: weights written into a buffer that is not stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 1, dtype=x.dtype)
        return out.add_(self.inner(x).tanh().sum(1, keepdim=True))


class Convolves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x[:, None]).tanh().flatten(1)
        return out


@pytest.mark.parametrize("prior", [bnn.priors.Normal(0.5, loc=0.2), bnn.priors.StudentT(), bnn.priors.ScaleMixture()])
def test_at_once_and_in_turn_are_one(prior: object) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 1, dtype=torch.float64)
    rule = bnn.priors.ByName({"2.bias": None}, default=prior)  # a parameter that the particles share
    found = []
    for at_once in (True, False):
        model = bnn.BayesianModel(net, rule, bnn.likelihoods.Normal()).double()
        run = bnn.SVGD(particles=4).start(model.copy(), Plan(30, 12, 10, 1, 1), Streams(0, 0))
        assert run._at_once
        run._at_once = at_once
        for _ in range(10):
            run.step(x, y)
        assert run._at_once == at_once
        found.append(run.snapshot())
    for one, other in zip(*found, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-12)
    assert torch.equal(found[0][0]["net.2.bias"], found[0][1]["net.2.bias"])
    assert not torch.equal(found[0][0]["net.2.weight"], found[0][1]["net.2.weight"])


@pytest.mark.parametrize("make", [InPlace, Convolves])
def test_other_nets_are_taken_in_turn(make: type[nn.Module]) -> None:
    x, y = torch.randn(12, 3), torch.randn(12, 1)
    model = bnn.BayesianModel(make(), likelihood=bnn.likelihoods.Normal())
    run = bnn.SVGD(particles=3).start(model, Plan(12, 12, 10, 1, 1), Streams(0, 0))
    run.step(x, y)
    assert not run._at_once
    posterior = bnn.fit(model, (x, y), bnn.SVGD(particles=3), epochs=5, progress=False)
    assert torch.isfinite(posterior.predict(x).mean).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_starts_chains_and_types(dtype: torch.dtype) -> None:
    x = torch.randn(12, 3, dtype=dtype)
    model = bnn.BayesianModel(nn.Linear(3, 1), likelihood=bnn.likelihoods.Normal()).to(dtype)
    still = bnn.SVGD(particles=5, lr=1e-12)
    fresh = bnn.fit(model, (x, x.sum(1)), still, epochs=1, chains=2, progress=False)
    weights = torch.cat([source.tensors()["net.weight"] for source in fresh.sources])
    assert weights.dtype == dtype
    assert len({tuple(row.flatten().tolist()) for row in weights}) == 10
    assert float(weights.std(0).min()) > 0.1  # torch's own spread: 1 / sqrt(3 * 3)
    again = bnn.fit(model, (x, x.sum(1)), still, epochs=1, chains=2, init=fresh, progress=False)
    for first, second in zip(fresh.sources, again.sources, strict=True):
        moved = second.tensors()["net.weight"] - first.tensors()["net.weight"]
        assert 0 < float(moved.abs().max()) < 0.05
    beside = bnn.fit(model, (x, x.sum(1)), still, epochs=1, init="net", progress=False)
    assert 0 < float((beside.sources[0].tensors()["net.weight"] - model.net.weight.detach()).std()) < 0.05
    assert torch.isfinite(beside.predict(x).log_prob(x.sum(1))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 0}, "Expected particles to be an integer >= 1, got 0"),
        ({"particles": 2.0}, "Expected particles to be an integer >= 1, got 2.0"),
        ({"lr": -1.0}, "Expected lr > 0 and finite, got -1.0"),
        ({"schedule": "cosin"}, "Unknown schedule 'cosin': did you mean 'cosine'"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bnn.SVGD(**options)


def collapse(d: int, count: int, steps: int = 300) -> float:
    """Mean variance of a weight over the particles, of a posterior that is N(0, I): inputs of 0 leave the prior."""
    x = torch.zeros(1, d, dtype=torch.float64)
    model = bnn.BayesianModel(nn.Linear(d, 1, bias=False), bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=1.0))
    method = bnn.SVGD(particles=count, lr=0.1)
    posterior = bnn.fit(model.double(), (x, x[:, :1]), method, epochs=steps, batch_size=None, progress=False)
    return float(posterior.sources[0].tensors()["net.weight"].var(0, correction=0).mean())


def test_the_variance_collapses_with_the_dimension() -> None:
    """The table of docs/methods/svgd.md, for 20 particles."""
    found = [collapse(d, 20) for d in (1, 100)]
    np.testing.assert_allclose(found, [0.882, 0.030], rtol=0.05)


if __name__ == "__main__":
    print("| particles | " + " | ".join(f"D = {d}" for d in DIMENSIONS) + " |\n|---|" + "---|" * len(DIMENSIONS))
    for count in (2, 20, 100):
        print(f"| {count} | " + " | ".join(f"{collapse(d, count, 1000):.3f}" for d in DIMENSIONS) + " |")
