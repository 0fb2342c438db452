"""Maxout: the largest of a group of channels."""

from __future__ import annotations

from torch import Tensor, nn

from bayesnn.nets._shapes import positive


class Maxout(nn.Module):
    """Max-pooling over channels: (batch, k * channels, ...) to (batch, channels, ...).

    A unit that answers when any one of its k filters does is invariant to what they cover: k filters of one shape,
    turned, learn to see it in any direction (Goodfellow, Warde-Farley, Mirza, Courville & Bengio 2013).

    Parameters
    ----------
    k : int
        Channels in a group, neighbours of one another.

    Raises
    ------
    ValueError
        If ``k`` is below 1, or does not divide the channels.
    """

    def __init__(self, k: int = 2) -> None:
        super().__init__()
        self.k = positive("k", k)

    def forward(self, x: Tensor) -> Tensor:
        """The largest of each group."""
        if x.dim() < 2 or x.shape[1] % self.k:
            raise ValueError(f"Maxout: expected channels in groups of {self.k}, got {tuple(x.shape)}: take another k")
        largest: Tensor = x.unflatten(1, (-1, self.k)).amax(2)
        return largest

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"k={self.k}"
