"""The stochastic-gradient Nose-Hoover thermostat (Ding et al. 2014), split symmetrically, as a torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bayesnn.errors import fraction, positive
from bayesnn.optim.base import Sampler


class SGNHT(Sampler):
    r"""SGHMC whose friction adapts to the noise that is there: a thermostat for each parameter.

    The momentum is heated by the noise injected and by that of the minibatch, whose size nobody needs to know: the
    friction rises until the kinetic temperature is T. Where the minibatch's noise is white, Normal and of one size,
    the positions' law is that of exact gradients. With :math:`\mu` = ``momentum``, v in units of the gradient of the
    mean loss (as in :class:`bayesnn.optim.SGHMC`) and friction :math:`\zeta` a step, :math:`-\log\mu` at first,

    .. math::
        m &\leftarrow m + g, \qquad g = \nabla L(w) + \lambda w                                            & (B)\\
        w &\leftarrow w - \tfrac{\mathrm{lr}}{1 + \mu}\, m                                                 & (A)\\
        \zeta &\leftarrow \zeta + \tfrac{\eta}{2} (\overline{m^2} / \kappa - 1)                            & (D)\\
        m &\leftarrow e^{-\zeta} m + \sqrt{-\log\mu\;\kappa\,(1 - e^{-2\zeta}) / \zeta}\;\xi               & (O)\\
        \zeta &\leftarrow \zeta + \tfrac{\eta}{2} (\overline{m^2} / \kappa - 1)                            & (D)\\
        w &\leftarrow w - \tfrac{\mathrm{lr}}{1 + \mu}\, m                                                 & (A)

    with :math:`\kappa = (1 + \mu) T / (2\,\mathrm{lr}\,N)`, the variance of m at temperature T, the mean over the
    parameter's weights, and :math:`\eta = \tfrac12 \mathrm{response}\,(1-\mu)^2`.

    Parameters
    ----------
    params : parameters or groups of them, as for every torch optimizer.
    lr : step size, > 0: that of SGD with momentum.
    num_data : N, the number of rows of the whole training data.
    momentum : mu in (0, 1): the friction of exact gradients.
    response : > 0, speed of the thermostat; 1 is critical damping.
    temperature : T >= 0; 1 is the Bayes posterior. A group with ``temperature=0`` is optimised, not sampled.
    weight_decay, generator : as in :class:`bayesnn.optim.SGLD`.

    Raises
    ------
    ValueError : lr or response <= 0, num_data < 1, momentum outside (0, 1), temperature or weight_decay negative.

    References
    ----------
    Ding, Fang, Babbush, Chen, Skeel & Neven (2014), Bayesian sampling using stochastic gradient thermostats, NeurIPS.
    Leimkuhler & Shang (2016), Adaptive thermostats for noisy gradient systems, SIAM J. Sci. Comput. 38 (the splitting).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        num_data: int,
        momentum: float = 0.9,
        response: float = 1.0,
        temperature: float = 1.0,
        weight_decay: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        positive("momentum", fraction("momentum", momentum, "at 1 there is no friction"))
        positive("response", response)
        super().__init__(
            params,
            generator,
            lr=lr,
            num_data=num_data,
            momentum=momentum,
            response=response,
            temperature=temperature,
            weight_decay=weight_decay,
        )

    def update(self, index: int, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        m, mu, half = self.buffers("momentum_buffer", params), group["momentum"], group["lr"] / (1 + group["momentum"])
        self.keep_velocity(group, m)
        torch._foreach_add_(m, grads)
        if group["temperature"] == 0:
            torch._foreach_add_(params, m, alpha=-group["lr"])
            torch._foreach_mul_(m, mu)
            return
        kappa, gain = self.kinetic(group), 0.25 * group["response"] * (1 - mu) ** 2
        torch._foreach_add_(params, m, alpha=-half)
        zetas = [self.state[p].get("friction", -math.log(mu)) for p in params]
        zetas = [z + gain * heat for z, heat in zip(zetas, excess(m, kappa), strict=True)]
        torch._foreach_mul_(m, [math.exp(-z) for z in zetas])
        noise: Any = torch._foreach_mul(self.normal(index, params), [self._std(z, mu, kappa) for z in zetas])
        torch._foreach_add_(m, noise)
        for p, zeta, heat in zip(params, zetas, excess(m, kappa), strict=True):
            self.state[p]["friction"] = zeta + gain * heat
        torch._foreach_add_(params, m, alpha=-half)

    @staticmethod
    def kinetic(group: dict[str, Any]) -> float:
        """kappa = (1 + mu) T / (2 lr N), the variance of m at temperature T."""
        return float((1 + group["momentum"]) * group["temperature"] / (2 * group["lr"] * group["num_data"]))

    def injected(self, group: dict[str, Any]) -> float:
        """(1 - mu^2) kappa: the noise of O at the friction of exact gradients."""
        return (1 - float(group["momentum"]) ** 2) * self.kinetic(group)

    @staticmethod
    def _std(zeta: float, mu: float, kappa: float) -> float:
        """Root of -log(mu) kappa (1 - exp(-2 zeta)) / zeta, smooth at zeta = 0."""
        ratio = -math.expm1(-2 * zeta) / zeta if abs(zeta) > 1e-6 else 2.0 - 2 * zeta
        return math.sqrt(-math.log(mu) * kappa * ratio)


def excess(m: list[Tensor], kappa: float) -> list[float]:
    """mean(m^2) / kappa - 1 of each parameter."""
    norms: Any = torch._foreach_norm(m)
    return [float(norm) ** 2 / (v.numel() * kappa) - 1 for norm, v in zip(norms, m, strict=True)]
