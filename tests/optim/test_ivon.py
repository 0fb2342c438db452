"""The optimizer alone, in a loop of one's own."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from bayesnn.optim import IVON

N = 50
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.sum(1, keepdim=True).tanh()


def net_of(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def make(net: nn.Module, seed: int = 1, **options: float) -> IVON:
    given = {"lr": 0.3, "num_data": N, "beta2": 0.9, **options}
    return IVON(net.parameters(), generator=torch.Generator().manual_seed(seed), **given)


def loss(net: nn.Module) -> Tensor:
    return (net(X) - Y).square().mean()


def train(net: nn.Module, optimizer: IVON, steps: int, samples: int = 1) -> list[Tensor]:
    for _ in range(steps):
        for _ in range(samples):
            with optimizer.sampled():
                loss(net).backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize(("samples", "clip"), [(1, math.inf), (3, math.inf), (1, 0.005)])
def test_a_step_is_that_of_the_paper(samples: int, clip: float) -> None:
    """Algorithm 1 written out for h in one flat vector, but for the clip; the noise is that of the optimizer."""
    lr, h0, beta1, beta2, delta = 0.3, 0.4, 0.8, 0.9, 0.05
    net = net_of()
    twin, source = copy.deepcopy(net), torch.Generator().manual_seed(1)
    options = {"lr": lr, "hess_init": h0, "beta1": beta1, "beta2": beta2, "weight_decay": delta, "clip_radius": clip}
    ours = train(net, make(net, **options), steps=20, samples=samples)
    m = nn.utils.parameters_to_vector(twin.parameters()).detach()
    h, momentum = torch.full_like(m, h0), torch.zeros_like(m)
    for t in range(1, 21):
        sigma, g, h_hat = (N * (h + delta)).rsqrt(), torch.zeros_like(m), torch.zeros_like(m)
        for _ in range(samples):
            epsilon = torch.randn(len(m), generator=source, dtype=torch.float64)
            nn.utils.vector_to_parameters(m + sigma * epsilon, twin.parameters())
            one = nn.utils.parameters_to_vector(torch.autograd.grad(loss(twin), list(twin.parameters())))
            g, h_hat = g + one / samples, h_hat + one * epsilon / sigma / samples
        momentum = beta1 * momentum + (1 - beta1) * g
        correction = 0.5 * (1 - beta2) ** 2 * (h - h_hat) ** 2 / (h + delta)
        h = beta2 * h + (1 - beta2) * h_hat + correction
        move = (momentum / (1 - beta1**t) + delta * m) / (h + delta)
        m = m - (lr * (h0 + delta) * move).clamp(-clip, clip)
    torch.testing.assert_close(nn.utils.parameters_to_vector(ours), m, rtol=1e-9, atol=1e-12)


def test_outside_the_block_the_weights_are_the_mean() -> None:
    net = net_of()
    optimizer, before = make(net), [p.detach().clone() for p in net.parameters()]
    with optimizer.sampled(train=False):
        inside = [p.detach().clone() for p in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, inside, strict=True))
    with pytest.raises(KeyError), optimizer.sampled():
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_samples_have_the_law_of_q() -> None:
    """sd = 1 / sqrt(N (h + delta)); 1e5 weights, so the variance has a standard error of sqrt(2e-5) of itself."""
    w = nn.Parameter(torch.full((100_000,), 3.0))
    optimizer = IVON([w], 0.1, N, 0.4, weight_decay=0.1, generator=torch.Generator().manual_seed(0))
    with optimizer.sampled(train=False):
        sample = w.detach().double()
    assert abs(float(sample.var()) * N * 0.5 - 1) < 4 * math.sqrt(2e-5)
    assert abs(float(sample.mean()) - 3) < 4 / math.sqrt(N * 0.5 * 1e5)
    torch.testing.assert_close(optimizer.log_sd()[w].exp(), torch.full_like(w, (N * 0.5) ** -0.5).detach())


def test_a_closure_is_a_sample_and_needs_no_block() -> None:
    net = net_of()
    twin = copy.deepcopy(net)
    ours, optimizer = train(net, make(net), 5), make(twin)

    def closure() -> Tensor:
        value = loss(twin)
        value.backward()
        return value

    values = [optimizer.step(closure) for _ in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(ours, twin.parameters(), strict=True))
    assert len({float(value.detach()) for value in values}) == 5


def test_going_on_from_a_state_dict_is_going_on() -> None:
    net = net_of()
    optimizer = make(net)
    train(net, optimizer, 5)
    twin = copy.deepcopy(net)
    again = make(twin, lr=0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again._generator.set_state(optimizer._generator.get_state())
    for a, b in zip(train(net, optimizer, 5), train(twin, again, 5), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("delta", [0.0, 1e-6, 0.1])
def test_the_precision_stays_positive_whatever_the_curvature(delta: float) -> None:
    """On -w^2 / 2 the curvature is -1: each step takes what it can, and never more than a half."""
    w = nn.Parameter(torch.zeros(200))
    optimizer = IVON([w], 1e-6, N, 1.0, beta2=0.5, weight_decay=delta, generator=torch.Generator().manual_seed(0))
    for _ in range(60):
        before = optimizer.log_sd()[w]
        optimizer.step(lambda: (-w.square().sum() / 2).backward())
        assert bool((optimizer.log_sd()[w] - before <= 0.5 * math.log(2) + 1e-6).all())
    assert bool(torch.isfinite(optimizer.log_sd()[w]).all())


def test_a_schedule_sets_the_step() -> None:
    net = net_of()
    optimizer = make(net)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    train(net, optimizer, 1)
    scheduler.step()
    before = [p.detach().clone() for p in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, train(net, optimizer, 1), strict=True))


def test_frozen_weights_stay_and_those_without_a_gradient_go_to_their_prior() -> None:
    used, idle, frozen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    frozen.requires_grad_(False)
    optimizer = IVON([used, idle, frozen], 0.5, N, 1.0, beta2=0.98, weight_decay=0.1)
    for _ in range(400):
        optimizer.step(lambda: (used * frozen).square().sum().backward())
    assert abs(float(idle.detach())) < 1e-3
    torch.testing.assert_close(optimizer.log_sd()[idle].exp(), torch.tensor([(N * 0.1) ** -0.5]), rtol=0.02, atol=0.0)
    assert float(frozen) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "Expected lr > 0 and finite, got 0.0"),
        ({"num_data": 0}, "Expected num_data to be an integer >= 1, got 0"),
        ({"hess_init": -1.0}, "Expected hess_init > 0"),
        ({"beta1": 1.0}, r"Expected beta1 in \[0, 1\), got 1.0: it is the memory of the gradient"),
        ({"beta2": -0.1}, r"Expected beta2 in \[0, 1\), got -0.1: it is the memory of the curvature"),
        ({"weight_decay": -1e-3}, "Expected weight_decay >= 0 and finite, got -0.001"),
        ({"clip_radius": 0.0}, "Expected clip_radius > 0, got 0.0: inf clips nothing"),
    ],
)
def test_bad_arguments(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(net_of(), **options)


def test_a_step_without_a_sample_says_what_is_missing() -> None:
    net = net_of()
    optimizer = make(net)
    loss(net).backward()
    with pytest.raises(RuntimeError, match="Expected a sample of the weights before step"):
        optimizer.step()
