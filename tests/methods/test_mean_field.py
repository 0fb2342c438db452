"""Options of mean-field VI: where sigma starts, how far it may go, when the KL comes in, and bad arguments."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import bayesnn as bnn
from bayesnn.methods import Plan
from bayesnn.rng import Streams

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
Y = X.sum(1, keepdim=True).tanh()


def model() -> bnn.BayesianModel:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=0.3))


def fit(method: bnn.methods.Method, **options: object) -> bnn.Posterior:
    return bnn.fit(model(), (X, Y), method, epochs=options.pop("epochs", 1), batch_size=None, progress=False, **options)


def parts(posterior: bnn.Posterior) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tensors = posterior.sources[0].tensors()
    split = {"loc": {}, "log_sd": {}}
    for key, value in tensors.items():
        part, name = key.split("/", 1)
        split[part][name] = value
    return split["loc"], {name: value.exp() for name, value in split["log_sd"].items()}


def test_moped_starts_at_a_share_of_the_point_estimate() -> None:
    point = fit(bnn.MAP(lr=0.05), epochs=200)
    at = point.sources[0].last()
    at["net.0.weight"][0, 0] = 0.0  # a floor: a weight at 0 has no share to start from, and a log to move on
    loc, sd = parts(fit(bnn.MeanFieldVI(lr=1e-12, moped=0.1), init=point))
    for name, value in at.items():
        torch.testing.assert_close(loc[name], value)
        torch.testing.assert_close(sd[name], (0.1 * value.abs()).clamp(min=0.01 / 100))
    assert float(sd["net.0.weight"][0, 0]) == pytest.approx(1e-4)


def test_moped_leaves_the_likelihoods_own_parameters_alone() -> None:
    noisy = bnn.BayesianModel(nn.Linear(3, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Normal())
    method = bnn.MeanFieldVI(lr=1e-12, moped=0.1, initial_sd=0.02)
    _, sd = parts(bnn.fit(noisy, (X, Y), method, epochs=1, init="net", progress=False))
    assert float(sd["likelihood.log_scale"]) == pytest.approx(0.02)


def test_moped_refuses_a_posterior_that_has_standard_deviations() -> None:
    first = fit(bnn.MeanFieldVI())
    with pytest.raises(ValueError, match=r"Expected init= to be a point estimate with moped, got .*: drop moped"):
        fit(bnn.MeanFieldVI(moped=0.1), init=first)


def test_moped_refuses_fresh_weights() -> None:
    with pytest.raises(ValueError, match=r"Expected init= to be .* with moped, got 'fresh': .* drop moped") as error:
        fit(bnn.MeanFieldVI(moped=0.1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("estimator", ["reparam", "local", "flipout"])
def test_max_sd_holds_at_every_step(estimator: str) -> None:
    wide = fit(bnn.MeanFieldVI(initial_sd=0.5))
    _, sd = parts(fit(bnn.MeanFieldVI(lr=0.1, max_sd=0.05, estimator=estimator), epochs=40, init=wide))
    largest = max(float(value.max()) for value in sd.values())
    assert largest == pytest.approx(0.05)  # the prior pulls sigma up, and the clamp is met
    _, free = parts(fit(bnn.MeanFieldVI(lr=0.1, estimator=estimator), epochs=40, init=wide))
    assert max(float(value.max()) for value in free.values()) > 0.1


def test_kl_warm_up_rises_linearly_to_kl_weight() -> None:
    """With no data to speak of (a loss without gradients), what is left of the gradient is the KL's: rho's is
    weight * (sigma^2 - 1) / N.
    """
    silent = bnn.BayesianModel(nn.Linear(3, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=1e6))
    method = bnn.MeanFieldVI(lr=1e-3, kl_weight=0.5, kl_warm_up=0.5, initial_sd=0.1)
    plan = Plan(num_data=30, batch_size=30, epochs=4, steps_per_epoch=2, chains=1)
    run = method.start(silent.copy(), plan, Streams(0, 0))
    group = run.optimizers[0].param_groups[0]
    group["lr"] = 0.0
    weights = []
    for _ in range(plan.steps):
        run.step(X, Y)
        weights.append(float(group["params"][1].grad.mean()) * 30 / (0.1**2 - 1))
    assert weights == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5], abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*plain reparameterization")
@pytest.mark.parametrize("estimator", ["reparam", "local", "flipout"])
def test_another_run_goes_on_from_a_state_to_the_same_bits(estimator: str) -> None:
    """With its place in the warm-up, and with what the estimator has found that it cannot serve."""
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1))
    normed = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=0.3))
    method, plan = bnn.MeanFieldVI(kl_warm_up=0.5, estimator=estimator), Plan(30, 30, 8, 1, 1)
    runs = [method.start(normed.copy(), plan, Streams(seed, 0)) for seed in (0, 1)]
    runs[0].step(X, Y)
    state = runs[0].state_dict()
    after = [runs[0].step(X, Y) for _ in range(4)]
    for run in runs:
        run.load_state_dict(copy.deepcopy(state))
        assert [run.step(X, Y) for _ in range(4)] == after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "flip"}, "Unknown estimator 'flip': did you mean 'flipout'"),
        ({"estimator": None}, "Unknown estimator None"),
        ({"moped": 0}, "Expected moped > 0 and finite, got 0"),
        ({"moped": math.nan}, "Expected moped > 0 and finite, got nan"),
        ({"max_sd": -1.0}, "Expected max_sd > 0 and finite, got -1.0"),
        ({"max_sd": 0.001}, r"Expected max_sd >= initial_sd \(0.01\), got 0.001: lower initial_sd or raise it"),
        ({"kl_warm_up": 1.0}, r"Expected kl_warm_up in \[0, 1\), got 1.0"),
        ({"kl_warm_up": 10}, r"Expected kl_warm_up in \[0, 1\), got 10: it is a share"),
        ({"kl_weight": -1}, "Expected kl_weight >= 0 and finite, got -1"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bnn.MeanFieldVI(**options)
