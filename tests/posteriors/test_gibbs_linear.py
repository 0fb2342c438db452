"""The Gibbs sampler of a linear model against closed forms and quadrature, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bayesnn as bnn
from tests.methods import test_gibbs as quadrature
from tests.posteriors.linear import assert_one, draws_of, problem, second_moment


@pytest.mark.parametrize("scan", ["coordinate", "block"])
def test_known_precisions(scan: str) -> None:
    """The posterior itself: no step, no bias; fails with the prior's precision off by a fifth."""
    case = problem(n=10, s=0.2, columns=40)
    posterior = bnn.fit(
        case.model, (case.x, case.y), bnn.GibbsLinear(scan=scan), epochs=600, chains=1, seed=2, progress=False
    )
    draws = draws_of(posterior)
    assert len(draws) == 480
    assert_one(second_moment(draws, case.mean, np.linalg.inv(case.precision)))
    error = np.sqrt(np.diag(np.linalg.inv(case.precision)) / (40 * len(draws) / 10))
    assert (np.abs((draws - case.mean).mean((0, 1))) < 4 * error).all()
    tight = case.precision + (0.2 / case.s**2) * np.eye(len(case.precision))
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(second_moment(draws, case.mean, np.linalg.inv(tight)))


def test_means_biases_and_priors_off_zero() -> None:
    """A bias is the column of the constant 1; the prior's mean pulls: both scans, the same closed form."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -1.0], dtype=torch.float64) + 3.0
    prior = bnn.priors.ByName({"bias": bnn.priors.Normal(2.0, loc=1.0)}, default=bnn.priors.Normal(0.5, loc=0.3))
    design = torch.cat((x, torch.ones(12, 1)), 1)
    prior_precision = torch.tensor([4.0, 4.0, 0.25], dtype=torch.float64)
    precision = design.T @ design / 0.7**2 + torch.diag(prior_precision)
    pull = prior_precision * torch.tensor([0.3, 0.3, 1.0], dtype=torch.float64)
    mean = torch.linalg.solve(precision, design.T @ y / 0.7**2 + pull)
    for scan in ("coordinate", "block"):
        model = bnn.BayesianModel(nn.Linear(2, 1), prior, bnn.likelihoods.Normal(scale=0.7)).double()
        posterior = bnn.fit(model, (x, y), bnn.GibbsLinear(scan=scan), epochs=2000, chains=1, progress=False)
        tensors = posterior.sources[0].tensors()
        draws = torch.cat((tensors["net.weight"][:, 0], tensors["net.bias"]), 1)
        sd = torch.linalg.inv(precision).diag().sqrt()
        assert ((draws.mean(0) - mean).abs() < 4 * sd / 15).all()  # at least 225 effective draws of 1000


@pytest.mark.parametrize("scan", ["coordinate", "block"])
def test_inferred_precisions_against_quadrature(scan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of the samplers' Gibbs steps, with every step a Gibbs step."""
    run = quadrature.fit

    def by_gibbs(model: bnn.BayesianModel, method: Any, **options: Any) -> dict[str, np.ndarray]:
        return run(model, bnn.GibbsLinear(scan=scan), **{**options, "epochs": 2500})

    monkeypatch.setattr(quadrature, "fit", by_gibbs)
    quadrature.test_the_precision_of_weights_against_quadrature()
    quadrature.test_the_precision_of_the_noise_against_quadrature(True)


@pytest.mark.parametrize(
    ("net", "likelihood", "prior", "message"),
    [
        (nn.Sequential(nn.Linear(2, 1)), bnn.likelihoods.Normal(), None, "one nn.Linear"),
        (nn.Linear(2, 1), bnn.likelihoods.Laplace(), None, "Normal noise"),
        (nn.Linear(2, 1), bnn.likelihoods.Normal(prior=bnn.likelihoods.LogNormalScale()), None, "GammaPrecision"),
        (nn.Linear(2, 1), bnn.likelihoods.Normal(), bnn.priors.Laplace(), "prior of 'net.weight'"),
        (nn.Linear(2, 1), bnn.likelihoods.Normal(), bnn.priors.ByName({"bias": None}), "prior of 'net.bias'"),
    ],
)
def test_refusals(net: nn.Module, likelihood: Any, prior: Any, message: str) -> None:
    data = (torch.randn(5, 2), torch.randn(5, 1))
    with pytest.raises(ValueError, match=message):
        bnn.fit(bnn.BayesianModel(net, prior, likelihood), data, bnn.GibbsLinear(), epochs=2, progress=False)
    with pytest.raises(ValueError, match="did you mean 'block'"):
        bnn.GibbsLinear(scan="blok")


def test_a_block_of_collinear_columns_has_the_spread_of_its_prior() -> None:
    """In float32, whose rounding of X'X is above the prior's precision."""
    x = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0))
    model = bnn.BayesianModel(nn.Linear(2, 1, bias=False), bnn.priors.Normal(10.0), bnn.likelihoods.Normal(scale=0.03))
    method = bnn.GibbsLinear(scan="block", draws=400)
    posterior = bnn.fit(model, (x.expand(-1, 2), x[:, 0]), method, epochs=500, chains=1, progress=False)
    apart = posterior.sources[0].tensors()["net.weight"][:, 0] @ torch.tensor([1.0, -1.0])
    assert abs(float(apart.var()) / 200 - 1) < 4 * (2 / 400) ** 0.5


def test_frozen_parameters_are_refused() -> None:
    net = nn.Linear(2, 1)
    net.bias.requires_grad_(False)
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Normal())
    with pytest.raises(ValueError, match="no frozen parameters"):
        bnn.fit(model, (torch.randn(5, 2), torch.randn(5, 1)), bnn.GibbsLinear(), epochs=2, progress=False)
