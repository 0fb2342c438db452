import itertools
import warnings

import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn.gradients import GAP, LOOKS, Norms, fault, layer_norms

G = torch.Generator().manual_seed(0)
X = torch.randn(64, 8, generator=G)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def deep(layers, activation, width=16):
    sizes = [8, *[width] * layers]
    hidden = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*hidden, nn.Linear(width, 3))


def model_of(net):
    return bnn.BayesianModel(net, likelihood=bnn.likelihoods.Categorical())


def fit(net, method=None, data=(X, Y), epochs=4, **options):
    return bnn.fit(model_of(net), data, method, epochs=epochs, progress=False, **options)


def loud(net):
    for p in net.parameters():
        nn.init.normal_(p)


def test_the_norms_are_those_of_the_mean_negative_log_likelihood_and_nothing_changes():
    net = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Dropout(0.0), nn.Linear(5, 3))
    model = model_of(net).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = layer_norms(model, model.state(), X, Y)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in model.parameters())
    nn.functional.cross_entropy(model.net(X), Y).backward()
    layers = {"0": model.net[0], "1": model.net[1], "3": model.net[3]}
    assert found.gradient.keys() == layers.keys()
    for name, layer in layers.items():
        expected = torch.cat([p.grad.flatten() for p in layer.parameters()]).norm()
        assert found.gradient[name] == pytest.approx(float(expected), rel=1e-5)
    assert found.reach.keys() == {"0", "3"}


def test_rows_drawn_unevenly_count_by_their_weights():
    """Of rows twice as likely as they should be, half as much: sizes of all kinds are those of the rows once each."""
    net = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Normal(0.3))
    x, y = X[:3].double(), torch.tensor([1.0, -2.0, 3.0]).double()
    drawn, weights = [0, 0, 1, 2], torch.tensor([2.0, 2.0, 4.0, 4.0]).double() / 3
    found, expected = (
        layer_norms(model, model.state(), x[drawn], y[drawn], weights),
        layer_norms(model, model.state(), x, y),
    )
    assert found.gradient == pytest.approx(expected.gradient, rel=1e-12)
    assert found.reach == pytest.approx(expected.reach, rel=1e-12)


def test_of_a_weighted_minibatch_the_gradient_is_that_of_the_data():
    """Only the class of one row in ten has inputs, and so a gradient, though every second row drawn is of it."""
    y = (torch.arange(200) >= 20).long()
    x = (y == 0).float()[:, None]
    net = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(net.weight)
    posterior = fit(net, bnn.MAP(lr=1e-9), (x, y), epochs=1, batch_size=200, sampling="balanced", init="net")
    # d l / d w = p - one-hot = (-1/2, 1/2) of those rows, which come Binomial(200, 1/2) times with weight 1/5.
    error = 0.5**0.5 * 0.2 * (0.25 / 200) ** 0.5
    assert posterior.history[0]["gradient_norm/weight"] == pytest.approx(0.1 * 0.5**0.5, abs=4 * error)


def test_reach_is_how_far_the_outputs_move():
    """One output f = w x with equal slopes everywhere: |g| |w| / mean |dl/df| = |mean x| |w|, and y is of size 1."""
    net = nn.Linear(1, 1, bias=False)
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Normal(0.3))
    model.net.weight.data.fill_(7.0)
    x = torch.full((10, 1), 2.0)
    assert layer_norms(model, model.state(), x, torch.ones(10)).reach == {"weight": pytest.approx(14.0, rel=1e-5)}


@pytest.mark.parametrize(
    ("gradient", "reach", "kind"),
    [
        ({"a": 1.0, "b": 1e-5}, 1.0, None),
        ({"a": 1.0, "b": 1e-7}, 1.0, "vanishing"),
        ({"a": 1e-9, "b": 1e-9}, 1.0, None),  # small everywhere is a fit that is done
        ({"a": 1.0, "b": 0.0, "c": 1.0}, 1.0, None),  # an expert that these rows did not ask
        ({"a": 0.0, "b": 0.0, "c": 1.0}, 1.0, "vanishing"),  # dead units
        ({"a": 1.0, "b": 1.0}, 1e5, "exploding"),
        ({"a": 1.0, "b": float("nan")}, 1.0, None),
    ],
)
def test_what_is_a_fault(gradient, reach, kind):
    found = fault(Norms(gradient, dict.fromkeys(gradient, reach)))
    assert (found[0] if found is not None else None) == kind


def test_thirty_layers_of_sigmoids_vanish_and_the_warning_names_the_layer_once():
    with pytest.warns(UserWarning, match=r"Vanishing gradients: after epoch \d that of layer '\d+'.*take ReLU") as seen:
        posterior = fit(deep(30, nn.Sigmoid), chains=2)
    assert len(seen) == 1
    row = posterior.history[0]
    assert row["gradient_norm/20"] < 1e-6 * row["gradient_norm/60"]


def test_a_loud_start_explodes():
    with pytest.warns(UserWarning, match="Exploding gradients: after epoch . a change of layer .*kaiming") as seen:
        fit(deep(10, nn.ReLU, 32), init=loud)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("net", "method", "options"),
    [
        (deep(2, nn.ReLU), bnn.MAP(), {}),
        (deep(2, nn.ReLU), bnn.MAP(lr=0.05), {"epochs": 60}),  # until every row is right
        (deep(20, nn.ReLU), bnn.MAP(), {"init": "kaiming_normal"}),
        (deep(3, nn.Sigmoid), bnn.MAP(), {}),
        (deep(2, nn.ReLU), bnn.MeanFieldVI(), {"init": "prior"}),
        (deep(2, nn.Tanh), bnn.SGLD(draws=2), {"chains": 1, "init": "prior", "epochs": 10}),
    ],
)
def test_healthy_nets_are_left_alone(net, method, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior = fit(net, method, **options)
    assert sum("gradient_norm/0" in row for row in posterior.history) >= LOOKS


@pytest.mark.parametrize("make", [lambda: bnn.nets.LeNet5((1, 8, 8), 10), lambda: bnn.nets.ResNet(20, (1, 8, 8), 10)])
def test_healthy_nets_on_digits_are_left_alone(make):
    train, _ = bnn.data.load("digits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(make(), data=(train.x[:32], train.y[:32]), epochs=3, batch_size=16)


def test_looks_come_twice_as_late_each_time_and_then_every_gap():
    posterior = fit(deep(1, nn.ReLU), epochs=300, batch_size=16)  # 4 steps each
    steps = [4 * (row["epoch"] + 1) for row in posterior.history if "gradient_norm/0" in row]
    assert steps[:8] == [4, 8, 16, 32, 64, 128, 256, 512]
    assert steps[8:] == [512 + GAP]


def test_a_look_changes_no_bit_of_the_fit(monkeypatch):
    def draws():
        return fit(deep(2, nn.ReLU), bnn.MeanFieldVI()).sources[0].tensors()

    one = draws()
    monkeypatch.setattr("bayesnn.gradients.GradientWatch.look", lambda *_: {})
    assert all(torch.equal(value, one[name]) for name, value in draws().items())
