"""The stochastic-gradient Nose-Hoover thermostat as a method of ``fit``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bayesnn import optim
from bayesnn.errors import positive
from bayesnn.methods.sghmc import SGHMC


@dataclass(frozen=True)
class SGNHT(SGHMC):
    """Stochastic-gradient Nose-Hoover thermostat (Ding et al. 2014): :class:`bayesnn.optim.SGNHT` under ``fit``.

    SGHMC whose friction rises with the noise of the minibatches until the kinetic temperature of each parameter is T.
    The options are those of every sampler, see :class:`~bayesnn.methods.sampler.SamplerMethod`, and

    Parameters
    ----------
    momentum : share of the velocity that a step keeps where gradients are exact, in (0, 1).
    response : speed of the thermostat, > 0; 1 is critical damping.
    """

    response: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("momentum", self.momentum)
        positive("response", self.response)

    def make_optimizer(self, groups: list[dict[str, Any]], num_data: int, noise: torch.Generator) -> optim.Sampler:
        return optim.SGNHT(
            groups,
            lr=self.first_lr,
            num_data=num_data,
            momentum=self.momentum,
            response=self.response,
            temperature=self.temperature,
            generator=noise,
        )
