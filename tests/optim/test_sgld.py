"""The optimizer alone, in a loop of one's own."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from bayesnn.optim import SGLD

N = 500


def _net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4))


def _train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 30) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(16, 2, 6, generator=generator), torch.randint(4, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return [p.detach() for p in net.parameters()]


def test_without_temperature_and_prior_it_is_sgd_to_the_bit() -> None:
    net = _net()
    twin = copy.deepcopy(net)
    ours = _train(net, SGLD(net.parameters(), lr=0.1, num_data=N, temperature=0.0))
    theirs = _train(twin, torch.optim.SGD(twin.parameters(), lr=0.1))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_without_temperature_the_normal_prior_is_sgds_weight_decay() -> None:
    net, s = _net(), 0.3
    twin = copy.deepcopy(net)
    ours = _train(net, SGLD(net.parameters(), lr=0.1, num_data=N, temperature=0.0, weight_decay=1 / (N * s**2)))
    theirs = _train(twin, torch.optim.SGD(twin.parameters(), lr=0.1, weight_decay=1 / (N * s**2)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("epsilon", [0.1, 0.5])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_stationary_variance_on_a_standard_normal(epsilon: float, temperature: float) -> None:
    """U = |w|^2 / 2, so w' = (1 - eps) w + sqrt(2 eps T) xi: V = 2 eps T / (1 - (1 - eps)^2) = T / (1 - eps / 2).

    1e5 independent coordinates: the standard error of their variance is sqrt(2 / 1e5) of it.
    """
    w = nn.Parameter(torch.zeros(100_000))
    noise = torch.Generator().manual_seed(5)
    # With N = 1 the loss is U itself and lr is h.
    optimizer = SGLD([w], lr=epsilon, num_data=1, temperature=temperature, generator=noise)
    for _ in range(int(8 / epsilon)):  # (1 - eps)^(2 * 8 / eps) < 1e-6 of the start is left
        w.grad = w.detach().clone()
        optimizer.step()
    expected = temperature / (1 - epsilon / 2)
    assert abs(w.var().item() / expected - 1) < 4 * np.sqrt(2 / 1e5)


def test_the_bias_is_of_first_order_in_the_step_on_a_quartic() -> None:
    """U = w^4 / 4: E[w^2] under SGLD differs from quadrature in proportion to the step."""
    grid = np.linspace(-6, 6, 20_001)
    weight = np.exp(-(grid**4) / 4)
    truth = (weight * grid**2).sum() / weight.sum()
    bias = {}
    for epsilon in (0.05, 0.1):  # at 0.2 the explicit step leaves the well from |w| > sqrt(2 / 0.2)
        w = nn.Parameter(torch.zeros(400_000))
        optimizer = SGLD([w], lr=epsilon, num_data=1, generator=torch.Generator().manual_seed(2))
        moments = []
        for step in range(int(12 / epsilon)):
            w.grad = w.detach() ** 3
            optimizer.step()
            if step > 6 / epsilon:
                moments.append(w.detach().square().mean().item())
        bias[epsilon] = np.mean(moments) - truth
    # sd(w^2) / sqrt(4e5) is 1.1e-3 at one time, and the average spans some 6 relaxation times: 4.5e-4.
    error = 4.5e-4
    assert bias[0.05] > 4 * error
    # A scheme of second order would have the ratio 4.
    assert abs(bias[0.1] / bias[0.05] - 2) < 4 * np.hypot(error, 2 * error) / bias[0.05]


def test_the_generator_alone_decides() -> None:
    def run(seed: int) -> torch.Tensor:
        w = nn.Parameter(torch.zeros(30))
        w.grad = torch.zeros(30)
        optimizer = SGLD([w], lr=0.1, num_data=10, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
        return w.detach()

    before = torch.random.get_rng_state()
    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_noise_of_different_parameters_and_steps_is_independent() -> None:
    a, b = nn.Parameter(torch.zeros(20_000)), nn.Parameter(torch.zeros(200, 100))
    optimizer = SGLD([a, b], lr=0.5, num_data=1, generator=torch.Generator().manual_seed(0))
    a.grad, b.grad = torch.zeros_like(a), torch.zeros_like(b)
    optimizer.step()
    first = a.detach().clone()
    optimizer.step()
    second = a.detach() - first
    for u, v in ((first, second), (first, b.detach().flatten())):
        assert abs(np.corrcoef(u.numpy(), v.numpy())[0, 1]) < 4 / np.sqrt(20_000)


def test_groups_schedules_and_state_work_as_for_any_optimizer() -> None:
    w, fixed = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    groups = [{"params": [w]}, {"params": [fixed], "temperature": 0.0, "lr": 0.5}]
    optimizer = SGLD(groups, lr=0.1, num_data=10, generator=torch.Generator().manual_seed(0))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)
    w.grad, fixed.grad = torch.ones(4), torch.ones(4)
    optimizer.step()
    assert torch.equal(fixed.detach(), torch.full((4,), 0.5))
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    clone = SGLD([{"params": [w]}, {"params": [fixed]}], lr=9.0, num_data=3)
    clone.load_state_dict(optimizer.state_dict())
    assert clone.param_groups[0]["num_data"] == 10
    assert clone.param_groups[1]["temperature"] == 0.0


def test_a_parameter_without_gradient_stays() -> None:
    used, unused = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    used.grad = torch.zeros(3)
    SGLD([used, unused], lr=0.1, num_data=1, generator=torch.Generator().manual_seed(0)).step()
    assert used.abs().sum() > 0
    assert unused.abs().sum() == 0


def test_a_closure_is_evaluated_with_gradients() -> None:
    w = nn.Parameter(torch.tensor([2.0]))
    optimizer = SGLD([w], lr=0.1, num_data=1, temperature=0.0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (w**2).sum() / 2
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    torch.testing.assert_close(w.detach(), torch.tensor([1.8]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "Expected lr > 0"),
        ({"lr": float("nan")}, "Expected lr > 0"),
        ({"lr": 0.1, "num_data": 0}, "Expected num_data to be an integer >= 1"),
        ({"lr": 0.1, "temperature": -1.0}, "Expected temperature >= 0"),
        ({"lr": 0.1, "weight_decay": -1.0}, "Expected weight_decay >= 0"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SGLD([nn.Parameter(torch.zeros(1))], **{"num_data": 10, **options})
