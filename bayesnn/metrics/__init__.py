"""Proper scores and calibration of predictions: plain functions from tensors to python floats.

Class probabilities are those of the predictive *mixture*, (batch, K), averaged over the draws of the posterior; two
classes may come as the probability of class 1, (batch,). Everything is averaged over the batch in float64.
"""

from bayesnn.metrics.classification import (
    accuracy,
    agreement,
    as_class_probs,
    brier,
    classification_table,
    confidence_bins,
    ece,
    nll,
    total_variation,
)
from bayesnn.metrics.regression import coverage, crps_samples, regression_table, rmse

__all__ = [
    "accuracy",
    "agreement",
    "as_class_probs",
    "brier",
    "classification_table",
    "confidence_bins",
    "coverage",
    "crps_samples",
    "ece",
    "nll",
    "regression_table",
    "rmse",
    "total_variation",
]
