"""One linear layer: linear, logistic and softmax regression, by the likelihood that goes with it."""

from __future__ import annotations

from torch import Tensor, nn

from bayesnn.nets._shapes import positive


class Perceptron(nn.Module):
    """y = W x + b on flattened inputs.

    With ``likelihoods.Normal()`` it is linear regression, with ``Bernoulli()`` logistic and with ``Categorical()``
    softmax regression.

    Parameters
    ----------
    in_features : int
        Number of features of one input, all its axes together.
    num_outputs : int
        Number of outputs: classes, or targets of a regression.

    Raises
    ------
    ValueError
        If a size is below 1.
    """

    def __init__(self, in_features: int, num_outputs: int = 1) -> None:
        super().__init__()
        self.in_features = positive("in_features", in_features)
        self.num_outputs = positive("num_outputs", num_outputs)
        self.linear = nn.Linear(self.in_features, self.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs, (batch, ...), to outputs, (batch, num_outputs); ValueError for another number of features."""
        if x.dim() < 2 or x.shape[1:].numel() != self.in_features:
            raise ValueError(
                f"Perceptron: expected inputs of shape (batch, ...) with {self.in_features} features each, "
                f"got {tuple(x.shape)}: reshape the input or build the net with another in_features"
            )
        out: Tensor = self.linear(x.flatten(1))
        return out
