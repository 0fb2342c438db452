"""Local reparameterization and flipout against the optimum of factorised Normals on Bayesian linear regression.

A linear layer on (batch, features): here both are exact. The problems, and what is asked, are those of plain
reparameterization in ``test_linear_regression.py``.
"""

from functools import cache

import numpy as np
import pytest

import bayesnn as bnn
from tests.posteriors.linear import D, K
from tests.posteriors.test_linear_regression import _assert_optimal_variance, _assert_slope_of_one, case_of


@cache
def vi_fit(name: str, estimator: str, batch: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(means, variances) of the fitted factors, each (K, D): a fast approach, then a slow one."""
    case, posterior = case_of(name), None
    for lr, steps in ((0.05, 300), (0.01, 600)):
        epochs = steps if batch is None else steps * batch // case.n
        method, start = bnn.MeanFieldVI(lr=lr, initial_sd=0.1, estimator=estimator), posterior or "fresh"
        posterior = bnn.fit(
            case.model, (case.x, case.y), method, epochs=epochs, batch_size=batch, init=start, progress=False
        )
    tensors = posterior.sources[0].tensors()
    return tensors["loc/net.weight"].numpy(), (2 * tensors["log_sd/net.weight"]).exp().numpy()


@pytest.mark.parametrize("estimator", ["local", "flipout"])
@pytest.mark.parametrize(
    ("name", "batch"),
    [("informed", None), ("informed", 10), ("prior", None), pytest.param("disguised", None, marks=pytest.mark.slow)],
)
def test_reaches_the_optimum_of_its_family(name: str, batch: int | None, estimator: str) -> None:
    case, (mean, variance) = case_of(name), vi_fit(name, estimator, batch)
    _assert_optimal_variance(case, variance)
    _assert_slope_of_one(case, mean)
    optimum = 1 / np.diag(case.precision)
    assert np.sqrt(np.mean((mean - case.mean) ** 2 / optimum)) < 0.2
    marginal = np.broadcast_to(np.diag(np.linalg.inv(case.precision)), (K, D))
    with pytest.raises(AssertionError, match="instead of 1"):
        _assert_optimal_variance(case, variance * marginal / optimum)


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_a_prior_that_is_off_by_a_fifth_is_seen(estimator: str) -> None:
    case = case_of("tight")
    with pytest.raises(AssertionError, match="instead of 1"):
        _assert_optimal_variance(case, vi_fit("tight", estimator)[1])
