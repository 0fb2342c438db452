"""Stationary laws of the optimizers, against the discretised schemes' own closed forms and quadrature.

A parameter of 1e5 coordinates is 1e5 independent chains; with N = 1 the loss is U itself.
"""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from bayesnn.optim import PSGLD, SGHMC, SGLD, SGNHT, Sampler

COORDINATES = 100_000
ERROR = 4 * np.sqrt(2 / COORDINATES)  # 4 standard errors of a variance, as a share of it


def run(
    make: Callable[[list[nn.Parameter], torch.Generator], Sampler],
    gradient: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    start: torch.Tensor | None = None,
    keep: int = 0,
) -> tuple[torch.Tensor, Sampler, float]:
    """The last state, the sampler, and the mean of w^2 over the last ``keep`` steps."""
    w = nn.Parameter(torch.zeros(COORDINATES) if start is None else start.clone())
    sampler = make([w], torch.Generator().manual_seed(5))
    moments = []
    for step in range(steps):
        w.grad = gradient(w.detach())
        sampler.step()
        if step >= steps - keep:
            moments.append(float(w.detach().square().mean()))
    return w.detach(), sampler, float(np.mean(moments)) if moments else float("nan")


@pytest.mark.parametrize("lr", [0.2, 1.2])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sghmc_is_exact_on_a_normal(lr: float, temperature: float, momentum: float) -> None:
    """U = |w|^2 / 2. Between two O's is A-B-A, which keeps w^2 + (1 - q) v^2, q = epsilon^2 / 4; O keeps v ~ N(0, T).

    So at O the law is v ~ N(0, T) beside w ~ N(0, (1 - q) T), and half a drift later Var(w) = (1 - q) T + q T = T: for
    every stable step, as is the kinetic temperature at O.
    """
    w, sampler, _ = run(
        lambda p, g: SGHMC(p, lr, 1, momentum=momentum, temperature=temperature, generator=g), lambda w: w, 260
    )
    assert abs(float(w.var()) / temperature - 1) < ERROR
    assert abs(sampler.kinetic_temperature() / temperature - 1) < ERROR


def test_louder_noise_is_seen() -> None:
    w, _, _ = run(lambda p, g: SGHMC(p, 0.2, 1, temperature=1.2**2, generator=g), lambda w: w, 260)
    assert float(w.var()) - 1 > 10 * ERROR


def heated(momentum: float, lr: float, noise: float) -> float:
    """Var(w) of SGNHT on U = w^2 / 2 whose gradients carry white noise of variance ``noise``, by its moment equations.

    For a friction zeta the step is linear in (w, m): B, A, O, A in turn. Its stationary covariance solves a Lyapunov
    equation; zeta is where the mean of m^2 before and after O is kappa.
    """
    kappa, half = (1 + momentum) / (2 * lr), lr / (1 + momentum)
    kick, drift = np.array([[1, 0], [1, 1]]), np.array([[1, -half], [0, 1]])  # m += w; w -= half m

    def stationary(zeta: float) -> tuple[float, float]:
        friction = np.diag([1, np.exp(-zeta)])
        std2 = -np.log(momentum) * kappa * (1 - np.exp(-2 * zeta)) / zeta
        whole = drift @ friction @ drift @ kick
        part = drift @ friction @ drift
        source = part @ np.diag([0, noise]) @ part.T + drift @ np.diag([0, std2]) @ drift.T
        V = np.linalg.solve(np.eye(4) - np.kron(whole, whole), source.ravel()).reshape(2, 2)
        before = drift @ (kick @ V @ kick.T + np.diag([0, noise])) @ drift.T
        after = friction @ before @ friction.T + np.diag([0, std2])
        return V[0, 0], (before[1, 1] + after[1, 1]) / 2 - kappa

    low, high = 1e-3, 5.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if stationary(middle)[1] > 0 else (low, middle)
    return float(stationary(low)[0])


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("lr", [0.05, 0.5])
def test_sgnht_takes_the_heat_of_noisy_gradients(lr: float, share: float) -> None:
    """Noise of the gradients as large as that injected: SGHMC's variance doubles, SGNHT's stays near 1."""
    momentum = 0.9
    noise = share * (1 - momentum**2) * (1 + momentum) / (2 * lr)
    generator = torch.Generator().manual_seed(8)

    def gradient(w: torch.Tensor) -> torch.Tensor:
        return w + noise**0.5 * torch.empty_like(w).normal_(generator=generator)

    expected = heated(momentum, lr, noise)
    assert abs(expected - 1) < 0.15 * share + 1e-6
    w, sampler, _ = run(lambda p, g: SGNHT(p, lr, 1, momentum=momentum, generator=g), gradient, 400)
    assert abs(float(w.var()) / expected - 1) < ERROR
    friction = next(iter(sampler.state.values()))["friction"]
    assert friction > -np.log(momentum) * (1.5 if share else 0.9)
    w, _, _ = run(lambda p, g: SGHMC(p, lr, 1, momentum=momentum, generator=g), gradient, 400)
    assert abs(float(w.var()) - (1 + share)) < 0.2 + ERROR


def test_the_thermostat_of_a_single_weight_keeps_its_law() -> None:
    """Each of 50 weights has a friction of its own, which fluctuates by sqrt(eta) and is negative at times."""
    params = [nn.Parameter(torch.zeros(1)) for _ in range(50)]
    sampler = SGNHT(params, lr=0.3, num_data=1, generator=torch.Generator().manual_seed(3))
    seen = []
    for step in range(2000):
        for p in params:
            p.grad = p.detach().clone()
        sampler.step()
        if step > 200 and step % 10 == 0:
            seen.append(torch.cat([p.detach() for p in params]))
    draws = torch.stack(seen)
    # Draws ten steps apart are nearly independent (the velocity's memory): 9,000 of them, less a factor of 2.
    assert abs(float(draws.var()) - 1) < 4 * np.sqrt(2 / (draws.numel() / 2))
    kurtosis = float(draws.pow(4).mean() / draws.var() ** 2)
    assert abs(kurtosis - 3) < 4 * np.sqrt(24 / (draws.numel() / 2))


def quartic_moment() -> float:
    """E[w^2] under exp(-w^4 / 4) by quadrature."""
    grid = np.linspace(-6, 6, 20_001)
    weight = np.exp(-(grid**4) / 4)
    return float((weight * grid**2).sum() / weight.sum())


def test_the_bias_of_sghmc_is_of_second_order_in_its_time_step_on_a_quartic() -> None:
    """Twice the time step at the same friction (gamma = 1): four times the bias; one of first order would double.

    5e5 chains over 40 units of time, 1 of which decorrelates w^2: a standard error of 1e-4 beside 8e-4 and 39e-4.
    """
    truth, bias = quartic_moment(), {}
    for epsilon in (0.18, 0.36):
        momentum = np.exp(-epsilon)
        lr = epsilon**2 * (1 + momentum) / 2
        start = torch.empty(5 * COORDINATES).uniform_(-1.4, 1.4, generator=torch.Generator().manual_seed(1))
        steps = int(48 / epsilon)
        found = run(
            lambda p, g, lr=lr, momentum=momentum: SGHMC(p, lr, 1, momentum=momentum, generator=g),
            lambda w: w**3,
            steps,
            start,
            steps * 5 // 6,
        )
        bias[epsilon] = found[2] - truth
    assert 3 < bias[0.36] / bias[0.18] < 8  # 4.7 in ten times as many chains; the standard error is 0.7
    _, _, sgld = run(lambda p, g: SGLD(p, 0.18**2, 1, generator=g), lambda w: w**3, 300, keep=150)
    assert abs(bias[0.18]) < abs(sgld - truth)


def test_a_frozen_preconditioner_is_sgld_with_a_step_a_weight() -> None:
    """U = a w^2 / 2: V = T / a / (1 - lr G a / 2), G = 1 / (delta + root mean square gradient) where it was frozen."""
    a = torch.where(torch.arange(COORDINATES) % 2 == 0, 1.0, 100.0)
    w = nn.Parameter(a.rsqrt() * torch.empty(COORDINATES).normal_(generator=torch.Generator().manual_seed(1)))
    sampler = PSGLD([w], lr=0.1, num_data=1, generator=torch.Generator().manual_seed(5))
    sampler.state[w]["square_avg"] = a.clone()  # E[(a w)^2] = a
    sampler.freeze()
    for _ in range(150):
        w.grad = a * w.detach()
        sampler.step()
    for value in (1.0, 100.0):
        G = 1 / (1e-5 + value**0.5)
        expected = 1 / value / (1 - 0.1 * G * value / 2)
        found = float(w.detach()[a == value].var())
        assert abs(found / expected - 1) < ERROR * 2**0.5


@pytest.mark.parametrize("gamma", [True, False])
def test_gamma_corrects_a_preconditioner_that_follows_the_weight(gamma: bool) -> None:
    """U = w^4 / 4, alpha = 0: G = 1 / (delta + |w|^3) is a function of w, and its divergence is needed."""
    w = nn.Parameter(0.8 * torch.empty(COORDINATES).normal_(generator=torch.Generator().manual_seed(1)))
    sampler = PSGLD(
        [w], lr=0.01, num_data=1, alpha=0.0, delta=1.0, gamma=gamma, generator=torch.Generator().manual_seed(5)
    )

    def closure() -> torch.Tensor:
        w.grad = w.detach() ** 3
        return w.detach().pow(4).mean()

    moments = []
    for step in range(400):
        closure()
        sampler.step(closure)
        if step > 200:
            moments.append(float(w.detach().square().mean()))
    bias = np.mean(moments) / quartic_moment() - 1
    assert abs(bias) < 0.02 if gamma else bias > 0.1


def test_gamma_needs_a_closure() -> None:
    w = nn.Parameter(torch.zeros(3))
    w.grad = torch.ones(3)
    with pytest.raises(ValueError, match="closure"):
        PSGLD([w], lr=0.1, num_data=1, gamma=True).step()


def correlated(w: torch.Tensor) -> torch.Tensor:
    """Gradient of w' S^-1 w / 2 for rows (chain, 2), S of unit variances and correlation 0.9."""
    precision = torch.linalg.inv(torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    return w @ precision


def banana(w: torch.Tensor) -> torch.Tensor:
    """Gradient of x^2 / 2 + (y - x^2 / 2)^2 / 2: x ~ N(0, 1), y | x ~ N(x^2 / 2, 1)."""
    x, y = w.unbind(-1)
    off = y - x**2 / 2
    return torch.stack((x - x * off, off), dim=-1)


def frozen_psgld(params: list[nn.Parameter], generator: torch.Generator) -> PSGLD:
    """Steps of 1 and 1/2 for the two coordinates, as the end of an adaptation may leave them."""
    sampler = PSGLD(params, 0.014, 1, generator=generator)
    sampler.set_mean_squares({p: torch.tensor([1.0, 4.0]).expand_as(p).clone() for p in params})
    sampler.freeze()
    return sampler


SAMPLERS: dict[str, Callable[[list[nn.Parameter], torch.Generator], Sampler]] = {
    "SGLD": lambda p, g: SGLD(p, 0.01, 1, generator=g),
    "PSGLD": frozen_psgld,
    "SGHMC": lambda p, g: SGHMC(p, 0.03, 1, generator=g),
    "SGNHT": lambda p, g: SGNHT(p, 0.03, 1, generator=g),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("target", [correlated, banana])
def test_correlated_and_curved_targets(name: str, target: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Moments in closed form; the bias at this step is below 2 % for SGLD and PSGLD, below 1 % for the others."""
    n = 20_000
    generator = torch.Generator().manual_seed(2)
    w = nn.Parameter(torch.empty(n, 2).normal_(generator=generator))
    sampler = SAMPLERS[name]([w], torch.Generator().manual_seed(5))
    for _ in range(1200):
        w.grad = target(w.detach())
        sampler.step()
    x, y = w.detach().double().unbind(-1)
    error = 4 * np.sqrt(2 / n)
    slack = 0.015 if name in ("SGHMC", "SGNHT") else 0.04
    if target is correlated:
        found = {"Var x": (x.var(), 1.0), "Var y": (y.var(), 1.0), "E xy": ((x * y).mean(), 0.9)}
    else:  # E y = 1/2, Var y = Var(x^2 / 2) + 1 = 1.5
        found = {"Var x": (x.var(), 1.0), "E y": (y.mean(), 0.5), "Var y": (y.var(), 1.5)}
        error *= 2  # y has heavy tails: Var(y^2) is some times that of a Normal
    for what, (value, expected) in found.items():
        assert abs(float(value) / expected - 1) < error + slack, what


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda p: SGHMC(p, 0.1, 500, momentum=0.8, temperature=0), lambda p: torch.optim.SGD(p, 0.1, momentum=0.8)),
        (lambda p: SGNHT(p, 0.1, 500, momentum=0.8, temperature=0), lambda p: torch.optim.SGD(p, 0.1, momentum=0.8)),
        (
            lambda p: PSGLD(p, 0.01, 500, alpha=0.9, delta=1e-3, temperature=0),
            lambda p: torch.optim.RMSprop(p, 0.01, alpha=0.9, eps=1e-3),
        ),
    ],
)
def test_without_temperature_they_are_torchs_optimizers(ours: Callable, theirs: Callable) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    twin = copy.deepcopy(net)
    for each, make in ((net, ours), (twin, theirs)):
        optimizer, generator = make(list(each.parameters())), torch.Generator().manual_seed(1)
        for _ in range(30):
            x, y = torch.randn(16, 4, generator=generator), torch.randint(3, (16,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(each(x), y).backward()
            optimizer.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [SGHMC, SGNHT, PSGLD])
def test_state_dict_resumes_to_the_bit(kind: type[Sampler]) -> None:
    def fresh(seed: int) -> tuple[nn.Parameter, Sampler]:
        w = nn.Parameter(torch.ones(50))
        return w, kind([w], lr=0.05, num_data=10, generator=torch.Generator().manual_seed(seed))

    def steps(w: nn.Parameter, sampler: Sampler, count: int) -> None:
        for _ in range(count):
            w.grad = w.detach().clone()
            sampler.step()

    w, sampler = fresh(1)
    steps(w, sampler, 5)
    saved, weights, noise = copy.deepcopy(sampler.state_dict()), w.detach().clone(), sampler._generator.get_state()
    steps(w, sampler, 5)
    again, other = fresh(2)
    with torch.no_grad():
        again.copy_(weights)
    other.load_state_dict(saved)
    other._generator.set_state(noise)
    steps(again, other, 5)
    assert torch.equal(again, w)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SGHMC, {"lr": 0}, "lr > 0"),
        (SGHMC, {"lr": 0.1, "momentum": 1.0}, "momentum in"),
        (SGNHT, {"lr": 0.1, "momentum": 0.0}, "momentum > 0"),
        (SGNHT, {"lr": 0.1, "response": -1.0}, "response > 0"),
        (PSGLD, {"lr": 0.1, "alpha": 1.0}, "alpha in"),
        (PSGLD, {"lr": 0.1, "delta": 0.0}, "delta > 0"),
        (PSGLD, {"lr": 0.1, "temperature": -1.0}, "temperature >= 0"),
    ],
)
def test_bad_arguments(kind: type[Sampler], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind([nn.Parameter(torch.zeros(2))], num_data=5, **options)


@pytest.mark.parametrize("kind", [SGHMC, SGNHT])
def test_a_step_that_grows_again_keeps_the_velocity(kind: type[Sampler]) -> None:
    """A cycle ends at small steps and restarts at large ones: no kick comes of it.

    What is left of a sudden one, some 17 %, is the correlation of w and v that large steps have and small ones lack.
    """
    w = nn.Parameter(torch.empty(COORDINATES).normal_(generator=torch.Generator().manual_seed(1)))
    sampler = kind([w], lr=0.3, num_data=1, generator=torch.Generator().manual_seed(5))
    for step, lr in enumerate((*[0.3] * 200, *[1e-4] * 20, *[0.3] * 3)):
        sampler.param_groups[0]["lr"] = lr
        w.grad = w.detach().clone()
        sampler.step()
        assert step < 150 or abs(float(w.detach().var()) - 1) < 0.25


@pytest.mark.parametrize("kind", [SGHMC, SGNHT])
def test_a_schedule_may_end_or_begin_at_zero(kind: type[Sampler]) -> None:
    """No time passes in a step of lr = 0, whose momentum would be infinite; afterwards the chain goes on at T."""
    w = nn.Parameter(torch.empty(COORDINATES).normal_(generator=torch.Generator().manual_seed(1)))
    sampler = kind([w], lr=0.3, num_data=1, generator=torch.Generator().manual_seed(5))
    for lr in (0.0, *[0.3] * 100, 0.0, *[0.3] * 3):
        before = w.detach().clone()
        sampler.param_groups[0]["lr"] = lr
        w.grad = before.clone()
        sampler.step()
        assert torch.equal(w.detach(), before) == (lr == 0)
    assert abs(float(w.detach().var()) - 1) < 2 * ERROR
    assert abs(sampler.kinetic_temperature() - 1) < 2 * ERROR


def test_the_kinetic_temperature_is_that_of_the_step_taken_and_of_what_moves() -> None:
    """A schedule sets the next lr before anybody asks, and parameters without a gradient have no momentum."""
    moving, frozen = nn.Parameter(torch.zeros(COORDINATES)), nn.Parameter(torch.zeros(COORDINATES))
    sampler = SGHMC([moving, frozen], lr=0.3, num_data=1, generator=torch.Generator().manual_seed(5))
    for _ in range(100):
        moving.grad = moving.detach().clone()
        sampler.step()
    for lr in (0.3, 0.003, 0.0):
        sampler.param_groups[0]["lr"] = lr
        assert abs(sampler.kinetic_temperature() - 1) < ERROR


def test_a_frozen_preconditioner_is_frozen_in_its_state() -> None:
    w, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    sampler, again = PSGLD([w], lr=0.1, num_data=10), PSGLD([other], lr=0.1, num_data=10)
    w.grad = torch.ones(3)
    sampler.step()
    sampler.freeze()
    again.load_state_dict(sampler.state_dict())
    other.grad = torch.full((3,), 5.0)
    again.step()
    assert torch.equal(again.state[other]["square_avg"], sampler.state[w]["square_avg"])
