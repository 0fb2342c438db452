import pytest
import torch
from torch import nn

from bayesnn.nets import MLP


def test_widths_give_the_layers_and_the_parameters():
    net = MLP(784, widths=(400, 300), num_outputs=10)
    shapes = [tuple(p.shape) for p in net.parameters()]
    assert shapes == [(400, 784), (400,), (300, 400), (300,), (10, 300), (10,)]


def test_output_is_the_formula():
    net = MLP(3, widths=(4,), num_outputs=2, activation="tanh").double()
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w1, b1, w2, b2 = net.parameters()
    torch.testing.assert_close(net(x), torch.tanh(x @ w1.T + b1) @ w2.T + b2)


def test_no_hidden_layer_is_a_linear_model():
    net = MLP(3, widths=())
    x = torch.eye(3)
    w, b = net.parameters()
    torch.testing.assert_close(net(x), x @ w.T + b)


def test_images_are_flattened():
    net = MLP(64, num_outputs=10)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(images), net(images.reshape(5, 64)))


def test_an_empty_batch_gives_an_empty_output():
    assert MLP(4, num_outputs=3)(torch.zeros(0, 2, 2)).shape == (0, 3)


@pytest.mark.parametrize("shape", [(5, 3), (4,), (5, 2, 3)])
def test_wrong_number_of_features_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected inputs .* with 4 features each, got \(.*\): reshape"):
        MLP(4)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("relu", nn.ReLU),
        ("tanh", nn.Tanh),
        ("gelu", nn.GELU),
        ("silu", nn.SiLU),
        ("elu", nn.ELU),
        ("leaky_relu", nn.LeakyReLU),
        ("sigmoid", nn.Sigmoid),
    ],
)
def test_activation_by_name(name, module):
    assert sum(type(m) is module for m in MLP(2, widths=(3, 3), activation=name).modules()) == 2


def test_an_activation_with_parameters_has_its_own_in_each_layer():
    net = MLP(2, widths=(3, 3), activation=nn.PReLU)
    slopes = [m.weight for m in net.modules() if isinstance(m, nn.PReLU)]
    assert len(slopes) == 2
    assert slopes[0] is not slopes[1]


def test_unknown_activation_names_the_nearest():
    with pytest.raises(ValueError, match=r"'rellu'.* did you mean 'relu'"):
        MLP(2, activation="rellu")


def test_an_activation_instance_is_refused():
    with pytest.raises(TypeError, match=r"pass the class"):
        MLP(2, activation=nn.Tanh())


def test_dropout_acts_in_train_mode_only_and_at_its_rate():
    net = MLP(1, widths=(4000,), dropout=0.25, activation="identity")
    assert isinstance(net.layers[2], nn.Dropout)
    hidden = nn.Sequential(*list(net.layers)[:3])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        dropped = (hidden(torch.ones(1, 1)) == 0).double().mean().item()
    # Binomial: sd of the share is sqrt(p (1 - p) / 4000) = 0.0068.
    assert abs(dropped - 0.25) < 4 * 0.0068
    net.eval()
    assert torch.equal(net(torch.ones(1, 1)), net(torch.ones(1, 1)))


def test_without_dropout_there_is_no_dropout_layer():
    assert not any(isinstance(m, nn.Dropout) for m in MLP(2).modules())


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"in_features": 0}, ValueError, "in_features"),
        ({"in_features": 2.0}, TypeError, "in_features"),
        ({"in_features": 2, "widths": (3, 0)}, ValueError, r"widths\[1\]"),
        ({"in_features": 2, "widths": 50}, TypeError, r"widths: expected a sequence .* got 50"),
        ({"in_features": 2, "num_outputs": -1}, ValueError, "num_outputs"),
        ({"in_features": 2, "dropout": 1.0}, ValueError, "dropout"),
    ],
)
def test_sizes_out_of_range_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        MLP(**options)
