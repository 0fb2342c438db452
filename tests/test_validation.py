import numpy as np
import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn import likelihoods
from bayesnn.data import Data, Standardize

N = 30
X = torch.linspace(-2, 2, N)[:, None]


def last_row(likelihood, y, outputs=1, validation_y=None, target=None):
    model = bnn.BayesianModel(nn.Linear(1, outputs), likelihood=likelihood)
    held_out = (X, y if validation_y is None else validation_y)
    posterior = bnn.fit(
        model, Data(X, y, target=target), bnn.MAP(lr=0.05), epochs=20, validation=held_out, progress=False
    )
    return posterior.history[-1], posterior.predict(X)


@pytest.mark.parametrize("column", [False, True])
def test_accuracy_and_nll_of_classes(column):
    labels = (X[:, 0] > 0.3).long()
    shown = labels[:, None] if column else labels
    row, predictive = last_row(likelihoods.Categorical(), labels, 2, validation_y=shown)
    assert row["val_accuracy"] == pytest.approx(float((predictive.mean.argmax(-1) == labels).double().mean()))
    assert row["val_nll"] == pytest.approx(-float(predictive.log_prob(labels).mean()), rel=1e-6)
    row, predictive = last_row(likelihoods.Bernoulli(), labels, validation_y=shown)
    assert row["val_accuracy"] == pytest.approx(float(((predictive.mean > 0.5) == labels).double().mean()))
    assert 0.6 < row["val_accuracy"] <= 1.0  # a share of N rows, and better than always saying 0 (which is 0.57)


@pytest.mark.parametrize("column", [False, True])
def test_rmse_is_in_the_targets_own_units(column):
    y = 500 + 30 * X[:, 0].sin()
    row, predictive = last_row(
        likelihoods.Normal(), y, validation_y=y[:, None] if column else y, target=Standardize.fit(y)
    )
    assert row["val_rmse"] == pytest.approx(np.sqrt(np.mean((predictive.mean - y).numpy() ** 2)), rel=1e-5)
    assert row["val_nll"] == pytest.approx(-float(predictive.log_prob(y).mean()), rel=1e-5)


@pytest.mark.parametrize(("df", "has_mean"), [(3.0, True), (2.0, True), (1.0, False)])
def test_a_likelihood_without_moments_can_still_be_validated(df, has_mean):
    row, predictive = last_row(likelihoods.StudentT(df), X[:, 0].sin())
    assert row["val_nll"] == pytest.approx(-float(predictive.log_prob(X[:, 0].sin()).mean()), rel=1e-5)
    assert ("val_rmse" in row) is has_mean
