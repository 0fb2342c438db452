"""Likelihoods of real targets and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesnn.errors import positive
from bayesnn.likelihoods.base import (
    Likelihood,
    Params,
    real_targets,
    scalar_outputs,
    scalar_shape,
    shaped_targets,
    sum_events,
)
from bayesnn.likelihoods.noise import GammaPrecision, NoisePrior


class _Noisy(Likelihood):
    """A net's output is the location; the noise scale is fixed (``scale=0.1``) or inferred (``scale=None``).

    An inferred scale is sampled on the log scale: ``log_scale`` has the density of ``prior`` with its Jacobian, and
    each draw of the posterior predicts with its own scale. Scales are in the units of the targets that the net sees,
    which are standardised ones when the data carry a ``target`` transform.
    """

    fixed_scale: Tensor

    def __init__(self, scale: float | None = None, prior: NoisePrior | None = None, **options: Any) -> None:
        if scale is not None and prior is not None:
            raise ValueError(f"Expected either scale= (fixed noise) or prior= (inferred), got both: {scale}, {prior}.")
        super().__init__(scale=scale, prior=prior, **options)
        self.prior = prior if prior is not None else GammaPrecision()
        if scale is not None:
            self.register_buffer("fixed_scale", torch.tensor(float(positive("scale", scale))), persistent=False)
        else:
            self.log_scale = nn.Parameter(torch.zeros(()))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the inferred scale at 0.5: below the targets' standard deviation, where the net has work to do."""
        if self._options["scale"] is None:
            with torch.no_grad():
                self.log_scale.fill_(-0.7)

    def priors(self) -> dict[str, Any]:
        return {"log_scale": self.prior.log_scale(self.log_scale)} if self._options["scale"] is None else {}

    def params(self, outputs: Tensor) -> Params:
        loc = scalar_outputs(outputs)
        scale = self.fixed_scale.to(loc) if self._options["scale"] is not None else self.log_scale.exp()
        return {"loc": loc, "scale": scale.expand_as(loc)}

    def check_targets(self, y: Tensor, num_outputs: int, pixels: Sequence[int] = ()) -> Tensor:
        return real_targets(type(self).__name__, y, num_outputs, pixels)


class Normal(_Noisy):
    """y ~ Normal(outputs, scale^2).

    Parameters
    ----------
    scale : fixed standard deviation of the noise; None (the default) infers one.
    prior : prior of an inferred scale; ``GammaPrecision()`` by default.
    """

    location_scale: ClassVar[bool] = True

    def distribution(self, params: Params) -> Any:
        return dist.Normal(params["loc"], params["scale"], validate_args=False)

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        # By hand: in small nets the distribution object costs as much as the net.
        scale = self.fixed_scale.to(outputs) if self._options["scale"] is not None else self.log_scale.exp()
        z = (y - scalar_outputs(outputs)) / scale
        return sum_events(-0.5 * z.square() - (scale.log() + 0.5 * math.log(2 * math.pi)))


class Laplace(_Noisy):
    """y ~ Laplace(outputs, scale), density exp(-|y - loc| / scale) / (2 scale): absolute error as a likelihood."""

    location_scale: ClassVar[bool] = True

    def distribution(self, params: Params) -> Any:
        return dist.Laplace(params["loc"], params["scale"], validate_args=False)


MOST_DF = 64  # degrees of freedom up to which Student's cdf is summed: beyond it scipy's is no slower


class StudentT(_Noisy):
    """y ~ outputs + scale * t(df): robust to outliers. The variance is infinite for df <= 2, the mean for df <= 1."""

    location_scale: ClassVar[bool] = True

    def __init__(self, df: float = 4.0, scale: float | None = None, prior: NoisePrior | None = None) -> None:
        super().__init__(scale=scale, prior=prior, df=df)
        self.df = positive("df", df)

    def distribution(self, params: Params) -> Any:
        df = torch.full_like(params["loc"], self.df)
        return dist.StudentT(df, params["loc"], params["scale"], validate_args=False)

    def mean(self, params: Params) -> Tensor:
        if self.df <= 1:
            raise ValueError(f"Expected df > 1 for a mean, got StudentT(df={self.df}): use .quantile(0.5) instead.")
        return params["loc"]

    def cdf(self, params: Params, y: Tensor) -> Tensor:
        z = (y - params["loc"]) / params["scale"]
        if float(self.df).is_integer() and self.df <= MOST_DF:
            return student_cdf(z, int(self.df))
        from scipy.special import stdtr  # torch has no incomplete beta function

        return torch.as_tensor(stdtr(self.df, z.detach().cpu().double().numpy())).to(z)


def student_cdf(z: Tensor, df: int) -> Tensor:
    """P(t <= z) of Student's t with a whole number of degrees of freedom: a finite sum, and all of it in torch.

    Its absolute error is that of rounding; the relative one in the left tail is not.

    With theta = atan(z / sqrt(df)), (1 + A) / 2 (Abramowitz & Stegun 1964, eqs. 26.7.3 and 26.7.4):

        A = sin theta (1 + 1/2 cos^2 theta + (1 3)/(2 4) cos^4 theta + ... )                       df even
        A = 2/pi (theta + sin theta (cos theta + 2/3 cos^3 theta + (2 4)/(3 5) cos^5 theta + ...)) df odd
    """
    odd = df % 2
    tan = z / math.sqrt(df)
    theta = torch.atan(tan)  # pi / 2 at infinity
    cos = 1 / torch.hypot(tan, torch.ones_like(z))  # cos(theta) is rounding where it should vanish
    square = cos.square()
    term = cos if odd else torch.ones_like(z)
    series = torch.zeros_like(z)
    for k in range(df // 2):
        series = series + term
        term = term * square * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    share = torch.sin(theta) * series
    if odd:
        share = (theta + share) * (2 / math.pi)
    return (0.5 * (1 + share)).clamp(0, 1)


class LogNormal(_Noisy):
    """log y ~ Normal(outputs, scale^2), y > 0; the density is that of y (Jacobian 1/y included)."""

    lower_bound: ClassVar[float] = 0.0

    def distribution(self, params: Params) -> Any:
        return dist.LogNormal(params["loc"], params["scale"], validate_args=False)

    def median(self, params: Params) -> Tensor:
        return params["loc"].exp()

    def check_targets(self, y: Tensor, num_outputs: int, pixels: Sequence[int] = ()) -> Tensor:
        y = super().check_targets(y, num_outputs, pixels)
        if not (y > 0).all():
            raise ValueError(
                f"Expected targets > 0 for LogNormal, got a smallest of {y.min():g}: shift or use Normal()."
            )
        return y


class HeteroscedasticNormal(Likelihood):
    """y ~ Normal(loc(x), scale(x)^2): the net gives 2 outputs a target, first all locs, then all raw scales.

    scale = softplus(raw) + floor. The floor, in the units of the targets that the net sees, keeps the density bounded.
    """

    location_scale: ClassVar[bool] = True

    def __init__(self, floor: float = 1e-3) -> None:
        super().__init__(floor=floor)
        self.floor = positive("floor", floor)

    def params(self, outputs: Tensor) -> Params:
        loc, raw = outputs.chunk(2, dim=1)
        return {"loc": scalar_outputs(loc), "scale": F.softplus(scalar_outputs(raw)) + self.floor}

    def distribution(self, params: Params) -> Any:
        return dist.Normal(params["loc"], params["scale"], validate_args=False)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        rows, num_outputs, *pixels = outputs.shape
        return scalar_shape(torch.Size((rows, num_outputs // 2, *pixels)))

    def check_targets(self, y: Tensor, num_outputs: int, pixels: Sequence[int] = ()) -> Tensor:
        if num_outputs % 2:
            raise ValueError(
                f"Expected a net with 2 outputs a target (loc and scale) for HeteroscedasticNormal, got {num_outputs}: "
                "double num_outputs."
            )
        return real_targets("HeteroscedasticNormal", y, num_outputs // 2, pixels)


class Poisson(Likelihood):
    """y ~ Poisson(exp(outputs)), y = 0, 1, 2, ..."""

    kind: ClassVar[str] = "count"
    lower_bound: ClassVar[float] = 0.0

    def params(self, outputs: Tensor) -> Params:
        return {"log_rate": scalar_outputs(outputs)}

    def distribution(self, params: Params) -> Any:
        return dist.Poisson(params["log_rate"].exp(), validate_args=False)

    def elementwise_log_prob(self, params: Params, y: Tensor) -> Tensor:
        # On the log rate directly: exp and log again would lose it for large and small rates.
        log_rate, y = params["log_rate"], y.to(params["log_rate"])
        return y * log_rate - log_rate.exp() - torch.lgamma(y + 1)

    def median(self, params: Params) -> Tensor:
        return params["log_rate"].exp()

    def cdf(self, params: Params, y: Tensor) -> Tensor:
        count = y.floor().clamp_min(0) + 1
        rate = params["log_rate"].exp()
        return torch.where(y < 0, 0.0, torch.special.gammaincc(count.expand_as(rate), rate))

    def check_targets(self, y: Tensor, num_outputs: int, pixels: Sequence[int] = ()) -> Tensor:
        y = shaped_targets("Poisson", y, num_outputs, pixels)
        y = y if y.is_floating_point() else y.to(torch.get_default_dtype())
        if not ((y >= 0) & (y == y.floor())).all():
            raise ValueError(f"Expected counts 0, 1, 2, ... for Poisson, got values from {y.min():g} to {y.max():g}.")
        return y
