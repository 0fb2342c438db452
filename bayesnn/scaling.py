"""Temperature scaling: one number, fitted on a validation part, that makes class probabilities less or more extreme."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesnn.metrics.classification import as_class_probs, labelled

STEPS = 100


@dataclass(frozen=True)
class Temperature:
    """p_T(k) proportional to p(k)^(1 / T): T > 1 for probabilities that are too sure of themselves.

    Of a single net that is its logits divided by T (Guo, Pleiss, Sun & Weinberger 2017, section 4.2); of a posterior it
    is the *mixture* over draws that is scaled, since a mixture is what is scored (Rahaman & Thiery 2021). The most
    probable class stays, and the accuracy with it.

    Parameters
    ----------
    value : T > 0.
    """

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < float("inf"):
            raise ValueError(f"Expected a temperature > 0 and finite, got {self.value!r}: 1 changes nothing.")

    @classmethod
    def fit(cls, probs: Tensor, y: Tensor) -> Temperature:
        """The temperature of least negative log likelihood.

        With beta = 1 / T the NLL is convex, so the root of its derivative is found by bisection, in [1e-3, 1e3].

        Parameters
        ----------
        probs : class probabilities of a validation part, (batch, K) or (batch,).
        y : its classes, (batch,).

        Raises
        ------
        ValueError : shapes that do not match, or values that are no probabilities or classes.
        """
        probs, y = labelled(probs, y)
        log_p = _log(probs)
        at_y = log_p.gather(1, y[:, None])[:, 0].mean()

        def slope(beta: float) -> float:
            """d NLL / d beta = mean_i (sum_k p_beta(k) log p(k) - log p(y_i))."""
            return float(((beta * log_p).softmax(1) * log_p).sum(1).mean() - at_y)

        low, high = 1e-3, 1e3
        for _ in range(STEPS):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if slope(middle) < 0 else (low, middle)
        return cls(1 / high)

    def __call__(self, probs: Tensor) -> Tensor:
        """Scaled probabilities, (batch, K), of (batch, K) or (batch,)."""
        probs = as_class_probs(probs)
        return (_log(probs) / self.value).softmax(1).to(probs.dtype)


def _log(probs: Tensor) -> Tensor:
    """In float64; a probability of zero is the smallest number of its own precision, as in the NLL."""
    return probs.double().clamp_min(torch.finfo(probs.dtype).tiny).log()
