"""Gibbs steps for precisions: the conditional law, and the joint posterior against quadrature."""

from typing import Any

import numpy as np
import pyro.poutine as poutine
import pytest
import torch
from scipy import stats
from torch import nn

import bayesnn as bnn
from bayesnn.methods.gibbs import sample_precision
from bayesnn.methods.variance_reduction import Anchor

N, D, SIGMA, SHAPE, RATE = 25, 6, 0.5, 2.0, 0.5
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, D, generator=GENERATOR, dtype=torch.float64)
Y = X @ (0.4 * torch.randn(D, generator=GENERATOR, dtype=torch.float64))
Y = Y + SIGMA * torch.randn(N, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_conditional_law(temperature: float) -> None:
    n, squares = 7, 3.0
    generator = torch.Generator().manual_seed(1)
    many = torch.full((100_000,), squares, dtype=torch.float64)
    draws = sample_precision((SHAPE, RATE), n, many, temperature, generator).numpy()
    law = stats.gamma((SHAPE + n / 2) / temperature, scale=temperature / (RATE + squares / 2))
    assert stats.kstest(draws, law.cdf).pvalue > 1e-3
    wrong = stats.gamma((SHAPE + n / 2) / temperature, scale=temperature / (RATE + squares))
    assert stats.kstest(draws, wrong.cdf).pvalue < 1e-6


def test_without_temperature_it_is_the_limit() -> None:
    value = sample_precision((SHAPE, RATE), 7, torch.tensor(3.0), 0.0, GENERATOR)
    assert float(value) == pytest.approx((SHAPE + 3.5) / (RATE + 1.5))


def evidence(covariances: list[np.ndarray]) -> np.ndarray:
    """log N(y; 0, C) of each covariance."""
    y = Y.numpy()
    return np.array([stats.multivariate_normal(np.zeros(N), C).logpdf(y) for C in covariances])


def moments(log_tau: np.ndarray, log_density: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Mean and sd of log tau, and the normalised weights of the grid."""
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    mean = float(weights @ log_tau)
    return mean, float(np.sqrt(weights @ (log_tau - mean) ** 2)), weights


def assert_moments(draws: np.ndarray, mean: float, sd: float) -> None:
    effective = float(bnn.diagnostics.ess(draws[None], kind="mean"))
    assert effective > 300
    assert abs(draws.mean() - mean) < 4 * sd / np.sqrt(effective)
    assert abs(draws.std() / sd - 1) < 4 / np.sqrt(effective)


def fit(model: bnn.BayesianModel, method: Any, **options: Any) -> dict[str, np.ndarray]:
    options = {"epochs": 5000, "batch_size": None, "chains": 1, "progress": False, **options}
    posterior = bnn.fit(model, (X, Y), method, **options)
    return {name: value.double().numpy() for name, value in posterior.sources[0].tensors().items()}


def test_the_precision_of_weights_against_quadrature() -> None:
    """w integrated out, y | tau ~ N(0, sigma^2 I + X X' / tau): one integral over log tau."""
    prior = bnn.priors.HierarchicalNormal(SHAPE, RATE)
    net = nn.Linear(D, 1, bias=False)
    model = bnn.BayesianModel(net, prior, bnn.likelihoods.Normal(scale=SIGMA)).double()
    draws = fit(model, bnn.SGHMC(thin=5, gibbs_every=5))
    grid, gram = np.linspace(-4, 7, 400), (X @ X.T).numpy()
    density = evidence([SIGMA**2 * np.eye(N) + gram / np.exp(t) for t in grid])
    density += stats.gamma(SHAPE, scale=1 / RATE).logpdf(np.exp(grid)) + grid
    mean, sd, weights = moments(grid, density)
    assert_moments(np.log(draws["precisions.net__weight"]), mean, sd)
    # The weights: a mixture of Normals over the grid.
    first = second = np.zeros(D)
    for t, weight in zip(grid, weights, strict=True):
        covariance = np.linalg.inv((X.T @ X).numpy() / SIGMA**2 + np.exp(t) * np.eye(D))
        m = covariance @ (X.T @ Y).numpy() / SIGMA**2
        first, second = first + weight * m, second + weight * (m**2 + np.diag(covariance))
    for k in range(D):
        assert_moments(draws["net.weight"][:, 0, k], first[k], np.sqrt(second[k] - first[k] ** 2))


@pytest.mark.parametrize("gibbs", [True, False])
def test_the_precision_of_the_noise_against_quadrature(gibbs: bool) -> None:
    """By Gibbs steps and by the sampler's own: the same law."""
    s, prior = 0.5, bnn.likelihoods.GammaPrecision(SHAPE, RATE)
    model = bnn.BayesianModel(nn.Linear(D, 1, bias=False), bnn.priors.Normal(s), bnn.likelihoods.Normal(prior=prior))
    draws = fit(model.double(), bnn.SGHMC(thin=5, gibbs_every=2, gibbs_noise=gibbs))
    grid, gram = np.linspace(-2, 4, 400), (X @ X.T).numpy()
    density = evidence([np.eye(N) / np.exp(t) + s**2 * gram for t in grid])
    density += stats.gamma(SHAPE, scale=1 / RATE).logpdf(np.exp(grid)) + grid
    mean, sd, _ = moments(grid, density)
    assert_moments(-2 * draws["likelihood.log_scale"], mean, sd)


def hierarchical() -> bnn.BayesianModel:
    net = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 1))
    rules = bnn.priors.ByName({"*.weight": bnn.priors.HierarchicalNormal(SHAPE, RATE)}, default=bnn.priors.Normal())
    return bnn.BayesianModel(net, rules, bnn.likelihoods.Normal())


def test_the_log_joint_is_pyros() -> None:
    model = hierarchical().double()
    model.set_precision("net.0.weight", torch.tensor(1.7, dtype=torch.float64))
    values = {**model.bayesian_parameters(), **{f"precisions.{n}": b for n, b in model.precisions.named_buffers()}}
    trace = poutine.trace(poutine.condition(model.pyro_model, data=values)).get_trace(X, Y)
    trace.compute_log_prob()
    assert float(model.log_joint(X, Y)) == pytest.approx(float(trace.log_prob_sum()), rel=1e-9)
    before = float(model.log_prior())
    model.set_precision("net.2.weight", torch.tensor(0.2, dtype=torch.float64))
    assert float(model.log_prior()) != before


def test_precisions_belong_to_a_draw_and_survive_copies_and_files(tmp_path: Any) -> None:
    model = hierarchical()
    posterior = bnn.fit(
        model, (X.float(), Y.float()), bnn.SGLD(draws=4, gibbs_every=1), epochs=30, chains=2, progress=False
    )
    taus = posterior.sources[1].tensors()["precisions.net__0__weight"]
    assert len(set(taus.tolist())) == 4
    posterior.save(tmp_path)
    loaded = bnn.Posterior.load(tmp_path, hierarchical().net)
    assert torch.equal(loaded.predict(X.float()).mean, posterior.predict(X.float()).mean)
    assert loaded.model.hyperpriors == model.hyperpriors
    assert float(model.precision("net.0.weight")) == pytest.approx(SHAPE / RATE)  # the user's model is not touched
    moved = posterior.model.copy().double()
    moved.load_state({name: value.double() for name, value in posterior.states()[0][0].items()})
    tau = float(moved.precision("net.0.weight"))
    assert float(moved.log_priors["net.0.weight"].base_dist.scale.flatten()[0]) == pytest.approx(tau**-0.5)


def test_it_works_with_layers_steps_and_minibatches() -> None:
    method = bnn.SGHMC(layerwise=True, gibbs_noise=True, draws=5)
    posterior = bnn.fit(
        hierarchical(), (X.float(), Y.float()), method, epochs=30, batch_size=8, chains=1, progress=False
    )
    tensors = posterior.sources[0].tensors()
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    assert len(set(tensors["likelihood.log_scale"].tolist())) > 1


def test_mean_field_vi_maximises_over_the_precision() -> None:
    """Empirical Bayes: the fixed point of tau = (a + n / 2) / (b + E_q|w|^2 / 2) and the factors' optimum given tau."""
    prior = bnn.priors.HierarchicalNormal(SHAPE, RATE)
    model = bnn.BayesianModel(nn.Linear(D, 1, bias=False), prior, bnn.likelihoods.Normal(scale=SIGMA)).double()
    method = bnn.MeanFieldVI(lr=0.03, initial_sd=0.1, mc_samples=8)
    posterior = bnn.fit(model, (X, Y), method, epochs=500, batch_size=None, progress=False)
    tau = SHAPE / RATE
    for _ in range(200):
        precision = (X.T @ X).numpy() / SIGMA**2 + tau * np.eye(D)
        mean = np.linalg.solve(precision, (X.T @ Y).numpy() / SIGMA**2)
        tau = (SHAPE + D / 2) / (RATE + ((mean**2).sum() + (1 / np.diag(precision)).sum()) / 2)
    state = posterior.sources[0].last()
    assert float(state["precisions.net__weight"]) == pytest.approx(tau, rel=0.02)
    np.testing.assert_allclose(state["net.weight"][0], mean, atol=0.1 * np.diag(precision).min() ** -0.5)


def test_refusals() -> None:
    data = (X.float(), Y.float())
    with pytest.raises(ValueError, match="known precision for MAP"):
        bnn.fit(hierarchical(), data, bnn.MAP(), epochs=1, progress=False)
    fixed = bnn.BayesianModel(nn.Linear(D, 1), likelihood=bnn.likelihoods.Normal(scale=1.0))
    with pytest.raises(ValueError, match="inferred noise and a GammaPrecision"):
        bnn.fit(fixed, data, bnn.SGLD(gibbs_noise=True), epochs=1, progress=False)
    with pytest.raises(ValueError, match="gibbs_every to be an integer >= 1"):
        bnn.SGLD(gibbs_every=0)
    with pytest.raises(ValueError, match="shape > 0"):
        bnn.priors.HierarchicalNormal(shape=0.0)


@pytest.mark.parametrize("kind", [bnn.SGLD, bnn.PSGLD, bnn.SGHMC])
@pytest.mark.parametrize("layerwise", [False, True])
def test_the_look_for_a_step_leaves_out_what_gibbs_steps_draw(kind: Any, layerwise: bool) -> None:
    """lr=None measures along the parameters that move, each with its own scale."""
    if kind is bnn.PSGLD and layerwise:
        pytest.skip("PSGLD has a step of each weight's own")
    model = bnn.BayesianModel(nn.Linear(D, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Normal()).double()
    method = kind(gibbs_noise=True, gibbs_every=1, draws=5, layerwise=layerwise)
    posterior = bnn.fit(model, (X, Y), method, epochs=60, batch_size=None, chains=1, progress=False)
    scale = posterior.sources[0].tensors()["likelihood.log_scale"]
    assert len(scale.unique()) == 5
    assert bool(torch.isfinite(scale).all())


def test_an_anchor_keeps_the_noise_that_its_gradient_was_taken_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """At another noise than g_N(w0), g_B(w0) would not be centred on it: the mean over minibatches is the gradient."""
    made = []
    correct = Anchor.correct

    def remember(self: Anchor, loss: Any) -> None:
        made.append(self)
        correct(self, loss)

    monkeypatch.setattr(Anchor, "correct", remember)
    model = bnn.BayesianModel(nn.Linear(D, 1, bias=False), bnn.priors.Normal(1.0), bnn.likelihoods.Normal()).double()
    method = bnn.SGHMC(lr=1e-3, gibbs_noise=True, gibbs_every=1, variance_reduction="control-variate", draws=2)
    posterior = bnn.fit(model, (X, Y), method, epochs=4, batch_size=5, chains=1, init="net", progress=False)
    assert len(posterior.sources[0].tensors()["likelihood.log_scale"].unique()) == 2
    anchor = made[0]
    w, log_scale = anchor._all
    assert log_scale.shape == model.likelihood.log_scale.shape

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        residuals = (x @ w[0] - y) / log_scale.exp()
        return residuals.square() / 2 + log_scale

    with torch.no_grad():
        w.add_(1.0)
        log_scale.add_(0.7)
    whole = torch.autograd.grad(loss(X, Y).mean(), w)[0]
    parts = []
    for x, y in zip(X.split(5), Y.split(5), strict=True):
        w.grad = torch.autograd.grad(loss(x, y).mean(), w)[0]
        anchor.correct(lambda x=x, y=y: loss(x, y).mean())
        parts.append(w.grad)
    torch.testing.assert_close(torch.stack(parts).mean(0), whole)


def test_the_noise_of_another_posterior_has_no_conjugate_law() -> None:
    """as_prior() states a Normal prior of log_scale, of which the likelihood's own Gamma knows nothing."""
    net = nn.Linear(D, 1)
    first = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Normal()).double()
    posterior = bnn.fit(first, (X, Y), bnn.GibbsLinear(draws=20), epochs=40, chains=1, progress=False)
    second = bnn.BayesianModel(net, posterior.as_prior(), bnn.likelihoods.Normal()).double()
    for method in (bnn.SGHMC(gibbs_noise=True), bnn.GibbsLinear()):
        with pytest.raises(ValueError, match="as_prior"):
            bnn.fit(second, (X, Y), method, epochs=5, progress=False)
