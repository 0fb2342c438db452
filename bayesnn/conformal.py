"""Conformal prediction: intervals and sets that hold the target as often as they say, whatever the posterior is worth.

A posterior's own intervals are right where the model is. These are calibrated on a part that was held out of the fit:
if its rows and the test rows are exchangeable, the target is inside with at least the probability asked for, and with
at most 1 / (n + 1) more where scores have no ties (Vovk, Gammerman & Shafer 2005; Lei et al. 2018, theorem 2). That is
so on average over inputs, not for each one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayesnn.data.dataset import as_targets
from bayesnn.metrics.classification import labelled, mass_before
from bayesnn.predictive import Predictive
from bayesnn.rng import generator


def interval(calibration: Predictive, y: Any, test: Predictive, level: float = 0.9) -> Tensor:
    """Intervals mean +- q std for the targets of ``test``, (2, batch, ...): wide where the posterior is unsure.

    q is the ceil((n + 1) level)-th smallest of the scores |y_i - mean_i| / std_i of the n calibration rows (split
    conformal prediction with normalised residuals: Lei, G'Sell, Rinaldo, Tibshirani & Wasserman 2018, section 5.2).

    Parameters
    ----------
    calibration : predictions for rows that were not fitted to.
    y : their targets, in their own units.
    test : predictions of the same posterior for the inputs in question.
    level : share of the targets to be inside, in (0, 1).

    Returns
    -------
    Tensor, (2, batch, ...), in the targets' units; infinite where the level asks for more rows than there are.

    Raises
    ------
    ValueError : classes or counts, several targets a row, a level outside (0, 1), targets that are not one for each
        calibration row.
    """
    targets = as_targets(y).to(calibration.mean.device, torch.float64)
    if targets.shape != calibration.mean.shape:
        raise ValueError(
            f"Expected a target for each calibration row, {tuple(calibration.mean.shape)}, got {tuple(targets.shape)}."
        )
    if targets.dim() > 1 and targets[0].numel() > 1:
        raise ValueError(f"Expected one target a row, got {targets[0].numel()}: calibrate them one by one.")
    scores = ((targets - calibration.mean.double()).abs() / calibration.std.double()).flatten()
    margin = _quantile(scores, level) * test.std.double()
    centre = test.mean.double()
    return torch.stack([centre - margin, centre + margin])


def prediction_set(calibration: Tensor, y: Tensor, test: Tensor, level: float = 0.9, seed: int = 0) -> Tensor:
    """Sets of classes for the rows of ``test``, (batch, K) bool: large where the probabilities are spread.

    Adaptive prediction sets (Romano, Sesia & Candès 2020, eqs. 5 and 6 for the score, algorithm 1). The score of a
    class is the probability of all classes that are more probable, plus a uniform share u of its own; a set holds the
    classes with scores up to the ceil((n + 1) level)-th smallest of the calibration rows' true classes. Without the
    random share sets would hold the target more often than asked for.

    Parameters
    ----------
    calibration : class probabilities of rows that were not fitted to, (n, K) or (n,).
    y : their classes, (n,).
    test : probabilities of the inputs in question, (batch, K) or (batch,).
    level : share of the rows whose class is to be in its set, in (0, 1).
    seed : of the u of each row.

    Returns
    -------
    Tensor, (batch, K), bool. A set may be empty: such a row is unlike those that were calibrated on.

    Raises
    ------
    ValueError : shapes that do not match, values that are no probabilities or classes, a level outside (0, 1).
    """
    calibration, y = labelled(calibration, y)
    test, _ = labelled(test, torch.zeros(len(test), dtype=torch.int64))
    if test.shape[1] != calibration.shape[1]:
        raise ValueError(f"Expected {calibration.shape[1]} classes in both parts, got {test.shape[1]} in test.")
    stream = generator(seed, 0, 5)
    scores, others = (
        mass_before(probs) + torch.rand(len(probs), 1, generator=stream).to(probs.device) * probs.double()
        for probs in (calibration, test)
    )
    return others <= _quantile(scores.gather(1, y[:, None])[:, 0], level)


def _quantile(scores: Tensor, level: float) -> float:
    """The ceil((n + 1) level)-th smallest; infinite where that is more than n."""
    if not 0 < level < 1:
        raise ValueError(f"Expected level in (0, 1), got {level!r}: 0.9 is nine in ten.")
    rank = math.ceil((len(scores) + 1) * level - 1e-9)  # 10 * 0.9 is 9, and no more
    return float(scores.sort().values[rank - 1]) if rank <= len(scores) else math.inf
