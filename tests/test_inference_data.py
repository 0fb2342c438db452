import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import bayesnn as bnn
from bayesnn import inference_data, likelihoods
from bayesnn.data import Data, Standardize
from bayesnn.posterior import Posterior
from bayesnn.rng import generator
from bayesnn.source import Draws

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # arviz announces its next version on import
    import arviz as az

N = 30
X = torch.linspace(-1, 1, N)[:, None]
Y = 2 * X[:, 0] + 0.3 * torch.randn(N, generator=torch.Generator().manual_seed(0))
TARGET = Standardize(torch.tensor(40.0), torch.tensor(5.0))


def fitted(likelihood=None, data=(X, Y), outputs=1, method=None, chains=3):
    model = bnn.BayesianModel(nn.Linear(1, outputs), bnn.priors.Normal(2.0), likelihood or likelihoods.Normal())
    method = method or bnn.SGLD(draws=5)
    return bnn.fit(model, data, method, epochs=20, chains=chains, progress=False)


def groups_of(data):
    return set(data.groups()) if callable(data.groups) else {group.strip("/") for group in data.groups if group != "/"}


@pytest.mark.parametrize("method", [bnn.SGLD(draws=5), bnn.MeanFieldVI()], ids=lambda method: type(method).__name__)
def test_groups_and_dimensions(method):
    posterior = fitted(method=method)
    data = posterior.to_arviz(weights=True, draws=5)
    of_data = {"observed_data", "constant_data"}
    assert groups_of(data) == of_data | {
        "posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior", "prior_predictive"
    }  # fmt: skip
    assert set(data.prior.data_vars) == set(data.posterior.data_vars)
    assert data.prior["net.weight"].shape == (1, 5, 1, 1)
    assert data.prior_predictive["y"].shape == (1, 5, N)
    np.testing.assert_allclose(data.constant_data["x"], X)
    assert set(data.posterior.data_vars) == {
        "net.weight", "net.bias", "likelihood.log_scale", "log_prior"
    }  # fmt: skip
    assert data.posterior["net.weight"].shape == (3, 5, 1, 1)
    assert data.posterior["likelihood.log_scale"].dims == ("chain", "draw")
    for group in (data.posterior, data.posterior_predictive, data.log_likelihood):
        assert all(variable.dims[:2] == ("chain", "draw") for variable in group.data_vars.values())
    assert data.log_likelihood["y"].shape == data.posterior_predictive["y"].shape == (3, 5, N)
    assert data.sample_stats["lp"].shape == (3, 5)
    np.testing.assert_allclose(data.observed_data["y"], Y, rtol=1e-6)


@pytest.mark.parametrize("target", [None, TARGET], ids=["own", "standardised"])
@pytest.mark.parametrize("method", [bnn.SGLD(draws=5), bnn.MeanFieldVI()], ids=lambda method: type(method).__name__)
def test_log_likelihood_and_lp_are_those_of_the_weights_beside_them(target, method):
    y = Y if target is None else target.inverse(Y)
    posterior = fitted(data=Data(X, y, target=target), method=method)
    data = posterior.to_arviz(weights=True, draws=5)
    std = 1.0 if target is None else target.std.item()
    weight, bias = data.posterior["net.weight"].values[..., 0], data.posterior["net.bias"].values
    log_scale = data.posterior["likelihood.log_scale"].values[..., None]
    density = stats.norm(weight * X[:, 0].numpy() + bias, np.exp(log_scale)).logpdf(Y.numpy()) - np.log(std)
    np.testing.assert_allclose(data.log_likelihood["y"], density, rtol=1e-4, atol=1e-4)  # float32 residuals over scales
    noise = stats.gamma(1.0, scale=100.0).logpdf(np.exp(-2 * log_scale)) + np.log(2) - 2 * log_scale
    prior = stats.norm(0, 2).logpdf(weight) + stats.norm(0, 2).logpdf(bias) + noise
    np.testing.assert_allclose(data.sample_stats["lp"], prior[..., 0] + density.sum(-1), rtol=1e-4, atol=N * 1e-4)


def test_lp_has_the_precisions_of_each_draw():
    a, b = 2.0, 0.5
    model = bnn.BayesianModel(nn.Linear(1, 1), bnn.priors.HierarchicalNormal(a, b), likelihoods.Normal(scale=0.3))
    method = bnn.SGHMC(draws=5, gibbs_every=1)
    posterior = bnn.fit(model, (X, Y), method, epochs=20, chains=2, progress=False)
    expected, taus = np.zeros((2, 5)), []
    for source, row in zip(posterior.sources, expected, strict=True):
        draws = {name: value.double().numpy() for name, value in source.tensors().items()}
        for name in ("weight", "bias"):
            tau = draws[f"precisions.net__{name}"]
            row += stats.norm(0, tau**-0.5).logpdf(draws[f"net.{name}"].reshape(5)) + stats.gamma(
                a, scale=1 / b
            ).logpdf(tau)
            taus.append(tau)
    assert len(np.unique(taus)) == 20
    data = posterior.to_arviz()
    prior = data.sample_stats["lp"].values - data.log_likelihood["y"].values.astype(float).sum(-1)
    np.testing.assert_allclose(prior, expected, rtol=1e-4, atol=1e-4)


def test_each_replicate_is_drawn_with_its_own_weights():
    n = 4000
    loc = torch.tensor([[-5.0, 0.0, 3.0], [10.0, 20.0, 30.0]])
    chains = [Draws({"net.weight": torch.zeros(3, 1, 1), "net.bias": row[:, None]}) for row in loc]
    model = bnn.BayesianModel(nn.Linear(1, 1), likelihood=likelihoods.Normal(scale=0.5))
    data = Posterior(model, chains, num_data=n).to_arviz((torch.zeros(n, 1), torch.zeros(n)))
    replicates = data.posterior_predictive["y"].values
    np.testing.assert_array_less(np.abs(replicates.mean(-1) - loc.numpy()), 4 * 0.5 / n**0.5)
    np.testing.assert_array_less(np.abs(replicates.std(-1) - 0.5), 4 * 0.5 / (2 * n) ** 0.5)


def test_replicates_have_a_stream_of_their_own(monkeypatch):
    keys = []
    monkeypatch.setattr(inference_data, "generator", lambda *key: keys.append(key) or generator(*key))
    fitted(method=bnn.MeanFieldVI(), chains=2).to_arviz(draws=2)
    key, again = keys  # of the posterior's and of the prior's, which are of other weights
    assert key == again
    others = [(0, 0), (0, 1), (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3)]  # samples of weights, fits, Predictive.sample
    first = torch.rand(4, generator=generator(*key))
    assert all(not torch.equal(first, torch.rand(4, generator=generator(*other))) for other in others)


def test_arviz_can_work_with_it():
    data = fitted(method=bnn.SGLD(draws=100)).to_arviz(weights=True)
    summary = az.summary(data)
    assert len(summary) == 4
    assert np.isfinite(summary["r_hat"]).all()
    loo = az.loo(data)
    assert np.isfinite(loo.elpd_loo)
    # Cross-validation is no better than the fit to the same rows.
    assert loo.elpd_loo < np.log(np.exp(data.log_likelihood["y"].values).mean((0, 1))).sum()


def test_arviz_draws_it_and_compares_models():
    """The pictures that need nothing but the data set; of two priors the one that lets the slope be 2 is the better."""
    data = fitted(method=bnn.SGLD(draws=50)).to_arviz()
    names = ["plot_trace", "plot_rank", "plot_autocorr", "plot_forest"]
    names.append("plot_ppc" if hasattr(az, "plot_ppc") else "plot_ppc_dist")  # the second is ArviZ 1.x's name
    for name in names:
        getattr(az, name)(data)
    plt.close("all")
    model = bnn.BayesianModel(nn.Linear(1, 1), bnn.priors.Normal(0.02), likelihoods.Normal())
    narrow = bnn.fit(model, (X, Y), bnn.SGLD(draws=50), epochs=20, chains=3, progress=False).to_arviz()
    table = az.compare({"wide": data, "narrow": narrow})
    assert list(table.index) == ["wide", "narrow"]


def test_the_prior_groups_are_in_the_targets_own_units():
    data = fitted(data=Data(X, TARGET.inverse(Y), target=TARGET), method=bnn.SGLD(draws=200)).to_arviz(weights=True)
    weight, bias = data.prior["net.weight"].values[0, :, 0], data.prior["net.bias"].values[0]
    scale = np.exp(data.prior["likelihood.log_scale"].values[0])[:, None]
    residual = (data.prior_predictive["y"].values[0] - 40) / 5 - (weight * X[:, 0].numpy() + bias)
    assert stats.kstest((residual / scale).flatten(), stats.norm.cdf).pvalue > 0.001
    assert stats.kstest(weight.flatten(), stats.norm(scale=2.0).cdf).pvalue > 0.001


@pytest.mark.parametrize(
    ("likelihood", "outputs", "y", "shape"),
    [
        (likelihoods.Categorical(), 3, torch.arange(N) % 3, (N,)),
        (likelihoods.Bernoulli(), 1, torch.arange(N) % 2, (N,)),
        (likelihoods.Poisson(), 1, torch.arange(N) % 4, (N,)),
        (likelihoods.Normal(), 2, torch.stack((Y, -Y), 1), (N, 2)),
        (likelihoods.Normal(), 1, Y[:, None], (N,)),
    ],
    ids=["Categorical", "Bernoulli", "Poisson", "two targets", "column"],
)
def test_other_targets(likelihood, outputs, y, shape):
    posterior = fitted(likelihood, (X, y), outputs, chains=1)
    for data in (posterior.to_arviz(), posterior.to_arviz((X.numpy(), y.numpy()))):
        assert data.observed_data["y"].shape == shape
        assert data.posterior_predictive["y"].shape == (1, 5, *shape)
        assert data.log_likelihood["y"].shape == (1, 5, N)


def test_weights_are_chosen_by_name():
    posterior = fitted()
    for weights, names in ((False, set()), (["bias"], {"net.bias"}), ("net.bias", {"net.bias"})):
        data = posterior.to_arviz(weights=weights)
        assert set(data.posterior.data_vars) == set(data.prior.data_vars) == {
            "log_prior", "likelihood.log_scale", *names
        }  # fmt: skip
    model = posterior.model.copy()
    for chain, states in enumerate(posterior.states()):
        for draw, state in enumerate(states):
            model.load_state(state)
            assert float(data.posterior["log_prior"][chain, draw]) == pytest.approx(float(model.log_prior().detach()))
    assert data.log_likelihood["y"].dims == ("chain", "draw", "row")
    assert data.constant_data["x"].dims[0] == "row"
    with pytest.raises(ValueError, match=r"Expected weights of weight, bias, likelihood.log_scale, got 'kernel'"):
        posterior.to_arviz(weights=["kernel"])


def test_other_data_are_in_their_own_units():
    posterior = fitted(data=Data(X, TARGET.inverse(Y), target=TARGET))
    data = posterior.to_arviz((X[:4], TARGET.inverse(Y[:4])))
    np.testing.assert_allclose(data.observed_data["y"], TARGET.inverse(Y[:4]), rtol=1e-6)
    np.testing.assert_allclose(data.log_likelihood["y"], posterior.to_arviz().log_likelihood["y"][..., :4], rtol=1e-4)


def test_unequal_chains_are_cut_from_the_front_and_say_so():
    posterior = fitted()
    posterior.sources[1] = Draws({name: tensor[:2] for name, tensor in posterior.sources[1].stacked.items()})
    with pytest.warns(UserWarning, match=r"Chains have \[5, 2, 5\] draws: the last 2 of each are kept") as record:
        data = posterior.to_arviz(weights=True)
    assert record[0].filename == __file__
    assert data.posterior["net.bias"].shape == (3, 2, 1)
    np.testing.assert_array_equal(data.posterior["net.bias"][0], posterior.sources[0].stacked["net.bias"][-2:])
    all_draws = posterior.predict(X).log_likelihood(Y)
    np.testing.assert_allclose(data.log_likelihood["y"][0], all_draws[3:5], rtol=1e-6)
    np.testing.assert_allclose(data.log_likelihood["y"][1], all_draws[5:7], rtol=1e-6)


def test_after_load_the_data_must_be_given(tmp_path):
    posterior = fitted()
    posterior.save(tmp_path)
    again = Posterior.load(tmp_path, nn.Linear(1, 1))
    with pytest.raises(
        ValueError, match=r"Expected data=\(x, y\): this posterior does not hold its training data"
    ) as error:
        again.to_arviz()
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(
        again.to_arviz((X, Y)).sample_stats["lp"], posterior.to_arviz((X, Y)).sample_stats["lp"]
    )


def test_sample_stats_are_those_of_the_draws_beside_them():
    data = fitted(method=bnn.SGHMC(lr=0.01, burn_in=0.2, draws=8)).to_arviz()
    stats = data.sample_stats
    assert set(stats.data_vars) == {
        "lp", "potential_energy", "lr", "temperature", "kinetic_temperature", "gradient_norm"
    }  # fmt: skip
    assert all(variable.shape == (3, 8) for variable in stats.data_vars.values())
    np.testing.assert_allclose(stats["potential_energy"], -stats["lp"])
    assert float(stats["lr"].max()) == float(stats["lr"].min()) == 0.01
    assert float(stats["temperature"].min()) == 1.0


@pytest.mark.parametrize("prior", [bnn.priors.Normal(2.0), bnn.priors.StudentT(4.0)], ids=repr)
def test_the_gradient_norm_is_that_of_the_potential_where_the_step_began(prior):
    """On full batches, every step kept: of SGLD the step to a draw begins at the draw before."""
    model = bnn.BayesianModel(nn.Linear(1, 1), prior, likelihoods.Normal(0.3))
    method = bnn.SGLD(lr=0.02, burn_in=0.0, warm_up=0.0, thin=1)
    posterior = bnn.fit(model, (X, Y), method, epochs=12, chains=1, batch_size=None, progress=False)
    states, norms = posterior.states()[0], posterior.sample_stats[0]["gradient_norm"]
    assert len(norms) == len(states) == 12
    there = posterior.model.copy()
    for before, norm in zip(states, norms[1:], strict=False):
        there.load_state(before)
        there.zero_grad()
        (-there.log_joint(X, Y)).backward()
        expected = sum(float(p.grad.square().sum()) for p in there.bayesian_parameters().values()) ** 0.5
        assert norm == pytest.approx(expected, rel=1e-4)
    assert np.std(norms) > 0.05 * np.mean(norms)  # else one draw could pass for another


def test_the_acceptance_rates_of_hmc_have_the_mean_that_the_history_has(tmp_path):
    posterior = fitted(method=bnn.HMC(draws=10))
    stats = posterior.to_arviz(draws=5).sample_stats
    assert stats["acceptance_rate"].shape == (3, 5)
    for chain, rows in enumerate(posterior.sample_stats):
        last = [row for row in posterior.history if row["chain"] == chain][-1]
        assert len(rows["acceptance_rate"]) == 10
        assert np.mean(rows["acceptance_rate"]) == pytest.approx(last["accept"])
        assert rows["acceptance_rate"][1::2] == pytest.approx(list(stats["acceptance_rate"][chain].values))
    posterior.save(tmp_path / "run")
    again = bnn.Posterior.load(tmp_path / "run", posterior.model.net)
    assert again.sample_stats == posterior.sample_stats


def test_sample_stats_of_chains_as_one_are_those_of_each_alone():
    data = Data(X, Y)
    model = bnn.BayesianModel(torch.nn.Linear(1, 1), likelihood=bnn.likelihoods.Normal())
    given = bnn.fit(model, data, bnn.SGHMC(draws=6), epochs=20, chains=3, vectorize=True, progress=False)
    assert [set(rows) for rows in given.sample_stats] == [{"lr", "temperature"}] * 3
    assert given.to_arviz().sample_stats["lr"].shape == (3, 6)
