import json
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from bayesnn.likelihoods import GammaPrecision, LogNormalScale, Normal
from bayesnn.likelihoods.noise import from_config

PRIORS = [GammaPrecision(), GammaPrecision(2.5, 0.4), LogNormalScale(), LogNormalScale(0.7, 0.5)]


def log_density(prior, log_scale):
    value = torch.as_tensor(log_scale, dtype=torch.float64)
    return prior.log_scale(torch.zeros((), dtype=torch.float64)).log_prob(value).item()


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_density_of_the_log_scale_integrates_to_one(prior):
    total, error = integrate.quad(lambda value: math.exp(log_density(prior, value)), -12, 12, limit=400, epsabs=1e-10)
    # Beyond +-12 lies less than P(precision < exp(-24)) < 1e-10.
    assert total == pytest.approx(1.0, abs=error + 1e-9)


@pytest.mark.parametrize("log_scale", [-3.0, -0.7, 0.0, 1.3])
def test_density_is_the_change_of_variables_of_the_precision_and_of_the_scale(log_scale):
    shape, rate, median, spread = 2.5, 0.4, 0.7, 0.5
    precision = math.exp(-2 * log_scale)
    by_precision = stats.gamma(shape, scale=1 / rate).logpdf(precision) + math.log(2 * precision)  # |d precision / d l|
    assert log_density(GammaPrecision(shape, rate), log_scale) == pytest.approx(by_precision, rel=1e-12)
    scale = math.exp(log_scale)
    by_scale = stats.lognorm(spread, scale=median).logpdf(scale) + math.log(scale)  # |d scale / d l|
    assert log_density(LogNormalScale(median, spread), log_scale) == pytest.approx(by_scale, rel=1e-12)


def test_mode_of_the_joint_density_is_where_the_docstring_says():
    shape, rate, rows, squares = 1.5, 0.2, 7, 3.0
    grid = np.linspace(-3, 2, 200_001)
    prior = GammaPrecision(shape, rate).log_scale(torch.zeros(len(grid), dtype=torch.float64)).base_dist
    joint = prior.log_prob(torch.as_tensor(grid)).numpy() - rows * grid - squares * np.exp(-2 * grid) / 2
    expected = math.log(math.sqrt((2 * rate + squares) / (2 * shape + rows)))
    assert grid[joint.argmax()] == pytest.approx(expected, abs=grid[1] - grid[0])


@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize("shape", [(), (3,)])
def test_distribution_has_the_parameters_shape_and_dtype(prior, shape):
    distribution = prior.log_scale(torch.zeros(shape, dtype=torch.float64))
    sample = distribution.sample()
    assert distribution.event_shape == shape
    assert sample.shape == shape
    assert sample.dtype == torch.float64
    assert distribution.log_prob(sample).shape == ()


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_config_round_trip(prior):
    assert from_config(json.loads(json.dumps(prior.config()))) == prior


@pytest.mark.parametrize("make", [GammaPrecision, LogNormalScale])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_options_must_be_positive(make, bad):
    for arguments in ((bad, 1.0), (1.0, bad)):
        with pytest.raises(ValueError, match=r"Expected \w+ > 0 and finite"):
            make(*arguments)


def test_likelihood_carries_the_prior_of_its_scale():
    likelihood = Normal(prior=LogNormalScale(0.5, 2.0))
    [(name, prior)] = likelihood.priors().items()
    assert name == "log_scale"
    expected = stats.norm(math.log(0.5), 2.0).logpdf(-0.7)
    assert prior.log_prob(likelihood.log_scale).item() == pytest.approx(expected, rel=1e-6)
    assert Normal(scale=0.3).priors() == {}
    with pytest.raises(ValueError, match=r"either scale= \(fixed noise\) or prior= \(inferred\), got both"):
        Normal(scale=0.3, prior=LogNormalScale())
