"""Deterministic networks: ordinary modules of ``torch.nn``, with no Bayesian code in them."""

from bayesnn.nets.convnet import ConvNet
from bayesnn.nets.lenet import LeNet5
from bayesnn.nets.mlp import MLP

__all__ = ["MLP", "ConvNet", "LeNet5"]
