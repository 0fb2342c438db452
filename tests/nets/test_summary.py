import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn import nets


def test_summary_counts_what_the_lectures_count():
    assert nets.summary(nets.MLP(3, (4, 3), 1), (3,)).parameters == 35
    for options, side in (({"kernel_size": 5, "pool": 4}, 23), ({"kernel_size": 3, "stride": 3, "pool": 8}, 4)):
        net = nets.ConvNet((3, 96, 96), 2, channels=(7,), padding="valid", dense=(), **options)
        shapes = {layer.name: layer.shape for layer in nets.summary(net, (3, 96, 96)).layers}
        assert shapes["blocks.0.pool"] == (7, side, side)


def test_layers_are_those_that_were_called():
    found = nets.summary(nets.LeNet5(), (1, 28, 28))
    assert [layer.name for layer in found.layers] == [
        "conv1", "act1", "conv2", "act2", "dense1", "act3", "dense2", "act4", "dense3"
    ]  # fmt: skip
    conv = found.layers[2]
    assert (conv.kind, conv.shape, conv.parameters) == ("Conv2d", (16, 10, 10), 16 * 6 * 25 + 16)
    assert conv.multiply_adds == 100 * (16 * 6 * 25 + 16)
    assert found.parameters == found.trainable == 61_706
    assert found.multiply_adds == sum(layer.multiply_adds for layer in found.layers)
    assert str(found).splitlines()[-1].split() == ["61,706", f"{found.multiply_adds:,}"]


def test_of_a_bayesian_model_the_priors_are_there_and_what_a_draw_takes():
    net = nets.MLP(3, (4,), 2)
    net.layers[0].weight.requires_grad_(False)
    model = bnn.BayesianModel(net, bnn.priors.ByName({"layers.2.bias": None}), bnn.likelihoods.Normal())
    found = nets.summary(model, (3,))
    assert {name: prior for name, _, prior in found.priors} == {
        "layers.0.bias": "Normal(0, 1)", "layers.2.weight": "Normal(0, 1)", "layers.2.bias": "deterministic",
        "likelihood.log_scale": found.priors[-1][2],
    }  # fmt: skip
    assert found.trainable == 4 + 8 + 2
    assert found.variational == 2 * (4 + 8 + 1)  # the scale of the noise as well
    assert found.draw_bytes == 4 * (4 + 8 + 2 + 1)
    assert "mean-field q: 26 numbers; one draw: 60 bytes" in str(found)


def test_nothing_is_changed_and_a_wrong_shape_is_one_line():
    net = nets.ResNet(20, norm="batch").train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    stream = torch.get_rng_state()
    nets.summary(net, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), stream)
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match=r"shape \(3, 30, 32\) and torch.float32, got: ResNet: expected images"):
        nets.summary(net, (3, 30, 32))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.shift = nn.Parameter(torch.zeros(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1) + self.shift)


def test_parameters_beside_the_modules_inside_are_listed_and_not_taken_for_no_work():
    found = nets.summary(Attentive(), (5, 4))
    rows = {layer.kind: (layer.parameters, layer.multiply_adds) for layer in found.layers}
    assert rows == {"Attentive": (4, None), "MultiheadAttention": (4 * 12 + 12 + 16 + 4, None), "Linear": (10, 10)}
    assert sum(layer.parameters for layer in found.layers) == found.parameters


def test_each_part_keeps_its_mode():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[1].eval()
    nets.summary(net, (3,))
    assert [module.training for module in net] == [True, False, True]


def test_nets_of_integers_say_so_and_a_look_up_multiplies_nothing():
    net = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(20, 2))
    found = nets.summary(net, (5,), dtype=torch.long)
    rows = [(layer.kind, layer.shape, layer.parameters, layer.multiply_adds) for layer in found.layers]
    assert rows == [("Embedding", (5, 4), 200, 0), ("Flatten", (20,), 0, 0), ("Linear", (2,), 42, 42)]
    assert found.multiply_adds == 42
    with pytest.raises(ValueError, match=r"shape \(5,\) and torch.float32, got: .*: give in_shape= and dtype="):
        nets.summary(net, (5,))


def test_a_linear_layer_works_at_each_position_of_a_sequence():
    found = nets.summary(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), (5, 4))
    assert [layer.multiply_adds for layer in found.layers] == [5 * (4 * 6 + 6), 5 * (6 * 2 + 2)]
