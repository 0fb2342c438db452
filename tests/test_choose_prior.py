import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from torch.utils.data import DataLoader, TensorDataset

import bayesnn as bnn
from bayesnn import likelihoods, priors

NOISE, ROWS = 0.4, 20
_stream = torch.Generator().manual_seed(0)
X = torch.randn(ROWS, 3, generator=_stream, dtype=torch.float64)
MEAN = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)  # what was learned before
TRUE = MEAN + 0.3 * torch.randn(1, 3, generator=_stream, dtype=torch.float64)
Y = (X @ TRUE.T)[:, 0] + NOISE * torch.randn(ROWS, generator=_stream, dtype=torch.float64)
SCALES = (0.01, 0.1, 0.3, 1.0, 10.0)
FIT = {"epochs": 600, "batch_size": None, "init": "net"}


def model():
    net = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(MEAN)
    return bnn.BayesianModel(net, likelihood=likelihoods.Normal(scale=NOISE))


def candidates(spread=2.0):
    """Normal(MEAN, (scale * spread)^2), by scale."""
    return {s: priors.Informative({"weight": MEAN}, s, priors.Normal(spread)) for s in SCALES}


def log_evidence(s, x=X, y=Y):
    """log Normal(y; X m, s^2 X X' + sigma^2 I)."""
    covariance = s**2 * x @ x.T + NOISE**2 * torch.eye(len(x), dtype=x.dtype)
    return float(MultivariateNormal(x @ MEAN[0], covariance).log_prob(y))


def test_the_evidence_of_a_scale_is_that_of_a_linear_regression():
    found = bnn.choose_prior(model(), (X, Y), candidates(), method=bnn.Laplace(curvature="full", lr=0.02), **FIT)
    exact = {s: log_evidence(2.0 * s) for s in SCALES}
    for s in SCALES:
        # What is left is half the curvature times the square of Adam's distance to the mode.
        assert found.scores[s] == pytest.approx(exact[s], abs=1e-4), s
        assert abs(log_evidence(2.0 * s * 1.2) - exact[s]) > 0.02  # a scale that is off by a fifth is seen
    assert found.name == max(exact, key=exact.get)
    assert found.name not in (SCALES[0], SCALES[-1])  # neither frozen nor vague
    scale = found.model.log_priors["net.weight"].base_dist.scale
    assert torch.equal(scale, torch.full_like(MEAN, 2.0 * found.name))


def test_the_held_out_score_is_the_sum_of_the_predictive_densities_of_all_rows():
    few = {s: prior for s, prior in candidates().items() if s in (0.1, 1.0)}
    found = bnn.choose_prior(
        model(), (X, Y), few, by="held-out", method=bnn.Laplace(curvature="full", lr=0.02), folds=4, **FIT
    )
    order = torch.randperm(ROWS, generator=bnn.rng.generator(0, 0, 7))
    order = order[Y[order].argsort(stable=True)]
    for s, score in found.scores.items():
        exact = 0.0
        for k in range(4):
            fold, rest = order[k::4], torch.cat([order[j::4] for j in range(4) if j != k])
            precision = X[rest].T @ X[rest] / NOISE**2 + torch.eye(3, dtype=X.dtype) / (2.0 * s) ** 2
            covariance = torch.linalg.inv(precision)
            mean = covariance @ (X[rest].T @ Y[rest] / NOISE**2 + MEAN[0] / (2.0 * s) ** 2)
            variance = (X[fold] @ covariance * X[fold]).sum(1) + NOISE**2
            exact += float(torch.distributions.Normal(X[fold] @ mean, variance.sqrt()).log_prob(Y[fold]).sum())
        # A mixture of 100 draws: a density's relative error is about sqrt(epistemic / noise variance / 100) <= 0.05,
        # independent between folds and shared within one of 5 rows.
        assert score == pytest.approx(exact, abs=3 * 0.05 * math.sqrt(4 * 5)), s


def test_folds_have_their_share_of_every_class():
    from bayesnn.choose_prior import _folds

    y = torch.arange(3).repeat_interleave(torch.tensor([8, 4, 12]))
    folds = _folds(bnn.data.Data(torch.zeros(24, 1), y), 4, seed=3)
    assert sorted(torch.cat(folds).tolist()) == list(range(24))
    for fold in folds:
        assert torch.bincount(y[fold]).tolist() == [2, 1, 3]


def test_the_part_that_is_bayesian_and_any_method_are_kept():
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    given = bnn.BayesianModel(net, likelihood=likelihoods.Normal(NOISE), bayesian="last-layer")
    wide = {"narrow": priors.Normal(0.01), "wide": priors.Normal(3.0)}
    found = bnn.choose_prior(
        given, (X.float(), Y.float()), wide, by="held-out", method=bnn.MAP(lr=0.02), folds=2, epochs=100
    )
    assert set(found.model.log_priors) == {"net.2.weight", "net.2.bias"}
    assert found.name == "wide"


def test_a_method_may_be_a_class_or_a_name_as_in_fit():
    few = {"narrow": priors.Normal(0.1), "wide": priors.Normal(3.0)}
    found = [
        bnn.choose_prior(model(), (X, Y), few, method=method, epochs=20).scores
        for method in (None, bnn.Laplace, "laplace", bnn.Laplace())
    ]
    assert all(scores == found[0] for scores in found)
    with pytest.raises(TypeError, match=r"Expected rows in memory, .* or \(x, y\), got DataLoader: of a loader"):
        bnn.choose_prior(model(), DataLoader(TensorDataset(X, Y)), few)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": {}}, "at least one candidate, got none"),
        ({"by": "evidense"}, "did you mean 'evidence'"),
        ({"method": bnn.MAP()}, r"Expected Laplace\(\) for the evidence, got MAP"),
        ({"method": bnn.MAP}, r"Expected Laplace\(\) for the evidence, got MAP"),
        ({"method": "laplce"}, "did you mean 'Laplace'"),
        ({"by": "held-out", "folds": 21}, "folds <= 20"),
    ],
)
def test_what_cannot_be_chosen_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bnn.choose_prior(model(), (X, Y), **{"candidates": candidates(), **options})
