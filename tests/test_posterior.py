from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn import likelihoods
from bayesnn.data import Standardize
from bayesnn.posterior import Posterior
from bayesnn.source import Draws, NormalSource

X = torch.linspace(-1, 1, 40)[:, None]
Y = (3 * X[:, 0]).sin() + 5
METHODS = {
    "MAP": (bnn.MAP(), 3),
    "MeanFieldVI": (bnn.MeanFieldVI(initial_sd=0.2), 1),
    "SGLD": (bnn.SGLD(draws=4), 2),
}


def net():
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))


def fitted(name="SGLD", likelihood=None, epochs=10, **options):
    method, chains = METHODS[name]
    model = bnn.BayesianModel(net(), likelihood=likelihood or likelihoods.Normal())
    return bnn.fit(model, (X, Y), method, epochs=epochs, chains=chains, batch_size=20, progress=False, **options)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "target", [None, Standardize(torch.tensor(5.0), torch.tensor(0.7))], ids=["own", "standardised"]
)
def test_net_is_that_draws_module(name, target):
    posterior = fitted(name)
    posterior.target = target
    draws = posterior.predict(X, draws=4).draws
    assert draws.shape == (posterior.num_chains, 1 if name == "MAP" else 4, 40)
    for chain in range(draws.shape[0]):
        for draw in range(draws.shape[1]):
            module = posterior.net(chain, draw)
            assert not module.training
            got = module(X)[:, 0].detach()
            got = got if target is None else target.inverse(got)
            np.testing.assert_allclose(got, draws[chain, draw], rtol=1e-6)


def test_net_counts_stored_draws_from_the_end_as_well():
    posterior = fitted("SGLD")
    for k in range(4):
        assert torch.equal(posterior.net(1, k - 4)(X), posterior.net(1, k)(X))
    assert not torch.equal(posterior.net(1, 0)(X), posterior.net(1, 1)(X))
    assert not torch.equal(posterior.net(0, 0)(X), posterior.net(1, 0)(X))


def test_net_of_a_distribution_is_its_mean_unless_a_sample_is_asked_for():
    posterior = fitted("MeanFieldVI")
    loc = posterior.sources[0].loc
    assert torch.equal(dict(posterior.net().named_parameters())["0.weight"], loc["net.0.weight"])
    assert torch.equal(posterior.net(draw=3, seed=8)(X), posterior.net(draw=3, seed=8)(X))
    assert not torch.equal(posterior.net(draw=3, seed=8)(X), posterior.net(draw=3, seed=9)(X))


def test_net_is_a_module_of_its_own():
    posterior = fitted("SGLD")
    before = posterior.predict(X).mean
    module = posterior.net()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7.0)
    assert torch.equal(posterior.predict(X).mean, before)
    assert not torch.equal(posterior.net()(X), module(X))


@pytest.mark.parametrize(
    ("name", "chain", "draw", "message"),
    [
        ("SGLD", 2, 0, r"Expected chain in \[0, 2\), got 2"),
        ("SGLD", -1, 0, r"Expected chain in \[0, 2\), got -1"),
        ("SGLD", 0, 4, r"Expected draw in \[-4, 4\), got 4"),
        ("SGLD", 0, -5, r"Expected draw in \[-4, 4\), got -5"),
        ("MeanFieldVI", 0, -2, "Expected draw to be an integer >= 0, got -2"),
    ],
)
def test_no_such_draw(name, chain, draw, message):
    with pytest.raises(ValueError, match=message):
        fitted(name).net(chain, draw)


def test_fewer_draws_are_spread_evenly_and_end_with_the_last():
    model = bnn.BayesianModel(nn.Linear(1, 1, bias=False), likelihood=likelihoods.Normal(1.0))
    posterior = Posterior(model, [Draws({"net.weight": torch.arange(10.0).reshape(10, 1, 1)})], num_data=1)
    one = torch.ones(1, 1)
    assert posterior.predict(one, draws=5).draws.flatten().tolist() == [1, 3, 5, 7, 9]
    assert posterior.predict(one, draws=3).draws.flatten().tolist() == [2, 5, 9]
    assert posterior.predict(one, draws=1).draws.flatten().tolist() == [9]
    assert posterior.predict(one, draws=50).draws.flatten().tolist() == list(range(10))
    assert [float(state["net.weight"]) for state in posterior.states(draws=2)[0]] == [4, 9]


def test_samples_of_a_distribution_have_its_moments_and_depend_on_the_seed_alone():
    n = 20_000
    source = NormalSource(
        {"w": torch.tensor([1.0, -2.0]), "fixed": torch.ones(3)}, {"w": torch.tensor([0.5, 0.01]).log()}
    )
    states = list(source.states(n, torch.Generator().manual_seed(0)))
    w = torch.stack([state["w"] for state in states]).double()
    sd = torch.tensor([0.5, 0.01]).double()
    assert bool(((w.mean(0) - torch.tensor([1.0, -2.0])).abs() < 4 * sd / n**0.5).all())
    assert bool(((w.std(0) / sd - 1).abs() < 4 / (2 * n) ** 0.5).all())
    assert all(torch.equal(state["fixed"], torch.ones(3)) for state in states[:5])
    again = source.state(3, torch.Generator().manual_seed(0))
    assert torch.equal(again["w"], states[3]["w"])

    posterior = fitted("MeanFieldVI")
    assert posterior.num_draws == [None]
    assert posterior.predict(X).num_draws == 100
    assert torch.equal(posterior.predict(X, seed=1).mean, posterior.predict(X, seed=1).mean)
    assert not torch.equal(posterior.predict(X, seed=1).mean, posterior.predict(X, seed=2).mean)


def test_predictions_use_the_inferred_noise_of_each_draw():
    posterior = fitted("SGLD")
    scales = torch.cat([chain.stacked["likelihood.log_scale"].exp() for chain in posterior.sources])
    assert len(scales.unique()) == 8
    np.testing.assert_allclose(posterior.predict(X).aleatoric, scales.square().mean().expand(40), rtol=1e-5)


def test_changing_the_users_model_afterwards_changes_nothing():
    model = bnn.BayesianModel(net(), likelihood=likelihoods.Normal())
    posterior = bnn.fit(model, (X, Y), bnn.MAP(), epochs=2, progress=False)
    before = posterior.predict(X).mean
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.train()
    assert torch.equal(posterior.predict(X).mean, before)


def test_repr_says_method_chains_draws_and_weights():
    assert repr(fitted("SGLD")) == "Posterior(SGLD, 2 chains of 4 draws, 14 weights)"
    assert repr(fitted("MeanFieldVI")) == "Posterior(MeanFieldVI, 1 chain of a distribution, 14 weights)"


def one_weight(prior=None):
    likelihood = likelihoods.Normal(scale=0.5)
    return bnn.BayesianModel(nn.Linear(1, 1, bias=False), prior or bnn.priors.Normal(2.0), likelihood).double()


def moments(posterior):
    source = posterior.sources[0]
    return float(source.loc["net.weight"]), float(source.log_sd["net.weight"].exp())


@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_yesterdays_posterior_is_todays_prior(drift):
    """One weight, where mean-field VI is exact: the Kalman filter of a random walk, in closed form."""
    x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = 1.5 * x + 0.5 * torch.randn(40, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, variance, posterior = 0.0, 2.0**2, None
    for rows in (slice(0, 15), slice(15, 40)):
        prior, start = (posterior.as_prior(drift), posterior) if posterior else (None, "fresh")
        method = bnn.MeanFieldVI(lr=0.03, initial_sd=0.1, mc_samples=8)
        posterior = bnn.fit(
            one_weight(prior), (x[rows], y[rows]), method, epochs=500, batch_size=None, init=start, progress=False
        )
        variance += drift**2 if rows.start else 0.0
        precision = 1 / variance + float((x[rows] ** 2).sum()) / 0.25
        mean = (mean / variance + float((x[rows] * y[rows]).sum()) / 0.25) / precision
        variance = 1 / precision
    found, sd = moments(posterior)
    assert abs(found - mean) < 0.05 * variance**0.5
    assert abs(sd / variance**0.5 - 1) < 0.03


def test_the_prior_of_draws_has_their_moments_and_covers_the_noise():
    posterior = fitted("SGLD")
    prior = posterior.as_prior(drift=0.1)
    model = bnn.BayesianModel(net(), prior, likelihoods.Normal())
    stacked = torch.cat([source.tensors()["net.0.weight"] for source in posterior.sources])
    law = model.log_priors["net.0.weight"].base_dist
    torch.testing.assert_close(law.loc, stacked.mean(0))
    torch.testing.assert_close(law.scale, (stacked.var(0, correction=0) + 0.01).sqrt())
    noise = torch.cat([source.tensors()["likelihood.log_scale"] for source in posterior.sources])
    torch.testing.assert_close(model.log_priors["likelihood.log_scale"].mean, noise.mean())


def test_a_module_called_likelihood_is_one_of_the_net():
    model = bnn.BayesianModel(nn.Sequential(OrderedDict(likelihood=nn.Linear(3, 1))), likelihood=likelihoods.Normal())
    x = torch.randn(20, 3)
    prior = bnn.fit(model, (x, x.sum(1)), bnn.SGLD(draws=3), epochs=10, chains=1, progress=False).as_prior()
    assert set(prior.loc) == {"likelihood.weight", "likelihood.bias"}
    assert set(prior.likelihood) == {"log_scale"}


def test_a_point_estimate_is_no_prior_unless_it_drifts():
    with pytest.raises(ValueError, match="weights with a spread"):
        Posterior(fitted("MAP").model, fitted("MAP").sources[:1], 40).as_prior()
    with pytest.raises(ValueError, match="drift >= 0"):
        fitted("SGLD").as_prior(drift=-1.0)
