"""Proper scores and calibration of predictions: plain functions from tensors to python floats.

Class probabilities are those of the predictive *mixture*, (batch, K), averaged over the draws of the posterior; two
classes may come as the probability of class 1, (batch,). Everything is averaged over the batch in float64.
"""

from typing import Any

from bayesnn.metrics.calibration import adaptive_ece, classwise_ece, confidence_bins, ece, mce
from bayesnn.metrics.classification import (
    accuracy,
    agreement,
    as_class_probs,
    balanced_accuracy,
    brier,
    class_recall,
    classification_table,
    nll,
    total_variation,
)
from bayesnn.metrics.detection import aupr, auroc, detection_table, fpr95, roc_curve, uncertainty_scores
from bayesnn.metrics.regression import coverage, crps_samples, interval_width, mae, regression_table, rmse
from bayesnn.metrics.selection import aurc, rejection_curve

__all__ = [
    "Accumulated",
    "accuracy",
    "adaptive_ece",
    "agreement",
    "as_class_probs",
    "aupr",
    "aurc",
    "auroc",
    "balanced_accuracy",
    "brier",
    "class_recall",
    "classification_table",
    "classwise_ece",
    "confidence_bins",
    "coverage",
    "crps_samples",
    "detection_table",
    "ece",
    "fpr95",
    "interval_width",
    "mae",
    "mce",
    "nll",
    "regression_table",
    "rejection_curve",
    "rmse",
    "roc_curve",
    "total_variation",
    "uncertainty_scores",
]


def __getattr__(name: str) -> Any:
    if name == "Accumulated":  # torchmetrics takes a second to import
        from bayesnn.metrics.accumulate import Accumulated

        return Accumulated
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
