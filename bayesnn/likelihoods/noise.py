"""Priors of a noise scale, stated for the scale and held as a density of its logarithm.

The sampler moves l = log(scale), so the density of l carries the Jacobian: log p(l) = log p(scale) + l. The joint
mode of weights and scale needs a prior that bounds the scale from below (a net that fits every training target drives
it to zero otherwise); both priors here do.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.transforms import AffineTransform, ExpTransform

from bayesnn.errors import positive


@dataclass(frozen=True)
class GammaPrecision:
    """1 / scale^2 ~ Gamma(shape, rate), the conjugate prior of Normal noise.

    With N targets and squared residuals SSE the mode of the scale is near sqrt((2 rate + SSE) / (2 shape + N)):
    ``shape`` is worth 2 shape targets, and the scale cannot fall below about sqrt(2 rate / N).
    The default is worth two targets with squared residuals of 0.02 in the units of the (standardised) targets.
    """

    shape: float = 1.0
    rate: float = 0.01

    def __post_init__(self) -> None:
        positive("shape", self.shape)
        positive("rate", self.rate)

    def log_scale(self, parameter: Tensor) -> Any:
        """Distribution of l = log(scale) = -log(precision) / 2, of the shape of ``parameter``."""
        shape, rate = torch.full_like(parameter, self.shape), torch.full_like(parameter, self.rate)
        precision = dist.Gamma(shape, rate, validate_args=False)
        maps = [ExpTransform().inv, AffineTransform(parameter.new_zeros(()), parameter.new_full((), -0.5))]
        return dist.TransformedDistribution(precision, maps, validate_args=False).to_event(parameter.dim())

    def config(self) -> dict[str, Any]:
        return {"kind": "GammaPrecision", **asdict(self)}


@dataclass(frozen=True)
class LogNormalScale:
    """log(scale) ~ Normal(log(median), spread^2): a closed-form KL for mean-field VI."""

    median: float = 0.3
    spread: float = 1.0

    def __post_init__(self) -> None:
        positive("median", self.median)
        positive("spread", self.spread)

    def log_scale(self, parameter: Tensor) -> Any:
        """Distribution of l = log(scale), of the shape of ``parameter``."""
        loc, scale = parameter.new_full((), math.log(self.median)), parameter.new_full((), self.spread)
        return dist.Normal(loc, scale, validate_args=False).expand(parameter.shape).to_event(parameter.dim())

    def config(self) -> dict[str, Any]:
        return {"kind": "LogNormalScale", **asdict(self)}


NoisePrior = GammaPrecision | LogNormalScale


def from_config(config: dict[str, Any]) -> NoisePrior:
    """The noise prior that ``prior.config()`` wrote."""
    kinds: dict[str, type[NoisePrior]] = {"GammaPrecision": GammaPrecision, "LogNormalScale": LogNormalScale}
    options = {key: value for key, value in config.items() if key != "kind"}
    return kinds[config["kind"]](**options)
