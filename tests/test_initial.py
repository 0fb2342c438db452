import math

import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn.initial import CUT_VARIANCE, RULES, initialise
from bayesnn.rng import generator

FAN_IN, FAN_OUT = 300, 200
VARIANCES = {
    "kaiming_normal": 2 / FAN_IN,
    "kaiming_uniform": 2 / FAN_IN,
    "xavier_normal": 2 / (FAN_IN + FAN_OUT),
    "xavier_uniform": 2 / (FAN_IN + FAN_OUT),
    "trunc_normal": 1 / FAN_IN,
}
X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()


def model_of(net, prior=None):
    return bnn.BayesianModel(net, prior, bnn.likelihoods.Categorical())


def fresh(net, rule, seed=0, prior=None):
    model = model_of(net, prior)
    initialise(model, rule, generator(seed))
    return model.net


@pytest.mark.parametrize("rule", RULES)
def test_the_variance_is_that_of_the_rules_formula(rule):
    """60,000 weights: the standard error of a variance is at most sqrt(2 / n) of it, 0.6 %; four are allowed."""
    net = fresh(nn.Linear(FAN_IN, FAN_OUT), rule).requires_grad_(False)
    n, variance = FAN_IN * FAN_OUT, VARIANCES[rule]
    assert float(net.weight.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / n))
    assert abs(float(net.weight.mean())) < 4 * math.sqrt(variance / n)
    bound = {"trunc_normal": 2 * math.sqrt(variance / CUT_VARIANCE)}.get(rule, math.sqrt(3 * variance))
    assert (float(net.weight.abs().max()) <= bound) == (rule.endswith("uniform") or rule == "trunc_normal")
    assert not net.bias.any()


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Conv2d(40, 60, 5), 40 * 25),
        (nn.Conv2d(40, 80, 5, groups=4), 10 * 25),
        (nn.ConvTranspose2d(40, 60, 5), 40 * 25),  # stored (in, out, ...): torch's own fans change places here
        (nn.GRU(64, 128), None),
    ],
)
def test_convolutions_count_what_a_unit_is_wired_to(layer, fan_in):
    net = fresh(layer, "kaiming_normal")
    weight = next(p for p in net.parameters() if p.dim() > 1)
    fan_in = fan_in or weight.shape[1]
    assert float(weight.var()) == pytest.approx(2 / fan_in, rel=4 * math.sqrt(2 / weight.numel()))


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_orthogonal_rows_or_columns(shape):
    weight = fresh(nn.Linear(shape[1], shape[0]), "orthogonal").weight.detach()
    square = weight @ weight.T if shape[0] < shape[1] else weight.T @ weight
    torch.testing.assert_close(square, torch.eye(30), atol=1e-5, rtol=0)


def test_a_draw_of_the_prior_is_one():
    net = fresh(nn.Linear(300, 200), "prior", prior=bnn.priors.Normal(2.0, loc=1.0))
    assert float(net.weight.mean()) == pytest.approx(1.0, abs=4 * 2 / math.sqrt(60_000))
    assert float(net.weight.std()) == pytest.approx(2.0, rel=4 / math.sqrt(2 * 60_000))
    assert float(net.bias.std()) == pytest.approx(2.0, rel=4 / math.sqrt(2 * 200))


def test_norms_embeddings_and_frozen_weights_stay_as_they_are():
    net = nn.ModuleDict({"e": nn.Embedding(50, 40), "n": nn.LayerNorm(8), "b": nn.BatchNorm1d(8), "l": nn.Linear(8, 8)})
    net["l"].weight.requires_grad_(False)
    before = net["l"].weight.detach().clone()
    after = fresh(net, "xavier_uniform")
    assert float(after["e"].weight.std()) == pytest.approx(1.0, abs=0.1)
    assert bool((after["n"].weight == 1).all())
    assert bool((after["b"].weight == 1).all())
    assert torch.equal(after["l"].weight, before)
    assert not after["l"].bias.any()


def start_of(init, **options):
    """Each chain's weights as fit starts from them: a step so small that it changes nothing that is seen."""
    posterior = bnn.fit(
        model_of(nn.Linear(3, 2)), (X, Y), bnn.MAP(lr=1e-30), epochs=1, init=init, progress=False, **options
    )
    return [source.last()["net.weight"] for source in posterior.sources]


def test_every_chain_of_a_fit_has_weights_of_its_own_and_a_seed_is_enough():
    one, two = start_of("kaiming_normal", chains=2), start_of("kaiming_normal", chains=2)
    assert not torch.equal(*one)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.equal(start_of("kaiming_normal")[0], one[0])


@pytest.mark.parametrize("rule", ["fresh", "orthogonal", "prior", "kaiming_uniform"])
def test_the_global_stream_is_left_as_it_was(rule):
    model, before = model_of(nn.Linear(3, 2)), torch.random.get_rng_state()
    initialise(model, rule, generator(0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_default_is_fresh_to_the_bit():
    assert torch.equal(start_of("default")[0], start_of("fresh")[0])


def test_a_function_of_the_net():
    def start(net):
        nn.init.normal_(net.weight, 5.0, 0.1)

    one, two = start_of(start, chains=2)
    assert float(one.mean()) == pytest.approx(5.0, abs=0.3)
    assert not torch.equal(one, two)


def test_particles_start_by_the_rule_as_well():
    start = {"epochs": 1, "init": "orthogonal", "progress": False}
    found = bnn.fit(model_of(nn.Linear(3, 2)), (X, Y), bnn.SVGD(particles=3, lr=1e-30), **start)
    for weight in found.sources[0].tensors()["net.weight"]:
        torch.testing.assert_close(weight @ weight.T, torch.eye(2), atol=0.15, rtol=0)  # jitter of 0.01


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="Unknown init 'kaiming': did you mean"):
        start_of("kaiming")
