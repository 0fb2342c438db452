"""HMC and NUTS against posteriors known in closed form; what they share with MCLMC is in methods/test_full_batch.py."""

from functools import cache

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import bayesnn as bnn
from bayesnn.methods.full_batch import FullBatchMethod
from tests.posteriors import targets
from tests.posteriors.linear import assert_one, draws_of, problem, second_moment

COLUMNS = 20
SLOW = pytest.mark.slow
LINEAR = {"HMC": (bnn.HMC, 200), "NUTS": (bnn.NUTS, 150)}


@cache
def linear_draws(name: str, temperature: float) -> np.ndarray:
    case, (method, epochs) = problem(columns=COLUMNS), LINEAR[name]
    data, options = (case.x, case.y), {"warm_up": 0.3, "draws": 1000, "temperature": temperature}
    return draws_of(bnn.fit(case.model, data, method(**options), epochs=epochs, chains=1, seed=2, progress=False))


def _assert_linear(draws: np.ndarray, temperature: float) -> None:
    """Variances of all weights together, and each mean, within 4 standard errors."""
    case = problem(columns=COLUMNS)
    covariance = temperature * np.linalg.inv(case.precision)
    assert_one(second_moment(draws, case.mean, covariance))
    off = (draws.mean(0) - case.mean) / bnn.diagnostics.mcse_mean(draws[None])
    assert (np.abs(off) < 4).all()


@pytest.mark.parametrize(
    ("name", "temperature"), [("HMC", 1.0), ("HMC", 0.5), ("NUTS", 1.0), pytest.param("NUTS", 0.5, marks=SLOW)]
)
def test_linear_regression(name: str, temperature: float) -> None:
    _assert_linear(linear_draws(name, temperature), temperature)


def test_a_wrong_temperature_is_seen() -> None:
    """Standard deviations that are off by a fifth: T = 1.44."""
    with pytest.raises(AssertionError, match="instead of 1"):
        _assert_linear(linear_draws("HMC", 1.44), 1.0)


CASES: list[tuple[str, str, FullBatchMethod, int]] = [
    ("gaussian_2d", "HMC", bnn.HMC(draws=2000, warm_up=0.3), 300),
    ("gaussian_2d", "NUTS", bnn.NUTS(draws=2000), 100),
    ("banana", "HMC", bnn.HMC(draws=2000, warm_up=0.3), 300),
    ("banana", "NUTS", bnn.NUTS(draws=2000), 150),
    ("quartic", "HMC", bnn.HMC(draws=2000, warm_up=0.3), 300),
    ("quartic", "NUTS", bnn.NUTS(draws=2000), 150),
]


@pytest.mark.parametrize(("name", "kind", "method", "epochs"), CASES, ids=[f"{a}-{b}" for a, b, *_ in CASES])
def test_moments(name: str, kind: str, method: FullBatchMethod, epochs: int) -> None:
    """HMC in float32: its positions and energies are float64 all the same."""
    dtype = torch.float32 if kind == "HMC" else torch.float64
    case = getattr(targets, name)(copies=20, dtype=dtype)
    posterior = bnn.fit(case.model, case.data, method, epochs=epochs, chains=1, seed=0, progress=False)
    assert posterior.sources[0].tensors()["net.w"].dtype == dtype
    case.assert_moments(posterior, largest_error=0.15)


@pytest.mark.parametrize(
    ("method", "epochs"),
    [pytest.param(bnn.HMC(draws=1000), 300, marks=SLOW), pytest.param(bnn.NUTS(draws=1000), 200, marks=SLOW)],
)
def test_logistic_regression(method: FullBatchMethod, epochs: int) -> None:
    model, data = targets.logistic()
    posterior = bnn.fit(model, data, method, epochs=epochs, chains=1, seed=1, progress=False)
    targets.assert_logistic(posterior)


def test_a_rejected_proposal_repeats_the_state() -> None:
    """As often as the history says."""
    case = targets.quartic(copies=20)
    method = bnn.HMC(draws=1000, warm_up=0.3, target_accept=0.5)
    posterior = bnn.fit(case.model, case.data, method, epochs=300, chains=1, progress=False)
    draws = posterior.sources[0].tensors()["net.w"]
    repeated = (draws[1:] == draws[:-1]).all(1).all(1).double().mean()
    rejected = 1 - posterior.history[-1]["accept"]
    assert rejected > 0.2
    assert abs(repeated - rejected) < 4 * np.sqrt(rejected * (1 - rejected) / len(draws))


def test_the_history_has_what_pyro_adapts() -> None:
    case = targets.quartic(copies=5)
    method = bnn.NUTS(target_accept=0.9)
    history = bnn.fit(case.model, case.data, method, epochs=100, chains=1, progress=False).history
    assert 0.8 < history[-1]["accept"] < 0.99
    assert len({row["step_size"] for row in history[50:]}) == 1
    assert len({row["step_size"] for row in history[:50]}) > 25
    assert history[-1]["divergent"] == 0


def _funnel(w: Tensor) -> Tensor:
    """Neal's: v ~ Normal(0, 3^2) and w_j ~ Normal(0, exp(v))."""
    v, rest = w[:, 0], w[:, 1:]
    return v**2 / 18 + (rest**2).sum(1) * torch.exp(-v) / 2 + v * rest.shape[1] / 2


def test_divergences_are_said() -> None:
    def prior(name: str, w: Tensor, module: nn.Module) -> dist.TorchDistribution:
        return targets.Density(_funnel, w.shape)

    case = targets.target(prior, {}, 1, 10, torch.float64)
    with pytest.warns(UserWarning, match=r"trajectories of NUTS diverged .* raise target_accept \(now 0.6\)"):
        posterior = bnn.fit(case.model, case.data, bnn.NUTS(target_accept=0.6), epochs=80, chains=1, progress=False)
    assert posterior.history[-1]["divergent"] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bnn.HMC(trajectory=0), "trajectory > 0 and finite, got 0"),
        (lambda: bnn.HMC(max_steps=0), "max_steps to be an integer >= 1, got 0"),
        (lambda: bnn.NUTS(max_depth=0), "max_depth to be an integer >= 1, got 0"),
        (lambda: bnn.HMC(target_accept=1), r"target_accept in \[0, 1\), got 1"),
        (lambda: bnn.NUTS(target_accept=0), r"target_accept in \(0, 1\), got 0"),
        (lambda: bnn.NUTS(map_steps=-1), "map_steps to be an integer >= 0, got -1"),
    ],
)
def test_bad_arguments(make, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_no_trajectory_is_longer_than_said() -> None:
    case = targets.gaussian_2d(copies=2)
    method = bnn.HMC(trajectory=1e4, max_steps=5)
    posterior = bnn.fit(case.model, case.data, method, epochs=50, chains=1, progress=False)
    adaptation = 60  # of the first step size
    assert posterior.info["gradient_evaluations"][0] <= 50 * 5 + adaptation


def test_map_steps_climb_before_the_first_transition() -> None:
    """From a start far off, a chain that climbs is near the mode when the one that does not is still on its way."""
    case = problem(columns=COLUMNS)
    data = (case.x, case.y)
    losses = []
    for climb in (0, 500):
        history = bnn.fit(
            case.model, data, bnn.NUTS(map_steps=climb, max_depth=1), epochs=1, chains=1, progress=False
        ).history
        losses.append(history[0]["loss"])
    best = float(
        -torch.distributions.Normal(case.x @ torch.tensor(case.mean).T, case.sigma).log_prob(case.y).sum(1).mean()
    )
    assert losses[1] - best < 0.1 * (losses[0] - best)
