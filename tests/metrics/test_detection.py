import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import entropy

import bayesnn as bnn
from bayesnn import metrics
from bayesnn.metrics import uncertainty_scores
from bayesnn.source import Draws


def sides(seed=0, inside=700, outside=400):
    """Scores that overlap, with ties and far from [0, 1]."""
    stream = np.random.default_rng(seed)
    return tuple(
        torch.as_tensor(np.round(stream.normal(mean, 20.0, size), 0)) for mean, size in ((0.0, inside), (15.0, outside))
    )


def test_auroc_and_aupr_are_scikit_learns():
    from sklearn.metrics import average_precision_score, roc_auc_score

    inside, outside = sides()
    y = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    both = torch.cat([inside, outside]).numpy()
    assert metrics.auroc(inside, outside) == pytest.approx(roc_auc_score(y, both), abs=1e-6)
    assert metrics.aupr(inside, outside) == pytest.approx(average_precision_score(y, both), abs=1e-6)


def test_fpr95_by_counting():
    inside, outside = sides()
    found = []
    for threshold in torch.cat([inside, outside]).unique():
        if float((outside >= threshold).double().mean()) >= 0.95:
            found.append(float((inside >= threshold).double().mean()))
    assert metrics.fpr95(inside, outside) == pytest.approx(min(found), abs=1e-6)


def test_large_scores_are_no_ties():
    """The sigmoid of 1,000 and of 2,000 is the same number."""
    inside, outside = torch.tensor([1000.0, 1001.0]), torch.tensor([2000.0, 1e30])
    assert metrics.auroc(inside, outside) == 1
    assert metrics.auroc(outside, inside) == 0
    assert metrics.fpr95(inside, outside) == 0
    assert metrics.auroc(torch.ones(5), torch.ones(7)) == 0.5


def test_scores_against_scipy():
    logits = torch.randn(6, 9, 4, generator=torch.Generator().manual_seed(0)).double() * 3
    p = softmax(logits.numpy(), -1)
    mean = p.mean(0)
    scores = {name: value.numpy() for name, value in metrics.uncertainty_scores(logits).items()}
    np.testing.assert_allclose(scores["max probability"], 1 - mean.max(1), rtol=1e-12)
    np.testing.assert_allclose(scores["entropy"], entropy(mean, axis=1), rtol=1e-12)
    np.testing.assert_allclose(scores["expected entropy"], entropy(p, axis=2).mean(0), rtol=1e-12)
    information = entropy(mean, axis=1) - entropy(p, axis=2).mean(0)
    np.testing.assert_allclose(scores["mutual information"], information, rtol=1e-9)
    np.testing.assert_allclose(scores["energy"], -logsumexp(logits.numpy(), axis=2).mean(0), rtol=1e-12)
    votes = np.array([np.bincount(column, minlength=4).max() for column in p.argmax(2).T])
    np.testing.assert_allclose(scores["variation ratio"], 1 - votes / 6)


@pytest.mark.parametrize(
    ("likelihood", "outputs"), [(bnn.likelihoods.Categorical(), 3), (bnn.likelihoods.Bernoulli(), 1)]
)
def test_a_predictive_has_them(likelihood, outputs):
    model = bnn.BayesianModel(torch.nn.Linear(2, outputs), likelihood=likelihood)
    stream = torch.Generator().manual_seed(0)
    stacked = {n: torch.randn(5, *p.shape, generator=stream) for n, p in model.named_parameters()}
    predictive = bnn.Posterior(model, [Draws(stacked)], 10).predict(torch.randn(30, 2, generator=stream))
    scores = predictive.scores()
    torch.testing.assert_close(scores["entropy"], predictive.total.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores["mutual information"], predictive.epistemic.double(), rtol=1e-4, atol=1e-6)
    table = metrics.detection_table({k: v[:20] for k, v in scores.items()}, {k: v[20:] for k, v in scores.items()})
    assert set(table) == set(scores)
    assert all(0 <= value <= 1 for row in table.values() for value in row.values())


def test_what_has_no_such_scores_is_refused():
    def predictive(likelihood, outputs):
        model = bnn.BayesianModel(torch.nn.Linear(2, outputs), likelihood=likelihood)
        stacked = {n: p.detach()[None].clone() for n, p in model.named_parameters()}
        return bnn.Posterior(model, [Draws(stacked)], 10).predict(torch.zeros(3, 2))

    with pytest.raises(ValueError, match=r"Expected classes for \.scores\(\), got a real target"):
        predictive(bnn.likelihoods.Normal(scale=1.0), 1).scores()
    labels = predictive(bnn.likelihoods.Bernoulli(), 2)  # each on its own
    for name, score in labels.scores().items():
        assert score.shape == (3, 2), name
    torch.testing.assert_close(labels.scores()["entropy"], labels.total.double(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"Expected logits \(draw, batch, class\)"):
        metrics.uncertainty_scores(torch.zeros(3, 2))
    for bad in (torch.zeros(0), torch.zeros(2, 2), torch.tensor([float("nan")])):
        with pytest.raises(ValueError, match="Expected scores of outside inputs"):
            metrics.auroc(torch.zeros(3), bad)


def test_one_draw_says_nothing_of_the_epistemic_part():
    logits = 5 * torch.randn(1, 200, 10, generator=torch.Generator().manual_seed(0))
    assert not uncertainty_scores(logits)["mutual information"].any()
