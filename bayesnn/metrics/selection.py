"""Selective prediction: how good the answers are that remain when the most uncertain ones are withheld."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesnn.metrics.classification import labelled


def rejection_curve(probs: Tensor, y: Tensor, uncertainty: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy on the k most certain rows, for k = 1, ..., batch.

    Rows of equal uncertainty are taken in the mean over all their orders.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
    y : Tensor, (batch,), int
    uncertainty : Tensor, (batch,)
        Anything that grows with doubt.

    Returns
    -------
    coverage : Tensor, (batch,), float64
        k / batch.
    accuracy : Tensor, (batch,), float64

    Raises
    ------
    ValueError
        If the shapes do not match, or the values are no probabilities or classes.
    """
    probs, y = labelled(probs, y)
    if uncertainty.shape != y.shape:
        raise ValueError(f"Expected an uncertainty for each of {len(y)} rows, got {tuple(uncertainty.shape)}.")
    _, group, size = uncertainty.to(y.device).unique(return_inverse=True, return_counts=True)
    correct = (probs.argmax(1) == y).double()
    mean = torch.zeros(len(size), dtype=torch.float64, device=y.device).scatter_add_(0, group, correct) / size
    kept = torch.arange(1, len(y) + 1, dtype=torch.float64, device=y.device)
    return kept / len(y), mean.repeat_interleave(size).cumsum(0) / kept


def aurc(probs: Tensor, y: Tensor, uncertainty: Tensor | None = None) -> float:
    """Area under the risk-coverage curve: the error rate on the k most certain rows, in the mean over k.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
    y : Tensor, (batch,), int
    uncertainty : Tensor, (batch,), optional
        Anything that grows with doubt; 1 - the largest probability by default.

    Returns
    -------
    float in [0, 1]; lower is better. It falls with better answers as well as with a better order of them.

    Raises
    ------
    ValueError
        If the shapes do not match, or the values are no probabilities or classes.

    References
    ----------
    Geifman, Uziel & El-Yaniv (2019), Bias-reduced uncertainty estimation for deep neural classifiers, ICLR, section 2.
    """
    if uncertainty is None:
        uncertainty = 1 - labelled(probs, y)[0].max(1).values
    return float((1 - rejection_curve(probs, y, uncertainty)[1]).mean())
