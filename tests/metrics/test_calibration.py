import numpy as np
import pytest
import torch

from bayesnn import metrics


def problem(rows=3000, classes=4, seed=0):
    stream = torch.Generator().manual_seed(seed)
    probs = torch.softmax(2 * torch.randn(rows, classes, generator=stream), 1).double()
    return probs / probs.sum(1, keepdim=True), torch.randint(classes, (rows,), generator=stream)


def test_adaptive_ece_by_hand():
    # Sorted by confidence 0.6 (right), 0.7 (wrong), 0.8 (right), 0.9 (right): gaps 0.4 - 0.7 and 0.2 + 0.1, over 4.
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]], dtype=torch.float64)
    assert metrics.adaptive_ece(probs, torch.tensor([0, 0, 0, 1]), bins=2) == pytest.approx((0.3 + 0.3) / 4)


def test_adaptive_bins_are_equally_full():
    """Against numpy's split of the sorted rows, with rows that do not divide by the bins."""
    probs, y = problem(1003)
    top, right = probs.max(1).values.numpy(), (probs.argmax(1) == y).numpy()
    order = np.argsort(top, kind="stable")
    parts = zip(np.array_split(top[order], 15), np.array_split(right[order], 15), strict=True)
    expected = sum(len(c) * abs(r.mean() - c.mean()) for c, r in parts) / 1003
    assert metrics.adaptive_ece(probs, y) == pytest.approx(expected, rel=1e-12)


def test_classwise_ece_is_the_mean_of_the_classes():
    from torchmetrics.functional.classification import binary_calibration_error

    probs, y = problem()
    each = []
    for k in range(4):
        p, hit = probs[:, k].numpy(), (y == k).numpy()
        index = np.minimum((p * 10).astype(int), 9)
        each.append(sum(abs((hit - p)[index == m].sum()) for m in range(10)) / len(p))
    assert metrics.classwise_ece(probs, y, bins=10) == pytest.approx(np.mean(each), rel=1e-9)
    # Of two classes both have the same error, which is torchmetrics's of one of them.
    two = probs[:, :2] / probs[:, :2].sum(1, keepdim=True)
    expected = float(binary_calibration_error(two[:, 1].float(), y % 2, n_bins=10))
    assert metrics.classwise_ece(two, y % 2, bins=10) == pytest.approx(expected, abs=1e-6)


def test_mce_is_the_worst_bin():
    probs, y = problem()
    confidence, accuracy, _ = metrics.confidence_bins(probs, y, bins=8)
    worst = float((confidence - accuracy).abs().nan_to_num().max())
    assert metrics.mce(probs, y, bins=8) == pytest.approx(worst, abs=1e-6)


@pytest.mark.parametrize("score", [metrics.ece, metrics.mce, metrics.adaptive_ece, metrics.classwise_ece])
def test_calibrated_predictions_have_little_of_each_and_overconfident_ones_much(score):
    stream = torch.Generator().manual_seed(1)
    logits = 1.5 * torch.randn(50_000, 3, generator=stream)
    probs = logits.softmax(1).double()
    y = torch.multinomial(probs, 1, generator=stream)[:, 0]
    sharper = (3 * logits).softmax(1).double()
    limit = 0.06 if score is metrics.mce else 0.01
    assert score(probs / probs.sum(1, keepdim=True), y) < limit
    assert score(sharper / sharper.sum(1, keepdim=True), y) > 5 * limit / 2


@pytest.mark.parametrize("score", [metrics.ece, metrics.mce, metrics.adaptive_ece, metrics.classwise_ece])
def test_bad_bins(score):
    with pytest.raises(ValueError, match=r"Expected bins to be an integer >= 1, got 0"):
        score(*problem(10), bins=0)


def test_recall_and_balanced_accuracy_are_scikit_learns():
    from sklearn.metrics import balanced_accuracy_score, recall_score

    probs, y = problem()
    y = torch.where(y == 3, 0, y)  # imbalanced, and a class without rows
    guess = probs.argmax(1)
    found = metrics.class_recall(probs, y)
    np.testing.assert_allclose(found[:3], recall_score(y, guess, average=None, labels=[0, 1, 2]), rtol=1e-12)
    assert found[3].isnan()
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert metrics.balanced_accuracy(probs, y) == pytest.approx(balanced_accuracy_score(y, guess), rel=1e-12)
