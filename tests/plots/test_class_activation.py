import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bayesnn as bnn
from bayesnn import plots
from bayesnn.source import Draws
from tests.plots.pictures import draw

X = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1))


class Pooled(nn.Module):
    """Feature maps of the image's own size, averaged, and a linear layer: the maps need no interpolation."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.act(self.conv(x)).mean((2, 3)))


def posterior(net, draws=5):
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Categorical())
    stream = torch.Generator().manual_seed(0)
    stacked = {n: torch.randn(draws, *p.shape, generator=stream) for n, p in model.named_parameters()}
    return bnn.Posterior(model, [Draws(stacked)], 10)


def shown(axes):
    return [np.asarray(ax.get_images()[0].get_array()) for ax in axes[1:]]


def test_a_map_sums_to_the_logit_without_its_bias():
    given = posterior(Pooled())
    axes = plots.class_activation(given, X, label=2)
    draw(axes)
    assert axes.shape == (3,)
    nets = [given.net(0, k) for k in range(5)]
    with torch.no_grad():
        parts = torch.tensor([float(net(X[None])[0, 2] - net.head.bias[2]) for net in nets])
        maps = torch.stack(
            [torch.einsum("k,khw->hw", net.head.weight[2], F.relu(net.conv(X[None]))[0]) / 36 for net in nets]
        )
    mean, sd = shown(axes)
    assert mean.sum() == pytest.approx(float(parts.mean()), rel=1e-5)
    np.testing.assert_allclose(mean, maps.mean(0), atol=1e-6)
    np.testing.assert_allclose(sd, maps.std(0), atol=1e-6)
    assert axes[0].figure.get_suptitle() == "class activation: class 2 (5 draws of one chain)"


def test_grad_cam_of_what_is_pooled_is_the_positive_part_of_the_class_activation_map():
    """d logit / d f_k(i, j) = w_k / Z at every place, so alpha_k = w_k / Z, as in the map."""
    given = posterior(Pooled())
    nets = [given.net(0, k) for k in range(5)]
    with torch.no_grad():
        maps = torch.stack(
            [torch.einsum("k,khw->hw", net.head.weight[1], F.relu(net.conv(X[None]))[0]) / 36 for net in nets]
        )
    mean, sd = shown(plots.class_activation(given, X, label=1, layer="act"))
    np.testing.assert_allclose(mean, maps.clamp_min(0).mean(0), atol=1e-6)
    np.testing.assert_allclose(sd, maps.clamp_min(0).std(0), atol=1e-6)
    assert maps.min() < 0


def test_grad_cam_of_two_pixels_by_hand():
    """One filter w over two pixels a, b and logit u w a + v w b: alpha = (u + v) / 2, the map alpha (w a, w b)."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(2, 1, bias=False))
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Bernoulli())
    one = {"net.0.weight": torch.full((1, 1, 1, 1), 3.0), "net.2.weight": torch.tensor([[5.0, -1.0]])}
    two = {**one, "net.2.weight": torch.tensor([[-5.0, 1.0]])}  # alpha < 0: nothing speaks for the class
    axes = plots.class_activation(
        bnn.Posterior(model, [Draws.stack([one, two])], 1), torch.tensor([[[0.5, 2.0]]]), label=0
    )
    mean, sd = shown(axes)
    first = np.array([[2.0 * 3.0 * 0.5, 2.0 * 3.0 * 2.0]])
    np.testing.assert_allclose(mean, first / 2)
    np.testing.assert_allclose(sd, first / 2**0.5)
    assert "Grad-CAM, 0: class 0" in axes[0].figure.get_suptitle()


def test_other_nets_have_grad_cam_of_their_last_convolution_at_the_size_of_the_image():
    given = posterior(bnn.nets.LeNet5((2, 8, 8), 3))
    x = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1))
    axes = plots.class_activation(given, x)
    draw(axes)
    label = int(given.predict(x[None]).mean.argmax())
    assert axes[0].figure.get_suptitle() == f"Grad-CAM, conv2: class {label} (5 draws of one chain)"
    assert shown(axes)[0].shape == (8, 8)
    assert not any(p.grad is not None for p in given.model.parameters())


@pytest.mark.parametrize(
    "net",
    [
        bnn.nets.ResNet(20, in_shape=(1, 8, 8), num_outputs=3),
        bnn.nets.ConvNet((1, 8, 8), 3, channels=(4, 4), dense=(), global_average=True),
    ],
    ids=lambda net: type(net).__name__,
)
def test_nets_that_end_in_global_average_pooling_are_known(net):
    axes = plots.class_activation(posterior(net, draws=2), torch.rand(1, 8, 8), label=0)
    assert axes[0].figure.get_suptitle().startswith("class activation")


def test_colour_images_and_a_distribution_are_drawn():
    model = bnn.BayesianModel(bnn.nets.LeNet5((3, 8, 8), 3), likelihood=bnn.likelihoods.Categorical())
    stream = torch.Generator().manual_seed(0)
    data = torch.rand(12, 3, 8, 8, generator=stream), torch.arange(12) % 3
    for method, draws in ((bnn.MeanFieldVI(), 4), (bnn.Laplace(predictive="weights"), 4)):
        given = bnn.fit(model, data, method, epochs=2, progress=False)
        axes = plots.class_activation(given, data[0][0], draws=draws)
        draw(axes)
        assert axes[0].get_images()[0].get_array().shape == (8, 8, 3)
        assert "4 draws" in axes[0].figure.get_suptitle()


@pytest.mark.parametrize(("layer", "passes"), [(None, 1 + 5), ("act", 5 + 5)])
def test_a_draw_takes_one_pass_of_which_one_layer_is_watched(monkeypatch, layer, passes):
    """And one look at all layers, or for a gradient, which is of one class, passes to tell the most probable one."""
    given, calls, watched = posterior(Pooled()), [], []
    forward, register = Pooled.forward, nn.Module.register_forward_hook
    monkeypatch.setattr(Pooled, "forward", lambda net, x: calls.append(net) or forward(net, x))
    monkeypatch.setattr(
        nn.Module,
        "register_forward_hook",
        lambda net, *args, **named: watched.append(net) or register(net, *args, **named),
    )
    mean, sd = shown(plots.class_activation(given, X, layer=layer))
    assert len(calls) == passes
    assert len(watched) == (4 if layer is None else 0) + 5
    label = int(given.predict(X[None]).mean.argmax())
    for one, other in zip((mean, sd), shown(plots.class_activation(given, X, label=label, layer=layer)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_head_that_is_called_by_keyword_is_known():
    class Named(Pooled):
        def forward(self, x):
            return self.head(input=self.act(self.conv(x)).mean((2, 3)))

    plain, named = (shown(plots.class_activation(posterior(net), X, label=1)) for net in (Pooled(), Named()))
    np.testing.assert_array_equal(plain, named)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": 3}, r"label must be in \[0, 3\); got 3"),
        ({"layer": "head", "label": 0}, r"layer 'head' must return .*, once; got \(1, 3\)"),
        ({"layer": "nowhere"}, "layer must be one of conv, act, head; got 'nowhere'"),
        ({"x": X[None]}, r"Expected one image .*, got \(1, 2, 6, 6\)"),
        ({"chain": 1}, r"chain must be in \[0, 1\); got 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plots.class_activation(posterior(Pooled()), **{"x": X, **options})


def test_a_net_without_convolutions_and_a_point_estimate_are_refused():
    with pytest.raises(ValueError, match=r"must have an nn\.Conv2d; got none"):
        plots.class_activation(posterior(bnn.nets.MLP(64, (4,), 3)), torch.rand(1, 8, 8))
    with pytest.raises(ValueError, match="several draws; got 1"):
        plots.class_activation(posterior(Pooled(), draws=1), X, label=0)
