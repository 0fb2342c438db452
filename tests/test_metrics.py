import math

import numpy as np
import pytest
import torch

from bayesnn import metrics

PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.1, 0.1, 0.8], [0.5, 0.25, 0.25]], dtype=torch.float64)
Y = torch.tensor([0, 2, 2, 1])


def random_problem(rows=4000, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.softmax(2 * torch.randn(rows, classes, generator=generator), 1)
    return probs, torch.randint(classes, (rows,), generator=generator)


def crps_normal(mu, sigma, y):
    """Closed form in Gneiting & Raftery (2007), section 4.2."""
    z = (y - mu) / sigma
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return sigma * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def test_scores_by_hand():
    assert metrics.accuracy(PROBS, Y) == 0.5
    assert metrics.nll(PROBS, Y) == pytest.approx(-(math.log(0.7) + math.log(0.3) + math.log(0.8) + math.log(0.25)) / 4)
    squares = (0.09 + 0.04 + 0.01) + (0.09 + 0.16 + 0.49) + (0.01 + 0.01 + 0.04) + (0.25 + 0.5625 + 0.0625)
    assert metrics.brier(PROBS, Y) == pytest.approx(squares / 4)


def test_ece_by_hand():
    # Two bins, [0, 0.5) and [0.5, 1]: row 1 alone in the first, wrong at 0.4; in the second 2 of 3 right at 2 / 3.
    assert metrics.ece(PROBS, Y, bins=2) == pytest.approx(0.25 * 0.4, abs=1e-6)


def test_table_has_the_single_scores():
    probs, y = random_problem()
    assert metrics.classification_table(probs, y) == {
        "accuracy": metrics.accuracy(probs, y),
        "nll": metrics.nll(probs, y),
        "brier": metrics.brier(probs, y),
        "ece": metrics.ece(probs, y),
    }


def test_scores_match_scikit_learn():
    from sklearn.metrics import accuracy_score, log_loss

    probs, y = random_problem()
    probs = probs.double() / probs.double().sum(1, keepdim=True)
    assert metrics.accuracy(probs, y) == accuracy_score(y, probs.argmax(1))
    assert metrics.nll(probs, y) == pytest.approx(log_loss(y, probs.numpy()), rel=1e-12)


def test_probability_of_class_one_is_two_columns():
    p = torch.rand(500, generator=torch.Generator().manual_seed(1))
    y = (p > 0.4).long()
    both = torch.stack([1 - p, p], 1)
    assert metrics.classification_table(p, y) == metrics.classification_table(both, y)
    assert metrics.classification_table(p, y.float()) == metrics.classification_table(both, y)


def test_probability_zero_counts_as_the_smallest_number():
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    y = torch.tensor([1, 0])
    assert metrics.nll(probs, y) == pytest.approx(-math.log(torch.finfo(torch.float32).tiny) / 2)


def test_ece_survives_rounding_above_one():
    # torchmetrics alone would take the first row for logits, and softmax all rows.
    probs = torch.tensor([[1.0000001, 0.0], [0.9, 0.1]])
    assert metrics.ece(probs, torch.tensor([0, 0])) == pytest.approx(0.05, abs=1e-6)


def test_ece_puts_certainty_in_the_last_bin():
    # Confidences of 1 (wrong) and 0.98 (right) share a bin: |1/2 - 0.99|, and not (1 + 0.02) / 2.
    probs = torch.tensor([[1.0, 0.0], [0.98, 0.02]])
    assert metrics.ece(probs, torch.tensor([1, 0])) == pytest.approx(0.49, abs=1e-6)


def test_bins_add_up_to_ece():
    probs, y = random_problem()
    for bins in (1, 7, 15):
        confidence, accuracy, count = metrics.confidence_bins(probs, y, bins)
        gap = ((confidence - accuracy).abs() * count).nansum() / count.sum()
        assert float(gap) == pytest.approx(metrics.ece(probs, y, bins), abs=1e-6)
        assert count.sum() == len(y)


@pytest.mark.parametrize(
    ("probs", "y", "message"),
    [
        (torch.full((3, 4, 2), 0.5), torch.zeros(3), "average over the draws"),
        (torch.ones(3, 1), torch.zeros(3), "K >= 2"),
        (torch.full((3, 2), 0.5), torch.zeros(4, dtype=torch.int64), r"y must be \(3,\)"),
        (torch.full((3, 2), 0.5), torch.zeros(3, 1, dtype=torch.int64), r"y must be \(3,\)"),
        (torch.tensor([[3.0, -1.0]]), torch.tensor([0]), "softmax"),
        (torch.tensor([[math.nan, 0.5]]), torch.tensor([0]), r"\[0, 1\]"),
        (torch.tensor([[0.9, 0.9]]), torch.tensor([0]), "sum to 1"),
        (torch.full((3, 2), 0.5), torch.tensor([0, 1, 2]), r"0\.\.1"),
        (torch.full((3, 2), 0.5), torch.tensor([0.0, 0.5, 1.0]), "whole class numbers"),
        (torch.ones(0, 2), torch.zeros(0), "at least one row"),
    ],
)
def test_bad_input_is_one_clear_line(probs, y, message):
    with pytest.raises(ValueError, match=message) as error:
        metrics.accuracy(probs, y)
    assert "\n" not in str(error.value)


def test_rmse_and_coverage_by_hand():
    y = torch.tensor([1.0, 2.0, 4.0])
    assert metrics.rmse(torch.tensor([1.0, 4.0, 3.0]), y) == pytest.approx(math.sqrt(5 / 3))
    assert metrics.coverage(torch.tensor([1.0, 3.0, 0.0]), torch.tensor([1.5, 5.0, 4.0]), y) == pytest.approx(2 / 3)


def test_agreement_and_total_variation_by_hand():
    p = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7]])
    q = torch.tensor([[0.5, 0.1, 0.4], [0.1, 0.7, 0.2]])
    assert metrics.agreement(p, q) == 0.5
    assert metrics.total_variation(p, q) == pytest.approx((0.4 + 0.5) / 2)
    assert metrics.total_variation(p, p) == 0.0
    assert metrics.total_variation(p[:, 0], q[:, 0]) == pytest.approx(0.05)  # two classes: |p - q|
    with pytest.raises(ValueError, match="predict the same inputs"):
        metrics.agreement(p, q[:1])


def test_column_against_row_is_refused():
    with pytest.raises(ValueError, match="shape of y"):
        metrics.rmse(torch.zeros(5, 1), torch.zeros(5))
    with pytest.raises(ValueError, match="upper must have the shape of y"):
        metrics.coverage(torch.zeros(5), torch.zeros(5, 1), torch.zeros(5))
    with pytest.raises(ValueError, match="first axis"):
        metrics.crps_samples(torch.zeros(5, 10), torch.zeros(5))
    with pytest.raises(ValueError, match="S >= 2"):
        metrics.crps_samples(torch.zeros(1, 5), torch.zeros(5))


def test_crps_is_the_double_sum():
    samples = torch.randn(7, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 1e6
    y = samples[0] + 0.3
    distance = (samples[:, None] - samples[None]).abs().sum((0, 1)) / (7 * 6)
    direct = float(((samples - y).abs().mean(0) - distance / 2).mean())
    assert metrics.crps_samples(samples, y) == pytest.approx(direct, abs=1e-9)


@pytest.mark.parametrize("size", [2, 5, 200])
def test_crps_is_unbiased_for_a_normal(size):
    rows, mu, sigma = 20000, 1.5, 2.0
    generator = torch.Generator().manual_seed(size)
    y = torch.linspace(-4, 7, 5, dtype=torch.float64).repeat_interleave(rows // 5)
    samples = mu + sigma * torch.randn(size, rows, generator=generator, dtype=torch.float64)
    error = torch.tensor([metrics.crps_samples(s, t) for s, t in zip(samples.chunk(100, 1), y.chunk(100), strict=True)])
    error = error - torch.stack([crps_normal(mu, sigma, t).mean() for t in y.chunk(100)])
    # The standard error comes from the 100 blocks; dividing by S^2 instead would be off by sigma / (S sqrt(pi)).
    assert abs(error.mean()) < 4 * error.std() / 10


def test_regression_table():
    generator = torch.Generator().manual_seed(3)
    rows, size = 20000, 30
    centre = torch.randn(rows, generator=generator)
    y = centre + torch.randn(rows, generator=generator)
    samples = centre + torch.randn(size, rows, generator=generator)
    log_prob = torch.distributions.Normal(centre, 1.0).log_prob(y)
    table = metrics.regression_table(samples, y, mean=centre, log_prob=log_prob, level=0.8)
    assert list(table) == ["rmse", "crps", "coverage", "nll"]
    assert table["rmse"] == metrics.rmse(centre, y)
    assert table["crps"] == metrics.crps_samples(samples, y)
    assert table["nll"] == pytest.approx(float(-log_prob.double().mean()))
    # With the type 7 quantiles of torch.quantile it would be 0.8 * 29 / 31 = 0.748.
    assert table["coverage"] == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / rows) + 0.005)
    assert list(metrics.regression_table(samples, y)) == ["rmse", "crps", "coverage"]


def test_regression_interval_is_made_of_order_statistics():
    samples = torch.arange(1.0, 20.0)[:, None].expand(19, 4)
    y = torch.tensor([0.99, 1.0, 19.0, 19.01])
    assert metrics.regression_table(samples, y, level=0.9)["coverage"] == 0.5
    with pytest.raises(ValueError, match="level must be in"):
        metrics.regression_table(samples, y, level=90)


def test_scores_are_python_floats():
    probs, y = random_problem(50)
    assert all(type(value) is float for value in metrics.classification_table(probs, y).values())
    samples = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 50)))
    assert all(type(value) is float for value in metrics.regression_table(samples, samples[0]).values())
