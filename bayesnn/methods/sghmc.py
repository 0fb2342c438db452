"""Stochastic-gradient Hamiltonian Monte Carlo as a method of ``fit``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bayesnn import optim
from bayesnn.errors import fraction
from bayesnn.methods.sampler import SamplerMethod


@dataclass(frozen=True)
class SGHMC(SamplerMethod):
    """Stochastic-gradient Hamiltonian Monte Carlo (Chen et al. 2014): :class:`bayesnn.optim.SGHMC` under ``fit``.

    Underdamped Langevin dynamics in the splitting BAOA, whose variance on a Gaussian is exact at every stable step. It
    walks where SGLD diffuses: along a flat direction it goes 1 / (1 - momentum) times as far in the same number of
    steps of the same ``lr``. The options are those of every sampler, see
    :class:`~bayesnn.methods.sampler.SamplerMethod`, and

    Parameters
    ----------
    momentum : share of the velocity that a step keeps, in [0, 1). With 0 it is SGLD.
    """

    stability: ClassVar[float] = 0.5  # of lr * lambda: (epsilon omega)^2 is about that, and the bias of second order

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("momentum", self.momentum, "at 1 there is no friction")

    def make_optimizer(self, groups: list[dict[str, Any]], num_data: int, noise: torch.Generator) -> optim.Sampler:
        return optim.SGHMC(
            groups,
            lr=self.first_lr,
            num_data=num_data,
            momentum=self.momentum,
            temperature=self.temperature,
            generator=noise,
        )
