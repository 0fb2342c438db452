"""The step size of a sampler, set or judged by what the chain sees on its way: curvature and minibatch noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from bayesnn.methods.base import Plan
from bayesnn.methods.curvature import gradients_of, largest_curvature, row_variance
from bayesnn.optim import Sampler

# What lr=None keeps to. The first two bound the bias of the discretisation, the third that of minibatches.
LR_MOST = 0.1
LR_STABILITY = 0.25
NOISE_MOST = 0.05
ITERATIONS = 8
PIECES = 4
RowLosses = Callable[[], Tensor]
Gradients = tuple[list[list[Tensor]], int]
AtAnchor = Callable[[Callable[[], Gradients]], Gradients]


class StepSize:
    """Looks at the loss in the burn-in: afterwards lr is constant.

    Parameters
    ----------
    sampler : whose groups' ``lr`` is set; a group's own factor is its ``scale``.
    parameters : that move.
    adapt : whether to set lr, or only to measure the noise.
    stability : the largest lr * lambda.
    plan : of which N, B, and whether rows are drawn with replacement.
    """

    def __init__(
        self, sampler: Sampler, parameters: Sequence[Tensor], adapt: bool, stability: float, plan: Plan
    ) -> None:
        self._sampler, self._parameters, self._adapt, self._stability = sampler, parameters, adapt, stability
        self._plan = plan
        hot = {id(p) for group in sampler.param_groups if group["temperature"] > 0 for p in group["params"]}
        self._sampled = [id(p) in hot for p in parameters]
        self._curvatures, self._row_variances = list[float](), list[float]()
        self._direction: list[Tensor] | None = None
        self.gradient_evaluations = 0

    def look(
        self,
        row_losses: RowLosses,
        rows: int,
        noise: torch.Generator,
        scales: Sequence[Tensor] | None = None,
        at_anchor: AtAnchor | None = None,
    ) -> float:
        """Measure, set lr to what has been seen allows, and return the minibatches' share of the noise.

        Parameters
        ----------
        row_losses : the losses of the minibatch's rows at the present parameters, (rows,).
        rows : of the minibatch.
        noise : for the direction in which the search for the largest curvature begins.
        scales : s of the coordinates w / s in which all is meant (a preconditioner's); 1 by default.
        at_anchor : evaluates a function at the anchor of a control variate: there the noise of a row is that of the
            difference of its gradients.
        """
        if self._plan.unseen > 0 and rows > 1 and any(self._sampled):
            self._row_variances.append(self._row_variance(row_losses, scales, at_anchor))
        if self._adapt:
            self._see_curvature(row_losses, noise, scales)
            group = self._group()
            lr = group["lr"] / group.get("scale", 1.0)
            noise_bound = lr * NOISE_MOST / max(self.share(), 1e-12)
            # An adapting preconditioner is another one at each look, and at first it knows little.
            seen = self._curvatures if scales is None else _later_half(self._curvatures)
            lr = min(LR_MOST, self._stability / max([*seen, 1e-12]), noise_bound)
            for each in self._sampler.param_groups:
                each["lr"] = lr * each.get("scale", 1.0)
        return self.share()

    def _see_curvature(self, losses: RowLosses, noise: torch.Generator, scales: Sequence[Tensor] | None) -> None:
        if self._direction is None:
            self._direction = [torch.empty_like(p).normal_(generator=noise) for p in self._parameters]

        def with_decay() -> Tensor:
            groups = [group for group in self._sampler.param_groups if group["weight_decay"] > 0]
            return sum((g["weight_decay"] / 2 * p.square().sum() for g in groups for p in g["params"]), losses())

        curvature, _, found = largest_curvature(with_decay, self._parameters, self._direction, ITERATIONS, scales)
        # From a flat place, or one that overflows, no later look would find its way: the next begins anew.
        length = float(sum(v.square().sum() for v in found))
        self._direction = found if 0 < length < math.inf else None
        self.gradient_evaluations += 2 * ITERATIONS
        if math.isfinite(curvature):
            self._curvatures.append(curvature)

    def _row_variance(
        self, row_losses: RowLosses, scales: Sequence[Tensor] | None, at_anchor: AtAnchor | None
    ) -> float:
        gradients, rows = self._pieces(row_losses)
        if at_anchor is not None:
            fixed, _ = at_anchor(lambda: self._pieces(row_losses))
            gradients = [
                [g - f for g, f in zip(piece, other, strict=True)]
                for piece, other in zip(gradients, fixed, strict=True)
            ]
        if scales is not None:
            gradients = [[g * s for g, s in zip(piece, scales, strict=True)] for piece in gradients]
        return row_variance([list(compress(piece, self._sampled)) for piece in gradients], rows)

    def _pieces(self, row_losses: RowLosses) -> Gradients:
        """Gradients of the mean losses of the minibatch's pieces, and the rows of a piece."""
        losses = row_losses()  # once: where rows are coupled, as by batch normalisation, they are so in pieces as well
        pieces = losses.split(max(1, len(losses) // PIECES))
        pieces = [piece for piece in pieces if len(piece) == len(pieces[0])]
        self.gradient_evaluations += len(pieces)
        return [gradients_of(piece.mean(), self._parameters, keep=True) for piece in pieces], len(pieces[0])

    def _group(self) -> dict[str, Any]:
        groups: list[dict[str, Any]] = self._sampler.param_groups
        return max(groups, key=lambda group: float(group["temperature"]))

    def share(self) -> float:
        """Variance of a minibatch's gradient over that of the noise injected, in the mean over weights."""
        group = self._group()
        if group["temperature"] == 0 or not self._row_variances:
            return 0.0
        # In coordinates w / sqrt(scale) a step is one of lr / scale.
        injected = self._sampler.injected({**group, "lr": group["lr"] / group.get("scale", 1.0)})
        # At the mode, where the first looks are taken, rows disagree less than over the posterior.
        late = _later_half(self._row_variances)
        return sum(late) / len(late) * self._plan.unseen / (self._plan.rows_a_step * injected)

    def state_dict(self) -> dict[str, Any]:
        direction = None if self._direction is None else [v.clone() for v in self._direction]
        return {
            "curvatures": list(self._curvatures), "row_variances": list(self._row_variances), "direction": direction
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._curvatures, self._direction = list(state["curvatures"]), state["direction"]
        self._row_variances = list(state["row_variances"])


def _later_half(values: list[float]) -> list[float]:
    return values[len(values) // 2 :]
