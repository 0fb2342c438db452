"""Power iteration with differences of gradients."""

import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn.methods.curvature import largest_curvature
from bayesnn.methods.sampler import LR_MOST, LR_STABILITY


def test_it_is_the_largest_eigenvalue_of_a_quadratic_and_puts_the_parameters_back() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    hessian = root @ root.T
    w = nn.Parameter(torch.randn(2, generator=generator, dtype=torch.float64))
    v = nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))
    before = torch.cat((w, v)).detach().clone()
    start = [torch.randn(n, generator=generator, dtype=torch.float64) for n in (2, 3)]

    def loss() -> torch.Tensor:
        both = torch.cat((w, v))
        return both @ hessian @ both / 2

    value, direction = largest_curvature(loss, [w, v], start, iterations=60)
    eigenvalues, eigenvectors = torch.linalg.eigh(hessian)
    assert value == pytest.approx(float(eigenvalues[-1]), rel=1e-6)
    assert abs(float(torch.cat(direction) @ eigenvectors[:, -1])) == pytest.approx(1, rel=1e-4)
    assert torch.equal(torch.cat((w, v)).detach(), before)


def test_an_interrupted_look_puts_the_parameters_back() -> None:
    w = nn.Parameter(torch.ones(3))

    def loss() -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        largest_curvature(loss, [w], [torch.ones(3)])
    assert torch.equal(w.detach(), torch.ones(3))


def test_sgld_sets_its_step_by_the_curvature_and_leaves_it_after_the_burn_in() -> None:
    """A linear model has one curvature everywhere: lambda_max(X'X / (N sigma^2) + I / (N s^2))."""
    generator = torch.Generator().manual_seed(1)
    x, sigma, s = 3 * torch.randn(40, 3, generator=generator, dtype=torch.float64), 0.5, 2.0
    y = x.sum(1)
    net = nn.Linear(3, 1, bias=False)
    model = bnn.BayesianModel(net, bnn.priors.Normal(s), bnn.likelihoods.Normal(scale=sigma)).double()
    posterior = bnn.fit(model, (x, y), bnn.SGLD(), epochs=100, batch_size=None, chains=1, progress=False)
    curvature = float(torch.linalg.eigvalsh(x.T @ x / (40 * sigma**2)).max())
    rates = [row["lr"] for row in posterior.history]
    assert LR_STABILITY / curvature < LR_MOST
    assert rates[-1] == pytest.approx(LR_STABILITY / curvature, rel=0.01)
    assert len(set(rates[50:])) == 1
    # 100 steps, and 10 looks of 8 iterations with two gradients each
    assert posterior.info["gradient_evaluations"] == [100 + 10 * 8 * 2]
