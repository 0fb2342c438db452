"""Every minibatch sampler on Bayesian logistic regression, breast-cancer, against long NUTS.

Means within 0.1 posterior standard deviations and standard deviations within 10 %, of the worst of 31 weights. The
posterior is neither Normal nor round: weights are correlated, tails are skew. 128 outputs of one layer are as many
copies of it; under minibatches they share the noise of the batch, and so count for fewer.
"""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import bayesnn as bnn
from bayesnn.methods.sampler import SamplerMethod
from tests.posteriors import targets

MODEL, DATA = targets.logistic(copies=128, dtype=torch.float32)
KEEP: dict[str, Any] = {"burn_in": 0.1, "thin": 10}
FULL: dict[str, Any] = {"batch_size": None}
CASES: dict[str, tuple[SamplerMethod, dict[str, Any]]] = {
    "SGLD": (bnn.SGLD(lr=0.6, **KEEP), {"epochs": 24_000, **FULL}),
    "SGHMC": (bnn.SGHMC(lr=0.4, **KEEP), {"epochs": 3000, **FULL}),
    "SGNHT": (bnn.SGNHT(lr=0.4, **KEEP), {"epochs": 3000, **FULL}),
    "PSGLD": (bnn.PSGLD(**KEEP), {"epochs": 7000, **FULL}),
    # Each cycle falls to the mode and has to find the posterior's width again while its steps are still long.
    "SGHMC, 3 cycles": (bnn.SGHMC(lr=0.5, cycles=3, exploration=0.2, **KEEP), {"epochs": 6000, **FULL}),
    "SGHMC, batches of 128": (bnn.SGHMC(lr=0.1, **KEEP), {"epochs": 3000, "batch_size": 128}),
    "SGNHT, batches of 128": (bnn.SGNHT(lr=0.1, **KEEP), {"epochs": 3000, "batch_size": 128}),
    "SGHMC, batches of 64, SVRG": (
        bnn.SGHMC(lr=0.3, variance_reduction="svrg", **KEEP),
        {"epochs": 500, "batch_size": 64},
    ),
    "SGHMC, batches of 64, control variate": (
        bnn.SGHMC(lr=0.1, variance_reduction="control-variate", **KEEP),
        {"epochs": 700, "batch_size": 64},
    ),
}


@cache
def mode() -> bnn.Posterior:
    return bnn.fit(MODEL, DATA, bnn.MAP(lr=0.05), epochs=1500, batch_size=None, progress=False)


def sample(method: SamplerMethod, options: dict[str, Any]) -> bnn.Posterior:
    return bnn.fit(MODEL, DATA, method, chains=1, seed=1, init=mode(), progress=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_moments_are_those_of_long_nuts(name: str) -> None:
    targets.assert_logistic(sample(*CASES[name]))


def test_noise_that_is_off_by_a_fifth_is_seen() -> None:
    method, options = CASES["SGHMC"]
    draws = targets.logistic_draws(sample(replace(method, temperature=1.2**2), options))
    sd = np.array(json.loads(targets.REFERENCE.read_text())["sd"])
    assert (draws.std((0, 1, 2), ddof=1) > 1.1 * sd).mean() > 0.9
