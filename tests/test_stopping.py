import math

import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn import EarlyStopping, likelihoods
from bayesnn.stopping import METRICS

G = torch.Generator().manual_seed(0)
X = torch.randn(60, 3, generator=G)
LABELS = (X.sum(1) + torch.randn(60, generator=G) > 0).long()
NUMBERS = X.sum(1) + torch.randn(60, generator=G)


def fit(stopping, classes=True, epochs=12, method=None, **options):
    likelihood = likelihoods.Categorical() if classes else likelihoods.Normal()
    model = bnn.BayesianModel(nn.Linear(3, 2 if classes else 1), bnn.priors.Normal(0.1), likelihood)
    data = X, LABELS if classes else NUMBERS
    part = X[:30], data[1][:30]
    options = {"validation": part, "progress": False, **options}
    return bnn.fit(model, data, method or bnn.MAP(lr=0.5), epochs=epochs, early_stopping=stopping, **options)


def again(posterior, name):
    """The score of the posterior as it came back, on the validation part."""
    kind, y = METRICS[name].kind, NUMBERS[:30]
    return METRICS[name].measure(posterior.predict(X[:30]), LABELS[:30] if kind == "classes" else y)


@pytest.mark.parametrize("name", METRICS)
def test_the_best_epoch_by_every_metric_comes_back(name):
    posterior = fit(EarlyStopping(None, name), classes=METRICS[name].kind in (None, "classes"))
    column = [row[f"val_{name}"] for row in posterior.history]
    assert len(column) == 12  # without a patience the run goes on to its end
    best = max(column) if METRICS[name].goal == "max" else min(column)
    if name != "nll":
        assert again(posterior, name) == pytest.approx(best, rel=1e-5)
    assert posterior.info["best"] == [{"chain": 0, "epoch": column.index(best), f"val_{name}": best}]


def fall(predictive, y):
    """A score that is best in the third epoch."""
    fall.calls += 1
    return abs(fall.calls - 3.0)


@pytest.mark.parametrize(("goal", "epochs", "best"), [("min", 5, 2), ("max", 12, 11)])
def test_a_function_is_followed_in_the_direction_that_is_given(goal, epochs, best):
    fall.calls = 0
    posterior = fit(EarlyStopping(2 if goal == "min" else None, fall, goal))
    assert len(posterior.history) == epochs
    assert posterior.info["best"][0]["epoch"] == best


def test_a_score_that_is_no_number_is_never_the_best():
    fall.calls = 0

    def broken(predictive, y):
        value = fall(predictive, y)
        return math.nan if fall.calls == 1 else value

    posterior = fit(EarlyStopping(2, broken, "min"))
    assert posterior.info["best"] == [{"chain": 0, "epoch": 2, "val_broken": 0.0}]
    assert len(fit(EarlyStopping(3, lambda predictive, y: math.nan, "min")).history) == 3


def test_a_function_is_called_whatever_its_name_is():
    def nll(predictive, y):
        return 5.0

    assert fit(EarlyStopping(None, nll, "min"), epochs=2).info["best"] == [{"chain": 0, "epoch": 0, "val_nll": 5.0}]


def test_a_function_is_given_soft_labels_as_they_are():
    seen = []

    def mine(predictive, y):
        seen.append(y)
        return 0.0

    soft = torch.rand(60, 2, generator=G).softmax(1)
    model = bnn.BayesianModel(nn.Linear(3, 2), likelihood=likelihoods.Categorical())
    stopping = EarlyStopping(None, mine, "min")
    bnn.fit(model, (X, soft), epochs=1, validation=(X, soft), early_stopping=stopping, progress=False)
    assert torch.equal(seen[0], soft)


def test_a_number_is_its_patience_by_the_likelihood():
    one, other = fit(2), fit(EarlyStopping(2, "nll"))
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in each.history] for each in (one, other)]
    assert strip[0] == strip[1]


def test_images_of_classes_are_scored_pixel_by_pixel():
    x = torch.randn(8, 1, 3, 3, generator=G)
    model = bnn.BayesianModel(nn.Conv2d(1, 2, 1), likelihood=likelihoods.Categorical())
    data = x, (x[:, 0] > 0).long()
    posterior = bnn.fit(
        model, data, epochs=1, validation=data, early_stopping=EarlyStopping(None, "brier"), progress=False
    )
    mean = posterior.predict(x).mean
    truth = torch.nn.functional.one_hot(data[1], 2)
    expected = float((mean - truth).square().sum(-1).mean())
    assert posterior.history[0]["val_brier"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyStopping(3, "acuracy"), "Unknown metric 'acuracy': did you mean 'accuracy'"),
        (lambda: EarlyStopping(3, "accuracy", "min"), "Expected goal='max' for 'accuracy', got 'min'"),
        (lambda: EarlyStopping(3, fall), "Expected goal='min' or 'max' with a function, got None"),
        (lambda: EarlyStopping(0), "Expected early_stopping to be an integer >= 1, got 0"),
        (lambda: fit(EarlyStopping(3, "accuracy"), classes=False), "Expected a metric of numbers, got 'accuracy'"),
        (lambda: fit(EarlyStopping(3, "rmse")), "Expected a metric of classes, got 'rmse'"),
        (lambda: fit(EarlyStopping(3), method=bnn.SGLD()), "Expected no early_stopping for SGLD"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
