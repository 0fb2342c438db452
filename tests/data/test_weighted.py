import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset, WeightedRandomSampler

import bayesnn as bnn
from bayesnn.data.batches import Loader
from bayesnn.data.weighted import WeightedBatches, row_probabilities

N, B = 5, 2
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 1, 1, 1])
PROBS = row_probabilities([4.0, 1.0, 2.0, 1.0, 2.0], Y)
MODEL = bnn.BayesianModel(nn.Linear(3, 2).double(), bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
MODEL.load_state(
    {"net.weight": torch.tensor([[1.0, -1.0, 0.5], [0.0, 1.0, 0.0]]), "net.bias": torch.tensor([0.0, 1.0])}
)


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_the_expected_minibatch_is_the_whole_data() -> None:
    """All N^B minibatches with their probabilities: value and gradient of N times the mean loss, to rounding."""
    weights = WeightedBatches(X, Y, PROBS, B, stream()).weights
    model, whole = MODEL.copy(), MODEL.copy()
    loss = torch.zeros((), dtype=torch.float64)
    wrong = torch.zeros((), dtype=torch.float64)
    for rows in map(list, itertools.product(range(N), repeat=B)):
        model.row_weights = weights[rows]
        loss = loss + PROBS[rows].prod() * N * model.mean_nll(X[rows], Y[rows])
        with model.evenly():
            wrong += PROBS[rows].prod() * N * model.mean_nll(X[rows], Y[rows]).detach()
    loss.backward()
    expected = -whole.log_likelihood(X, Y).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(model.net.weight.grad, whole.net.weight.grad, rtol=1e-10, atol=1e-14)
    assert abs(float(wrong / expected.detach()) - 1) > 0.05  # without the weights it is the loss of other data


def test_rows_come_as_often_as_they_should_and_bring_their_weights() -> None:
    batches = WeightedBatches(X, Y, PROBS, 1000, stream())
    seen = torch.zeros(N, dtype=torch.float64)
    for _ in range(20):
        for x, y, weights in batches.weighted():
            rows = (x[:, None] == X).all(2).long().argmax(1)
            assert torch.equal(Y[rows], y)
            torch.testing.assert_close(weights, 1 / (N * PROBS[rows]))
            seen += rows.bincount(minlength=N)
    error = (PROBS * (1 - PROBS) / seen.sum()).sqrt()
    assert ((seen / seen.sum() - PROBS).abs() < 4 * error).all()


def test_equal_numbers_are_weights_of_one() -> None:
    weights = WeightedBatches(X, Y, row_probabilities(torch.full((N,), 7), Y), B, stream()).weights
    torch.testing.assert_close(weights, torch.ones(N, dtype=torch.float64))


def test_balanced_gives_each_class_the_same_probability() -> None:
    y = torch.tensor([0, 2, 2, 2, 0, 2, 5, 2, 2])
    probs = row_probabilities("balanced", y)
    for label in (0, 2, 5):
        assert probs[y == label].sum() == pytest.approx(1 / 3)
    assert row_probabilities("balanced", torch.tensor([0.0, 1.0, 1.0]))[0] == 0.5  # Bernoulli's


@pytest.mark.parametrize(
    ("sampling", "y", "message"),
    [
        ("balance", Y, "did you mean 'balanced'"),
        ("balanced", torch.randn(N), "one class a row"),
        ("balanced", torch.eye(N), "one class a row"),
        (np.ones(N + 1), Y, rf"each of {N} training rows, got \({N + 1},\)"),
        ([1.0, 0.0, 1.0, 1.0, 1.0], Y, "positive and finite, got 0 to 1"),
        ([1.0, float("nan"), 1.0, 1.0, 1.0], Y, "positive and finite"),
    ],
)
def test_what_cannot_be_is_refused(sampling: object, y: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row_probabilities(sampling, y)


@pytest.mark.parametrize("alone", [True, False])
def test_a_loader_that_draws_rows_unevenly_is_refused_unless_it_is_meant(alone: bool) -> None:
    data = TensorDataset(X, Y)
    sampler = WeightedRandomSampler(PROBS, N)
    own = {"sampler": sampler, "batch_size": 2} if alone else {"batch_sampler": BatchSampler(sampler, 2, False)}
    loader = DataLoader(data, **own)
    with pytest.raises(ValueError, match="WeightedRandomSampler"):
        Loader(loader)
    assert Loader(loader, num_data=N).num_data == N


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("HMC", {}, "HMC, which needs all rows"),
        (bnn.SGLD(variance_reduction="svrg"), {}, "SGLD, which needs all rows"),
        ("Laplace", {}, "Laplace, which needs all rows"),
        ("SWAG", {}, "SWAG, whose spread"),
        ("MAP", {"batch_size": None}, "batch_size=None"),
        ("MAP", {"order": "sequential"}, "sequential"),
        ("MAP", {"compile": True}, "compile"),
        ("MAP", {"vectorize": True}, "vectorize"),
    ],
)
def test_fits_for_which_rows_must_come_equally_often(method: object, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bnn.fit(MODEL, (X, Y), method, sampling="balanced", progress=False, **{"batch_size": 2, **options})


def test_a_loader_takes_no_sampling() -> None:
    with pytest.raises(ValueError, match="with a loader"):
        bnn.fit(MODEL, DataLoader(TensorDataset(X, Y), 2), sampling="balanced", progress=False)


def test_balanced_weights_and_balanced_sampling_cancel() -> None:
    likelihood = bnn.likelihoods.Categorical("balanced")
    likelihood.learn(Y, 2)
    weights = WeightedBatches(X, Y, row_probabilities("balanced", Y), B, stream()).weights
    torch.testing.assert_close(weights * likelihood.row_weights(Y), torch.ones(N, dtype=torch.float64))
