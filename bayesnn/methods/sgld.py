"""Stochastic-gradient Langevin dynamics as a method of ``fit``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bayesnn import optim
from bayesnn.methods.sampler import SamplerMethod


@dataclass(frozen=True)
class SGLD(SamplerMethod):
    """Stochastic-gradient Langevin dynamics (Welling & Teh 2011): :class:`bayesnn.optim.SGLD` under ``fit``.

    The options are those of every sampler, see :class:`~bayesnn.methods.sampler.SamplerMethod`. Each step is

        w <- w - lr * grad(U) / N + sqrt(2 * lr * T / N) * xi,     U(w) = -log p(w, D).
    """

    def make_optimizer(self, groups: list[dict[str, Any]], num_data: int, noise: torch.Generator) -> optim.Sampler:
        return optim.SGLD(groups, lr=self.first_lr, num_data=num_data, temperature=self.temperature, generator=noise)
