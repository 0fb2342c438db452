import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from bayesnn import BayesianModel, likelihoods, nets, priors

WEIGHTS = torch.tensor([[-2.5, -0.3, 0.0], [0.01, 0.7, 4.0]], dtype=torch.float64)


def scipy_mixture(w, pi, wide, narrow):
    return np.logaddexp(np.log(pi) + stats.norm(0, wide).logpdf(w), np.log1p(-pi) + stats.norm(0, narrow).logpdf(w))


CLOSED_FORMS = [
    (priors.Normal(0.7), stats.norm(0, 0.7).logpdf),
    (priors.Normal(2.0, loc=-1.5), stats.norm(-1.5, 2.0).logpdf),
    (priors.Laplace(0.4), stats.laplace(0, 0.4).logpdf),
    (priors.StudentT(df=2.5, scale=1.7), stats.t(2.5, 0, 1.7).logpdf),
    (priors.ScaleMixture(0.25, 1.5, 0.1), lambda w: scipy_mixture(w, 0.25, 1.5, 0.1)),
    # A module without a width of its own: the weight's second axis is its fan-in, 3 here.
    (priors.Layerwise("fan-in", gain=2.0), stats.norm(0, 2 / math.sqrt(3)).logpdf),
]


@pytest.mark.parametrize(("prior", "logpdf"), CLOSED_FORMS, ids=lambda value: type(value).__name__)
def test_log_density_is_the_sum_of_the_closed_form(prior, logpdf):
    distribution = prior("weight", WEIGHTS, nn.Linear(3, 2))
    assert distribution.event_shape == WEIGHTS.shape
    assert distribution.batch_shape == ()
    # Rounding of six float64 terms.
    assert float(distribution.log_prob(WEIGHTS)) == pytest.approx(logpdf(WEIGHTS.numpy()).sum(), rel=1e-12)


@pytest.mark.parametrize("prior", [prior for prior, _ in CLOSED_FORMS], ids=lambda prior: type(prior).__name__)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 2, 2)])
def test_samples_and_densities_have_the_parameters_shape_and_dtype(prior, shape):
    parameter = torch.zeros(shape, dtype=torch.float64)
    distribution = prior("p", parameter, nn.Linear(1, 1))
    sample = distribution.sample()
    assert sample.shape == shape
    assert sample.dtype == torch.float64
    assert distribution.log_prob(sample).shape == ()


def scale_of(prior, module, name="weight"):
    distribution = prior(name, getattr(module, name), module)
    scales = distribution.base_dist.scale
    assert bool((scales == scales.flatten()[0]).all())
    return float(scales.flatten()[0])


# (module, connections into one output unit, connections out of one input unit), counted by hand.
FANS = [
    (nn.Linear(5, 7), 5, 7),
    (nn.Conv2d(4, 6, 3), 4 * 9, 6 * 9),
    (nn.Conv2d(4, 6, (3, 5), groups=2), 2 * 15, 3 * 15),
    (nn.Conv1d(8, 8, 3, groups=8), 3, 3),
    (nn.ConvTranspose2d(4, 6, 3), 4 * 9, 6 * 9),
    (nn.ConvTranspose2d(4, 6, 3, groups=2), 2 * 9, 3 * 9),
    (nn.Bilinear(2, 3, 5), 6, None),
]


@pytest.mark.parametrize(("module", "fan_in", "fan_out"), FANS, ids=lambda value: str(value))
def test_layerwise_scales_follow_the_wiring(module, fan_in, fan_out):
    assert scale_of(priors.Layerwise("fan-in"), module) == pytest.approx(fan_in**-0.5, rel=1e-6)
    assert scale_of(priors.Layerwise("kaiming", gain=3.0), module) == pytest.approx(3 * (2 / fan_in) ** 0.5, rel=1e-6)
    if fan_out is not None:
        assert scale_of(priors.Layerwise("xavier"), module) == pytest.approx((2 / (fan_in + fan_out)) ** 0.5, rel=1e-6)
    assert scale_of(priors.Layerwise(bias_scale=0.2), module, "bias") == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize(
    "module",
    [nn.Embedding(10, 3), nn.EmbeddingBag(10, 3), nn.LayerNorm((4, 5)), nn.LayerNorm(4), nn.GroupNorm(2, 4)],
    ids=str,
)
def test_layerwise_gives_embeddings_and_norms_the_scale_of_biases(module):
    assert scale_of(priors.Layerwise(bias_scale=0.3), module) == pytest.approx(0.3, rel=1e-6)


def test_prior_variance_of_a_wide_layers_outputs_does_not_depend_on_its_width():
    for width in (10, 1000):
        module = nn.Linear(width, 1, bias=False)
        scale = scale_of(priors.Layerwise(), module)
        assert width * scale**2 == pytest.approx(1.0, rel=1e-5)  # Var(w . x) at x = (1, ..., 1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def model_with(prior):
    return BayesianModel(Net(), prior, likelihoods.Categorical())


@pytest.mark.parametrize("prior", [priors.Normal(), priors.Layerwise(), priors.ByName({}), priors.ByType({})])
def test_batch_norm_is_deterministic_by_default(prior):
    model = model_with(prior)
    assert model.deterministic == ["net.features.1.weight", "net.features.1.bias"]
    assert sorted(model.log_priors) == [
        "net.features.0.bias",
        "net.features.0.weight",
        "net.head.bias",
        "net.head.weight",
    ]


def test_norms_of_each_row_on_its_own_are_drawn_and_may_be_about_1():
    net = nets.ResNet(20, (1, 8, 8), 3)
    model = BayesianModel(net, likelihood=likelihoods.Categorical())
    assert model.deterministic == []
    scales = [name for name in model.log_priors if name.endswith(".gamma")]
    assert scales
    about_1 = priors.ByName({"*.gamma": priors.Normal(0.3, loc=1.0)}, default=priors.Layerwise(gain=3.0))
    stated = BayesianModel(net, about_1, likelihoods.Categorical()).log_priors
    for name, prior in model.log_priors.items():
        assert torch.equal(stated[name].mean, prior.mean + (name in scales))


@pytest.mark.parametrize(
    "prior",
    [priors.ByName({"features.1.*": priors.Laplace(0.3)}), priors.ByType({nn.BatchNorm2d: priors.Laplace(0.3)})],
)
def test_batch_norm_gets_a_prior_when_it_is_named(prior):
    model = model_with(prior)
    assert model.deterministic == []
    value = torch.tensor([0.5, -1.0])
    expected = stats.laplace(0, 0.3).logpdf(value.numpy()).sum()
    assert float(model.log_priors["net.features.1.weight"].log_prob(value)) == pytest.approx(expected, rel=1e-6)


def test_by_name_takes_the_first_pattern_that_matches():
    rules = {"head.bias": priors.Normal(9.0), "*.bias": priors.Normal(3.0), "head.*": None}
    model = model_with(priors.ByName(rules, default=priors.Normal(0.5)))
    scales = {name: float(d.base_dist.scale.flatten()[0]) for name, d in model.log_priors.items()}
    assert scales == {
        "net.features.0.weight": 0.5,
        "net.features.0.bias": 3.0,
        "net.features.1.bias": 3.0,
        "net.head.bias": 9.0,
    }
    assert model.deterministic == ["net.features.1.weight", "net.head.weight"]


def test_by_type_takes_the_most_specific_class_by_class_or_by_name():
    class Special(nn.Linear):
        pass

    weight = torch.zeros(2, 2)
    rules = {nn.Module: priors.Normal(1.0), "Linear": priors.Normal(2.0), Special: priors.Normal(3.0)}
    prior = priors.ByType(rules, default=priors.Normal(7.0))
    for module, scale in ((Special(2, 2), 3.0), (nn.Linear(2, 2), 2.0), (nn.Conv2d(2, 2, 1), 1.0)):
        assert float(prior("w", weight, module).base_dist.scale[0, 0]) == scale
    assert (
        float(priors.ByType({"Conv2d": None}, priors.Normal(7.0))("w", weight, nn.Linear(2, 2)).base_dist.scale[0, 0])
        == 7
    )
    assert priors.ByType({"Conv2d": None})("w", weight, nn.Conv2d(2, 2, 1)) is None


def test_rules_take_plain_functions_and_a_default_of_none():
    def wide(name, parameter, module):
        return priors.Normal(8.0)(name, parameter, module)

    model = model_with(priors.ByName({"head.*": wide}, default=None))
    assert sorted(model.log_priors) == ["net.head.bias", "net.head.weight"]
    assert float(model.log_priors["net.head.bias"].base_dist.scale[0]) == 8.0


def test_deterministic_leaves_every_parameter_without_a_prior():
    model = model_with(priors.Deterministic())
    assert not model.log_priors
    assert float(model.log_prior().detach()) == 0.0
    assert len(model.deterministic) == 6


@pytest.mark.parametrize(
    "prior",
    [
        *(prior for prior, _ in CLOSED_FORMS),
        priors.Deterministic(),
        priors.ByName({"a.*": priors.Laplace(2.0), "b": None}, default=priors.ByType({"Linear": priors.StudentT()})),
        priors.ByName({}, default=None),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_config_round_trip_through_json(prior):
    config = json.loads(json.dumps(priors.to_config(prior)))
    assert priors.from_config(config) == prior


def test_by_type_config_writes_classes_by_name():
    prior = priors.ByType({nn.Conv2d: priors.Normal(2.0), "Linear": None})
    again = priors.from_config(json.loads(json.dumps(prior.config())))
    assert again == priors.ByType({"Conv2d": priors.Normal(2.0), "Linear": None})


def test_a_users_own_prior_can_be_written_and_asks_to_be_given_again():
    class Own(priors.Prior):  # no dataclass
        def distribution(self, name, parameter, module):
            return priors.Normal(2.0).distribution(name, parameter, module)

    @dataclass(frozen=True)
    class OwnDataclass(Own):
        size: int = 1

    for own in (lambda name, parameter, module: None, Own(), OwnDataclass(), priors.ByName({"a": Own()})):
        config = json.loads(json.dumps(priors.to_config(own)))
        with pytest.raises(ValueError, match="pass prior="):
            priors.from_config(config)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan, "1", True, None])
@pytest.mark.parametrize(
    "make",
    [
        priors.Normal,
        priors.Laplace,
        priors.StudentT,
        lambda v: priors.StudentT(3.0, v),
        lambda v: priors.ScaleMixture(0.5, v),
        lambda v: priors.ScaleMixture(0.5, 1.0, v),
        lambda v: priors.Layerwise(gain=v),
        lambda v: priors.Layerwise(bias_scale=v),
    ],
)
def test_scales_must_be_positive_and_finite(make, bad):
    with pytest.raises(ValueError, match=r"Expected \w+ > 0 and finite, got .*give a positive number") as error:
        make(bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pi", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_share_of_a_mixture_must_lie_inside_zero_and_one(pi):
    with pytest.raises(ValueError, match=r"Expected pi in \(0, 1\)"):
        priors.ScaleMixture(pi)


def test_unknown_rule_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'kaiming'"):
        priors.Layerwise("kaimin")


def test_a_prior_of_the_wrong_shape_says_how_to_make_it_right():
    import pyro.distributions as dist

    with pytest.raises(ValueError, match=r"event shape \(2, 1, 3, 3\), got \(\): use .expand") as error:
        model_with(lambda name, parameter, module: dist.Normal(0.0, 1.0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prior", "lost"),
    [
        (priors.ByName({"haed.*": None}), "haed"),
        (priors.ByName({"net.features.*": None}), "net.features"),
        (priors.ByType({"Lineer": None}), "Lineer"),
        (priors.ByName({"*": priors.Normal()}, default=priors.ByType({"Lineer": None})), "Lineer"),
    ],
)
def test_a_rule_that_meets_no_parameter_is_named(prior, lost):
    with pytest.warns(UserWarning, match=f"got none for '{lost}"):
        model_with(prior)


def test_an_informative_prior_is_about_what_was_learned_with_a_share_of_the_vague_spread():
    net = Net()
    prior = priors.Informative(net, scale=0.2, default=priors.Layerwise(gain=2.0, bias_scale=0.5))
    model = model_with(prior)
    value = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    mean = net.features[0].weight.detach()
    expected = stats.norm(mean.numpy(), 0.2 * 2.0 / 3.0).logpdf(value.numpy()).sum()  # fan-in 9
    assert float(model.log_priors["net.features.0.weight"].log_prob(value)) == pytest.approx(expected, rel=1e-5)
    assert float(model.log_priors["net.head.bias"].base_dist.scale[0]) == pytest.approx(0.1)
    assert model.deterministic == ["net.features.1.weight", "net.features.1.bias"]  # BatchNorm's, as under any prior
    before = mean.clone()
    net.features[0].weight.data.zero_()  # trained further: its prior stays
    assert torch.equal(prior.mean["features.0.weight"], before)
    assert repr(prior) == f"Informative(scale=0.2, default={prior.default!r})"


def test_an_informative_prior_leaves_what_it_does_not_name_to_the_default():
    state = {name: value for name, value in Net().state_dict().items() if not name.startswith("head")}
    model = model_with(priors.Informative(state, 0.1, priors.ByName({"head.bias": None}, default=priors.Normal(3.0))))
    assert float(model.log_priors["net.head.weight"].base_dist.scale[0, 0]) == 3.0
    assert float(model.log_priors["net.features.0.weight"].base_dist.scale.flatten()[0]) == pytest.approx(0.3)
    assert "net.head.bias" not in model.log_priors


def test_an_informative_prior_about_another_posterior_takes_its_spread_weight_by_weight():
    scale = {"weight": torch.tensor([[0.1, 0.2]]), "bias": torch.tensor([0.3])}
    mean = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}
    prior = priors.Informative(mean, 10.0, priors.Independent(mean, scale, {}))
    found = prior("weight", torch.zeros(1, 2), nn.Linear(2, 1)).base_dist
    torch.testing.assert_close(found.scale, torch.tensor([[1.0, 2.0]]))
    assert torch.equal(found.loc, mean["weight"])


def test_rules_about_another_posterior_keep_what_it_says_of_the_noise():
    mean = spread = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    before = priors.Independent(mean, spread, {"log_scale": (torch.tensor(-2.0), torch.tensor(0.1))})
    rules = priors.ByName({"bias": priors.Normal()}, default=before)
    for prior in (priors.Informative(mean, 0.5, before), rules, priors.ByType({"Conv2d": priors.Normal()}, rules)):
        model = BayesianModel(nn.Linear(2, 1), prior, likelihoods.Normal())
        assert float(model.log_priors["likelihood.log_scale"].mean) == -2.0
        fixed = BayesianModel(nn.Linear(2, 1), prior, likelihoods.Normal(scale=0.1))
        assert torch.isfinite(fixed.log_joint(torch.zeros(3, 2), torch.zeros(3)))


def test_an_informative_prior_says_what_it_cannot_be_about():
    with pytest.raises(ValueError, match=r"mean of shape \(2, 2\) for 'weight', got \(1, 2\): give that layer another"):
        priors.Informative({"weight": torch.zeros(1, 2)})("weight", torch.zeros(2, 2), nn.Linear(2, 2))
    for default in (priors.Laplace(), priors.HierarchicalNormal(), None):
        with pytest.raises(ValueError, match="a default prior that is Normal for 'weight'"):
            priors.Informative({"weight": torch.zeros(2, 2)}, default=default)(
                "weight", torch.zeros(2, 2), nn.Linear(2, 2)
            )
    with pytest.raises(ValueError, match="scale > 0"):
        priors.Informative({}, 0.0)
    with pytest.warns(UserWarning, match="every rule of the prior to meet a parameter, got none for 'fc.weight'"):
        model_with(priors.Informative({"fc.weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"got Informative\(\.\.\., scale=0.1\): pass prior="):
        priors.from_config(priors.Informative({}).config())
