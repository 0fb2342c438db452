import numpy as np
import pytest
import torch

import bayesnn as bnn
from bayesnn import plots
from bayesnn.source import Draws
from tests.plots.pictures import draw


def posterior(draws=5, chains=1):
    model = bnn.BayesianModel(bnn.nets.LeNet5((2, 8, 8), 3), likelihood=bnn.likelihoods.Categorical())
    stream = torch.Generator().manual_seed(0)
    stacked = [
        {n: torch.randn(draws, *p.shape, generator=stream) for n, p in model.named_parameters()} for _ in range(chains)
    ]
    return bnn.Posterior(model, [Draws(one) for one in stacked], 10)


def test_filters_are_the_mean_and_the_sd_of_one_chain():
    given = posterior(chains=2)
    axes = plots.filters(given, channel=1, most=4, chain=1)
    draw(axes)
    assert axes.shape == (2, 4)
    kernels = torch.stack([state["net.conv1.weight"] for state in given.states()[1]])[:, 2, 1].double()
    np.testing.assert_allclose(axes[0, 2].get_images()[0].get_array(), kernels.mean(0))
    np.testing.assert_allclose(axes[1, 2].get_images()[0].get_array(), kernels.std(0))


def test_feature_maps_are_what_the_layer_returns():
    given = posterior()
    x = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1))
    axes = plots.feature_maps(given, x, "conv1", most=3)
    draw(axes)
    nets = [given.net(0, k) for k in range(5)]
    with torch.no_grad():
        maps = torch.stack([net.conv1(x[None])[0, 1] for net in nets]).double()
    np.testing.assert_allclose(axes[0, 1].get_images()[0].get_array(), maps.mean(0))
    np.testing.assert_allclose(axes[1, 1].get_images()[0].get_array(), maps.std(0))


def test_pictures_of_a_distribution_take_samples_of_it():
    data = bnn.data.load("digits")[0]
    model = bnn.BayesianModel(bnn.nets.LeNet5(data.in_shape, 10), likelihood=bnn.likelihoods.Categorical())
    given = bnn.fit(model, data, bnn.MeanFieldVI(), epochs=1, progress=False)
    axes = plots.filters(given, draws=20)
    draw(axes)
    assert "20 draws" in axes[0, 0].figure.get_suptitle()
    sd = axes[1, 0].get_images()[0].get_array()
    assert float(sd.mean()) == pytest.approx(
        float(given.sources[0].log_sd["net.conv1.weight"][0].exp().mean()), rel=0.2
    )


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        (lambda p: plots.filters(p, "dense1"), "layer must be an nn.Conv2d; got 'dense1', a Linear"),
        (lambda p: plots.filters(p, "nowhere"), "layer must be one of .*; got 'nowhere'"),
        (lambda p: plots.filters(p, channel=2), r"channel must be in \[0, 2\); got 2"),
        (lambda p: plots.filters(p, chain=1), r"chain must be in \[0, 1\); got 1"),
        (lambda p: plots.feature_maps(p, torch.rand(2, 8, 8), "dense1"), "must return .*; got"),
    ],
)
def test_what_cannot_be_drawn_is_refused(plot, message):
    with pytest.raises(ValueError, match=message):
        plot(posterior())


def test_a_point_estimate_has_no_standard_deviation():
    with pytest.raises(ValueError, match="several draws; got 1"):
        plots.filters(posterior(draws=1))
    net = bnn.BayesianModel(bnn.nets.MLP(2, (3,), 2), likelihood=bnn.likelihoods.Categorical())
    with pytest.raises(ValueError, match=r"must have an nn.Conv2d; got none"):
        plots.filters(bnn.Posterior(net, [Draws.stack([net.state(), net.state()])], 1))
