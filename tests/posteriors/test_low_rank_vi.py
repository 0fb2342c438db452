"""LowRankVI: the posterior where the rank is that of the weights, and the best of its family where it is 1."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bayesnn as bnn
from tests.posteriors.contract import assert_contract
from tests.posteriors.families import (
    LOUDER,
    K,
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

METHOD = bnn.LowRankVI(lr=0.01, rank=2)


def test_with_as_many_columns_as_weights_it_is_the_posterior() -> None:
    case, method = case_of("prior"), partial(bnn.LowRankVI, rank=3 * K, lr=0.015, initial_sd=0.1, mc_samples=2)
    assert_posterior(case, fit(case, method(), 800))
    with pytest.raises(AssertionError, match="instead of 1"):
        assert_posterior(case, fit(case, method(kl_weight=LOUDER), 800, chains=1))


def correlated() -> tuple[bnn.BayesianModel, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(model, x, y, Lambda, m) of one regression whose posterior covariance is diagonal plus rank 2.

    With as many rows as weights, and X'X = Lambda - I by Cholesky. Of other posteriors, those in which two weights are
    known by their sum alone, the optimum can lie at sd = 0 of one weight, out of reach of any descent.
    """
    columns = torch.tensor([[0.2, -0.1, 0.15, 0.25, -0.2], [0.1, 0.15, 0.05, -0.1, -0.1]], dtype=torch.float64)
    precision = torch.linalg.inv(0.04 * torch.eye(5) + columns.T @ columns)
    x = torch.linalg.cholesky(precision - torch.eye(5)).T
    y = x.sum(1, keepdim=True) + torch.randn(5, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model = bnn.BayesianModel(nn.Linear(5, 1, bias=False), bnn.priors.Normal(1.0), bnn.likelihoods.Normal(1.0)).double()
    return model, x, y, precision, torch.linalg.solve(precision, x.T @ y)[:, 0]


def lost(precision: torch.Tensor, mean: torch.Tensor, mu: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """log p(D) - ELBO = KL(q || posterior), of two Normals."""
    delta, product = mu - mean, precision @ covariance
    return 0.5 * (product.trace() - len(mu) + delta @ precision @ delta - torch.logdet(product))


def optimum(precision: torch.Tensor, mean: torch.Tensor) -> float:
    """The least loss of diag(sd^2) + f f', by L-BFGS from several starts."""
    best = np.inf
    for seed in range(6):
        start = torch.randn(2, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        free = (torch.stack((-1.0 + 0 * start[0], 0.5 * start[1]))).requires_grad_()

        def loss(free: torch.Tensor = free) -> torch.Tensor:
            covariance = torch.diag((2 * free[0]).exp()) + torch.outer(free[1], free[1])
            return lost(precision, mean, mean, covariance)

        optimizer = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def closure(optimizer: torch.optim.Optimizer = optimizer, loss=loss) -> torch.Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)
        best = min(best, float(loss().detach()))
    return best


def rank_one_losses(chains: int, **options: object) -> np.ndarray:
    """The loss (chain,) of fitted Normals of rank 1."""
    model, x, y, precision, mean = correlated()
    method, options = bnn.LowRankVI(rank=1, lr=0.02, initial_sd=0.1, mc_samples=4, **options), {"progress": False}
    mode = bnn.fit(model, (x, y), bnn.MAP(lr=0.05), epochs=300, batch_size=None, **options)
    posterior = bnn.fit(model, (x, y), method, epochs=900, batch_size=None, chains=chains, init=mode, **options)
    losses = []
    for source in posterior.sources:
        parts = {key.split("/")[0]: value.double() for key, value in source.tensors().items()}
        factor = parts["factor"].flatten()
        covariance = torch.diag(parts["sd"].flatten() ** 2) + torch.outer(factor, factor)
        losses.append(float(lost(precision, mean, parts["loc"].flatten(), covariance)))
    return np.array(losses)


def test_rank_one_is_the_best_of_its_family() -> None:
    """The ELBO reached, in closed form, against a deterministic optimisation of the same closed form.

    Scaling a covariance of d weights by 1.2 costs d (0.2 - log 1.2) / 2 nats: the noise may cost half of that.
    """
    _, _, _, precision, mean = correlated()
    best, price = optimum(precision, mean), 5 * (0.2 - np.log(1.2)) / 2
    diagonal = float(lost(precision, mean, mean, torch.diag(1 / precision.diag())))
    assert best > price  # the family does not hold the posterior
    assert diagonal > best + 2 * price  # and is more than mean field
    losses = rank_one_losses(3)
    assert (losses > best - 1e-9).all()
    assert losses.mean() < best + price / 2
    assert rank_one_losses(1, kl_weight=LOUDER).mean() > best + price


def test_the_gradient_is_that_of_the_elbo() -> None:
    assert_gradient_of_the_elbo(partial(bnn.LowRankVI, rank=2))


def test_the_closed_kl_is_the_kl() -> None:
    assert_closed_kl(METHOD)


def test_the_contract(tmp_path: Path) -> None:
    assert_contract(METHOD, net(), tmp_path / "saved")


def test_a_run_goes_on() -> None:
    assert_goes_on_from_a_state(METHOD)
    assert_goes_on_with_its_covariance(METHOD)
    assert_deterministic_part_is_optimised(METHOD)


@pytest.mark.parametrize("rank", [0, 2.5, True])
def test_bad_arguments(rank: float) -> None:
    with pytest.raises(ValueError, match=f"Expected rank to be an integer >= 1, got {rank}"):
        bnn.LowRankVI(rank=rank)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda() -> None:
    assert_same_bits_on_cuda(METHOD)
