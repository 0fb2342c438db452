import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bayesnn as bnn
from bayesnn import stacked
from bayesnn.likelihoods import Categorical, HeteroscedasticNormal, Normal, StudentT
from bayesnn.source import Draws
from bayesnn.stacked import NotStackableError, SpentError, Stacked

DRAWS, ROWS, FEATURES = 5, 7, 4


class Net(nn.Module):
    """Two layers, of which ``rule`` makes the outputs."""

    def __init__(self, rule):
        super().__init__()
        self.a, self.b, self.rule = nn.Linear(FEATURES, 3), nn.Linear(3, 3), rule
        self.alpha = nn.Parameter(torch.ones(()))
        self.register_buffer("constant", torch.ones(3))
        self.kept = [self.a.weight]

    def forward(self, x):
        return self.rule(self, x)


def tied():
    net = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, 2))
    net[2].weight = net[0].weight
    return net


def frozen(*names):
    net = bnn.nets.MLP(FEATURES, (6, 5), 2)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(names))
    return net


STACKABLE = {
    "MLP": lambda: bnn.nets.MLP(FEATURES, (6, 5), 3),
    "MLP, tanh": lambda: bnn.nets.MLP(FEATURES, (6,), 2, activation="tanh"),
    "dropout": lambda: bnn.nets.MLP(FEATURES, (6,), 2, dropout=0.5),
    "one layer": lambda: nn.Linear(FEATURES, 2),
    "no bias": lambda: nn.Sequential(nn.Linear(FEATURES, 3, bias=False), nn.GELU(), nn.Linear(3, 1, bias=False)),
    "activations": lambda: nn.Sequential(
        *(nn.Linear(FEATURES, 5), nn.SiLU(), nn.Linear(5, 5), nn.ELU(), nn.Linear(5, 5), nn.Softplus()),
        *(nn.Linear(5, 5), nn.LeakyReLU(0.1), nn.Linear(5, 2), nn.Sigmoid()),
    ),
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 3), nn.Flatten(), nn.Linear(3, 2)),
    "skips": lambda: Net(lambda net, x: (h := torch.tanh(net.a(x))) + 0.5 * net.b(h) - h * h / 3),
    "a layer before and after its activation": lambda: Net(lambda net, x: torch.relu(h := net.a(x)) + net.b(h)),
    "another view of a layer": lambda: Net(lambda net, x: (f := torch.flatten(h := net.a(x), 1)) + torch.relu(h) - f),
    "activations of activations": lambda: Net(lambda net, x: net.b(torch.sigmoid(F.leaky_relu(net.a(x), 0.1).tanh()))),
    "by name": lambda: Net(lambda net, x: F.linear(input=x, weight=net.a.weight, bias=net.a.bias)),
    "a weight kept elsewhere": lambda: Net(lambda net, x: F.linear(x, net.kept[0])),
    "shapes": lambda: Net(lambda net, x: net.a(x) * (x.shape[-1] + x.dim() + len(net.a(x).shape))),
    "weights in common": tied,
    "first layer fixed": lambda: frozen("layers.0"),
    "all but the last fixed": lambda: frozen("layers.0", "layers.2"),
}

REFUSED = {
    "rows together": lambda net, x: net.a(x) - net.a(x).mean(0),
    "classes together": lambda net, x: net.a(x).softmax(1),
    "a bare parameter": lambda net, x: net.a(x) * net.alpha,
    "a buffer": lambda net, x: net.a(x) + net.constant,
    "a view of a weight": lambda net, x: F.linear(x, net.a.weight * 2),
    "in place": lambda net, x: F.relu(net.a(x), inplace=True),
    "elements": lambda net, x: net.a(x)[:, :1],
    "layers of two widths": lambda net, x: net.a(x) + F.linear(x, net.a.weight[:1]),
    "transposed": lambda net, x: net.b(net.a(x).T[:3].T),
    "dropout that is on": lambda net, x: F.dropout(net.a(x), 0.5, training=True),
    "flatten of all": lambda net, x: net.a(x.flatten().view(x.shape)),
    "no weight": lambda net, x: x * 2,
    "new numbers": lambda net, x: net.a(x) + torch.ones(3),
}


def states_of(net, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(DRAWS, *p.shape, generator=stream, dtype=p.dtype)
        for name, p in net.named_parameters()
        if p.requires_grad
    }


def inputs(rows=ROWS, dtype=torch.float64):
    return torch.randn(rows, FEATURES, generator=torch.Generator().manual_seed(9), dtype=dtype)


@pytest.mark.parametrize("name", STACKABLE)
def test_all_draws_at_once_are_each_draw_by_itself(name):
    net, x = STACKABLE[name]().double().eval(), inputs()
    states = states_of(net)
    with torch.no_grad():
        found = Stacked(net, states).outputs(net, x)
        for draw in range(DRAWS):
            for key, parameter in net.named_parameters():
                if key in states:
                    parameter.copy_(states[key][draw])
            torch.testing.assert_close(found[draw], net(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STACKABLE)
def test_activations_written_over_their_layers_change_nothing(name):
    """In memory that the pass before has used; a net that uses a layer's outputs again is noticed."""
    net, memory = STACKABLE[name]().double().eval(), {}
    states = states_of(net)
    with torch.no_grad():
        for x in (inputs(), inputs().flip(0)):
            beside = Stacked(net, states).outputs(net, x)
            if name == "a layer before and after its activation":
                with pytest.raises(SpentError):
                    Stacked(net, states, memory, in_place=True).outputs(net, x)
            else:
                over = Stacked(net, states, memory, in_place=True).outputs(net, x)
                torch.testing.assert_close(over, beside, rtol=0, atol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_mix_rows_or_draws_is_refused(name):
    net = Net(REFUSED[name]).double().eval()
    with torch.no_grad(), pytest.raises(NotStackableError):
        Stacked(net, states_of(net)).outputs(net, inputs())


def test_states_of_buffers_are_refused():
    with pytest.raises(NotStackableError, match="constant"):
        Stacked(Net(None), {"constant": torch.ones(DRAWS, 3)})


def never(size):
    raise AssertionError("a draw was taken")
    yield


@pytest.mark.parametrize("net", [bnn.nets.LeNet5((1, 8, 8)), nn.Sequential(nn.Linear(600, 1000), nn.Linear(1000, 2))])
def test_draws_that_would_fill_the_memory_are_not_stacked(net):
    """Convolutions have no product of all draws, and the weights of a block count as what it makes of the inputs."""
    x = torch.zeros(2, 1, 8, 8) if isinstance(net, bnn.nets.LeNet5) else torch.zeros(2, 600)
    model = bnn.BayesianModel(net, likelihood=Categorical())
    with pytest.raises(NotStackableError):
        stacked.params_of_draws(model, never, [x])


class Sorted(Normal):
    """Looks at values, which vmap cannot."""

    def params(self, outputs):
        assert bool(outputs.isfinite().all())
        return super().params(outputs)


CALLS = {
    "Normal": (Normal, 1, 2),
    "Normal, fixed": (lambda: Normal(scale=0.1), 1, 2),
    "heteroscedastic": (HeteroscedasticNormal, 2, 2),
    "StudentT": (StudentT, 1, 2),
    "Categorical": (Categorical, 3, 2),
    "one that vmap cannot take": (Sorted, 1, None),
}


class TestPredict:
    """Answers are those of a pass for each draw, to rounding, and the passes are few where that can be had."""

    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_answers(self, name, dtype, monkeypatch):
        likelihood, outputs, fewest = CALLS[name]
        model = bnn.BayesianModel(bnn.nets.MLP(FEATURES, (6,), outputs), likelihood=likelihood()).to(dtype)
        states = [states_of(model, seed) for seed in (1, 2)]
        posterior = bnn.Posterior(model, [Draws(each) for each in states], num_data=10)
        x, calls = inputs(dtype=dtype), []
        monkeypatch.setattr(bnn.nets.MLP, "forward", counting(bnn.nets.MLP.forward, calls))
        at_once = posterior.predict(x, batch_size=4)
        mean, epistemic, draws = at_once.mean, at_once.epistemic, at_once.draws
        passes = len(calls)
        monkeypatch.setattr(stacked, "STACK_BYTES", (0, 0))
        calls.clear()
        alone = posterior.predict(x, batch_size=4)
        close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(mean, alone.mean, **close)
        torch.testing.assert_close(epistemic, alone.epistemic, **close)
        torch.testing.assert_close(draws, alone.draws, **close)
        assert len(calls) >= 2 * DRAWS * 2
        # Each chain in two pieces, and a row or two to look at the outputs' form.
        assert fewest is None or passes <= 2 * fewest + 4

    def test_a_layer_that_is_used_again(self):
        """Then activations are written beside it."""
        net = STACKABLE["a layer before and after its activation"]()
        model = bnn.BayesianModel(net, likelihood=Categorical()).double()
        states = states_of(model)
        found = bnn.Posterior(model, [Draws(states)], 10).predict(inputs()).draws
        for draw in range(DRAWS):
            alone = bnn.Posterior(model, [Draws({key: v[draw : draw + 1] for key, v in states.items()})], 10)
            torch.testing.assert_close(found[:, draw], alone.predict(inputs()).draws[:, 0])

    def test_what_a_hook_keeps_is_not_written_over(self, monkeypatch):
        monkeypatch.setattr(stacked, "STACK_BYTES", (2 * ROWS * 3 * 8, 0))  # two draws at a time
        kept = []
        model = bnn.BayesianModel(bnn.nets.MLP(FEATURES, (3,), 1), likelihood=Normal()).double()
        model.net.layers[0].register_forward_hook(lambda module, x, y: kept.append(y))
        states = states_of(model)
        bnn.Posterior(model, [Draws(states)], 10).predict(inputs()).mean  # noqa: B018
        found = torch.cat([outputs for outputs in kept if outputs.dim() == 3])
        assert len(found) == DRAWS
        for draw in range(DRAWS):
            w, b = (states[f"net.layers.0.{name}"][draw] for name in ("weight", "bias"))
            torch.testing.assert_close(found[draw], F.linear(inputs(), w, b))

    def test_blocks_of_draws(self, monkeypatch):
        model = bnn.BayesianModel(bnn.nets.MLP(FEATURES, (6,), 1), likelihood=Normal()).double()
        posterior = bnn.Posterior(model, [Draws(states_of(model))], num_data=10)
        whole = posterior.predict(inputs()).draws
        monkeypatch.setattr(stacked, "STACK_BYTES", (2 * ROWS * 6 * 8, 0))  # two at a time, and one that is left
        torch.testing.assert_close(posterior.predict(inputs()).draws, whole, rtol=1e-12, atol=1e-12)


def counting(forward, calls):
    def counted(self, x):
        calls.append(1)
        return forward(self, x)

    return counted
