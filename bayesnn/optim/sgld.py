"""Stochastic-gradient Langevin dynamics (Welling & Teh 2011) as a torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bayesnn.errors import at_least, positive


class SGLD(Optimizer):
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
        positive("lr", lr)
        at_least("num_data", num_data, 1)
        for name, value in (("temperature", temperature), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"Expected {name} >= 0 and finite, got {value!r}: give a non-negative number.")
        defaults = {"lr": lr, "num_data": num_data, "temperature": temperature, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self._generator = generator
        self._noise: dict[int, tuple[Tensor, list[Tensor]]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step from the gradients at hand; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: Any = [p.grad for p in params]
            if group["weight_decay"] != 0:
                grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
            torch._foreach_add_(params, grads, alpha=-group["lr"])
            if group["temperature"] > 0:
                std = math.sqrt(2 * group["lr"] * group["temperature"] / group["num_data"])
                torch._foreach_add_(params, self._draw_noise(index, params), alpha=std)
        return loss

    def _draw_noise(self, index: int, params: list[Tensor]) -> list[Tensor]:
        """One standard normal number a weight: a single call over one flat buffer a group, seen through views."""
        flat, views = self._noise.get(index, (None, []))
        if flat is None or not _alike(views, params):
            numel = sum(p.numel() for p in params)
            flat = torch.empty(numel, dtype=params[0].dtype, device=params[0].device)
            views = [part.view_as(p) for part, p in zip(flat.split([p.numel() for p in params]), params, strict=True)]
            self._noise[index] = (flat, views)
        if self._generator is None:
            self._generator = torch.Generator(device=flat.device)
            self._generator.seed()
        flat.normal_(generator=self._generator)
        return views


def _alike(views: list[Tensor], params: list[Tensor]) -> bool:
    return len(views) == len(params) and all(
        v.shape == p.shape and v.dtype == p.dtype and v.device == p.device for v, p in zip(views, params, strict=True)
    )
