"""Quantiles of a mixture over draws: where the mean of the draws' distribution functions reaches a level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bayesnn.likelihoods.base import Likelihood, Params


def invert_cdf(likelihood: Likelihood, params: Params, level: float) -> Tensor:
    """Where the mixture's cdf reaches the level; for counts the least such integer, by bisection."""
    dtype = next(iter(params.values())).dtype
    # In float64, as a cdf's tail in float32 is no more than rounding; to the precision of the outputs' own dtype.
    params = {key: value.double() for key, value in params.items()}

    def mixture_cdf(y: Tensor) -> Tensor:
        return likelihood.cdf(params, y).mean(0)

    medians = likelihood.median(params)
    low, high = medians.amin(0), medians.amax(0)
    width = (high - low).clamp_min(1e-3 * (1 + high.abs()))
    if likelihood.location_scale:
        width = torch.maximum(width, params["scale"].amax(0))
    # A count's cdf is zero below its support, so that the least count is found as well.
    floor = likelihood.lower_bound - (likelihood.kind == "count")
    if likelihood.kind == "count":
        low, high, width = low.floor(), high.ceil(), width.ceil()
    at_low, at_high = mixture_cdf(low), mixture_cdf(high)
    while (too_high := (at_low >= level) & (low > floor)).any():
        low = torch.where(too_high, (low - width).clamp_min(floor), low)
        at_low, width = mixture_cdf(low), 2 * width
    while (too_low := at_high < level).any():
        high = torch.where(too_low, high + width, high)
        at_high, width = mixture_cdf(high), 2 * width
    if likelihood.kind == "count":
        while ((low < (middle := ((low + high) / 2).floor())) & (middle < high)).any():
            reached = mixture_cdf(middle) >= level
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
        return high.to(dtype)
    least = torch.zeros_like(low)  # a density on (0, inf) may have quantiles of any size: relative precision
    if likelihood.location_scale:
        least = params["scale"].amin(0) * (1e-12 if dtype == torch.float64 else 1e-7)
    ends, eps = (at_low - level, at_high - level), torch.finfo(dtype).eps
    return _root(lambda y: mixture_cdf(y) - level, (low, high), ends, least, eps).to(dtype)


def _root(
    function: Callable[[Tensor], Tensor],
    bracket: tuple[Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    least: Tensor,
    eps: float,
) -> Tensor:
    """Where an increasing ``function``, given its values at both ends of a bracket, is zero: for each element.

    Chandrupatla's method (Adv. Eng. Software 28, 145-149, 1997): inverse quadratic interpolation where that is safe and
    bisection elsewhere. It stops where every bracket is shorter than ``least`` plus twice ``eps``
    times its place.
    """
    (a, b), (f_a, f_b) = bracket, values
    t = torch.full_like(a, 0.5)
    for _ in range(100):
        best = torch.where(f_a.abs() < f_b.abs(), a, b)
        tolerance = least + 2 * eps * best.abs()
        done = ((b - a).abs() <= tolerance) | (torch.minimum(f_a.abs(), f_b.abs()) == 0)
        if done.all():
            break
        share = (0.5 * tolerance / (b - a).abs()).clamp(0, 0.5)
        x = a + torch.where(done, 0.0, torch.minimum(torch.maximum(t, share), 1 - share)) * (b - a)
        f_x = function(x)
        same = f_x.sign() == f_a.sign()
        c, f_c = torch.where(same, a, b), torch.where(same, f_a, f_b)
        b, f_b = torch.where(same, b, a), torch.where(same, f_b, f_a)
        a, f_a = x, f_x
        xi, phi = (a - b) / (c - b), (f_a - f_b) / (f_c - f_b)
        t = f_a / (f_b - f_a) * f_c / (f_b - f_c) + (c - a) / (b - a) * f_a / (f_c - f_a) * f_b / (f_c - f_b)
        t = torch.where((phi.square() < xi) & ((1 - phi).square() < 1 - xi) & torch.isfinite(t), t, 0.5)
    return best
