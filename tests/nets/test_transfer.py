import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayesnn import nets
from bayesnn.data import Data, Standardize

NETS = {
    "LeNet5": (lambda: nets.LeNet5((1, 8, 8), 10), "dense3"),
    "MLP of one width": (lambda: nets.MLP(64, (10, 10), 10), "layers.4"),
    "ConvNet": (lambda: nets.ConvNet((1, 8, 8), 10, channels=(4, 4), dense=(), global_average=True), "head"),
    "ResNet": (lambda: nets.ResNet(20, in_shape=(1, 8, 8), num_outputs=10), "head"),
    "linear": (lambda: nn.Linear(64, 10), ""),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1)), "2"),
    "transposed": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 10, 3, groups=2)), "1"),
}
X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def weights_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("name", NETS)
def test_the_head_is_new_and_the_rest_is_the_same_to_the_bit(name):
    make, _ = NETS[name]
    net = make()
    before, rows = weights_of(net), X if name != "linear" else X.flatten(1)
    changed = nets.replace_head(net, 4)
    assert changed(rows).shape[1] == 4
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())  # not touched
    after = weights_of(changed)
    new = [key for key in after if after[key].shape != before[key].shape]
    assert [key.rpartition(".")[2] for key in new] == ["weight", "bias"]
    assert len({key.rpartition(".")[0] for key in new}) == 1
    assert all(torch.equal(after[key], before[key]) for key in after if key not in new)


def test_a_head_of_as_many_outputs_is_drawn_anew_as_its_layer_draws_it():
    net, before = nets.LeNet5((1, 8, 8), 10), torch.random.get_rng_state()
    one, again, other = (nets.replace_head(net, 10, seed=seed).dense3 for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.weight, again.weight)
    assert not torch.equal(one.weight, net.dense3.weight)
    assert not torch.equal(one.weight, other.weight)
    assert float(one.weight.detach().abs().max()) <= 84**-0.5  # nn.Linear's own range, 1 / sqrt(fan-in)
    assert nets.replace_head(net, 3).num_outputs == 3


def test_the_shape_of_an_input_tells_the_last_call_from_the_last_registered():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.trunk = nn.Linear(5, 3), nn.Linear(4, 5)

        def forward(self, x):
            return self.head(self.trunk(x))

    assert nets.replace_head(Backwards(), 2, in_shape=(4,)).head.out_features == 2
    assert nets.replace_head(Backwards(), 2).trunk.out_features == 2  # nothing tells better
    assert nets.replace_head(Backwards(), 2, layer="head").head.out_features == 2


class Heads(nn.Module):
    """Two heads side by side: which of them is meant?"""

    def __init__(self, first=3, second=3):
        super().__init__()
        self.trunk, self.first, self.second = nn.Linear(4, 5), nn.Linear(5, first), nn.Linear(5, second)

    def forward(self, x):
        h = self.trunk(x)
        return torch.cat((self.first(h), self.second(h)), 1)


class Summed(nn.Module):
    """A wide part beside a deep one, or a skip around the head: no layer makes the outputs alone."""

    def __init__(self, skip=None):
        super().__init__()
        self.wide = nn.Linear(4, 3) if skip is None else skip
        self.trunk, self.deep = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.wide(x) + self.deep(self.trunk(x).relu())


class Words(nn.Module):
    """Of integers; ``skip`` adds a part of the embedding to what the head says."""

    def __init__(self, skip):
        super().__init__()
        self.embed, self.head, self.skip = nn.Embedding(9, 4), nn.Linear(4, 2), skip

    def forward(self, x):
        h = self.embed(x).mean(1)
        return self.head(h) + (h[:, :2] if self.skip else 0)


def tied():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    return net


def twice():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (Heads(), {}, r"got 'second' and 'first' of 3 outputs each: name it, layer=, one of trunk, first, second"),
        (Heads(2, 3), {"in_shape": (4,)}, "got 'second' of 3 outputs in a net of 5"),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), {}, "got '1', a BatchNorm1d, as the last one with weights"),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU()), {"layer": "1"}, "got '1', a ReLU"),
        (nn.Sequential(nn.Linear(3, 4)), {"layer": "fc"}, "Unknown layer 'fc': Known: 0"),
        (Summed(), {"in_shape": (4,)}, "got 'deep' and a way from inputs to outputs beside it: name it, layer="),
        (Summed(lambda x: x[:, :3]), {"in_shape": (4,)}, "got 'deep' and a way"),
        (twice(), {"in_shape": (3,)}, "which is called more than once"),
        (tied(), {"layer": "1"}, "shares it with '0': untie"),
        (nn.Sequential(nn.Linear(3, 4)), {"in_shape": (5,)}, r"takes inputs of shape \(batch, 5\), got from the net"),
        (nn.ConvTranspose2d(4, 4, 1, groups=2), {"num_outputs": 3}, "divisible by the 2 groups"),
        (nn.Linear(3, 4), {"num_outputs": 0}, "num_outputs to be an integer >= 1"),
        (nn.Flatten(), {}, "got a net that calls none"),
    ],
)
def test_what_is_ambiguous_is_refused_in_one_line(net, options, message):
    with pytest.raises(ValueError, match=message) as error:
        nets.replace_head(net, **{"num_outputs": 2, **options})
    assert "\n" not in str(error.value)


def trained(net):
    return [name for name, p in net.named_parameters() if p.requires_grad]


def test_freeze_and_unfreeze_by_name_pattern_and_predicate():
    net = nets.LeNet5((1, 8, 8), 10)
    head = ["dense3.weight", "dense3.bias"]
    assert trained(nets.freeze(net)) == []
    assert trained(nets.freeze(net, but="last-layer")) == head
    assert trained(nets.freeze(net, ["conv*", "dense1", "dense2.*"])) == head
    assert trained(nets.freeze(net, lambda name, p, module: isinstance(module, nn.Conv2d)))[0] == "dense1.weight"
    frozen = nets.freeze(net)
    assert trained(nets.unfreeze(frozen, "dense3")) == head
    assert trained(nets.unfreeze(frozen, "dense3", but="*.bias")) == head[:1]
    assert trained(frozen) == []
    assert len(trained(net)) == 10  # neither was touched
    with pytest.raises(ValueError, match="Unknown part of the net 'dense9': did you mean"):
        nets.freeze(net, "dense9")
    with pytest.raises(ValueError, match="Expected but= to select a parameter"):
        nets.freeze(net, but=lambda *_: False)


def test_features_are_what_the_head_makes_the_outputs_of():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    data = Data(X, torch.arange(6) % 3, "six", ("a", "b", "c"), inputs=Standardize(torch.zeros(()), torch.ones(())))
    found = nets.features(net, data, batch_size=4)
    assert (found.x.shape, found.name, found.classes, found.inputs) == ((6, 5), "six", ("a", "b", "c"), None)
    assert torch.equal(found.y, data.y)
    assert not found.x.requires_grad
    assert net.training
    assert int(net[3].num_batches_tracked) == 0
    torch.testing.assert_close(net[4](found.x), net.eval()(X))
    assert nets.features(net, data, layer="2").x.shape == (6, 64)


def test_features_of_a_head_that_is_called_by_keyword_and_of_a_pair():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(input=self.trunk(x))

    net, x = Named(), torch.rand(6, 4)
    found = nets.features(net, (x.double().numpy(), [0, 1, 2, 0, 1, 2]), batch_size=4)
    assert (found.y.dtype, found.y.tolist()) == (torch.int64, [0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(found.x, net.trunk(x).detach())
    with pytest.raises(TypeError, match=r"Expected rows in memory, .* or \(x, y\), got DataLoader: of a loader"):
        nets.features(net, DataLoader(TensorDataset(x, x)))


def test_features_ask_for_a_layer_that_is_called_once_with_all_rows():
    data = Data(torch.rand(6, 3), torch.zeros(6))
    with pytest.raises(ValueError, match="Unknown layer 'nowhere'"):
        nets.features(nn.Linear(3, 1), data, layer="nowhere")
    with pytest.raises(ValueError, match=r"'0' to be called once with 6 rows, got \(6, 3\), \(6, 3\): name another"):
        nets.features(twice(), data, layer="0")


def test_features_of_one_head_of_two_are_refused_unless_it_is_named():
    data = Data(torch.rand(6, 4), torch.zeros(6))
    with pytest.raises(ValueError, match="got 'deep' and a way from inputs to outputs beside it"):
        nets.features(Summed(), data)
    assert nets.features(Summed(), data, layer="deep").x.shape == (6, 5)
    words = Data(torch.arange(12).view(6, 2) % 9, torch.zeros(6))
    assert nets.features(Words(skip=False), words).x.shape == (6, 4)
    with pytest.raises(ValueError, match="got 'head' and a way"):
        nets.features(Words(skip=True), words)


def test_what_comes_after_the_head_for_all_rows_alike_is_no_second_way():
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.temperature, self.head = 4, nn.Parameter(torch.ones(())), nn.Linear(4, 3)

        def forward(self, x):
            return (self.head(x) / self.temperature).log_softmax(1)

    assert nets.replace_head(Tempered(), 2).head.out_features == 2
