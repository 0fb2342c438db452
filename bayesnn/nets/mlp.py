"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bayesnn.errors import fraction
from bayesnn.nets._shapes import Activation, activation_factory, positive, positives


class MLP(nn.Module):
    """Dense layers with an activation (and dropout) after each but the last.

    Parameters
    ----------
    in_features : int
        Number of features of one input, all its axes together: 784 for images of shape (1, 28, 28).
    widths : sequence of int
        Width of each hidden layer; ``()`` is a linear model.
    num_outputs : int
        Number of outputs: classes, or targets of a regression.
    activation : str or callable
        A name ("relu", "tanh", "gelu", "silu", "elu", "leaky_relu", "sigmoid", ...) or a callable without
        arguments that makes a module (``nn.PReLU``).
    dropout : float
        Probability in [0, 1) with which a hidden unit is dropped in train mode. 0 adds no dropout layers.

    Raises
    ------
    ValueError
        If a size is below 1, ``dropout`` is outside [0, 1), or the activation's name is unknown.
    TypeError
        If a size is no integer, or ``activation`` is neither a name nor a callable that makes a module.

    Notes
    -----
    Parameters are named ``layers.<i>.weight`` and ``layers.<i>.bias``. They start as torch's ``nn.Linear`` starts them.

    Examples
    --------
    >>> import torch
    >>> MLP(64, widths=(50, 50), num_outputs=10)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        in_features: int,
        widths: Sequence[int] = (50,),
        num_outputs: int = 1,
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_features = positive("in_features", in_features)
        self.num_outputs = positive("num_outputs", num_outputs)
        make_activation = activation_factory(activation)
        dropout = fraction("dropout", dropout)

        layers: list[nn.Module] = []
        width_in = self.in_features
        for width in positives("widths", widths):
            layers += [nn.Linear(width_in, width), make_activation()]
            if dropout > 0.0:
                layers.append(nn.Dropout(dropout))
            width_in = width
        layers.append(nn.Linear(width_in, self.num_outputs))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to outputs.

        Parameters
        ----------
        x : Tensor, shape (batch, ...)
            Flattened to (batch, in_features).

        Returns
        -------
        Tensor, shape (batch, num_outputs)

        Raises
        ------
        ValueError
            If one input has another number of features than ``in_features``.
        """
        if x.dim() < 2 or x.shape[1:].numel() != self.in_features:
            raise ValueError(
                f"MLP: expected inputs of shape (batch, ...) with {self.in_features} features each, "
                f"got {tuple(x.shape)}: reshape the input or build the net with another in_features"
            )
        out: Tensor = self.layers(x.flatten(1))  # (batch, num_outputs)
        return out
