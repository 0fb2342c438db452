"""Diagnoses of posteriors that are known: draws of a Bayesian linear regression by its closed form, and what is off."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import bayesnn as bnn
from bayesnn.source import Draws, FullRankNormal, LowRankNormal, NormalSource

N, D, SIGMA = 40, 3, 0.5
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0)).double()
Y = SIGMA * torch.randn(N, generator=torch.Generator().manual_seed(1)).double()
PRECISION = X.T @ X / SIGMA**2 + torch.eye(D).double()
COVARIANCE = torch.linalg.inv(PRECISION)
MEAN = COVARIANCE @ X.T @ Y / SIGMA**2
LOG_EVIDENCE = float(
    MultivariateNormal(torch.zeros(N).double(), X @ X.T + SIGMA**2 * torch.eye(N).double()).log_prob(Y)
)


def posterior(sources, **info):
    net = nn.Linear(D, 1, bias=False)
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=SIGMA)).double()
    return bnn.Posterior(model, sources, N, info={"method": info}, train=(X, Y))


def draws(temperature=1.0, chains=4, size=200, shift=0.0, seed=0):
    """Independent draws of exp(-U / T); the last chain is off by ``shift`` posterior standard deviations."""
    stream, found = torch.Generator().manual_seed(seed), []
    root = torch.linalg.cholesky(temperature * COVARIANCE)
    for chain in range(chains):
        w = MEAN + torch.randn(size, D, generator=stream).double() @ root.T
        w = w + shift * COVARIANCE.diagonal().sqrt() * (chain == chains - 1)
        found.append(Draws({"net.weight": w[:, None]}))
    return found


def test_draws_of_the_posterior_are_said_to_be_such():
    found = posterior(draws(), kind="SGHMC", temperature=1.0).diagnose(X[:20])
    assert found.disagree == 0
    assert found.verdict.startswith("the chains agree at every input, with ")
    assert ";" not in found.verdict
    assert found.sound
    assert (found.ess_bulk > 400).all()
    value, error = found.configurational_temperature
    assert abs(value - 1) < 4 * error
    assert error < 0.1
    predictions = posterior(draws()).predict(X[:20]).draws
    np.testing.assert_allclose(found.mcse, bnn.diagnostics.mcse_mean(predictions), rtol=1e-12)
    assert "R-hat, largest" in str(found)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_gradients_tell_the_temperature(temperature):
    value, error = posterior(draws(temperature, chains=20), temperature=1.0).diagnose(X).configurational_temperature
    assert abs(value - temperature) < 4 * error
    assert error < 0.1 * temperature


def test_draws_that_are_too_hot_or_too_cold_are_found_out():
    found = posterior(draws(2.5), temperature=1.0).diagnose(X)
    hot = found.verdict
    assert "but the draws are at temperature 2." in hot
    assert hot.endswith("and not 1: lower lr, or raise batch_size")
    assert not found.sound
    cold = posterior(draws(0.2), temperature=1.0).diagnose(X).verdict
    assert "the burn-in was too short" in cold


def test_slow_chains_are_at_the_temperature_that_they_are_at():
    """Draws whose weights have hardly moved, each chain in a place of its own: a centre of their own would say 0."""
    stream, root = torch.Generator().manual_seed(2), torch.linalg.cholesky(COVARIANCE)
    chains = []
    for _ in range(400):
        place = MEAN + root @ torch.randn(D, generator=stream).double()
        chains.append(Draws({"net.weight": place.expand(8, 1, D) + 1e-6 * torch.randn(8, 1, D, generator=stream)}))
    value, _ = posterior(chains, temperature=1.0).diagnose(X[:2]).configurational_temperature
    assert value == pytest.approx(1, abs=0.2)


def test_a_chain_elsewhere_is_found_out():
    found = posterior(draws(shift=3.0), temperature=1.0).diagnose(X)
    assert found.disagree > 0.5
    assert found.verdict.startswith(f"the chains disagree on {found.disagree:.0%} of the inputs: run longer")
    assert not found.sound


def test_few_draws_are_found_out():
    found = posterior(draws(size=15)).diagnose(X[:1])
    assert (
        found.verdict
        == f"the chains agree, but there are only {found.ess_bulk.min():.0f} effective draws somewhere: run longer"
    )
    assert np.isnan(found.chainwise_rhat).all()
    assert not found.sound


def test_one_chain_and_one_that_drifts():
    alone = posterior(draws(chains=1)).diagnose(X)
    assert alone.verdict == "one chain cannot show that it has found all of the posterior: fit with chains=4"
    assert np.isnan(alone.rhat).all()
    assert not alone.sound
    w = MEAN + torch.linspace(-3, 3, 200).double()[:, None]
    drifting = posterior([Draws({"net.weight": w[:, None]})]).diagnose(X)
    assert "disagrees with itself on" in drifting.verdict


def test_a_sampler_is_diagnosed_as_it_comes():
    model = posterior(draws()).model
    fitted = bnn.fit(model, (X, Y), bnn.SGHMC(), epochs=3000, batch_size=None, chains=2, progress=False)
    found = fitted.diagnose(X[:5])
    value, error = found.configurational_temperature
    assert abs(value - 1) < 4 * error + 0.05
    assert found.kinetic_temperature == pytest.approx(1, abs=0.2)
    assert found.disagree == 0


def test_the_bound_of_the_exact_posterior_is_the_evidence():
    """log p(D, w) - log q(w) is then the same number at every w."""
    q = FullRankNormal({"net.weight": MEAN[None]}, {"net.weight": torch.linalg.cholesky(COVARIANCE)[None]})
    found = posterior([q]).diagnose(X)
    assert found.elbo == pytest.approx(LOG_EVIDENCE, abs=1e-8)
    assert found.error < 1e-8
    assert found.importance_bound == pytest.approx(LOG_EVIDENCE, abs=1e-8)


def test_of_a_factorised_q_it_is_the_closed_form():
    sd = PRECISION.diagonal().rsqrt()
    q = NormalSource({"net.weight": MEAN[None]}, {"net.weight": sd.log()[None]})
    found = posterior([q]).diagnose(X, draws=4000)
    gap = 0.5 * float(PRECISION.diagonal().log().sum() - torch.logdet(PRECISION))  # KL(q || p), of equal means
    assert abs(found.elbo - (LOG_EVIDENCE - gap)) < 4 * found.error
    assert found.elbo < found.importance_bound < LOG_EVIDENCE + 0.05
    assert found.khat < 0.7
    assert found.verdict.startswith("q is near the posterior (k-hat ")
    assert found.sound
    narrow = NormalSource({"net.weight": MEAN[None]}, {"net.weight": sd.log()[None] - 1.5})
    far = posterior([narrow]).diagnose(X, draws=2000)
    assert "too far to be corrected" in far.verdict
    assert not far.sound


def test_a_low_rank_density_is_that_of_its_covariance():
    stream = torch.Generator().manual_seed(0)
    sd, factor = torch.rand(1, D, generator=stream).double(), torch.randn(2, 1, D, generator=stream).double()
    q = LowRankNormal({"net.weight": MEAN[None]}, {"net.weight": sd}, {"net.weight": factor})
    covariance = sd[0].square().diag() + factor[:, 0].T @ factor[:, 0]
    w = torch.randn(1, D, generator=stream).double()
    assert q.log_prob({"net.weight": w}) == pytest.approx(float(MultivariateNormal(MEAN, covariance).log_prob(w[0])))


def test_of_many_weights_khat_means_nothing():
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    model = bnn.BayesianModel(bnn.nets.MLP(8, (20,), 2), likelihood=bnn.likelihoods.Categorical())
    fitted = bnn.fit(model, (x, (x[:, 0] > 0).long()), bnn.MeanFieldVI(), epochs=3, chains=2, progress=False)
    found = fitted.diagnose(x, draws=20)
    assert found.khat is None
    assert found.verdict.endswith("k-hat means nothing with 222 weights: compare with a sampler")
    assert not found.sound
    assert math.isfinite(found.elbo)
    assert "not meaningful" in str(found)


def test_what_cannot_be_diagnosed_is_refused():
    with pytest.raises(ValueError, match="point estimates have nothing to diagnose"):
        posterior(draws(size=1)).diagnose(X)
    one = posterior([NormalSource({"net.weight": MEAN[None]}, {"net.weight": torch.zeros(1, D).double()})])
    one.train = None
    with pytest.raises(ValueError, match="Expected the training rows in memory for the ELBO"):
        one.diagnose(X)
    assert posterior(draws(), temperature=1.0).diagnose(X).configurational_temperature is not None
    model = bnn.BayesianModel(bnn.nets.MLP(D, (4,), 1, dropout=0.1), likelihood=bnn.likelihoods.Normal())
    dropped = bnn.fit(model, (X.float(), Y.float()), bnn.MCDropout(), epochs=2, progress=False)
    with pytest.raises(ValueError, match="Expected a distribution with a density over the weights, got 'dropout'"):
        dropped.diagnose(X.float())
