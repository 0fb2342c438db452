"""The same number as other libraries give for the same predictions.

uncertainty-toolbox is asked here. torch-uncertainty needs packages that nothing here needs: its numbers, of version
0.13.0 on the predictions below, are written down.
"""

import numpy as np
import pytest
import torch
import uncertainty_toolbox.metrics_calibration as peer_calibration
from scipy import stats
from torch import nn
from uncertainty_toolbox.metrics_accuracy import prediction_error_metrics
from uncertainty_toolbox.metrics_scoring_rule import crps_gaussian, nll_gaussian

import bayesnn as bnn
from bayesnn import metrics
from bayesnn.source import Draws

ROWS, INSIDE = 200, 120
row = torch.arange(float(ROWS), dtype=torch.float64)[None, :, None]
draw = torch.arange(5.0, dtype=torch.float64)[:, None, None]
number = torch.arange(4.0, dtype=torch.float64)
LOGITS = 3 * torch.sin(1.3 * row + 2.1 * number * (1 + row / 100) + 0.7 * draw)  # (draw, row, class)
MEAN = LOGITS.softmax(2).mean(0)
Y = ((row[0, :, 0] * 7) % 11 % 4).long()
DOUBT = 1 - MEAN.max(1).values
OUTSIDE = 1 - (0.4 * LOGITS[:, INSIDE:]).softmax(2).mean(0).max(1).values

# Its classes: Entropy, MutualInformation, BrierScore, CategoricalNLL, CalibrationError (15 bins, norms l1 and max),
# AdaptiveCalibrationError, ClasswiseCalibrationError, FPR95 (pos_label=1). It computes some of them in float32.
TORCH_UNCERTAINTY = {
    "entropy": (1.1742266416549683, lambda: float(metrics.uncertainty_scores(LOGITS)["entropy"].mean())),
    "mutual information": (
        0.43474990129470825,
        lambda: float(metrics.uncertainty_scores(LOGITS)["mutual information"].mean()),
    ),
    "Brier": (0.843177080154419, lambda: metrics.brier(MEAN, Y)),
    "NLL": (1.6938726902008057, lambda: metrics.nll(MEAN, Y)),
    "ECE": (0.17631757259368896, lambda: metrics.ece(MEAN, Y)),
    "MCE": (0.7449040412902832, lambda: metrics.mce(MEAN, Y)),
    "adaptive ECE": (0.19443249702453613, lambda: metrics.adaptive_ece(MEAN, Y)),
    "class-wise ECE": (0.13840613007404914, lambda: metrics.classwise_ece(MEAN, Y)),
    "FPR95": (0.42500001192092896, lambda: metrics.fpr95(DOUBT[:INSIDE], OUTSIDE)),
}


@pytest.mark.parametrize("name", TORCH_UNCERTAINTY)
def test_torch_uncertainty_gave_the_same_number(name):
    recorded, ours = TORCH_UNCERTAINTY[name]
    assert ours() == pytest.approx(recorded, rel=2e-7)


def test_torch_uncertaintys_aurc_is_another_area_under_the_same_curve():
    """Its AURC is the area by trapezoids from one row to all; ours is the mean over the rows (Geifman et al. 2019)."""
    risk = 1 - metrics.rejection_curve(MEAN, Y, DOUBT)[1]
    assert float(torch.trapezoid(risk, dx=1 / (ROWS - 1))) == pytest.approx(0.7360169035590729, rel=2e-7)
    assert metrics.aurc(MEAN, Y) == pytest.approx(float(risk.mean()), rel=1e-12)


def test_torch_uncertaintys_variation_ratio_counts_against_another_class():
    """Its VariationRatio(probabilistic=False) asks who votes for the mixture's class; ours for the most votes' one."""
    votes = LOGITS.argmax(2)
    assert float((votes != MEAN.argmax(1)).double().mean()) == pytest.approx(0.48099997639656067, rel=2e-7)
    modal = votes.mode(0).values
    ours = metrics.uncertainty_scores(LOGITS)["variation ratio"]
    assert float(ours.mean()) == pytest.approx(float((votes != modal).double().mean()), rel=1e-12)


MU = 2 * torch.sin(0.7 * row[0, :, 0])
SD = 0.5 + 0.4 * torch.cos(0.31 * row[0, :, 0])
REAL = MU + SD * torch.as_tensor(stats.norm.ppf(((row[0, :, 0] * 37) % ROWS + 0.5).numpy() / ROWS)) * 1.2
FLAT = tuple(v.numpy() for v in (MU, SD, REAL))


def predictive():
    """Normal(MU, SD^2), as the answer of one draw of a net that passes its inputs on."""
    model = bnn.BayesianModel(nn.Linear(2, 2).double(), likelihood=bnn.likelihoods.HeteroscedasticNormal(floor=1e-9))
    draws = Draws({"net.weight": torch.eye(2).double()[None], "net.bias": torch.zeros(1, 2).double()})
    return bnn.Posterior(model, [draws], 10).predict(torch.stack([MU, (SD - 1e-9).expm1().log()], 1))


def test_uncertainty_toolbox_gives_the_same_numbers_of_real_targets():
    errors = prediction_error_metrics(FLAT[0], FLAT[2])
    assert metrics.rmse(MU, REAL) == pytest.approx(errors["rmse"], rel=1e-12)
    assert metrics.mae(MU, REAL) == pytest.approx(errors["mae"], rel=1e-12)
    assert -float(predictive().log_prob(REAL).mean()) == pytest.approx(nll_gaussian(*FLAT), rel=1e-9)


def test_uncertainty_toolbox_gives_the_same_crps():
    n = 20_000
    noise = torch.randn(n, ROWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = metrics.crps_samples(MU + SD * noise, REAL)
    # Of one row the error is below sd / sqrt(n) times a number near 1, and the rows are independent.
    assert ours == pytest.approx(crps_gaussian(*FLAT), abs=4 * float(SD.mean()) / (n * ROWS) ** 0.5)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_uncertainty_toolbox_gives_the_same_coverage(level):
    lower, upper = predictive().interval(level)
    assert metrics.coverage(lower, upper, REAL) == peer_calibration.get_proportion_in_interval(*FLAT, level)
    width = 2 * stats.norm.ppf((1 + level) / 2) * FLAT[1].mean()
    assert metrics.interval_width(lower, upper) == pytest.approx(width, rel=1e-6)
    inside = ((predictive().pit(REAL) - 0.5).abs() <= level / 2).double().mean()
    expected, observed = peer_calibration.get_proportion_lists_vectorized(*FLAT, num_bins=101, prop_type="interval")
    assert float(inside) == observed[np.argmin(np.abs(expected - level))]
