"""Likelihoods: from a net's outputs to the distribution of the targets."""

from bayesnn.likelihoods.base import Likelihood, from_config
from bayesnn.likelihoods.classification import Bernoulli, Categorical
from bayesnn.likelihoods.label_noise import NoisyCategorical, NoisyDirichlet
from bayesnn.likelihoods.noise import GammaPrecision, LogNormalScale
from bayesnn.likelihoods.regression import HeteroscedasticNormal, Laplace, LogNormal, Normal, Poisson, StudentT

__all__ = [
    "Bernoulli",
    "Categorical",
    "GammaPrecision",
    "HeteroscedasticNormal",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "LogNormalScale",
    "NoisyCategorical",
    "NoisyDirichlet",
    "Normal",
    "Poisson",
    "StudentT",
    "from_config",
]
