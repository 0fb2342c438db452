import itertools

import numpy as np
import pytest
import torch

import bayesnn as bnn
from bayesnn import metrics

PROBS = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
Y = torch.tensor([0, 1, 0, 1])  # right, wrong, right, right


def test_by_hand():
    coverage, accuracy = metrics.rejection_curve(PROBS, Y, torch.tensor([0.1, 0.4, 0.3, 0.2]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert accuracy.tolist() == [1, 1, 1, 0.75]
    assert metrics.aurc(PROBS, Y) == pytest.approx(0.25 / 4)
    assert metrics.aurc(PROBS, Y, torch.tensor([0.4, 0.1, 0.3, 0.2])) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_ties_are_the_mean_over_all_orders():
    uncertainty = torch.tensor([1.0, 1.0, 0.0, 1.0])
    curves = []
    for order in itertools.permutations((0, 1, 3)):
        broken = uncertainty.clone()
        broken[list(order)] = torch.tensor([1.0, 1.1, 1.2])
        curves.append(metrics.rejection_curve(PROBS, Y, broken)[1].numpy())
    np.testing.assert_allclose(metrics.rejection_curve(PROBS, Y, uncertainty)[1], np.mean(curves, axis=0), rtol=1e-12)


def test_a_score_that_tells_nothing_has_the_error_rate():
    assert metrics.aurc(PROBS, Y, torch.zeros(4)) == pytest.approx(0.25)


def test_a_missing_row_is_refused():
    with pytest.raises(ValueError, match="Expected an uncertainty for each of 4 rows"):
        metrics.rejection_curve(PROBS, Y, torch.zeros(3))


@pytest.mark.parametrize("score", [metrics.aurc, metrics.adaptive_ece, metrics.balanced_accuracy, metrics.nll])
def test_accumulated_over_batches_it_is_the_score_of_all(score):
    stream = torch.Generator().manual_seed(0)
    probs, y = torch.randn(103, 3, generator=stream).softmax(1), torch.randint(3, (103,), generator=stream)
    metric = metrics.Accumulated(score)
    for rows in torch.arange(103).split(20):
        metric.update(probs[rows], y[rows])
    assert metric.compute() == score(probs, y)
    metric.reset()
    metric.update(probs[:50], y[:50])
    assert metric.compute() == score(probs[:50], y[:50])
    with pytest.raises(ValueError, match="Expected 2 tensors, got 3: say arguments=3"):
        metric.update(probs, y, y)


def test_mae_and_width():
    assert metrics.mae(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 5.0])) == 2
    assert metrics.interval_width(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 4.0])) == 2
    with pytest.raises(ValueError, match="must have the shape of y"):
        metrics.mae(torch.zeros(2, 1), torch.zeros(2))


@pytest.mark.parametrize("likelihood", [bnn.likelihoods.Normal(scale=0.7), bnn.likelihoods.Poisson()])
def test_pit_is_the_mixtures_distribution_function(likelihood):
    from scipy import stats

    model = bnn.BayesianModel(torch.nn.Linear(1, 1), likelihood=likelihood).double()
    stream = torch.Generator().manual_seed(0)
    stacked = {n: torch.randn(6, *p.shape, generator=stream).double() for n, p in model.named_parameters()}
    x, y = torch.linspace(-1, 1, 5).double()[:, None], torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0])
    from bayesnn.source import Draws

    posterior = bnn.Posterior(model, [Draws(stacked)], 10)
    outputs = stacked["net.weight"][:, :, 0] * x[:, 0] + stacked["net.bias"]
    if isinstance(likelihood, bnn.likelihoods.Normal):
        expected = stats.norm.cdf(y.numpy(), outputs.numpy(), 0.7).mean(0)
    else:
        rate = outputs.exp().numpy()
        expected = (stats.poisson.cdf(y.numpy(), rate) + stats.poisson.cdf(y.numpy() - 1, rate)).mean(0) / 2
    np.testing.assert_allclose(posterior.predict(x).pit(y), expected, rtol=1e-6)
