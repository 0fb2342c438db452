"""FullRankVI against Bayesian linear regression, whose posterior is in its family."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bayesnn as bnn
from tests.posteriors.contract import assert_contract
from tests.posteriors.families import (
    LOUDER,
    assert_closed_kl,
    assert_deterministic_part_is_optimised,
    assert_goes_on_from_a_state,
    assert_goes_on_with_its_covariance,
    assert_gradient_of_the_elbo,
    assert_posterior,
    assert_same_bits_on_cuda,
    case_of,
    fit,
    net,
)

METHOD = bnn.FullRankVI(lr=0.01)


def full(kl_weight: float = 1.0) -> bnn.FullRankVI:
    return bnn.FullRankVI(lr=0.01, initial_sd=0.1, mc_samples=2, kl_weight=kl_weight)


@pytest.mark.parametrize(("name", "batch"), [("informed", 10), ("prior", None), ("disguised", None)])
def test_the_fit_is_the_posterior_correlations_included(name: str, batch: int | None) -> None:
    """``disguised`` takes the KL's cross-entropy by Monte Carlo, the others take it closed."""
    case = case_of(name)
    posterior = fit(case, full(), 700 if batch is None else 1100, batch)
    assert_posterior(case, posterior)
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_posterior(case, posterior, of=np.eye(3))


def test_a_kl_that_is_off_by_a_fifth_is_seen() -> None:
    case = case_of("prior")
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_posterior(case, fit(case, full(kl_weight=LOUDER), 700))


def test_the_gradient_is_that_of_the_elbo() -> None:
    assert_gradient_of_the_elbo(bnn.FullRankVI)


def test_the_closed_kl_is_the_kl() -> None:
    assert_closed_kl(METHOD)


def test_a_large_factor_is_refused_with_what_it_would_take() -> None:
    model = bnn.BayesianModel(nn.Linear(200, 100), likelihood=bnn.likelihoods.Normal(0.1))
    expected = r"at most 1,073,741,824 bytes, got 3,2\d\d,\d*,\d* for 20,100 weights: use LowRankVI"
    with pytest.raises(ValueError, match=expected):
        bnn.fit(model, (torch.randn(4, 200), torch.randn(4, 100)), bnn.FullRankVI(), epochs=1, progress=False)


def test_the_factor_in_several_blocks_is_the_one_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("prior")
    whole = fit(case, METHOD, 30).sources[0].tensors()
    monkeypatch.setattr("bayesnn.methods.full_rank.ROWS", 7)
    split = fit(case, METHOD, 30).sources[0].tensors()
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-9, atol=1e-12)


def test_the_contract(tmp_path: Path) -> None:
    assert_contract(METHOD, net(), tmp_path / "saved")


def test_a_run_goes_on() -> None:
    assert_goes_on_from_a_state(METHOD)
    assert_goes_on_with_its_covariance(METHOD)
    assert_deterministic_part_is_optimised(METHOD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, "Expected lr > 0 and finite, got -1"),
        ({"initial_sd": 0}, "Expected initial_sd > 0 and finite, got 0"),
        ({"mc_samples": 0}, "Expected mc_samples to be an integer >= 1, got 0"),
        ({"kl_weight": -1}, "Expected kl_weight >= 0 and finite, got -1"),
        ({"schedule": "cosin"}, "Unknown schedule 'cosin': did you mean 'cosine'"),
    ],
)
@pytest.mark.parametrize("kind", [bnn.FullRankVI, bnn.LowRankVI, bnn.RadialVI])
def test_bad_arguments(kind, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda() -> None:
    assert_same_bits_on_cuda(METHOD)
