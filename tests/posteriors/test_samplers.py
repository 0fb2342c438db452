"""Every sampler of ``fit`` against Bayesian linear regression, and what the samplers share: cycles, anchors, layers.

SGHMC with exact gradients has *no* discretisation bias there; SGLD's is known (see ``linear.py``).
"""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn.methods.base import Plan
from bayesnn.methods.sampler import SamplerMethod
from tests.posteriors.linear import D, K, assert_one, draws_of, exact_covariance, problem, second_moment

CASE = problem()
LOUDER = 1.2
FULL: dict[str, Any] = {"epochs": 1200, "batch_size": None, "order": "sequential"}


@cache
def mode() -> bnn.Posterior:
    """Where the chains start: a thermostat that begins far from the mode takes the fall for heat."""
    return bnn.fit(CASE.model, (CASE.x, CASE.y), bnn.MAP(lr=0.05), epochs=1500, batch_size=None, progress=False)


def sample(method: SamplerMethod, **options: Any) -> bnn.Posterior:
    options = {**FULL, "chains": 1, "seed": 3, "init": mode(), "progress": False, **options}
    return bnn.fit(CASE.model, (CASE.x, CASE.y), method, **options)


def series(posterior: bnn.Posterior, covariance: np.ndarray) -> np.ndarray:
    return second_moment(draws_of(posterior), CASE.mean, covariance)


EXACT = np.linalg.inv(CASE.precision)
LR = CASE.h * CASE.n  # SGLD's variance is visibly too large at this step, SGHMC's is not
METHODS: dict[str, SamplerMethod] = {
    "SGHMC": bnn.SGHMC(lr=LR, burn_in=0.2, thin=2),
    "SGHMC, momentum 0.5": bnn.SGHMC(lr=LR, momentum=0.5, burn_in=0.2, thin=2),
    "SGNHT": bnn.SGNHT(lr=LR, burn_in=0.2, thin=2),
}


@cache
def chain(name: str) -> bnn.Posterior:
    return sample(METHODS[name])


@pytest.mark.parametrize("name", METHODS)
def test_underdamped_samplers_have_the_exact_covariance(name: str) -> None:
    posterior = chain(name)
    assert_one(series(posterior, EXACT))
    with pytest.raises(AssertionError, match="instead of 1"):  # the step is one at which SGLD is biased
        assert_one(series(posterior, exact_covariance(CASE)))
    off = (draws_of(posterior) - CASE.mean).mean((0, 1))
    assert (np.abs(off) < 4 * np.sqrt(np.diag(EXACT) / (len(draws_of(posterior)) * K / 40))).all()


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("name", ["SGHMC", "SGNHT"])
def test_variance_is_proportional_to_temperature(name: str, temperature: float) -> None:
    method = getattr(bnn, name)(lr=LR, burn_in=0.2, thin=2, temperature=temperature)
    assert_one(series(sample(method), temperature * EXACT))


def test_noise_that_is_off_by_a_fifth_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    make = bnn.SGHMC.make_optimizer

    def louder(self: bnn.SGHMC, *args: Any) -> Any:
        optimizer = make(self, *args)
        for group in optimizer.param_groups:
            group["temperature"] *= LOUDER**2
        return optimizer

    monkeypatch.setattr(bnn.SGHMC, "make_optimizer", louder)
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(series(sample(METHODS["SGHMC"]), EXACT))


def test_the_kinetic_temperature_is_that_of_the_sampler() -> None:
    rows = [row["kinetic_temperature"] for row in chain("SGHMC").history if "kinetic_temperature" in row]
    # D * K Normal numbers a row, correlated over 1 / (1 - momentum) of them: at least a tenth count.
    assert abs(np.mean(rows[20:]) - 1) < 4 * np.sqrt(2 / (D * K * len(rows) / 10))


def preconditioned(scale: np.ndarray, h: float) -> np.ndarray:
    """SGLD with constant scales G of the step: in u = w / sqrt(G) it is plain SGLD on G^1/2 Lambda G^1/2."""
    root = np.diag(np.sqrt(scale))
    precision = root @ CASE.precision @ root
    return root @ np.linalg.inv(precision @ (np.eye(D) - h * precision / 2)) @ root


def test_psgld_is_exact_in_its_own_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preconditioner is constant after the burn-in, but one for each of the K regressions."""
    kept = {}
    freeze = bnn.optim.PSGLD.freeze

    def remember(self: bnn.optim.PSGLD) -> None:
        freeze(self)
        kept["G"] = self.scales()[0].square().numpy()

    monkeypatch.setattr(bnn.optim.PSGLD, "freeze", remember)
    posterior = sample(bnn.PSGLD(burn_in=0.2, thin=2), epochs=2000)
    h = posterior.history[-1]["lr"] / CASE.n
    draws = draws_of(posterior)
    moments = [second_moment(draws[:, [k]], CASE.mean[[k]], preconditioned(kept["G"][k], h)) for k in range(K)]
    assert kept["G"].std() > 0
    assert_one(np.mean(moments, axis=0))


@pytest.mark.parametrize(("gamma", "gradients"), [(True, 3), (False, 1)])
def test_psgld_adapts_for_ever_at_three_gradients_a_step(gamma: bool, gradients: int) -> None:
    """However many groups its parameters form: a prior for each layer makes several."""
    model = bnn.BayesianModel(bnn.nets.MLP(3, (4,), 1), likelihood=bnn.likelihoods.Normal())
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    method = bnn.PSGLD(lr=1e-3, adapt="always", gamma=gamma, warm_up=0.2, draws=5)
    posterior = bnn.fit(model, (x, x.sum(1)), method, epochs=50, batch_size=None, chains=1, progress=False)
    # Adam's ten steps, twenty pieces of the rows for the first G, and forty steps.
    assert posterior.info["gradient_evaluations"] == [10 + 20 + gradients * 40]
    draws = posterior.sources[0].tensors()["net.layers.0.weight"]
    assert bool(torch.isfinite(draws).all())
    assert len(draws.unique(dim=0)) == 5


BATCH = 10
IID: dict[str, Any] = {"epochs": 500, "batch_size": BATCH, "order": "iid"}


def anchored_covariance(batch: int) -> np.ndarray:
    """SGLD with its anchor at the mode: the minibatch's noise is (H_B - Lambda)(w - m), without that of g_B(m).

    V = E[A V A'] + 2 h I, A = I - h H_B: ``iid_covariance`` of ``linear.py`` less its second source.
    """
    x, h = CASE.x.numpy(), CASE.h
    h_i = CASE.n * x[:, :, None] * x[:, None, :] / CASE.sigma**2 + np.eye(D) / CASE.s**2
    a = np.eye(D) - h * CASE.precision
    mean_square = np.mean([np.kron(one, one) for one in h_i], axis=0)
    transition = np.kron(a, a) + h**2 / batch * (mean_square - np.kron(CASE.precision, CASE.precision))
    return np.linalg.solve(np.eye(D * D) - transition, 2 * h * np.eye(D).ravel()).reshape(D, D)


@cache
def plain_sgld() -> np.ndarray:
    return draws_of(sample(bnn.SGLD(lr=LR, burn_in=0.1, thin=2), **IID))


@pytest.mark.filterwarnings("ignore:Minibatches add")
def test_a_control_variate_at_the_mode_leaves_the_noise_of_the_curvature() -> None:
    method = bnn.SGLD(lr=LR, burn_in=0.1, thin=2, variance_reduction="control-variate")
    posterior = sample(method, **IID)
    assert_one(series(posterior, anchored_covariance(BATCH)))
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_one(second_moment(plain_sgld(), CASE.mean, anchored_covariance(BATCH)))
    # Two gradients a step, the anchor's pass over all rows, and ten looks at the noise, of five pieces of two rows.
    assert posterior.info["gradient_evaluations"] == [2 * 2000 + 4 + 2 * 10 * 5]


@pytest.mark.filterwarnings("ignore:Minibatches add")
def test_svrg_takes_the_noise_of_minibatches_away() -> None:
    """With a new anchor every four steps w - w0 is small: next to nothing is left beyond the discretisation."""
    method = bnn.SGLD(lr=LR, burn_in=0.1, thin=2, variance_reduction="svrg")
    posterior = sample(method, **IID)
    plain = second_moment(plain_sgld(), CASE.mean, exact_covariance(CASE)).mean()
    assert plain - 1 > 5 * abs(series(posterior, exact_covariance(CASE)).mean() - 1)
    assert posterior.info["minibatch_noise"][0] < 0.5


def test_anchors_need_the_data_in_memory_and_rows_that_add_up() -> None:
    method = bnn.SGLD(variance_reduction="svrg")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(CASE.x, CASE.y), batch_size=10)
    with pytest.raises(ValueError, match="data in memory"):
        bnn.fit(CASE.model, loader, method, epochs=2, progress=False)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Normal(scale=1.0))
    with pytest.raises(ValueError, match="running statistics"):
        bnn.fit(model, (torch.randn(20, 3), torch.randn(20, 1)), method, epochs=2, progress=False)


def test_cycles_sample_only_at_their_ends_and_restart_the_step() -> None:
    """lr follows torch's cosine with restarts; draws come from the last 30 % of each cycle, at T = 1."""
    method = bnn.SGHMC(lr=LR, cycles=4, exploration=0.7, warm_up=0.0, burn_in=0.0, draws=40)
    kept = method.kept_steps(400)
    assert len(kept) == 40
    assert kept[-1] == 400
    assert all((step - 1) % 100 >= 70 for step in kept)
    assert {(step - 1) // 100 for step in kept} == {0, 1, 2, 3}
    posterior = sample(method, epochs=400)
    rates = np.array([row["lr"] for row in posterior.history])
    expected = LR / 2 * (1 + np.cos(np.pi * ((np.arange(400) + 1) % 100) / 100))
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-12)


def test_a_cycle_forgets_its_noise_while_it_explores() -> None:
    """At T = 0 the chain falls to the mode: with the whole cycle cold, the draws are the posterior's mean."""
    method = bnn.SGHMC(lr=LR, cycles=2, exploration=0.99, warm_up=0.5, burn_in=0.5, draws=2)
    posterior = sample(method, epochs=400, init="fresh")
    np.testing.assert_allclose(draws_of(posterior), np.broadcast_to(CASE.mean, (2, K, D)), atol=0.02)


class TwoScales(nn.Module):
    """f(x) = w1 . x + 30 w2 . x: two tensors whose gradients differ by 30."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(2, 50, bias=False), nn.Linear(2, 50, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.small(x[:, :2]) + 30 * self.large(x[:, 2:])
        return out


@pytest.mark.parametrize("kind", [bnn.SGLD, bnn.SGHMC])
def test_a_step_for_each_layer_samples_the_same_law(kind: type[SamplerMethod]) -> None:
    """Each tensor's step is lr * G: the variances are those of the posterior, and the chain mixes in both."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(60, 50, generator=generator, dtype=torch.float64)
    model = bnn.BayesianModel(TwoScales(), bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=1.0)).double()
    method = kind(layerwise=True, burn_in=0.2, warm_up=0.1, thin=4)
    posterior = bnn.fit(model, (x, y), method, epochs=4000, batch_size=None, chains=1, progress=False)
    design = x * torch.tensor([1.0, 1.0, 30.0, 30.0])
    precision = design.T @ design + torch.eye(4)
    mean = torch.linalg.solve(precision, design.T @ y).T.numpy()
    tensors = posterior.sources[0].tensors()
    draws = torch.cat((tensors["net.small.weight"], tensors["net.large.weight"]), dim=-1).numpy()
    variance = ((draws - mean) ** 2).mean((0, 1)) * np.diag(np.linalg.inv(precision.numpy())) ** -1
    # SGLD with lr lambda = 0.25 is biased by up to 1 / (1 - 1/8).
    most = 1.15 if kind is bnn.SGLD else 1.0
    assert (variance > 0.93).all()
    assert (variance < most + 0.07).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bnn.SGHMC(momentum=1.0), "momentum in"),
        (lambda: bnn.SGNHT(response=0.0), "response > 0"),
        (lambda: bnn.SGLD(cycles=3), "Expected lr="),
        (lambda: bnn.SGLD(lr=0.1, cycles=3, schedule="cosine"), "cycles or a schedule"),
        (lambda: bnn.SGLD(lr=0.1, cycles=0), "cycles to be an integer >= 1"),
        (lambda: bnn.SGLD(exploration=1.0), "exploration in"),
        (lambda: bnn.SGLD(variance_reduction="svr"), "did you mean 'svrg'"),
        (lambda: bnn.PSGLD(adapt="ever"), "Unknown adapt"),
        (lambda: bnn.PSGLD(gamma=True), "adapt='always'"),
        (lambda: bnn.PSGLD(layerwise=True), "layerwise=False"),
    ],
)
def test_bad_options(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [bnn.SGHMC, bnn.SGNHT, bnn.PSGLD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_seeds_chains_and_dtypes(kind: type[SamplerMethod], dtype: torch.dtype) -> None:
    """The same seed gives the same bits, and a chain's draws do not depend on how many others run."""
    model = bnn.BayesianModel(bnn.nets.MLP(3, (4,), 1), likelihood=bnn.likelihoods.Normal()).to(dtype)
    x, y = torch.randn(30, 3, generator=torch.Generator().manual_seed(1)), torch.randn(30, 1)
    one, two, more = (
        bnn.fit(model, (x, y), kind(draws=5), epochs=20, batch_size=10, chains=chains, seed=4, progress=False)
        for chains in (2, 2, 3)
    )
    for name, values in one.sources[1].tensors().items():
        assert values.dtype == dtype
        assert torch.equal(values, two.sources[1].tensors()[name])
        assert torch.equal(values, more.sources[1].tensors()[name])
        assert not torch.equal(values, one.sources[0].tensors()[name])


@pytest.mark.parametrize("kind", [bnn.SGHMC, bnn.SGNHT])
@pytest.mark.parametrize("schedule", ["cosine", "sqrt"])
def test_a_schedule_that_ends_at_zero_leaves_all_chains(kind: type[SamplerMethod], schedule: str) -> None:
    posterior = sample(kind(lr=LR, schedule=schedule, draws=5), epochs=60, chains=2, init="net")
    assert posterior.info["error"] is None
    assert posterior.num_draws == [5, 5]


@pytest.mark.parametrize("method", [bnn.PSGLD(draws=3), bnn.SGHMC(layerwise=True, draws=3)])
def test_a_parameter_that_the_loss_does_not_reach_stays(method: SamplerMethod) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.head = nn.Linear(3, 2), nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(x)
            return out

    model = bnn.BayesianModel(Net(), likelihood=bnn.likelihoods.Normal(scale=1.0), bayesian="head")
    data = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(20)
    posterior = bnn.fit(model, data, method, epochs=10, batch_size=10, chains=1, init="net", progress=False)
    weights = posterior.sources[0].tensors()["net.unused.weight"]
    assert torch.equal(weights, model.net.unused.weight.detach().expand_as(weights))


@pytest.mark.parametrize("kind", [bnn.SGLD, bnn.SGHMC])
def test_two_rows_more_than_a_minibatch_make_two_of_one_size(kind: type[SamplerMethod]) -> None:
    """Of 66 rows in a minibatch of 64 and one of 2, the noise of the second made the variance 15 times as large."""
    stream, outputs = torch.Generator().manual_seed(0), 100
    x, y = (torch.randn(66, size, generator=stream, dtype=torch.float64) for size in (4, outputs))
    net = nn.Linear(4, outputs, bias=False).double()
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=1.0))
    posterior = bnn.fit(model, (x, y), kind(draws=200), epochs=400, batch_size=64, chains=1, progress=False)
    precision = x.T @ x + torch.eye(4, dtype=torch.float64)
    off = posterior.sources[0].tensors()["net.weight"] - torch.linalg.solve(precision, x.T @ y).T
    ratio = float(torch.einsum("skd,de,ske->", off, precision, off)) / off.numel()
    assert ratio == pytest.approx(1.0, abs=0.15)  # SGLD's own bias is bounded by lr lambda <= 0.25: 1.14


def test_the_noise_of_minibatches_goes_by_their_harmonic_mean() -> None:
    """(1 / B)(N - B)/(N - 1) in the mean over an epoch, for even sizes and for a loader with a short last one."""
    even = Plan(66, 64, 1, 2, 1)
    assert even.unseen / even.rows_a_step == pytest.approx(33 / 65 / 33)
    loaders = Plan(66, 64, 1, 2, 1, short_last=True)
    assert loaders.unseen / loaders.rows_a_step == pytest.approx((2 / 65 / 64 + 64 / 65 / 2) / 2)
    assert Plan(66, 64, 1, 1, 1, short_last=True).rows_a_step == 64  # drop_last
    assert Plan(66, 66, 1, 1, 1).unseen == 0
    assert (Plan(66, 64, 1, 2, 1, independent=True).rows_a_step, Plan(66, 64, 1, 2, 1, independent=True).unseen) == (
        64,
        1,
    )


@pytest.mark.parametrize("changing", ["cycles", "lambda", "sequential"])
def test_layerwise_steps_stay_so_under_every_schedule(changing: str) -> None:
    """A scheduler keeps the rates that it was made with: those are rescaled too."""
    optim = torch.optim.lr_scheduler

    def factory(optimizer: torch.optim.Optimizer, steps: int) -> Any:
        falling = optim.LambdaLR(optimizer, lambda step: 1 - step / steps)
        return falling if changing == "lambda" else optim.SequentialLR(optimizer, [falling], [])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.a(x) + 30 * self.b(x)
            return out

    seen: list[list[float]] = []

    class Spy(bnn.optim.SGHMC):
        def update(self, index: int, group: dict[str, Any], *rest: Any) -> None:
            seen.append([other["lr"] for other in self.param_groups])
            super().update(index, group, *rest)

    how = {"cycles": 2} if changing == "cycles" else {"schedule": factory}
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    model = bnn.BayesianModel(Net(), likelihood=bnn.likelihoods.Normal(scale=0.5))
    method = bnn.SGHMC(lr=1e-4, layerwise=True, warm_up=0.2, draws=5, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bnn.optim, "SGHMC", Spy)
        bnn.fit(model, (x, x.sum(1)), method, epochs=10, batch_size=10, chains=1, progress=False)
    ratios = [a / b for a, b in seen if b > 0]
    assert ratios[0] > 10
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)
