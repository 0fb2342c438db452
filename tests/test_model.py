"""The log joint in torch against Pyro's trace of the same model."""

import copy

import pyro
import pyro.poutine as poutine
import pytest
import torch
from torch import nn

import bayesnn as bnn

N = 50  # rows of the whole data; the batches here are parts of it


class SharedWeights(nn.Module):
    """One linear layer used twice, and its weight tied to another's."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.twice.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.tied(torch.tanh(self.twice(torch.tanh(self.twice(x)))))))


class BareParameter(nn.Module):
    """A net whose weights belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.randn(4, generator=torch.Generator().manual_seed(1)))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.slope + self.offset).unsqueeze(-1)


def _case(name: str) -> tuple[bnn.BayesianModel, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    classes = torch.randint(3, (7,), generator=generator)
    real = torch.randn(7, generator=generator, dtype=torch.float64)
    priors, likelihoods = bnn.priors, bnn.likelihoods
    if name == "mlp":
        net, prior, likelihood, y = bnn.nets.MLP(4, (5, 5), 3), priors.StudentT(4.0), likelihoods.Categorical(), classes
    elif name == "mlp-noise":
        net, prior, likelihood, y = bnn.nets.MLP(4, (5,), 1), priors.Layerwise("kaiming"), likelihoods.Normal(), real
    elif name == "mlp-mixture":
        net, prior, likelihood, y = bnn.nets.MLP(4, (5,), 1), priors.ScaleMixture(), likelihoods.StudentT(), real
    elif name == "cnn":
        x = torch.randn(7, 2, 8, 8, generator=generator, dtype=torch.float64)
        net = bnn.nets.ConvNet((2, 8, 8), 3, channels=(3,), dense=(6,))
        prior, likelihood, y = priors.Laplace(0.5), likelihoods.Categorical(), classes
    elif name == "shared":
        net, prior, likelihood, y = SharedWeights(), priors.Normal(2.0), likelihoods.Categorical(), classes
    elif name in OF_CLASSES:
        likelihood, soft = OF_CLASSES[name]
        y = torch.rand(7, 3, generator=generator, dtype=torch.float64).softmax(1) if soft else classes
        net, prior = bnn.nets.MLP(4, (5,), 3), priors.Normal(1.0)
    else:
        net, prior, likelihood, y = BareParameter(), priors.Normal(0.7), likelihoods.Laplace(), real
    return bnn.BayesianModel(net, prior, likelihood).double(), x, y


OF_CLASSES = {  # whether the labels are soft
    "soft": (bnn.likelihoods.Categorical(), True),
    "weighted": (bnn.likelihoods.Categorical(class_weights=[0.5, 3.0, 1.0]), False),
    "soft and weighted": (bnn.likelihoods.Categorical(class_weights=[0.5, 3.0, 1.0]), True),
    "noisy labels": (bnn.likelihoods.NoisyCategorical(0.2), False),
    "noisy Dirichlet": (bnn.likelihoods.NoisyDirichlet(), False),
}
CASES = ("mlp", "mlp-noise", "mlp-mixture", "cnn", "shared", "bare", *OF_CLASSES)


def _pyro_log_joint(model: bnn.BayesianModel, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, dict]:
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.bayesian_parameters().items()}
    conditioned = poutine.condition(model.pyro_model, data=weights)
    log_joint = poutine.trace(conditioned).get_trace(x, y, num_data=N).log_prob_sum()
    log_joint.backward()
    return log_joint.detach(), {name: w.grad for name, w in weights.items()}


@pytest.mark.parametrize("name", CASES)
def test_log_joint_and_gradient_equal_pyros(name: str) -> None:
    model, x, y = _case(name)
    expected, gradients = _pyro_log_joint(model, x, y)

    log_joint = model.log_joint(x, y, num_data=N)
    log_joint.backward()

    torch.testing.assert_close(log_joint.detach(), expected, rtol=1e-9, atol=0)
    assert set(gradients) == set(model.log_priors)
    for key, parameter in model.bayesian_parameters().items():
        torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["mlp", "mlp-noise", "weighted"])
def test_rows_drawn_unevenly_count_in_pyros_as_they_do_here(name: str) -> None:
    model, x, y = _case(name)
    model.row_weights = torch.linspace(0.5, 2.0, len(x), dtype=torch.float64)
    expected, gradients = _pyro_log_joint(model, x, y)
    found = model.log_prior() - N * model.mean_nll(x, y)
    found.backward()
    torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=0)
    for key, parameter in model.bayesian_parameters().items():
        torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-9, atol=1e-9)
    with model.evenly():
        assert abs(float(model.log_joint(x, y, num_data=N).detach() / expected) - 1) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_leaving_out_any_one_prior_breaks_the_equality(name: str) -> None:
    model, x, y = _case(name)
    expected, _ = _pyro_log_joint(model, x, y)
    for left_out in list(model.log_priors):
        mutant = model.copy()
        del mutant.log_priors[left_out]
        with pytest.raises(AssertionError):
            torch.testing.assert_close(mutant.log_joint(x, y, num_data=N).detach(), expected, rtol=1e-9, atol=0)


def test_every_trainable_parameter_has_a_prior_once() -> None:
    model, _, _ = _case("shared")
    names = [name for name, _ in model.net.named_parameters()]
    assert sorted(model.log_priors) == sorted(f"net.{name}" for name in names)
    assert "net.tied.weight" not in model.log_priors  # the tied weight is one weight: one prior


def test_the_batchs_likelihood_is_scaled_to_the_data_set() -> None:
    model, x, y = _case("mlp")
    whole = model.log_joint(x, y)
    scaled = model.log_joint(x, y, num_data=70)
    torch.testing.assert_close(scaled - model.log_prior(), 10 * (whole - model.log_prior()), rtol=1e-12, atol=0)


def test_pyro_samples_targets_and_keeps_no_global_parameters() -> None:
    model, x, _ = _case("mlp-noise")
    pyro.clear_param_store()
    before = copy.deepcopy(model.state_dict())
    samples = [model.pyro_model(x) for _ in range(2)]
    assert samples[0].shape == (7,)
    assert not torch.equal(samples[0], samples[1])
    assert not list(pyro.get_param_store())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_frozen_and_deterministic_parameters_have_no_prior() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    net[0].weight.requires_grad_(False)
    model = bnn.BayesianModel(net, bnn.priors.ByName({"2.bias": None}), bnn.likelihoods.Categorical())
    assert sorted(model.log_priors) == ["net.0.bias", "net.2.weight"]
    assert model.deterministic == ["net.1.weight", "net.1.bias", "net.2.bias"]


def test_a_prior_of_the_wrong_shape_is_refused_in_one_line() -> None:
    import pyro.distributions as dist

    with pytest.raises(ValueError, match=r"event shape \(3, 4\), got \(\)"):
        bnn.BayesianModel(nn.Linear(4, 3), lambda name, p, m: dist.Normal(0.0, 1.0), bnn.likelihoods.Categorical())


def test_moving_the_model_moves_its_priors() -> None:
    model = bnn.BayesianModel(nn.Linear(4, 3), bnn.priors.Normal(), bnn.likelihoods.Categorical()).double()
    assert model.log_prior().dtype == torch.float64


def _part(bayesian: object, **options: object) -> bnn.BayesianModel:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2))
    return bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical(), bayesian=bayesian, **options)


@pytest.mark.parametrize(
    ("bayesian", "names"),
    [
        ("last-layer", {"3.weight", "3.bias"}),
        ("2", {"2.0.weight", "2.0.bias"}),
        (["0.weight", "3"], {"0.weight", "3.weight", "3.bias"}),
        ("*.bias", {"0.bias", "2.0.bias", "3.bias"}),
        (lambda name, p, module: p.shape == (4, 4), {"2.0.weight"}),
    ],
)
def test_a_part_of_the_net_can_be_bayesian(bayesian: object, names: set[str]) -> None:
    model = _part(bayesian)
    assert set(model.log_priors) == {f"net.{name}" for name in names}
    assert set(model.deterministic) == {f"net.{n}" for n, _ in model.net.named_parameters()} - set(model.log_priors)
    assert set(model.copy().double().log_priors) == set(model.log_priors)


def test_the_rest_of_the_net_is_trained_and_has_no_noise(tmp_path) -> None:
    x, y = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2
    model = _part("last-layer")
    posterior = bnn.fit(model, (x, y), bnn.MeanFieldVI(), epochs=5, progress=False)
    first, second = posterior.states(2)[0]
    assert torch.equal(first["net.0.weight"], second["net.0.weight"])
    assert not torch.equal(first["net.3.weight"], second["net.3.weight"])
    posterior.save(tmp_path)
    loaded = bnn.Posterior.load(tmp_path, _part(None).net)
    assert loaded.model.part == model.part
    assert torch.equal(loaded.predict(x).mean, posterior.predict(x).mean)


@pytest.mark.parametrize(
    ("bayesian", "message"),
    [("lastlayer", "Unknown part of the net"), (["3", "7"], "'7'"), (lambda *_: False, "got none of 6")],
)
def test_a_part_that_is_not_there_is_refused(bayesian: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _part(bayesian)


def _scalar_and_class_models() -> list[tuple[bnn.BayesianModel, torch.Tensor]]:
    """(model of 6 rows of 4 features, its targets (6,)) for each likelihood."""
    generator = torch.Generator().manual_seed(2)
    real = torch.randn(6, generator=generator)
    likelihoods = bnn.likelihoods
    kinds = [
        (likelihoods.Normal(scale=1.0), real),
        (likelihoods.Normal(), real),
        (likelihoods.Laplace(), real),
        (likelihoods.StudentT(), real),
        (likelihoods.LogNormal(), real.exp()),
        (likelihoods.HeteroscedasticNormal(), real),
        (likelihoods.Poisson(), real.exp().round()),
        (likelihoods.Bernoulli(), (real > 0).float()),
        (likelihoods.Categorical(), torch.arange(6) % 3),
    ]
    outputs = {"HeteroscedasticNormal": 2, "Categorical": 3}
    return [
        (bnn.BayesianModel(nn.Linear(4, outputs.get(type(likelihood).__name__, 1)), likelihood=likelihood), y)
        for likelihood, y in kinds
    ]


def test_targets_in_a_column_are_the_targets_and_never_broadcast() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    for model, y in _scalar_and_class_models():
        weights = {name: p.detach() for name, p in model.bayesian_parameters().items()}
        conditioned = poutine.trace(poutine.condition(model.pyro_model, data=weights))
        for log_prob in (
            lambda y, model=model: model.log_likelihood(x, y),
            lambda y, model=model: model.log_joint(x, y),
            lambda y, conditioned=conditioned: conditioned.get_trace(x, y).log_prob_sum(),
        ):
            assert torch.equal(log_prob(y[:, None]), log_prob(y)), model.likelihood
            for wrong in (y[:1], y[:, None].expand(6, 6), y[None]):  # all of which torch would broadcast
                with pytest.raises(ValueError, match="Expected targets"):
                    log_prob(wrong)


def test_several_targets_are_held_to_their_number() -> None:
    x, y = torch.randn(6, 4), torch.randn(6, 3)
    for likelihood, outputs in ((bnn.likelihoods.Normal(scale=1.0), 3), (bnn.likelihoods.HeteroscedasticNormal(), 6)):
        model = bnn.BayesianModel(nn.Linear(4, outputs), likelihood=likelihood)
        assert model.log_likelihood(x, y).shape == (6,)
        for wrong in (y[:, :1], y[:, 0], y[:1]):
            with pytest.raises(ValueError, match="Expected targets"):
                model.log_likelihood(x, wrong)


def test_targets_without_a_density_are_refused_by_the_log_joint() -> None:
    x, y = torch.randn(6, 4), -1.5 * torch.ones(6)
    for likelihood in (bnn.likelihoods.Poisson(), bnn.likelihoods.LogNormal(scale=1.0), bnn.likelihoods.Bernoulli()):
        with pytest.raises(ValueError, match="Expected"):
            bnn.BayesianModel(nn.Linear(4, 1), likelihood=likelihood).log_joint(x, y)


def test_a_prior_on_a_part_of_the_line_is_refused_in_one_line() -> None:
    import pyro.distributions as dist

    for prior in (dist.HalfNormal(1.0), dist.Uniform(-1.0, 1.0), dist.LogNormal(0.0, 1.0)):
        with pytest.raises(ValueError, match="whole line for its support") as error:
            bnn.BayesianModel(
                nn.Linear(4, 3),
                lambda name, p, m, prior=prior: prior.expand(p.shape).to_event(p.dim()),
                bnn.likelihoods.Categorical(),
            )
        assert "\n" not in str(error.value)


def test_the_prior_predictive_has_the_moments_of_the_prior():
    """Of f(x) = w x + b with w ~ N(0, 4), b ~ N(1, 0.25): mean 1, variance 4 x^2 + 0.25, and noise beside it."""
    prior = bnn.priors.ByName({"weight": bnn.priors.Normal(2.0), "bias": bnn.priors.Normal(0.5, loc=1.0)})
    model = bnn.BayesianModel(nn.Linear(1, 1), prior, bnn.likelihoods.Normal(scale=0.3)).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, S = torch.tensor([[0.0], [1.0], [-3.0]]).double(), 20_000
    predictive = model.prior_predictive(x, draws=S)
    variance = 4 * x[:, 0] ** 2 + 0.25
    assert ((predictive.mean - 1).abs() < 4 * (variance / S).sqrt()).all()
    assert ((predictive.epistemic / variance - 1).abs() < 4 * (2 / S) ** 0.5).all()
    torch.testing.assert_close(predictive.aleatoric, torch.full((3,), 0.09).double())
    assert torch.equal(model.prior_predictive(x, draws=5).draws, model.prior_predictive(x, draws=5).draws)
    assert not torch.equal(model.prior_predictive(x, draws=5).draws, model.prior_predictive(x, draws=5, seed=1).draws)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_the_prior_predictive_of_a_hierarchical_prior_is_a_student_t():
    """A weight with precision ~ Gamma(a, b) is Student's t with 2 a degrees of freedom and scale sqrt(b / a)."""
    from scipy import stats

    model = bnn.BayesianModel(
        nn.Linear(1, 1, bias=False), bnn.priors.HierarchicalNormal(3.0, 2.0), bnn.likelihoods.Normal(scale=1.0)
    ).double()
    draws = model.prior_predictive(torch.ones(1, 1).double(), draws=4000).draws.flatten().numpy()
    assert stats.kstest(draws, stats.t(6, scale=(2 / 3) ** 0.5).cdf).pvalue > 0.001
    assert stats.kstest(draws, stats.norm(scale=draws.std()).cdf).pvalue < 0.05


def test_parameters_without_a_prior_stay_in_the_prior_predictive():
    prior = bnn.priors.ByName({"bias": None}, default=bnn.priors.Normal(1.0))
    model = bnn.BayesianModel(nn.Linear(1, 1), prior, bnn.likelihoods.Normal(scale=1.0))
    nn.init.constant_(model.net.bias, 7.0)
    assert torch.equal(model.prior_predictive(torch.zeros(2, 1), draws=3).draws, torch.full((1, 3, 2), 7.0))
