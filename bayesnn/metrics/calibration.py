"""Whether class probabilities are the frequencies that they claim to be."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bayesnn.errors import at_least
from bayesnn.metrics.classification import labelled


def _binnable(probs: Tensor) -> Tensor:
    # torchmetrics takes 1.0000001 for a logit (and softmaxes everything), and gives a confidence of exactly 1 a bin of
    # its own. The largest float32 below 1 avoids both.
    return probs.double().clamp(0.0, 1.0 - 2.0**-24).float()


def confidence_bins(probs: Tensor, y: Tensor, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence and accuracy of the top class in equal-width bins of confidence: what `ece` adds up.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
    y : Tensor, (batch,), int
    bins : int
        Number of bins on [0, 1]; bin m is [m / bins, (m + 1) / bins), the last one is closed.

    Returns
    -------
    confidence, accuracy, count : Tensor, (bins,), float64
        Means over the rows of each bin (nan where it is empty) and its number of rows.

    Raises
    ------
    ValueError
        If the shapes do not match, the values are no probabilities or classes, or `bins` is below 1.
    """
    bins = at_least("bins", bins, 1)
    probs, y = labelled(probs, y)
    top, predicted = _binnable(probs).max(1)
    index = torch.bucketize(top, torch.linspace(0, 1, bins + 1, device=top.device), right=True) - 1
    count = torch.bincount(index, minlength=bins).double()
    confidence = torch.bincount(index, weights=top.double(), minlength=bins) / count
    correct = torch.bincount(index, weights=(predicted == y).double(), minlength=bins) / count
    return confidence, correct, count


def ece(probs: Tensor, y: Tensor, bins: int = 15) -> float:
    """Calibration error expected of the top class (ECE), sum_m (n_m / n) |accuracy_m - confidence_m|.

    `torchmetrics.functional.classification.multiclass_calibration_error` with `norm="l1"`. It is biased upwards for
    few rows per bin, and no proper score: a constant prediction of the class frequencies has 0.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
    y : Tensor, (batch,), int
    bins : int
        Number of equal-width bins of confidence.

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    ValueError
        If the shapes do not match, the values are no probabilities or classes, or `bins` is below 1.

    References
    ----------
    Guo, Pleiss, Sun & Weinberger (2017), On calibration of modern neural networks, ICML, eq. 3.
    """
    return _calibration_error(probs, y, bins, "l1")


def _calibration_error(probs: Tensor, y: Tensor, bins: int, norm: Literal["l1", "max"]) -> float:
    from torchmetrics.functional.classification import multiclass_calibration_error

    bins = at_least("bins", bins, 1)
    probs, y = labelled(probs, y)
    value = multiclass_calibration_error(
        _binnable(probs), y, num_classes=probs.shape[1], n_bins=bins, norm=norm, validate_args=False
    )
    return float(value)


def mce(probs: Tensor, y: Tensor, bins: int = 15) -> float:
    """Largest calibration error of a bin of the top class's confidence (MCE), max_m |accuracy_m - confidence_m|.

    `torchmetrics.functional.classification.multiclass_calibration_error` with `norm="max"`. A bin of one row counts as
    much as one of a thousand: it is noise unless every bin is full.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
    y : Tensor, (batch,), int
    bins : int
        Number of equal-width bins of confidence.

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    ValueError
        If the shapes do not match, the values are no probabilities or classes, or `bins` is below 1.

    References
    ----------
    Naeini, Cooper & Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian binning, AAAI.
    """
    return _calibration_error(probs, y, bins, "max")


def adaptive_ece(probs: Tensor, y: Tensor, bins: int = 15) -> float:
    """The ECE of the top class in bins that hold the same number of rows each, to within one.

    Equal-width bins of a confident net hold nearly all rows in the last one, where errors of both signs cancel.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
    y : Tensor, (batch,), int
    bins : int
        Number of bins; no more than rows are used.

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    ValueError
        If the shapes do not match, the values are no probabilities or classes, or `bins` is below 1.

    References
    ----------
    Nguyen & O'Connor (2015), Posterior calibration and exploratory analysis for NLP models, EMNLP.
    """
    bins = at_least("bins", bins, 1)
    probs, y = labelled(probs, y)
    top, predicted = probs.double().max(1)
    order = top.argsort(stable=True)
    gap = ((predicted == y).double() - top)[order]
    return float(sum(part.sum().abs() for part in gap.tensor_split(min(bins, len(gap)))) / len(gap))


def classwise_ece(probs: Tensor, y: Tensor, bins: int = 15) -> float:
    """Calibration error of every class's probability, 1/K sum_k sum_m (n_mk / n) |frequency_mk - probability_mk|.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
    y : Tensor, (batch,), int
    bins : int
        Number of equal-width bins of each class's probability.

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    ValueError
        If the shapes do not match, the values are no probabilities or classes, or `bins` is below 1.

    References
    ----------
    Kull, Perello-Nieto, Kängsepp, Silva Filho, Song & Flach (2019), Beyond temperature scaling, NeurIPS, eq. 3.
    """
    bins = at_least("bins", bins, 1)
    probs, y = labelled(probs, y)
    edges = torch.linspace(0, 1, bins + 1, device=probs.device)
    index = (torch.bucketize(_binnable(probs), edges, right=True) - 1).T  # (class, row)
    gap = (torch.nn.functional.one_hot(y, probs.shape[1]).double() - probs.double()).T.contiguous()
    sums = torch.zeros(len(index), bins, dtype=torch.float64, device=probs.device).scatter_add_(1, index, gap)
    return float(sums.abs().sum(1).mean() / len(probs))
