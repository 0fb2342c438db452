"""Scores of class probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows of half-precision softmax sums are off by about this much; logits are off by far more.
_SUM_TOLERANCE = 1e-2


def as_class_probs(probs: Tensor) -> Tensor:
    """Class probabilities as (batch, K), whichever of the two accepted shapes they came in.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
        Probabilities of K >= 2 classes, or of class 1 of two.

    Returns
    -------
    Tensor, (batch, K)
        The same probabilities; (batch, 2) when `probs` was (batch,).

    Raises
    ------
    ValueError
        If the shape is another, the batch is empty, a value is outside [0, 1], or a row does not sum to 1.
    """
    if not probs.is_floating_point() or probs.ndim not in (1, 2) or (probs.ndim == 2 and probs.shape[1] < 2):
        raise ValueError(
            "probs must be floating, (batch, K) with K >= 2 or (batch,) for the probability of class 1; "
            f"got {probs.dtype} {tuple(probs.shape)}: average over the draws first"
        )
    if len(probs) == 0:
        raise ValueError(f"probs must have at least one row; got {tuple(probs.shape)}: pass a batch that is not empty")
    low, high = float(probs.min()), float(probs.max())
    if not (low >= 0.0 and high <= 1.0 + _SUM_TOLERANCE):  # written so that nan fails too
        raise ValueError(f"probs must lie in [0, 1]; got values from {low:.3g} to {high:.3g}: apply softmax to logits")
    if probs.ndim == 1:
        return torch.stack([1 - probs, probs], dim=1).clamp(0, 1)
    worst = float((probs.double().sum(1) - 1).abs().max())
    if worst > _SUM_TOLERANCE:
        raise ValueError(f"rows of probs must sum to 1; got a row that is off by {worst:.3g}: apply softmax to logits")
    return probs


def labelled(probs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Check, and return (batch, K) probabilities and (batch,) int64 classes on one device."""
    probs = as_class_probs(probs)
    batch, classes = probs.shape
    if y.shape != (batch,):
        cure = "y.argmax(1) of soft labels" if y.shape == probs.shape else "one class per row"
        raise ValueError(f"y must be ({batch},) to match probs; got {tuple(y.shape)}: pass {cure}")
    labels = y.to(device=probs.device, dtype=torch.int64)
    if y.is_floating_point() and not torch.equal(labels.to(y.dtype), y.to(probs.device)):
        raise ValueError(f"y must hold whole class numbers; got {y.dtype} with fractions: pass classes, not targets")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"y must be in 0..{classes - 1} for {classes} classes; got {low}..{high}: check the labels")
    return probs, labels


def mass_before(probs: Tensor) -> Tensor:
    """Of each class the probability of all that are more probable, (..., K), float64; ties in the classes' order."""
    ordered, order = probs.double().sort(dim=-1, descending=True, stable=True)
    return torch.empty_like(ordered).scatter_(-1, order, ordered.cumsum(-1) - ordered)


def accuracy(probs: Tensor, y: Tensor) -> float:
    """Share of rows whose most probable class is the true one; a tie goes to the lower class number.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
    y : Tensor, (batch,), int

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    ValueError
        If the shapes do not match, or the values are no probabilities or classes.
    """
    probs, y = labelled(probs, y)
    return float((probs.argmax(1) == y).double().mean())


def class_recall(probs: Tensor, y: Tensor) -> Tensor:
    """Share of each class's rows that are found, (K,), float64; nan for a class without rows.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
    y : Tensor, (batch,), int

    Returns
    -------
    Tensor, (K,), float64

    Raises
    ------
    ValueError
        If the shapes do not match, or the values are no probabilities or classes.
    """
    probs, y = labelled(probs, y)
    count = torch.bincount(y, minlength=probs.shape[1]).double()
    found = torch.bincount(y[probs.argmax(1) == y], minlength=probs.shape[1]).double()
    return found / count


def balanced_accuracy(probs: Tensor, y: Tensor) -> float:
    """Mean recall of the classes that have rows: the majority class alone gets 1 / K, however large it is.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
    y : Tensor, (batch,), int

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    ValueError
        If the shapes do not match, or the values are no probabilities or classes.

    References
    ----------
    Brodersen, Ong, Stephan & Buhmann (2010), The balanced accuracy and its posterior distribution, ICPR.
    """
    return float(class_recall(probs, y).nanmean())


def nll(probs: Tensor, y: Tensor) -> float:
    """Mean negative log-likelihood, -mean_i log p_i[y_i], in nats per row (the log score).

    A probability below `torch.finfo(probs.dtype).tiny` counts as `tiny`, so that one zero makes the score bad
    (87.3 nats for that row in float32, 708.4 in float64) and not infinite.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
    y : Tensor, (batch,), int

    Returns
    -------
    float, nats; lower is better.

    Raises
    ------
    ValueError
        If the shapes do not match, or the values are no probabilities or classes.
    """
    probs, y = labelled(probs, y)
    chosen = probs.gather(1, y[:, None])[:, 0]
    return float(-chosen.clamp_min(torch.finfo(probs.dtype).tiny).double().log().mean())


def brier(probs: Tensor, y: Tensor) -> float:
    """Brier score, mean_i sum_k (p_i[k] - 1[y_i = k])^2, over all classes: from 0 to 2.

    For two classes this is twice the one-column score that scikit-learn reports.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
    y : Tensor, (batch,), int

    Returns
    -------
    float in [0, 2]; lower is better.

    Raises
    ------
    ValueError
        If the shapes do not match, or the values are no probabilities or classes.

    References
    ----------
    Brier (1950), Verification of forecasts expressed in terms of probability, Monthly Weather Review 78.
    """
    probs, y = labelled(probs, y)
    target = torch.nn.functional.one_hot(y, probs.shape[1])
    return float((probs.double() - target).square().sum(1).mean())


def _same_classes(probs: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Check, and return both as (batch, K) on one device."""
    probs, reference = as_class_probs(probs), as_class_probs(reference)
    if probs.shape != reference.shape:
        raise ValueError(
            f"probs and reference must have one shape; got {tuple(probs.shape)} and {tuple(reference.shape)}: "
            "predict the same inputs"
        )
    return probs, reference.to(probs.device)


def agreement(probs: Tensor, reference: Tensor) -> float:
    """Share of rows on which two predictive distributions have the same most probable class.

    Parameters
    ----------
    probs, reference : Tensor, (batch, K) or (batch,)

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    ValueError
        If the shapes do not match, or the values are no probabilities.

    References
    ----------
    Izmailov, Vikram, Hoffman & Wilson (2021), What are Bayesian neural network posteriors really like?, ICML.
    """
    probs, reference = _same_classes(probs, reference)
    return float((probs.argmax(1) == reference.argmax(1)).double().mean())


def total_variation(probs: Tensor, reference: Tensor) -> float:
    """Mean over rows of the total variation distance, mean_i 1/2 sum_k |p_i[k] - q_i[k]|.

    Parameters
    ----------
    probs, reference : Tensor, (batch, K) or (batch,)

    Returns
    -------
    float in [0, 1]; 0 for the same distributions.

    Raises
    ------
    ValueError
        If the shapes do not match, or the values are no probabilities.

    References
    ----------
    Izmailov, Vikram, Hoffman & Wilson (2021), What are Bayesian neural network posteriors really like?, ICML.
    """
    probs, reference = _same_classes(probs, reference)
    return float(0.5 * (probs.double() - reference.double()).abs().sum(1).mean())


def classification_table(probs: Tensor, y: Tensor) -> dict[str, float]:
    """All the scores of class probabilities: {"accuracy", "nll" (nats), "brier", "ece"}.

    Parameters
    ----------
    probs : Tensor, (batch, K) or (batch,)
    y : Tensor, (batch,), int

    Returns
    -------
    dict of str to float

    Raises
    ------
    ValueError
        If the shapes do not match, or the values are no probabilities or classes.
    """
    from bayesnn.metrics.calibration import ece

    return {"accuracy": accuracy(probs, y), "nll": nll(probs, y), "brier": brier(probs, y), "ece": ece(probs, y)}
