"""Gibbs steps for precisions between a sampler's own steps (Neal 1996; Chen, Fox & Guestrin 2014).

A precision tau ~ Gamma(a, b) of n Normal numbers z ~ Normal(0, 1 / tau) has the conditional law

    tau | z ~ Gamma(a + n / 2, b + |z|^2 / 2)

and under p(w, D)^(1/T), whose density is that of log tau, Gamma((a + n / 2) / T, (b + |z|^2 / 2) / T). z are the
weights of one parameter tensor, for :class:`bayesnn.priors.HierarchicalNormal`, or the residuals of all rows, for the
noise of a Normal likelihood: that one takes a pass over the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bayesnn.likelihoods import GammaPrecision, Normal
from bayesnn.likelihoods.base import scalar_outputs
from bayesnn.model import BayesianModel

NOISE = "likelihood.log_scale"


def sample_precision(
    prior: tuple[float, float], count: int, squares: Tensor, temperature: float, generator: torch.Generator
) -> Tensor:
    """One draw of tau given n = ``count`` numbers whose squares sum to ``squares``, shape (); its limit for T = 0."""
    (a, b), T = prior, temperature
    shape, rate = a + count / 2, b + squares / 2
    if T == 0:
        return shape / rate
    return torch._standard_gamma(torch.full_like(squares, shape / T), generator=generator) * T / rate


class Precisions:
    """The Gibbs steps of one chain.

    Parameters
    ----------
    model : whose weights' precisions are drawn.
    groups : parameter groups of the chain's optimizers; a hierarchical parameter has a group of its own, marked
        ``hierarchical`` with its name, whose ``weight_decay`` is tau / N.
    """

    def __init__(
        self, model: BayesianModel, groups: Iterable[dict[str, Any]], num_data: int, generator: torch.Generator
    ) -> None:
        self._model, self._num_data, self._generator = model, num_data, generator
        self._groups = [group for group in groups if "hierarchical" in group]
        parameters = model.bayesian_parameters()
        self._weights = {name: parameters[name] for name in model.hyperpriors}

    @torch.no_grad()
    def weights(self, temperature: float) -> None:
        """Draw the precision of every parameter tensor whose prior has one to infer."""
        for name, w in self._weights.items():
            prior = self._model.hyperpriors[name]
            tau = sample_precision(prior, w.numel(), w.square().sum(), temperature, self._generator)
            self._model.set_precision(name, tau)
        for group in self._groups:
            group["weight_decay"] = float(self._model.precision(group["hierarchical"])) / self._num_data

    @torch.no_grad()
    def noise(self, pieces: Iterable[tuple[Tensor, Tensor]], temperature: float) -> None:
        """Draw the noise's precision given all rows, ``pieces``, and set ``log_scale``."""
        likelihood: Any = self._model.likelihood
        squares, count = likelihood.log_scale.new_zeros(()), 0
        for x, y in pieces:
            residuals = scalar_outputs(self._model.net(x)) - y
            squares, count = squares + residuals.square().sum(), count + residuals.numel()
        self.noise_given(count, squares, temperature)

    @torch.no_grad()
    def noise_given(self, count: int, squares: Tensor, temperature: float) -> None:
        """The same given ``count`` residuals whose squares sum to ``squares``, shape ()."""
        likelihood: Any = self._model.likelihood
        prior = likelihood.prior.shape, likelihood.prior.rate
        tau = sample_precision(prior, count, squares, temperature, self._generator)
        likelihood.log_scale.fill_(-0.5 * float(tau.log()))


def check_gibbs_noise(model: BayesianModel) -> None:
    """Raise unless the noise is that of a Normal likelihood, inferred, under a Gamma prior of its precision."""
    if NOISE not in model.log_priors or not has_conjugate_noise(model):
        raise ValueError(
            f"Expected likelihoods.Normal() with inferred noise and a GammaPrecision prior for gibbs_noise, got "
            f"{noise_of(model)}: leave gibbs_noise=False, and the noise is sampled as the weights are."
        )


def has_conjugate_noise(model: BayesianModel) -> bool:
    """Whether the noise is Normal and its scale fixed, or under the Gamma prior that the likelihood states itself."""
    likelihood: Any = model.likelihood
    if not isinstance(likelihood, Normal):
        return False
    return NOISE not in model.log_priors or (isinstance(likelihood.prior, GammaPrecision) and not _restated(model))


def noise_of(model: BayesianModel) -> str:
    """The likelihood's name, and whose prior its noise has where it is not its own."""
    return type(model.likelihood).__name__ + " with the noise's prior of as_prior()" * _restated(model)


def _restated(model: BayesianModel) -> bool:
    stated: dict[str, Any] = getattr(model.prior, "likelihood_priors", dict)()
    return NOISE.removeprefix("likelihood.") in stated
