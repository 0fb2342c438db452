"""Scores of real targets."""

from __future__ import annotations

import torch
from torch import Tensor


def _same_shape(y: Tensor, **others: Tensor) -> None:
    """Refuse what broadcasting would accept: (batch, 1) against (batch,) is (batch, batch)."""
    for name, other in others.items():
        if other.shape != y.shape:
            raise ValueError(
                f"{name} must have the shape of y, {tuple(y.shape)}; got {tuple(other.shape)}: reshape one of them"
            )
    if y.numel() == 0:
        raise ValueError(f"y must have at least one row; got {tuple(y.shape)}: pass a batch that is not empty")


def rmse(mean: Tensor, y: Tensor) -> float:
    """Root of the mean squared error, sqrt(mean_i (mean_i - y_i)^2), in the units of y.

    Parameters
    ----------
    mean, y : Tensor, (batch, ...)

    Returns
    -------
    float, units of y

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    _same_shape(y, mean=mean)
    return float((mean.double() - y.double()).square().mean().sqrt())


def mae(mean: Tensor, y: Tensor) -> float:
    """Mean absolute error, mean_i |mean_i - y_i|, in the units of y; of the predictive *median* it is least.

    Parameters
    ----------
    mean, y : Tensor, (batch, ...)

    Returns
    -------
    float, units of y

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    _same_shape(y, mean=mean)
    return float((mean.double() - y.double()).abs().mean())


def interval_width(lower: Tensor, upper: Tensor) -> float:
    """Mean width of intervals, in the units of y: of two that cover as much, the narrower is the better.

    Parameters
    ----------
    lower, upper : Tensor, (batch, ...)

    Returns
    -------
    float, units of y

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    _same_shape(upper, lower=lower)
    return float((upper.double() - lower.double()).mean())


def coverage(lower: Tensor, upper: Tensor, y: Tensor) -> float:
    """Share of targets inside their interval, lower <= y <= upper (both ends belong to it).

    Parameters
    ----------
    lower, upper, y : Tensor, (batch, ...)

    Returns
    -------
    float in [0, 1]; to be compared with the level of the interval.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    _same_shape(y, lower=lower, upper=upper)
    return float(((lower <= y) & (y <= upper)).double().mean())


def _check_samples(samples: Tensor, y: Tensor) -> None:
    if samples.ndim != y.ndim + 1 or samples.shape[1:] != y.shape or len(samples) < 2 or y.numel() == 0:
        raise ValueError(
            f"samples must be (S,) + the shape of y, {tuple(y.shape)}, with S >= 2 and at least one row; "
            f"got {tuple(samples.shape)}: put the draws of the predictive on the first axis"
        )


def crps_samples(samples: Tensor, y: Tensor) -> float:
    """Continuous ranked probability score of an ensemble, unbiased in its size, in the units of y.

    CRPS = E|X - y| - E|X - X'| / 2 with the second mean over distinct members ("fair"). Sorted, that is

        mean_s |x_(s) - y| - sum_s (2 s - S - 1) x_(s) / (S (S - 1)),    s = 1..S,

    in O(S log S) per row. One row's estimate can be negative; its expectation is the CRPS of the distribution that
    the members were drawn from.

    Parameters
    ----------
    samples : Tensor, (S, batch, ...)
        Draws of the *target* (noise included), S >= 2.
    y : Tensor, (batch, ...)

    Returns
    -------
    float, units of y; lower is better.

    Raises
    ------
    ValueError
        If the shapes do not match or there are fewer than two samples.

    References
    ----------
    Gneiting & Raftery (2007), Strictly proper scoring rules, prediction, and estimation, JASA 102, eq. 20 and 21.
    Ferro (2014), Fair scores for ensemble forecasts, QJRMS 140, for the division by S (S - 1).
    """
    _check_samples(samples, y)
    # CRPS does not change when samples and target move together; near 0 the two terms cancel without losing digits.
    ordered = (samples.double() - y.double()).sort(dim=0).values
    size = len(ordered)
    weight = 2.0 * torch.arange(1, size + 1, dtype=torch.float64, device=ordered.device) - size - 1
    spread = torch.tensordot(weight, ordered, dims=1) / (size * (size - 1))
    return float((ordered.abs().mean(0) - spread).mean())


def regression_table(
    samples: Tensor, y: Tensor, mean: Tensor | None = None, log_prob: Tensor | None = None, level: float = 0.9
) -> dict[str, float]:
    """All the scores of a predictive distribution that is known by its draws: {"rmse", "crps", "coverage"}, and "nll".

    The central interval takes the order statistics at (S + 1) p (Hyndman & Fan 1996, definition 6): between those, a
    further draw of the same distribution falls with probability `level`. Fewer than 2 / (1 - level) - 1 samples (19
    at 0.9) cannot say so; the interval is then their whole range.

    Parameters
    ----------
    samples : Tensor, (S, batch, ...)
        Draws of the target (noise included), S >= 2.
    y : Tensor, (batch, ...)
    mean : Tensor, (batch, ...), optional
        Predictive mean; the mean of the samples by default.
    log_prob : Tensor, (batch,), optional
        Log-density of y under the predictive mixture, nats; adds "nll", its negative mean.
    level : float in (0, 1)
        Of the central interval whose coverage is reported.

    Returns
    -------
    dict of str to float

    Raises
    ------
    ValueError
        If the shapes do not match, there are fewer than two samples, or `level` is not in (0, 1).
    """
    _check_samples(samples, y)
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be in (0, 1); got {level}: 0.9 is the interval from 5 % to 95 %")
    if log_prob is not None and log_prob.shape != y.shape[:1]:
        raise ValueError(
            f"log_prob must be one per row, {tuple(y.shape[:1])}; got {tuple(log_prob.shape)}: sum over the outputs"
        )
    ordered = samples.double().sort(dim=0).values

    def order_statistic(p: float) -> Tensor:
        position = min(max((len(ordered) + 1) * p, 1.0), float(len(ordered))) - 1.0
        below = min(int(position), len(ordered) - 2)
        return torch.lerp(ordered[below], ordered[below + 1], position - below)

    lower, upper = order_statistic((1 - level) / 2), order_statistic((1 + level) / 2)
    table = {
        "rmse": rmse(ordered.mean(0) if mean is None else mean, y),
        "crps": crps_samples(samples, y),
        "coverage": coverage(lower, upper, y),
    }
    if log_prob is not None:
        table["nll"] = float(-log_prob.double().mean())
    return table
