"""PyroVI: a guide that holds the posterior of linear regression reaches it, and Pyro's global state is left alone."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide

import bayesnn as bnn
from bayesnn.methods.pyro_vi import GUIDES
from tests.posteriors.contract import X, Y
from tests.posteriors.families import (
    LOUDER,
    K,
    assert_deterministic_part_is_optimised,
    assert_goes_on_from_a_state,
    assert_posterior,
    assert_same_bits_on_cuda,
    case_of,
    fit,
    net,
    small,
)

METHODS = {"AutoNormal": bnn.PyroVI(draws=3), "a flow": bnn.PyroVI("AutoIAFNormal", draws=3)}
FULL = bnn.PyroVI("AutoMultivariateNormal", lr=0.01, draws=1000)


@pytest.mark.parametrize("batch", [None, 5])
def test_a_full_guide_is_the_posterior(batch: int | None) -> None:
    """With minibatches too: that the likelihood stands there N / B times is what the plate is for."""
    case = case_of("prior")
    assert_posterior(case, fit(case, FULL, 400 if batch is None else 900, batch))


def test_an_n_that_is_off_by_a_fifth_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case, honest = case_of("informed"), bnn.BayesianModel.pyro_model
    monkeypatch.setattr(bnn.BayesianModel, "pyro_model", lambda m, x, y, n: honest(m, x, y, round(LOUDER * n)))
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_posterior(case, fit(case, FULL, 400))


def test_pyros_global_state_is_left_as_it_was() -> None:
    model = bnn.BayesianModel(net(), likelihood=bnn.likelihoods.Normal())
    pyro.clear_param_store()
    mine = pyro.param("AutoNormal.locs.net.layers.0.weight", torch.tensor(3.0))
    pyro.set_rng_seed(1)
    state, dtype = torch.random.get_rng_state(), torch.get_default_dtype()
    posterior = small(bnn.PyroVI(draws=3), model=model)
    assert list(pyro.get_param_store().keys()) == ["AutoNormal.locs.net.layers.0.weight"]
    assert pyro.param("AutoNormal.locs.net.layers.0.weight") is mine
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_default_dtype() == dtype
    pyro.clear_param_store()  # and it has no say
    again = small(bnn.PyroVI(draws=3), model=model)
    for first, second in zip(posterior.sources, again.sources, strict=True):
        assert all(torch.equal(value, second.tensors()[name]) for name, value in first.tensors().items())


def test_every_guide_fits_a_net_with_inferred_noise() -> None:
    rank_two = partial(autoguide.AutoLowRankMultivariateNormal, rank=2, init_scale=0.05)
    for guide in (*GUIDES, rank_two, autoguide.AutoDelta):
        posterior = small(bnn.PyroVI(guide, draws=3))
        draws = posterior.sources[0].tensors()
        assert draws["net.layers.0.weight"].shape == (3, 3, 2)
        assert draws["likelihood.log_scale"].shape[0] == 3
        assert (float(draws["net.layers.0.weight"].std(0).max()) == 0) == (guide is autoguide.AutoDelta)


def test_a_guide_of_ones_own() -> None:
    """Parameters by ``pyro.param``, one set a chain: each reaches the mean that is known."""
    case = case_of("prior")

    def guide(x, y=None, num_data=None):
        loc = pyro.param("loc", lambda: torch.zeros(K, 3))
        scale = pyro.param("scale", lambda: torch.full((K, 3), 0.05), constraint=dist.constraints.positive)
        pyro.sample("net.weight", dist.Normal(loc, scale).to_event(2))

    posterior = fit(case, bnn.PyroVI(guide, lr=0.03, draws=400), 250)
    for source in posterior.sources:
        draws = source.tensors()["net.weight"].numpy()
        sd = np.sqrt(np.diag(np.linalg.inv(case.precision)))
        assert np.sqrt(np.mean(((draws.mean(0) - case.mean) / sd) ** 2)) < 0.25
    assert not torch.equal(*(source.tensors()["net.weight"] for source in posterior.sources))


def test_a_guide_that_leaves_a_weight_out_is_refused() -> None:
    def half(x, y, num_data):
        pyro.sample("net.layers.0.weight", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))

    def flat(x, y, num_data):
        pyro.sample("net.weight", dist.Normal(torch.zeros(K * 3), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"samples every weight, got none for net.layers.0.bias, .*: pyro.sample\("):
        small(bnn.PyroVI(half))
    with pytest.raises(ValueError, match=r"to sample 'net.weight' in shape \(6, 3\), got \(18,\): use .expand"):
        fit(case_of("prior"), bnn.PyroVI(flat), 1)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_files_and_dtypes(method: bnn.PyroVI, tmp_path) -> None:
    posterior = small(method)
    posterior.save(tmp_path / "saved")
    again = bnn.Posterior.load(tmp_path / "saved", net())
    assert torch.equal(posterior.predict(X).draws, again.predict(X).draws)
    model = bnn.BayesianModel(net(), likelihood=bnn.likelihoods.Normal()).double()
    draws = bnn.fit(model, (X.double(), Y.double()), method, epochs=2, progress=False).predict(X.double()).draws
    assert draws.dtype == torch.float64
    assert torch.isfinite(draws).all()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_run_goes_on(method: bnn.PyroVI) -> None:
    assert_goes_on_from_a_state(method)
    assert_deterministic_part_is_optimised(method)


def test_early_stopping_goes_back_to_the_best_guide() -> None:
    model = bnn.BayesianModel(net(), likelihood=bnn.likelihoods.Normal())
    options = {"validation": 0.3, "early_stopping": 2, "epochs": 60, "progress": False}
    posterior = bnn.fit(model, (X, Y), bnn.PyroVI(lr=0.3, draws=3), **options)
    scores = [row["val_nll"] for row in posterior.history]
    assert len(scores) < 60
    assert scores[-1] > min(scores)
    assert torch.isfinite(posterior.predict(X).log_prob(Y)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bnn.PyroVI("AutoNorml"), "Unknown guide 'AutoNorml': did you mean 'AutoNormal'"),
        (lambda: bnn.PyroVI(3), "Expected a guide's name, class or function, got 3"),
        (lambda: bnn.PyroVI(autoguide.AutoNormal(lambda: None)), "Expected the class of an autoguide, got one made"),
        (lambda: bnn.PyroVI(draws=0), "Expected draws to be an integer >= 1, got 0"),
        (lambda: bnn.PyroVI(mc_samples=0), "Expected mc_samples to be an integer >= 1, got 0"),
        (lambda: bnn.PyroVI(lr=0), "Expected lr > 0 and finite, got 0"),
    ],
)
def test_bad_arguments(make, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_on_cuda(method: bnn.PyroVI) -> None:
    assert_same_bits_on_cuda(method)
