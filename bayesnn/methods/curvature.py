"""The largest curvature of a loss, and how much its rows disagree there, by finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def largest_curvature(
    row_losses: Callable[[], Tensor], parameters: Sequence[Tensor], direction: Sequence[Tensor], iterations: int = 8
) -> tuple[float, float, list[Tensor]]:
    """Largest absolute eigenvalue lambda of the Hessian of the mean loss, its direction v, and the noise along v.

    Power iteration v <- H v / |H v| with H v ~ (grad(w + r v) - grad(w - r v)) / (2 r), |v| = 1. Differences of
    gradients ask nothing of the net beyond the backward pass that training takes, and see the curvature over a
    distance r rather than at a kink. The noise is c = Var_i(v . grad l_i) over rows, from (l_i(w + r v) - l_i(w - r
    v)) / (2 r). Parameters are put back; their gradients are not touched.

    Parameters
    ----------
    row_losses : evaluates the losses l_i of the same rows at the present parameters, (batch,).
    parameters : those that move.
    direction : where to start, of the parameters' shapes: random numbers, or the direction found last time.
    iterations : two gradient evaluations each.

    Returns
    -------
    lambda, c, v
    """
    originals = [p.detach().clone() for p in parameters]
    radius = 1e-2 * float(torch.stack([w.square().sum() for w in originals]).sum().sqrt().clamp_min(1e-2))
    vector, value = _normalised(direction)[0], 0.0

    def losses_at(step: float) -> Tensor:
        with torch.no_grad():
            for p, w, v in zip(parameters, originals, vector, strict=True):
                p.copy_(w + step * v)
        return row_losses()

    def gradient_at(step: float) -> list[Tensor]:
        gradients: Sequence[Tensor | None] = torch.autograd.grad(
            losses_at(step).mean(), list(parameters), allow_unused=True
        )
        return [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, originals, strict=True)]

    try:
        for _ in range(iterations):
            ahead, behind = gradient_at(radius), gradient_at(-radius)
            vector, length = _normalised([a - b for a, b in zip(ahead, behind, strict=True)])
            value = length / (2 * radius)
        with torch.no_grad():
            slopes = (losses_at(radius) - losses_at(-radius)) / (2 * radius)
    finally:  # an interrupted look must not leave the chain where it looked
        with torch.no_grad():
            for p, w in zip(parameters, originals, strict=True):
                p.copy_(w)
    return value, float(slopes.var()) if len(slopes) > 1 else 0.0, vector


def _normalised(vector: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    length = float(torch.stack([v.square().sum() for v in vector]).sum().sqrt())
    return [v / length if length > 0 else v for v in vector], length
