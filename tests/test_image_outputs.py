"""Nets whose outputs are images: each pixel has its own distribution, and its own uncertainty."""

import math

import pytest
import torch
from pyro import poutine
from torch import nn

import bayesnn as bnn
from bayesnn import likelihoods
from bayesnn.source import Draws

ROWS, SIDE, CLASSES = 6, 5, 3


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(outputs, size=3):
    return nn.Sequential(nn.Conv2d(2, 4, size, padding="same"), nn.Tanh(), nn.Conv2d(4, outputs, 1)).double()


X = numbers(ROWS, 2, SIDE, SIDE)
LABELS = (numbers(ROWS, SIDE, SIDE, seed=1) * 2).long().abs() % CLASSES
REAL = numbers(ROWS, 2, SIDE, SIDE, seed=2)
CASES = {
    "Normal": (likelihoods.Normal(), 2, REAL),
    "Normal, one channel": (likelihoods.Normal(0.3), 1, REAL[:, :1]),
    "StudentT": (likelihoods.StudentT(5.0), 2, REAL),
    "LogNormal": (likelihoods.LogNormal(), 2, REAL.exp()),
    "HeteroscedasticNormal": (likelihoods.HeteroscedasticNormal(), 4, REAL),
    "Bernoulli": (likelihoods.Bernoulli(), 2, (REAL > 0).double()),
    "Poisson": (likelihoods.Poisson(), 2, REAL.abs().round()),
    "Categorical": (likelihoods.Categorical(), CLASSES, LABELS),
}


@pytest.mark.parametrize("case", CASES)
def test_the_log_joint_is_that_of_pyros_trace(case):
    likelihood, outputs, y = CASES[case]
    model = bnn.BayesianModel(conv(outputs), bnn.priors.Normal(1.0), likelihood)
    state = {name: value.clone() for name, value in model.named_parameters()}
    trace = poutine.trace(poutine.condition(model.pyro_model, state)).get_trace(X, y)
    assert float(model.log_joint(X, y).detach()) == pytest.approx(float(trace.log_prob_sum().detach()), rel=1e-9)
    assert model.log_likelihood(X, y).shape == (ROWS,)


@pytest.mark.parametrize("case", CASES)
def test_every_quantity_has_the_form_of_the_pixels(case):
    likelihood, outputs, y = CASES[case]
    model = bnn.BayesianModel(conv(outputs), bnn.priors.Normal(1.0), likelihood)
    states = list(model.prior_states(4))
    predictive = bnn.Posterior(model, [Draws.stack(states)], ROWS).predict(X)
    pixels = (ROWS, SIDE, SIDE) if case == "Categorical" else y.shape
    assert predictive.mean.shape == ((*pixels, CLASSES) if case == "Categorical" else pixels)
    for part in (predictive.total, predictive.aleatoric, predictive.epistemic):
        assert part.shape == pixels
        assert bool((part >= 0).all())
    if likelihood.kind == "classes":
        K = CLASSES if case == "Categorical" else 2
        assert predictive.credible_set(0.6).shape == (*pixels, K)
        action, value = predictive.decide(torch.eye(K))
        assert action.shape == value.shape == pixels
        most = predictive.mean.max(-1) if case == "Categorical" else (predictive.mean - 0.5).abs() + 0.5
        torch.testing.assert_close(value, most[0] if case == "Categorical" else most)
    each = []
    for state in states:
        model.load_state(state)
        each.append(model.log_likelihood(X, y).detach())
    mixture = torch.logsumexp(torch.stack(each), 0) - math.log(4)
    torch.testing.assert_close(predictive.log_prob(y), mixture)
    assert predictive.sample(3).shape == (3, *pixels)
    if likelihood.kind != "classes":
        assert predictive.quantile((0.1, 0.9)).shape == (2, *pixels)
        assert predictive.pit(y).shape == pixels


def test_classes_of_pixels_are_those_of_a_net_on_single_pixels():
    """A 1x1 convolution sees one pixel at a time: its answers are those of a linear layer on the rows of pixels."""
    image = nn.Conv2d(2, CLASSES, 1).double()
    rows = nn.Linear(2, CLASSES).double()
    images = bnn.BayesianModel(image, likelihood=likelihoods.Categorical())
    pixels = bnn.BayesianModel(rows, likelihood=likelihoods.Categorical())
    weight, bias = numbers(5, CLASSES, 2, seed=3), numbers(5, CLASSES, seed=4)
    of_images = Draws({"net.weight": weight[..., None, None], "net.bias": bias})
    of_rows = Draws({"net.weight": weight, "net.bias": bias})
    x = X.movedim(1, -1).reshape(-1, 2)
    found = bnn.Posterior(images, [of_images], ROWS).predict(X)
    wanted = bnn.Posterior(pixels, [of_rows], ROWS).predict(x)
    torch.testing.assert_close(found.mean.reshape(-1, CLASSES), wanted.mean)
    torch.testing.assert_close(found.epistemic.flatten(), wanted.epistemic)
    for name, score in found.scores().items():
        torch.testing.assert_close(score.flatten(), wanted.scores()[name])


def test_the_posterior_counts_every_pixel():
    """y = w x + noise in each pixel: precision 1 / s^2 + sum x^2 / noise^2, in closed form."""
    x = numbers(8, 1, 4, 4).float()
    y = 0.7 * x + 0.5 * numbers(8, 1, 4, 4, seed=9).float()
    model = bnn.BayesianModel(nn.Conv2d(1, 1, 1, bias=False), bnn.priors.Normal(1.0), likelihoods.Normal(0.5))
    precision = 1 + float(x.square().sum()) / 0.25
    mean = float((x * y).sum()) / 0.25 / precision
    posterior = bnn.fit(model, (x, y), bnn.MeanFieldVI(), epochs=3000, batch_size=4, progress=False)
    source = posterior.sources[0]
    assert float(source.loc["net.weight"]) == pytest.approx(mean, abs=0.1 * precision**-0.5)
    assert float(source.log_sd["net.weight"].exp()) == pytest.approx(precision**-0.5, rel=0.03)


@pytest.mark.parametrize("method", [bnn.MAP(), bnn.SGHMC(draws=5), bnn.MeanFieldVI(estimator="local"), bnn.SWAG()])
def test_fit_takes_images_as_targets(method, tmp_path):
    data = bnn.data.Data(X.float(), REAL.float(), target=bnn.data.Standardize.fit(REAL.float()))
    model = bnn.BayesianModel(conv(2).float(), likelihood=likelihoods.Normal())
    posterior = bnn.fit(model, data, method, epochs=4, batch_size=2, validation=0.4, progress=False)
    predictive = posterior.predict(data.x)
    assert predictive.std.shape == REAL.shape
    assert math.isfinite(posterior.history[-1]["val_rmse"])
    posterior.save(tmp_path / "run")
    again = bnn.Posterior.load(tmp_path / "run", conv(2).float())
    assert torch.equal(again.predict(data.x).mean, predictive.mean)


def test_pixel_classes_may_be_given_with_an_axis_of_one_and_wrong_shapes_are_refused():
    model = bnn.BayesianModel(conv(CLASSES), likelihood=likelihoods.Categorical())
    torch.testing.assert_close(model.log_likelihood(X, LABELS[:, None]), model.log_likelihood(X, LABELS))
    with pytest.raises(ValueError, match=r"shape \(batch, 1, 5, 5\) .* 1 targets a pixel under Categorical, got"):
        model.log_joint(X, LABELS[:, 1:])
    real = bnn.BayesianModel(conv(1), likelihood=likelihoods.Normal())
    torch.testing.assert_close(real.log_likelihood(X, REAL[:, 0]), real.log_likelihood(X, REAL[:, :1]))
    with pytest.raises(ValueError, match=r"shape \(batch, 1, 5, 5\) .* under Normal, got \(6, 2, 5, 5\)"):
        real.log_joint(X, REAL)
    with pytest.raises(ValueError, match=r"outputs \(batch, outputs\) for Laplace, got \(batch, 1, ...\)"):
        bnn.fit(real, (X, REAL[:, :1]), bnn.Laplace(), epochs=1, progress=False)


def test_scores_of_black_and_white_pixels_are_per_pixel():
    model = bnn.BayesianModel(conv(1), likelihood=likelihoods.Bernoulli())
    predictive = bnn.Posterior(model, [Draws.stack(list(model.prior_states(4)))], ROWS).predict(X)
    scores = predictive.scores()
    assert all(score.shape == (ROWS, 1, SIDE, SIDE) for score in scores.values())
    torch.testing.assert_close(scores["mutual information"], predictive.epistemic)


@pytest.mark.parametrize("kind", ["sequences", "images"])
def test_a_loader_may_give_minibatches_of_other_sizes(kind):
    sizes = (5, 7, 6)
    net = nn.Conv1d(2, 1, 3, padding=1) if kind == "sequences" else nn.Conv2d(2, 1, 3, padding=1)
    shapes = [(4, 2, n) if kind == "sequences" else (4, 2, n, n) for n in sizes]
    batches = [(x := numbers(*shape, seed=n).float(), x[:, :1]) for n, shape in enumerate(shapes)]
    model = bnn.BayesianModel(net, likelihood=likelihoods.Normal(0.5))
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    posterior = bnn.fit(model, loader, bnn.MAP(lr=0.05), epochs=100, num_data=12, progress=False)
    predictive = posterior.predict(batches[1][0])
    assert predictive.mean.shape == batches[1][1].shape
    assert bnn.metrics.rmse(predictive.mean, batches[1][1]) < 0.2


def test_refusals_name_the_axis_and_the_cure():
    rows = bnn.BayesianModel(nn.Linear(28, 10), likelihood=likelihoods.Categorical())
    with pytest.raises(ValueError, match=r"got 1 in outputs \(batch, 1, 28, 10\): flatten the inputs"):
        bnn.fit(rows, (torch.rand(4, 1, 28, 28), torch.arange(4)), epochs=1, progress=False)
    linear = bnn.BayesianModel(nn.Linear(3, 1), likelihood=likelihoods.Normal())
    with pytest.raises(ValueError, match=r"Expected rows \(batch, features\) for GibbsLinear"):
        bnn.fit(linear, (torch.rand(4, 5, 3), torch.rand(4, 5, 1)), bnn.GibbsLinear(), epochs=5, progress=False)
