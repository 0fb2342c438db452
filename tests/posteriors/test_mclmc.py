"""MCLMC: its steps against the equations of motion, its draws against posteriors known in closed form.

It is unadjusted, so its moments are off by a bias that its option ``energy_variance`` controls. ``BIAS`` is what the
default leaves at most on these targets, as a share; with a hundredth of the energy variance it is below the error.
"""

import math
from functools import cache

import numpy as np
import pytest
import torch

import bayesnn as bnn
from bayesnn.methods.mclmc import INTEGRATORS, leap, refresh, turn
from tests.posteriors import targets
from tests.posteriors.linear import assert_one, draws_of, problem, second_moment

COLUMNS = 20
BIAS = 0.04


def _direction(d: int, seed: int) -> torch.Tensor:
    return refresh(torch.zeros(d, dtype=torch.float64), 1.0, torch.Generator().manual_seed(seed))


def _scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("eps", [0.1, 3.0])
def test_a_turn_solves_the_equation_of_motion(eps: float) -> None:
    """du/dt = (1 - u u') f with f = -g / (d - 1), and dK/dt = (d - 1) f'u, by Runge-Kutta."""
    d, steps = 5, 2000
    u, g = _direction(d, 0), 4 * _direction(d, 1)
    f, h = -g / (d - 1), eps / steps
    v, kinetic = u.clone(), 0.0

    def slope(v: torch.Tensor) -> torch.Tensor:
        return f - v * (v @ f)

    for _ in range(steps):
        k1 = slope(v)
        k2 = slope(v + h / 2 * k1)
        k3 = slope(v + h / 2 * k2)
        k4 = slope(v + h * k3)
        middle = v + h / 2 * k2
        kinetic += h * (d - 1) * float(f @ (v + 4 * middle + v + h * k3)) / 6
        v = v + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    turned, gained = turn(u, g, _scalar(eps))
    torch.testing.assert_close(turned, v, rtol=1e-8, atol=1e-8)
    assert math.isclose(float(gained), kinetic, rel_tol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_turn_in_a_huge_gradient_does_not_overflow(dtype: torch.dtype) -> None:
    u, g = _direction(5, 0).to(dtype), 1e9 * _direction(5, 1).to(dtype)
    turned, gained = turn(u, g, _scalar(1.0))
    torch.testing.assert_close(turned, -g / g.norm())  # down the gradient
    assert math.isclose(float(gained), float(g.norm()), rel_tol=1e-3)
    same, nothing = turn(u, torch.zeros_like(u), _scalar(1.0))
    torch.testing.assert_close(same, u)
    assert float(nothing) == 0


def test_the_direction_is_forgotten_over_the_length_l() -> None:
    """In d dimensions u'u0 falls by exp(-eps / L) a step, and u stays on the sphere."""
    d, L, eps = 20_000, 3.0, 0.5
    generator, start = torch.Generator().manual_seed(0), _direction(d, 1)
    u, nu = start, math.sqrt(math.expm1(2 * eps / L) / d)
    for step in range(1, 7):
        u = refresh(u, nu, generator)
        assert abs(float(u @ start) - math.exp(-step * eps / L)) < 4 / math.sqrt(d)
        assert math.isclose(float(u.norm()), 1.0, rel_tol=1e-9)


def _energy_error(integrator: str, eps: float) -> float:
    """Root mean square, over starts, of the energy error of one step on a quartic, from a typical point of it."""
    d, squares = 50, []

    def quartic(x: torch.Tensor, _: None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return (x**4).sum() / 4, x**3, _scalar(0.0)

    for seed in range(20):
        x, u = _direction(d, seed) * math.sqrt(0.676 * d), _direction(d, 100 + seed)
        before, gradient, _ = quartic(x, None)
        _, _, _, after, _, kinetic = leap(x, torch.ones(d), u, gradient, _scalar(eps), integrator, quartic, None)
        squares.append(float(after - before + kinetic) ** 2)
    return math.sqrt(float(np.mean(squares)))


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_energy_error_is_of_third_order(integrator: str) -> None:
    """What the tuning of eps assumes: dE^2 grows as eps^6."""
    assert sum(turned for turned, _ in INTEGRATORS[integrator][0]) + INTEGRATORS[integrator][1] == pytest.approx(1)
    assert sum(moved for _, moved in INTEGRATORS[integrator][0]) == pytest.approx(1)
    order = math.log2(_energy_error(integrator, 0.2) / _energy_error(integrator, 0.1))
    assert abs(order - 3) < 0.3


def test_the_minimal_norm_earns_its_second_gradient() -> None:
    """Two leapfrog steps of half the size have a quarter of its error's size; it has less."""
    assert _energy_error("minimal-norm", 0.8) < 2 * _energy_error("leapfrog", 0.4)


@cache
def linear_draws(temperature: float, energy_variance: float = 5e-5) -> np.ndarray:
    case = problem(columns=COLUMNS)
    method = bnn.MCLMC(draws=1000, temperature=temperature, energy_variance=energy_variance)
    return draws_of(bnn.fit(case.model, (case.x, case.y), method, epochs=1500, chains=1, seed=2, progress=False))


def _assert_linear(draws: np.ndarray, temperature: float) -> None:
    case = problem(columns=COLUMNS)
    covariance = temperature * np.linalg.inv(case.precision)
    assert_one(second_moment(draws, case.mean, covariance))
    off = (draws.mean(0) - case.mean) / bnn.diagnostics.mcse_mean(draws[None])
    assert (np.abs(off) < 4).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_linear_regression(temperature: float) -> None:
    _assert_linear(linear_draws(temperature), temperature)


def test_a_wrong_temperature_is_seen() -> None:
    """Standard deviations that are off by a fifth: T = 1.44."""
    with pytest.raises(AssertionError, match="instead of 1"):
        _assert_linear(linear_draws(1.44), 1.0)


CASES = [
    ("gaussian_2d", torch.float32, bnn.MCLMC(draws=2000)),
    ("gaussian_2d", torch.float64, bnn.MCLMC(draws=2000, integrator="leapfrog")),
    ("banana", torch.float64, bnn.MCLMC(draws=2000)),
    ("quartic", torch.float32, bnn.MCLMC(draws=2000, precondition=False)),
]


@pytest.mark.parametrize(("name", "dtype", "method"), CASES)
def test_moments(name: str, dtype: torch.dtype, method: bnn.MCLMC) -> None:
    case = getattr(targets, name)(dtype=dtype)
    posterior = bnn.fit(case.model, case.data, method, epochs=1500, chains=1, seed=0, progress=False)
    assert posterior.sources[0].tensors()["net.w"].dtype == dtype
    case.assert_moments(posterior, bias=BIAS, largest_error=0.15)


def test_the_bias_falls_with_the_energy_variance() -> None:
    """On the quartic, whose second moment a large step takes down."""
    case, found = targets.quartic(), {}
    for wanted in (0.05, 5e-6):
        method = bnn.MCLMC(draws=3000, energy_variance=wanted)
        posterior = bnn.fit(case.model, case.data, method, epochs=2000, chains=1, seed=0, progress=False)
        reached = np.mean([row["energy_variance"] for row in posterior.history if "energy_variance" in row])
        assert wanted / 10 < reached < 3 * wanted
        series = case.series(posterior)["w^2"]
        found[wanted] = (series.mean(), float(bnn.diagnostics.mcse_mean(series)))
    exact = case.moments["w^2"][1]
    (coarse, coarse_error), (fine, error) = found[0.05], found[5e-6]
    assert abs(fine - exact) < 4 * error
    assert coarse < exact - 4 * coarse_error


def test_logistic_regression() -> None:
    model, data = targets.logistic()
    posterior = bnn.fit(model, data, bnn.MCLMC(draws=5000), epochs=2500, chains=1, seed=1, progress=False)
    targets.assert_logistic(posterior)


def test_the_history_tells_what_was_tuned() -> None:
    case = targets.gaussian_2d(copies=10)
    history = bnn.fit(case.model, case.data, bnn.MCLMC(), epochs=400, chains=1, progress=False).history
    sampling = history[200:]
    assert "step_size" not in history[0]  # Adam is at work
    assert len({row["step_size"] for row in history[40:200]}) > 100
    assert len({(row["step_size"], row["L"]) for row in sampling}) == 1
    spread = math.sqrt(20)  # of the scaled weights
    assert 0.5 * spread <= sampling[0]["L"] <= 2 * spread
    assert all("energy_variance" in row for row in sampling)


def test_energy_errors_that_are_too_large_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    case = targets.quartic(copies=10)
    monkeypatch.setattr("bayesnn.methods.mclmc._StepSize.update", lambda self, error: True)  # eps stays where it is
    with pytest.warns(UserWarning, match="The energy errors of MCLMC had .* lower energy_variance, or use NUTS"):
        bnn.fit(case.model, case.data, bnn.MCLMC(energy_variance=1e-9), epochs=100, chains=1, progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bnn.MCLMC(energy_variance=0), "energy_variance > 0 and finite, got 0"),
        (lambda: bnn.MCLMC(burn_in=1), r"burn_in in \[0, 1\), got 1"),
        (lambda: bnn.MCLMC(integrator="leap"), "Unknown integrator 'leap': did you mean 'leapfrog'"),
    ],
)
def test_bad_arguments(make, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_one_weight_is_refused() -> None:
    case = targets.quartic(copies=1)
    with pytest.raises(ValueError, match=r"at least 2 weights for MCLMC, .* got 1: use NUTS"):
        bnn.fit(case.model, case.data, bnn.MCLMC(), epochs=10, progress=False)
