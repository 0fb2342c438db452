"""The step size of a sampler, set or judged by what the chain sees on its way: curvature and minibatch noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bayesnn.methods.base import Plan
from bayesnn.methods.curvature import largest_curvature, row_slopes
from bayesnn.optim import Sampler

# What lr=None keeps to. The first two bound the bias of the discretisation, the third that of minibatches.
LR_MOST = 0.1
LR_STABILITY = 0.25
NOISE_MOST = 0.5
ITERATIONS = 8


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
        self._curvature = self._row_noise = 0.0
        self._direction: list[Tensor] | None = None
        self.gradient_evaluations = 0

    def look(
        self,
        row_losses: Callable[[], Tensor],
        noise: torch.Generator,
        scales: Sequence[Tensor] | None = None,
        at_anchor: Callable[[Callable[[], Tensor]], Tensor] | None = None,
    ) -> float:
        """Measure, set lr to what the largest of all looks allows, and return the minibatches' share of the noise.

        ``at_anchor`` evaluates a function at the anchor of a control variate: there the noise of a row is that of the
        difference of its slopes.
        """
        if self._direction is None:
            self._direction = [torch.empty_like(p).normal_(generator=noise) for p in self._parameters]
        curvature, slopes, self._direction = largest_curvature(
            row_losses, self._parameters, self._direction, ITERATIONS, scales
        )
        self.gradient_evaluations += 2 * ITERATIONS
        if at_anchor is not None:
            direction = self._direction
            slopes = slopes - at_anchor(lambda: row_slopes(row_losses, self._parameters, direction, scales))
        row_noise = float(slopes.var()) if len(slopes) > 1 else 0.0
        curvature += max(group["weight_decay"] for group in self._sampler.param_groups)
        self._curvature, self._row_noise = max(self._curvature, curvature), max(self._row_noise, row_noise)
        group = self._group()
        lr = group["lr"] / group.get("scale", 1.0)
        if self._adapt:
            noise_bound = lr * NOISE_MOST / max(self.share(), 1e-12)
            lr = min(LR_MOST, self._stability / max(self._curvature, 1e-12), noise_bound)
            for each in self._sampler.param_groups:
                each["lr"] = lr * each.get("scale", 1.0)
        return self.share()

    def _group(self) -> dict[str, Any]:
        groups: list[dict[str, Any]] = self._sampler.param_groups
        return max(groups, key=lambda group: float(group["temperature"]))

    def share(self) -> float:
        """Variance of a minibatch's gradient along the stiffest direction over that of the noise injected there."""
        group, N, B = self._group(), self._plan.num_data, self._plan.batch_size
        if group["temperature"] == 0:
            return 0.0
        unseen = 1.0 if self._plan.independent else (N - B) / max(N - 1, 1)  # of rows drawn without replacement
        # In coordinates w / sqrt(scale) a step is one of lr / scale.
        injected = self._sampler.injected({**group, "lr": group["lr"] / group.get("scale", 1.0)})
        return self._row_noise * unseen / (B * injected)

    def state_dict(self) -> dict[str, Any]:
        direction = None if self._direction is None else [v.clone() for v in self._direction]
        return {"curvature": self._curvature, "row_noise": self._row_noise, "direction": direction}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._curvature, self._row_noise, self._direction = state["curvature"], state["row_noise"], state["direction"]
