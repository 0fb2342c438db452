"""Deterministic networks: ordinary modules of ``torch.nn``, with no Bayesian code in them."""

from bayesnn.nets.alexnet import AlexNet
from bayesnn.nets.autoencoder import Autoencoder
from bayesnn.nets.conv_autoencoder import ConvAutoencoder
from bayesnn.nets.convnet import ConvNet
from bayesnn.nets.lenet import LeNet5
from bayesnn.nets.maxout import Maxout
from bayesnn.nets.mlp import MLP
from bayesnn.nets.norms import FilterResponseNorm, ThresholdedLinearUnit
from bayesnn.nets.perceptron import Perceptron
from bayesnn.nets.pretrained import from_pretrained
from bayesnn.nets.resnet import ResNet
from bayesnn.nets.summary import Summary, summary
from bayesnn.nets.transfer import features, freeze, replace_head, unfreeze
from bayesnn.nets.vgg import VGG16

__all__ = [
    "MLP",
    "VGG16",
    "AlexNet",
    "Autoencoder",
    "ConvAutoencoder",
    "ConvNet",
    "FilterResponseNorm",
    "LeNet5",
    "Maxout",
    "Perceptron",
    "ResNet",
    "Summary",
    "ThresholdedLinearUnit",
    "features",
    "freeze",
    "from_pretrained",
    "replace_head",
    "summary",
    "unfreeze",
]
