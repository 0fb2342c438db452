"""docs/likelihoods.md: each loss beside the likelihood that it is."""

import math

import pytest
import torch
import torch.nn.functional as F

from bayesnn import likelihoods

N, S = 50, 0.7
stream = torch.Generator().manual_seed(0)
OUT, Y = (torch.randn(N, generator=stream, dtype=torch.float64) for _ in range(2))
LOGITS = torch.randn(N, 4, generator=stream, dtype=torch.float64)
CLASS = torch.arange(N) % 4
SOFT = LOGITS.flip(0).softmax(1)
BINARY = (Y > 0).double()
COUNT = Y.abs().mul(3).floor()
HALF_LOG = math.log(S) + 0.5 * math.log(2 * math.pi)

CASES = {
    "MSE": (likelihoods.Normal(S), OUT, Y, lambda: F.mse_loss(OUT, Y) / (2 * S**2) + HALF_LOG),
    "MAE": (likelihoods.Laplace(S), OUT, Y, lambda: F.l1_loss(OUT, Y) / S + math.log(2 * S)),
    "MSLE": (
        likelihoods.LogNormal(S), OUT, Y.exp(), lambda: F.mse_loss(OUT, Y) / (2 * S**2) + HALF_LOG + Y.mean()
    ),
    "robust": (
        likelihoods.StudentT(1.0, S), OUT, Y,
        lambda: (1 + ((Y - OUT) / S) ** 2).log().mean() + math.log(math.pi * S),
    ),
    "binary cross-entropy": (
        likelihoods.Bernoulli(), OUT, BINARY, lambda: F.binary_cross_entropy_with_logits(OUT, BINARY)
    ),
    "cross-entropy": (likelihoods.Categorical(), LOGITS, CLASS, lambda: F.cross_entropy(LOGITS, CLASS)),
    "Kullback-Leibler": (
        likelihoods.Categorical(), LOGITS, SOFT,
        lambda: F.kl_div(LOGITS.log_softmax(1), SOFT, reduction="batchmean") + torch.special.entr(SOFT).sum(1).mean(),
    ),
    "Poisson": (
        likelihoods.Poisson(), OUT, COUNT,
        lambda: F.poisson_nll_loss(OUT, COUNT) + torch.lgamma(COUNT + 1).mean(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_negative_log_likelihood(name):
    likelihood, outputs, y, loss = CASES[name]
    likelihood = likelihood.double()
    y = likelihood.check_targets(y, 1 if outputs.dim() == 1 else 4)
    torch.testing.assert_close(-likelihood.log_prob(outputs, y).mean(), loss(), rtol=1e-6, atol=1e-7)


def test_a_scale_of_each_row():
    raw = torch.randn(N, generator=stream, dtype=torch.float64)
    floor = 1e-3
    scale = F.softplus(raw) + floor
    loss = F.gaussian_nll_loss(OUT, Y, scale**2, full=True, eps=0)
    found = likelihoods.HeteroscedasticNormal(floor).log_prob(torch.stack([OUT, raw], 1), Y)
    torch.testing.assert_close(-found.mean(), loss)


def test_targets_of_a_row_are_added_and_not_averaged():
    both, targets = torch.stack([OUT, OUT / 2], 1), torch.stack([Y, -Y], 1)
    found = -likelihoods.Normal(S).double().log_prob(both, targets).mean()
    averaged = F.mse_loss(both, targets) / (2 * S**2) + HALF_LOG
    torch.testing.assert_close(found, 2 * averaged, rtol=1e-6, atol=1e-7)
