"""Samplers as torch optimizers: they work in anybody's training loop."""

from bayesnn.optim.sgld import SGLD

__all__ = ["SGLD"]
