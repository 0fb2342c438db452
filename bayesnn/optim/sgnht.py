"""The stochastic-gradient Nose-Hoover thermostat (Ding et al. 2014), split symmetrically, as a torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bayesnn.errors import fraction, positive
from bayesnn.optim.sghmc import SGHMC


class SGNHT(SGHMC):
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
        super().__init__(params, lr, num_data, momentum, temperature, weight_decay, generator)
        self.defaults["response"] = response
        for group in self.param_groups:
            group.setdefault("response", response)

    def refresh(self, group: dict[str, Any], params: list[Tensor], m: list[Tensor], noise: list[Tensor]) -> None:
        """D-O-D, of which :meth:`injected` is the noise at the friction of exact gradients."""
        mu, kappa = group["momentum"], self.kinetic(group)
        gain = 0.25 * group["response"] * (1 - mu) ** 2
        zetas = [self.state[p].get("friction", -math.log(mu)) for p in params]
        zetas = [z + gain * heat for z, heat in zip(zetas, excess(m, kappa), strict=True)]
        torch._foreach_mul_(m, [math.exp(-z) for z in zetas])
        scaled: Any = torch._foreach_mul(noise, [self._std(z, mu, kappa) for z in zetas])
        torch._foreach_add_(m, scaled)
        for p, zeta, heat in zip(params, zetas, excess(m, kappa), strict=True):
            self.state[p]["friction"] = zeta + gain * heat

    @staticmethod
    def _std(zeta: float, mu: float, kappa: float) -> float:
        """Root of -log(mu) kappa (1 - exp(-2 zeta)) / zeta, smooth at zeta = 0."""
        ratio = -math.expm1(-2 * zeta) / zeta if abs(zeta) > 1e-6 else 2.0 - 2 * zeta
        return math.sqrt(-math.log(mu) * kappa * ratio)


def excess(m: list[Tensor], kappa: float) -> list[float]:
    """mean(m^2) / kappa - 1 of each parameter."""
    norms: Any = torch._foreach_norm(m)
    return [float(norm) ** 2 / (v.numel() * kappa) - 1 for norm, v in zip(norms, m, strict=True)]
