"""Targets whose moments are known: densities as priors, and logistic regression against a long reference run.

A net whose output does not depend on its weights has its prior for its posterior: any density can be sampled by any
method through ``fit``. Each target is many independent copies of a small density at once: the copies are what makes a
wrong moment show in few draws. The joint energy couples how the copies move, so Monte-Carlo errors are those of the
series of averages over the copies.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch
from scipy.special import gamma
from torch import Tensor, nn

import bayesnn as bnn

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass
class Target:
    """A model whose posterior is ``copies`` independent copies of a density on R^d, the data, and exact moments.

    ``moments`` is name -> (function of draws (..., copy, d) -> (..., copy), its expectation at temperature 1).
    """

    model: bnn.BayesianModel
    data: tuple[Tensor, Tensor]
    moments: dict[str, tuple[Statistic, float]]

    def series(self, posterior: bnn.Posterior) -> dict[str, np.ndarray]:
        """Each statistic, averaged over the copies: (chain, draw)."""
        draws = np.stack([source.tensors()["net.w"].double().numpy() for source in posterior.sources])
        return {name: statistic(draws).mean(-1) for name, (statistic, _) in self.moments.items()}

    def assert_moments(
        self, posterior: bnn.Posterior, *, bias: float = 0.0, largest_error: float = 0.05, temperature: float = 1.0
    ) -> dict[str, tuple[float, float, float]]:
        """Hold every moment to its exact value within 4 Monte-Carlo standard errors; name -> (mean, error, exact).

        ``bias`` is what a method may be off beside that, as a share of the exact value or of 1 where that is 0. Errors
        above ``largest_error`` are refused: too few effective draws to see anything. Only Normal targets scale with
        ``temperature``: their second moments are proportional to it.
        """
        found = {}
        for name, series in self.series(posterior).items():
            exact = temperature * self.moments[name][1]
            mean, error = float(series.mean()), float(bnn.diagnostics.mcse_mean(series))
            found[name] = (mean, error, exact)
            assert error < largest_error, f"{name}: an error of {error:.3f} is too large to see a fault"
            allowed = 4 * error + bias * (abs(exact) or 1.0)
            assert abs(mean - exact) < allowed, f"{name}: {mean:.4f} +- {error:.4f} instead of {exact:.4f}"
        return found


class Free(nn.Module):
    """Weights w (copies, d) that the output does not depend on."""

    def __init__(self, copies: int, d: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(copies, d))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.w)

    def forward(self, x: Tensor) -> Tensor:
        return x * (0 * self.w.sum())


class Density(dist.TorchDistribution):
    """A density exp(-u(w)) on (copies, d), up to a constant."""

    arg_constraints: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, potential: Callable[[Tensor], Tensor], shape: torch.Size) -> None:
        self.potential = potential
        super().__init__(torch.Size(), shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return -self.potential(value).sum()


def target(
    prior: Callable[[str, Tensor, nn.Module], object],
    moments: dict[str, tuple[Statistic, float]],
    copies: int,
    d: int,
    dtype: torch.dtype,
) -> Target:
    """A target of a prior over weights (copies, d)."""
    model = bnn.BayesianModel(Free(copies, d), prior, bnn.likelihoods.Normal(scale=1.0)).to(dtype)
    return Target(model, (torch.zeros(1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)), moments)


def gaussian_2d(copies: int = 50, rho: float = 0.9, dtype: torch.dtype = torch.float64) -> Target:
    """Normal with mean (1, -1), unit variances and correlation rho."""

    def potential(w: Tensor) -> Tensor:
        a, b = w[..., 0] - 1, w[..., 1] + 1
        return (a**2 - 2 * rho * a * b + b**2) / (2 * (1 - rho**2))

    moments: dict[str, tuple[Statistic, float]] = {
        "a - 1": (lambda w: w[..., 0] - 1, 0.0),
        "b + 1": (lambda w: w[..., 1] + 1, 0.0),
        "(a - 1)^2": (lambda w: (w[..., 0] - 1) ** 2, 1.0),
        "(b + 1)^2": (lambda w: (w[..., 1] + 1) ** 2, 1.0),
        "(a - 1)(b + 1)": (lambda w: (w[..., 0] - 1) * (w[..., 1] + 1), rho),
    }
    return target(lambda name, w, module: Density(potential, w.shape), moments, copies, 2, dtype)


def banana(copies: int = 50, bend: float = 0.5, width: float = 0.7, dtype: torch.dtype = torch.float64) -> Target:
    """Rosenbrock's: a ~ Normal(0, 1), b | a ~ Normal(bend (a^2 - 1), width^2).

    E b = 0, E b^2 = 2 bend^2 + width^2, E ab = 0, E a^2 b = 2 bend: the correlation is 0 and yet b follows a.
    """

    def potential(w: Tensor) -> Tensor:
        a, b = w[..., 0], w[..., 1]
        return 0.5 * a**2 + 0.5 * ((b - bend * (a**2 - 1)) / width) ** 2

    moments: dict[str, tuple[Statistic, float]] = {
        "a": (lambda w: w[..., 0], 0.0),
        "a^2": (lambda w: w[..., 0] ** 2, 1.0),
        "b": (lambda w: w[..., 1], 0.0),
        "b^2": (lambda w: w[..., 1] ** 2, 2 * bend**2 + width**2),
        "a b": (lambda w: w[..., 0] * w[..., 1], 0.0),
        "a^2 b": (lambda w: w[..., 0] ** 2 * w[..., 1], 2 * bend),
    }
    return target(lambda name, w, module: Density(potential, w.shape), moments, copies, 2, dtype)


def quartic(copies: int = 100, dtype: torch.dtype = torch.float64) -> Target:
    """U = w^4 / 4, in one dimension: E w^2 = 2 Gamma(3/4) / Gamma(1/4), E w^4 = 1."""
    moments: dict[str, tuple[Statistic, float]] = {
        "w": (lambda w: w[..., 0], 0.0),
        "w^2": (lambda w: w[..., 0] ** 2, float(2 * gamma(0.75) / gamma(0.25))),
        "w^4": (lambda w: w[..., 0] ** 4, 1.0),
    }
    return target(lambda name, w, module: Density(lambda v: v**4 / 4, w.shape), moments, copies, 1, dtype)


REFERENCE = Path(__file__).parent / "breast_cancer_nuts.json"


def logistic(copies: int = 16, dtype: torch.dtype = torch.float64) -> tuple[bnn.BayesianModel, tuple[Tensor, Tensor]]:
    """Logistic regression on the training part of breast-cancer: 30 standardised inputs and a bias, Normal(0, 1).

    ``copies`` outputs of one linear layer, all with the same targets, are as many independent copies of its posterior.
    """
    train, _ = bnn.data.load("breast-cancer")
    net, prior = nn.Linear(30, copies), bnn.priors.Normal(1.0)
    model = bnn.BayesianModel(net, prior, bnn.likelihoods.Bernoulli()).to(dtype)
    return model, (train.x.to(dtype), train.y[:, None].repeat(1, copies))


def logistic_draws(posterior: bnn.Posterior) -> np.ndarray:
    """Weights and bias (chain, draw, copy, 31)."""
    chains = [source.tensors() for source in posterior.sources]
    return np.stack([torch.cat((c["net.weight"], c["net.bias"][..., None]), -1).double().numpy() for c in chains])


def assert_logistic(posterior: bnn.Posterior) -> dict[str, float]:
    """Means within 0.1 posterior sd of the long NUTS run's, sds within 10 %; gives the largest differences."""
    reference = json.loads(REFERENCE.read_text())
    mean, sd = np.array(reference["mean"]), np.array(reference["sd"])
    draws = logistic_draws(posterior)
    off = np.abs(draws.mean((0, 1, 2)) - mean) / sd
    ratio = np.abs(draws.std((0, 1, 2), ddof=1) / sd - 1)
    found = {"mean": float(off.max()), "sd": float(ratio.max())}
    assert found["mean"] < 0.1, found
    assert found["sd"] < 0.1, found
    return found
