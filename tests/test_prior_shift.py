import pytest
import torch
from scipy import stats

import bayesnn as bnn


def posterior(x, frequencies):
    """p(k | x) of two Normals, by Bayes' rule."""
    joint = torch.stack([f * torch.as_tensor(stats.norm(k, 1).pdf(x)) for k, f in enumerate(frequencies)], 1)
    return joint / joint.sum(1, keepdim=True)


@pytest.mark.parametrize("after", [None, (0.3, 0.7), (1.0, 0.0)])
def test_it_is_bayes_rule_under_the_other_frequencies(after):
    x = torch.linspace(-3, 4, 50).numpy()
    found = bnn.prior_shift(posterior(x, (0.95, 0.05)), before=[95, 5], after=after)
    torch.testing.assert_close(found, posterior(x, after or (0.5, 0.5)))


def test_where_no_class_that_is_left_has_a_probability_their_frequencies_remain():
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    expected = torch.tensor([[0.0, 0.25, 0.75], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(bnn.prior_shift(probs, [1, 1, 2], [0, 1, 3]), expected)
    near = torch.tensor([[1 - 1e-30, 1e-30]])  # the limit
    for one in (near, near.round()):
        torch.testing.assert_close(bnn.prior_shift(one, [1, 1], [0, 1]), torch.tensor([[0.0, 1.0]]))


def test_one_probability_stands_for_two_classes_and_the_same_frequencies_change_nothing():
    probs = torch.tensor([0.1, 0.9])
    torch.testing.assert_close(bnn.prior_shift(probs, [9, 1], [9, 1])[:, 1], probs)


def test_a_net_fitted_to_nineteen_in_twenty_finds_the_rare_class_as_often_as_the_other():
    stream = torch.Generator().manual_seed(0)
    y = (torch.rand(4000, generator=stream) < 0.05).long()
    x = y[:, None] + torch.randn(4000, 1, generator=stream)
    model = bnn.BayesianModel(torch.nn.Linear(1, 2), likelihood=bnn.likelihoods.Categorical())
    probs = bnn.fit(model, (x, y), bnn.MAP(lr=0.05), epochs=200, batch_size=None, progress=False).predict(x).mean
    balanced = bnn.prior_shift(probs, torch.bincount(y))
    recall = bnn.metrics.class_recall(balanced, y)
    assert float(bnn.metrics.class_recall(probs, y)[1]) < 0.1
    # Of two Normals a unit of sd apart the best balanced recall is Phi(1 / 2) = 0.691; 200 rows of class 1.
    error = (0.69 * 0.31 / int(y.sum())) ** 0.5
    assert float(recall[1]) == pytest.approx(stats.norm.cdf(0.5), abs=4 * error)
    assert float(recall[0]) == pytest.approx(stats.norm.cdf(0.5), abs=4 * error)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([1, 1, 1], None, r"frequencies of 2 classes, got \(3,\) before"),
        ([1, 0], None, "above 0 before"),
        ([1, 1], [-1, 2], "none below 0 after"),
        ([1, 1], [0, 0], "none below 0 after"),
    ],
)
def test_what_is_no_frequency_is_refused(before, after, message):
    with pytest.raises(ValueError, match=message):
        bnn.prior_shift(torch.tensor([[0.5, 0.5]]), before, after)
