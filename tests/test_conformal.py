"""Coverage is a theorem: over calibration parts and test rows it is ceil((n + 1) level) / (n + 1), without ties."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn import conformal
from bayesnn.source import Draws

LEVEL = 0.8


def posterior(seed=0):
    """Draws that have nothing to do with the data: coverage must not depend on the model's being right."""
    model = bnn.BayesianModel(bnn.nets.MLP(1, (3,), 1), likelihood=bnn.likelihoods.Normal(scale=0.3)).double()
    stream = torch.Generator().manual_seed(seed)
    stacked = {n: torch.randn(4, *p.shape, generator=stream).double() for n, p in model.named_parameters()}
    return bnn.Posterior(model, [Draws(stacked)], 10)


def assert_rate(inside, expected):
    """Of independent repetitions, within 4 standard errors."""
    inside = np.asarray(inside, dtype=float)
    assert abs(inside.mean() - expected) < 4 * inside.std() / math.sqrt(len(inside))


@pytest.mark.parametrize("n", [9, 30])
def test_intervals_of_a_wrong_model_cover_as_often_as_they_say(n):
    given, stream = posterior(), torch.Generator().manual_seed(1)
    inside = []
    for _ in range(250):
        x = torch.rand(n + 10, 1, generator=stream).double() * 4 - 2
        y = (3 * x[:, 0]).sin() + x[:, 0].abs() * torch.randn(n + 10, generator=stream)
        low, high = conformal.interval(given.predict(x[:n]), y[:n], given.predict(x[n:]), LEVEL)
        inside.append(float(((low <= y[n:]) & (y[n:] <= high)).double().mean()))
    assert_rate(inside, math.ceil((n + 1) * LEVEL) / (n + 1))
    own = given.predict(x).interval(LEVEL)
    assert float(((own[0] <= y) & (y <= own[1])).double().mean()) < 0.7  # the posterior's own are far off


def test_intervals_are_wide_where_the_posterior_is_unsure():
    given = posterior()
    x = torch.linspace(-3, 3, 50).double()[:, None]
    test = given.predict(x)
    low, high = conformal.interval(given.predict(x), x[:, 0], test)
    torch.testing.assert_close((high - low) / (high - low)[0], test.std / test.std[0])
    few = conformal.interval(given.predict(x[:3]), x[:3, 0], test, 0.9)
    assert few[1].isinf().all()


def spread(rows, stream, sharpness):
    logits = 2 * torch.randn(rows, 4, generator=stream).double()
    y = torch.multinomial(logits.softmax(1), 1, generator=stream)[:, 0]
    return (sharpness * logits).softmax(1), y


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 5.0])
def test_sets_hold_the_class_as_often_as_they_say(sharpness):
    stream, inside, sizes = torch.Generator().manual_seed(0), [], []
    for repetition in range(800):
        probs, y = spread(29, stream, sharpness)
        sets = conformal.prediction_set(probs[:19], y[:19], probs[19:], LEVEL, seed=repetition)
        inside.append(float(sets[torch.arange(10), y[19:]].double().mean()))
        sizes.append(float(sets.double().sum(1).mean()))
    assert_rate(inside, math.ceil(20 * LEVEL) / 20)
    assert 1 < np.mean(sizes) < 4


def test_of_true_probabilities_sets_are_those_of_the_level():
    """With many calibration rows the threshold is the level, and a set the classes that reach it."""
    probs, y = spread(40_000, torch.Generator().manual_seed(0), 1.0)
    sets = conformal.prediction_set(probs[:20_000], y[:20_000], probs[20_000:], LEVEL)
    certain = probs[20_000:].max(1).values < 0.3
    assert float(sets[certain].double().sum(1).mean()) > 2.5
    assert float(sets.double().sum(1).mean()) < 2.5


@pytest.mark.parametrize("level", [0.0, 1.0, 90])
def test_bad_levels(level):
    probs = torch.full((5, 2), 0.5)
    with pytest.raises(ValueError, match=r"Expected level in \(0, 1\), got"):
        conformal.prediction_set(probs, torch.zeros(5), probs, level)


def test_bad_shapes():
    given = posterior().predict(torch.zeros(5, 1))
    with pytest.raises(ValueError, match=r"Expected a target for each calibration row, \(5,\), got \(4,\)"):
        conformal.interval(given, torch.zeros(4), given)
    with pytest.raises(ValueError, match="Expected 3 classes in both parts, got 2 in test"):
        conformal.prediction_set(torch.full((5, 3), 1 / 3), torch.zeros(5), torch.full((5, 2), 0.5))
    two = bnn.BayesianModel(nn.Linear(1, 2), likelihood=bnn.likelihoods.Normal(scale=1.0))
    stacked = {n: p.detach()[None].clone() for n, p in two.named_parameters()}
    several = bnn.Posterior(two, [Draws(stacked)], 10).predict(torch.zeros(5, 1))
    with pytest.raises(ValueError, match="Expected one target a row, got 2"):
        conformal.interval(several, torch.zeros(5, 2), several)
