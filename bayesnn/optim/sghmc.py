"""Stochastic-gradient Hamiltonian Monte Carlo (Chen et al. 2014), split symmetrically, as a torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bayesnn.errors import fraction
from bayesnn.optim.base import Sampler


class SGHMC(Sampler):
    r"""Underdamped Langevin dynamics with the gradient of a minibatch, in the splitting B-A-O-A.

    The dynamics :math:`dw = v\,dt,\; dv = -\nabla U\,dt - \gamma v\,dt + \sqrt{2\gamma T}\,dW` is solved part by part:
    B moves v by a step of the gradient, A moves w by half a step of v, O lets friction and noise act on v exactly.
    With v in units of the gradient of the mean loss, :math:`v = -\epsilon N m`, friction
    :math:`\mu = e^{-\gamma\epsilon}` (``momentum``) and time step :math:`\epsilon^2 N = 2\,\mathrm{lr} / (1 + \mu)`,

    .. math::
        m &\leftarrow m + g, \qquad g = \nabla L(w) + \lambda w                                             & (B)\\
        w &\leftarrow w - \tfrac{\mathrm{lr}}{1 + \mu}\, m                                                  & (A)\\
        m &\leftarrow \mu\, m + \sqrt{(1-\mu^2)\,(1+\mu)\, T / (2\, \mathrm{lr}\, N)}\; \xi                 & (O)\\
        w &\leftarrow w - \tfrac{\mathrm{lr}}{1 + \mu}\, m                                                  & (A)

    ``lr`` means what it means in SGD with momentum: with T = 0 a step is that of ``torch.optim.SGD(lr, momentum)``.
    With ``momentum=0`` it is SGLD of the same ``lr`` in the form of Leimkuhler & Matthews (2013). The positions' law is
    that of BAOAB: on a Gaussian its variance is *exact* at every stable step, lr * curvature < 2 (1 + momentum); on
    other potentials the bias is of second order in epsilon, of first order in lr. Under the Euler steps of the
    original paper the variance grows with the step.

    Parameters
    ----------
    params : parameters or groups of them, as for every torch optimizer.
    lr : step size, > 0.
    num_data : N, the number of rows of the whole training data.
    momentum : mu in [0, 1); the memory of a step is about 1 / (1 - mu) steps.
    temperature : T >= 0; 1 is the Bayes posterior. A group with ``temperature=0`` is optimised, not sampled.
    weight_decay : lambda >= 0, a Normal prior of standard deviation 1 / sqrt(N lambda). Other priors: add their
        gradient, divided by N, to the loss.
    generator : source of the noise, on the parameters' device; a fresh one from the system's entropy by default.

    Raises
    ------
    ValueError : lr <= 0, num_data < 1, momentum outside [0, 1), temperature or weight_decay negative.

    References
    ----------
    Chen, Fox & Guestrin (2014), Stochastic gradient Hamiltonian Monte Carlo, ICML (the dynamics).
    Leimkuhler & Matthews (2013), Rational construction of stochastic numerical methods for molecular sampling, AMRX.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        num_data: int,
        momentum: float = 0.9,
        temperature: float = 1.0,
        weight_decay: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        fraction("momentum", momentum, "at 1 there is no friction")
        super().__init__(
            params,
            generator,
            lr=lr,
            num_data=num_data,
            momentum=momentum,
            temperature=temperature,
            weight_decay=weight_decay,
        )

    def update(self, index: int, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        if group["lr"] == 0 and group["temperature"] > 0:  # a schedule's end: no time passes, and no m has the velocity
            return
        m, mu, half = self.buffers("momentum_buffer", params), group["momentum"], group["lr"] / (1 + group["momentum"])
        _keep_velocity(group, m)
        torch._foreach_add_(m, grads)
        if group["temperature"] == 0:  # A-O-A in one: SGD with momentum
            torch._foreach_add_(params, m, alpha=-group["lr"])
            torch._foreach_mul_(m, mu)
            return
        torch._foreach_add_(params, m, alpha=-half)
        self.refresh(group, params, m, self.normal(index, params))
        torch._foreach_add_(params, m, alpha=-half)

    def refresh(self, group: dict[str, Any], params: list[Tensor], m: list[Tensor], noise: list[Tensor]) -> None:
        """Let friction and noise act on the momenta of a sampled group: the part O."""
        torch._foreach_mul_(m, group["momentum"])
        torch._foreach_add_(m, noise, alpha=math.sqrt(self.injected(group)))

    @staticmethod
    def kinetic(group: dict[str, Any]) -> float:
        """Variance of m in the stationary law, T / (epsilon N)^2 = (1 + mu) T / (2 lr N)."""
        return float((1 + group["momentum"]) * group["temperature"] / (2 * group["lr"] * group["num_data"]))

    def injected(self, group: dict[str, Any]) -> float:
        """(1 - mu^2) (1 + mu) T / (2 lr N): the noise of O, in the units of g."""
        return (1 - float(group["momentum"]) ** 2) * self.kinetic(group)

    @torch.no_grad()
    def kinetic_temperature(self) -> float:
        """Mean over all sampled weights of m^2 / Var(m) * T: it is T where the chain is in its stationary law.

        As it stands after O, where the momentum's law does not depend on the step (to second order). Weights that have
        not moved do not count.
        """
        total, count = 0.0, 0
        for group in self.param_groups:
            if group["temperature"] > 0:
                m = [self.state[p]["momentum_buffer"] for p in group["params"] if p in self.state]
                # Of the lr that m was heated at: a schedule may have set the next one.
                kinetic = self.kinetic({**group, "lr": group.get("heated_lr") or group["lr"]}) if m else math.inf
                total += sum(float(v.double().square().sum()) for v in m) * group["temperature"] / kinetic
                count += sum(v.numel() for v in m)
        return total / max(count, 1)


def _keep_velocity(group: dict[str, Any], m: list[Tensor]) -> None:
    """Rescale momenta m = -v / (epsilon N) when a schedule changes lr, so that the velocity v stays what it is.

    Without it the heat of a small step becomes a kick when the step grows, at the restart of a cycle. After steps
    at T = 0 there is no heat, and m stays as it is, as in SGD.
    """
    heated = group.get("heated_lr")
    if heated is not None and heated != group["lr"]:
        torch._foreach_mul_(m, math.sqrt(heated / group["lr"]))
    group["heated_lr"] = group["lr"] if group["temperature"] > 0 else None
