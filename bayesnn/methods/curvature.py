"""The largest curvature of a loss, by finite differences, and how much the gradients of its rows disagree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def largest_curvature(
    row_losses: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    direction: Sequence[Tensor],
    iterations: int = 8,
    scales: Sequence[Tensor] | None = None,
) -> tuple[float, Tensor, list[Tensor]]:
    """Largest absolute eigenvalue lambda of the mean loss's Hessian, the rows' slopes along its direction v, and v.

    Power iteration v <- H v / |H v| with H v ~ (grad(w + r v) - grad(w - r v)) / (2 r), |v| = 1. Differences of
    gradients ask nothing of the net beyond the backward pass that training takes, and see the curvature over a
    distance r rather than at a kink. Parameters are put back; their gradients are not touched.

    Parameters
    ----------
    row_losses : evaluates the losses l_i of the same rows at the present parameters, (batch,).
    parameters : those that move.
    direction : where to start, of the parameters' shapes: random numbers, or the direction found last time.
    iterations : two gradient evaluations each.
    scales : s of the coordinates w / s in which lambda and v are meant (a preconditioner's); 1 by default.

    Returns
    -------
    lambda, slopes v . grad l_i (batch,), v
    """
    vector, value = _normalised(direction)[0], 0.0
    with _moved(parameters, scales) as (move, radius):

        def gradient_at(step: float) -> list[Tensor]:
            move(vector, step)
            gradients = gradients_of(row_losses().mean(), parameters)
            return gradients if scales is None else [g * s for g, s in zip(gradients, scales, strict=True)]

        for _ in range(iterations):
            ahead, behind = gradient_at(radius), gradient_at(-radius)
            vector, length = _normalised([a - b for a, b in zip(ahead, behind, strict=True)])
            value = length / (2 * radius)
    return value, row_slopes(row_losses, parameters, vector, scales), vector


def gradients_of(loss: Tensor, parameters: Sequence[Tensor], keep: bool = False) -> list[Tensor]:
    """The gradient by each parameter, zero where the loss does not depend on it; ``keep`` the graph for another one."""
    found: Sequence[Tensor | None] = torch.autograd.grad(loss, list(parameters), allow_unused=True, retain_graph=keep)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def row_variance(gradients: Iterable[Sequence[Tensor]], rows: int) -> float:
    """Variance over rows of a row's gradient, in the mean over weights, without bias.

    Parameters
    ----------
    gradients : of the mean losses of pieces of as many rows each, two pieces or more.
    rows : of a piece.
    """
    total: list[Tensor] = []
    squares, count = 0.0, 0
    for piece in gradients:
        squares += sum(float(g.square().sum()) for g in piece)
        total = [t + g for t, g in zip(total, piece, strict=True)] if total else list(piece)
        count += 1
    deviations = squares - sum(float(t.square().sum()) for t in total) / count
    return rows * max(deviations, 0.0) / (count - 1) / sum(t.numel() for t in total)


def row_slopes(
    row_losses: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    direction: Sequence[Tensor],
    scales: Sequence[Tensor] | None = None,
) -> Tensor:
    """v . grad l_i of each row, (batch,), from (l_i(w + r v) - l_i(w - r v)) / (2 r)."""
    with torch.no_grad(), _moved(parameters, scales) as (move, radius):
        move(direction, radius)
        ahead = row_losses()
        move(direction, -radius)
        return (ahead - row_losses()) / (2 * radius)


@contextmanager
def _moved(
    parameters: Sequence[Tensor], scales: Sequence[Tensor] | None
) -> Iterator[tuple[Callable[[Sequence[Tensor], float], None], float]]:
    """(move to w + step s v, the radius of a finite difference); afterwards the parameters are where they were."""
    originals = [p.detach().clone() for p in parameters]
    lengths = originals if scales is None else [w / s for w, s in zip(originals, scales, strict=True)]
    radius = 1e-2 * float(torch.stack([w.square().sum() for w in lengths]).sum().sqrt().clamp_min(1e-2))

    def move(vector: Sequence[Tensor], step: float) -> None:
        with torch.no_grad():
            for k, (p, w, v) in enumerate(zip(parameters, originals, vector, strict=True)):
                p.copy_(w + step * (v if scales is None else v * scales[k]))

    try:
        yield move, radius
    finally:  # an interrupted look must not leave the chain where it looked
        with torch.no_grad():
            for p, w in zip(parameters, originals, strict=True):
                p.copy_(w)


def _normalised(vector: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    length = float(torch.stack([v.square().sum() for v in vector]).sum().sqrt())
    return [v / length if length > 0 else v for v in vector], length
