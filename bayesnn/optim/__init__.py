"""Samplers, and IVON, as torch optimizers: they work in anybody's training loop."""

from bayesnn.optim.base import Sampler
from bayesnn.optim.ivon import IVON
from bayesnn.optim.psgld import PSGLD
from bayesnn.optim.sghmc import SGHMC
from bayesnn.optim.sgld import SGLD
from bayesnn.optim.sgnht import SGNHT

__all__ = ["IVON", "PSGLD", "SGHMC", "SGLD", "SGNHT", "Sampler"]
