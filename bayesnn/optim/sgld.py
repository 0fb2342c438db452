"""Stochastic-gradient Langevin dynamics (Welling & Teh 2011) as a torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bayesnn.optim.base import Sampler


class SGLD(Sampler):
    r"""Stochastic-gradient Langevin dynamics.

    With the loss averaged over the minibatch, :math:`L(w) = -\frac1B\sum_i \log p(y_i | x_i, w)`, one step is

    .. math::
        g &= \nabla L(w) + \lambda w \\
        w &\leftarrow w - \mathrm{lr}\, g + \sqrt{2\, \mathrm{lr}\, T / N}\; \xi, \qquad \xi \sim N(0, I)

    whose stationary law, for small steps and exact gradients, is :math:`p(w | D)^{1/T}` with the prior
    :math:`N(0, s^2)`, :math:`\lambda = 1 / (N s^2)`. ``lr`` means what it means in SGD; the step in the units of the
    potential U = -log p(w, D) is h = lr / N (Welling & Teh's :math:`\epsilon = 2 h`). With T = 0 it is SGD.

    Parameters
    ----------
    params : parameters or groups of them, as for every torch optimizer.
    lr : step size, > 0.
    num_data : N, the number of rows of the whole training data.
    temperature : T >= 0; 1 is the Bayes posterior. A group with ``temperature=0`` is optimised, not sampled.
    weight_decay : lambda >= 0, a Normal prior of standard deviation 1 / sqrt(N lambda). Other priors: add their
        gradient, divided by N, to the loss.
    generator : source of the noise, on the parameters' device; a fresh one from the system's entropy by default.

    Raises
    ------
    ValueError : lr <= 0, num_data < 1, temperature or weight_decay negative.

    References
    ----------
    Welling & Teh (2011), Bayesian learning via stochastic gradient Langevin dynamics, ICML, eq. 4.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        num_data: int,
        temperature: float = 1.0,
        weight_decay: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            params, generator, lr=lr, num_data=num_data, temperature=temperature, weight_decay=weight_decay
        )

    def update(self, index: int, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        torch._foreach_add_(params, grads, alpha=-group["lr"])
        if group["temperature"] > 0:
            std = math.sqrt(2 * group["lr"] * group["temperature"] / group["num_data"])
            torch._foreach_add_(params, self.normal(index, params), alpha=std)

    def injected(self, group: dict[str, Any]) -> float:
        """2 T / (lr N): the noise of a step, divided by lr."""
        return float(2 * group["temperature"] / (group["lr"] * group["num_data"]))
