"""Preconditioned SGLD as a method of ``fit``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bayesnn import optim
from bayesnn.errors import fraction, positive, unknown
from bayesnn.methods.sampler import SamplerMethod

ADAPT = ("burn-in", "always")


@dataclass(frozen=True)
class PSGLD(SamplerMethod):
    """Preconditioned SGLD (Li et al. 2016): :class:`bayesnn.optim.PSGLD` under ``fit``.

    Every weight has a step of its own, lr / (delta + root mean square of its gradients). The options are those of every
    sampler, see :class:`~bayesnn.methods.sampler.SamplerMethod`, and

    Parameters
    ----------
    alpha : memory of the mean square, in [0, 1).
    delta : > 0; bounds the step where gradients vanish.
    adapt : ``"burn-in"``, the default: the steps are constant from the first draw kept, and the stationary law is that
        of SGLD. ``"always"``: they go on adapting, as in the paper, and the law is biased.
    gamma : with ``adapt="always"``, whether the drift has the correction term Gamma, at two more gradients a step.
    """

    alpha: float = 0.99
    delta: float = 1e-5
    adapt: str = "burn-in"
    gamma: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("alpha", self.alpha, "it is the memory of the mean square")
        positive("delta", self.delta)
        if self.adapt not in ADAPT:
            raise unknown("adapt", self.adapt, ADAPT)
        if self.gamma and self.adapt != "always":
            raise ValueError("Expected adapt='always' with gamma=True, got 'burn-in': constant steps need no Gamma.")
        if self.layerwise:
            raise ValueError("Expected layerwise=False for PSGLD, got True: each weight has a step of its own already.")

    def make_optimizer(self, groups: list[dict[str, Any]], num_data: int, noise: torch.Generator) -> optim.Sampler:
        return optim.PSGLD(
            groups,
            lr=self.first_lr,
            num_data=num_data,
            alpha=self.alpha,
            delta=self.delta,
            gamma=self.gamma,
            temperature=self.temperature,
            generator=noise,
        )

    def end_burn_in(self, sampler: Any) -> None:
        if self.adapt == "burn-in":
            sampler.freeze()
