"""Preconditioned SGLD (Li, Chen, Carlson & Carin 2016): RMSprop's scaling of each weight, as a torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bayesnn.errors import fraction, positive
from bayesnn.optim.base import Sampler, gradients

REACH = 1e-3  # of the finite difference behind Gamma, in units of 1 + |w|


class PSGLD(Sampler):
    r"""SGLD in which every weight has a step of its own, by the size of its gradients.

    .. math::
        g &= \nabla L(w) + \lambda w \\
        V &\leftarrow \alpha V + (1 - \alpha)\, g^2, \qquad G = 1 / (\delta + \sqrt V) \\
        w &\leftarrow w - \mathrm{lr}\, (G g - \tfrac{T}{N} \Gamma) + \sqrt{2\, \mathrm{lr}\, T G / N}\; \xi

    A *constant* G leaves the stationary law alone. A G that follows the weight does not, unless the drift carries
    :math:`\Gamma_j = \partial G_j / \partial w_j` (Li et al. 2016). So:

    * call :meth:`freeze` at the end of the burn-in (``bayesnn.PSGLD`` does): G is constant, Gamma is zero, and the
      sampler is exact to the discretisation;
    * or adapt for ever. With ``gamma=True`` the drift has Gamma for :math:`V = g^2`,
      :math:`\Gamma_j = -G_j^2\, (g_j / \sqrt{V_j})\, \partial g_j / \partial w_j`, its curvature estimated along a
      random direction of signs by a central difference of the gradient: two more gradients a step, through ``closure``.
      That is exact for ``alpha=0``; V with a memory lags, and the right term lies between 0 and this one.
      ``gamma=False`` leaves it out, as most implementations do: the law is then biased towards flat regions.

    With T = 0 a step is that of ``torch.optim.RMSprop(lr, alpha, eps=delta)``.

    Parameters
    ----------
    params : parameters or groups of them, as for every torch optimizer.
    lr : step size, > 0; of RMSprop's size, since G undoes the gradients' scale.
    num_data : N, the number of rows of the whole training data.
    alpha : memory of V in [0, 1).
    delta : > 0; bounds the step where gradients vanish.
    gamma : whether the drift has Gamma while V adapts.
    temperature, weight_decay, generator : as in :class:`bayesnn.optim.SGLD`.

    Raises
    ------
    ValueError : lr <= 0, num_data < 1, alpha outside [0, 1), delta <= 0, temperature or weight_decay negative;
        ``gamma=True`` and ``step()`` without a closure.

    References
    ----------
    Li, Chen, Carlson & Carin (2016), Preconditioned stochastic gradient Langevin dynamics for deep neural networks,
    AAAI.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        num_data: int,
        alpha: float = 0.99,
        delta: float = 1e-5,
        gamma: bool = False,
        temperature: float = 1.0,
        weight_decay: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        fraction("alpha", alpha, "it is the memory of the mean square")
        positive("delta", delta)
        self._gamma = bool(gamma)
        super().__init__(
            params,
            generator,
            lr=lr,
            num_data=num_data,
            alpha=alpha,
            delta=delta,
            adapting=True,
            temperature=temperature,
            weight_decay=weight_decay,
        )

    @property
    def needs_closure(self) -> bool:
        """Whether a step takes gradients beside the present weights."""
        return self._gamma and self.adapting

    @property
    def preconditioned(self) -> bool:
        return True

    def set_mean_squares(self, values: Mapping[Tensor, Tensor]) -> None:
        for p, value in values.items():
            self.state[p]["square_avg"] = value

    def freeze(self) -> None:
        """Keep the present G from now on: the end of the adaptation, which ``state_dict`` knows of."""
        for group in self.param_groups:
            group["adapting"] = False

    @property
    def adapting(self) -> bool:
        """Whether G follows the gradients."""
        return any(group.get("adapting", True) for group in self.param_groups)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. Gamma needs a closure, which zeroes the gradients, computes the loss and backpropagates."""
        if not self.needs_closure:
            return super().step(closure)
        if closure is None:
            raise ValueError("Expected step(closure) with gamma=True, got no closure: it takes gradients beside w.")
        loss = closure()
        found = {p: p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None}
        self._measure_curvature(closure)
        for p, gradient in found.items():
            p.grad = gradient
        super().step()
        return loss

    def update(self, index: int, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        V, alpha = self.buffers("square_avg", params), group["alpha"]
        if self.adapting:
            torch._foreach_mul_(V, alpha)
            torch._foreach_addcmul_(V, grads, grads, value=1 - alpha)
        root: Any = torch._foreach_sqrt(V)
        G: Any = torch._foreach_add(root, group["delta"])
        torch._foreach_reciprocal_(G)
        torch._foreach_addcmul_(params, grads, G, value=-group["lr"])
        if group["temperature"] == 0:
            return
        if self._gamma and self.adapting:
            for p, g, v, scale in zip(params, grads, root, G, strict=True):
                slope = scale.square() * torch.where(v > 0, g / v, 0.0) * self.state[p]["curvature"]
                p.sub_(slope, alpha=group["lr"] * group["temperature"] / group["num_data"])
        torch._foreach_sqrt_(G)
        std = math.sqrt(2 * group["lr"] * group["temperature"] / group["num_data"])
        torch._foreach_addcmul_(params, self.normal(index, params), G, value=std)

    def injected(self, group: dict[str, Any]) -> float:
        """2 T / (lr N), in the coordinates w / sqrt(G) in which the step is SGLD's."""
        return float(2 * group["temperature"] / (group["lr"] * group["num_data"]))

    def scales(self) -> list[Tensor]:
        """sqrt(G) of each parameter, in the order of the groups: w / sqrt(G) are the coordinates of plain SGLD."""
        return [
            (self.state[p].get("square_avg", torch.ones_like(p)).sqrt() + group["delta"]).rsqrt()
            for group in self.param_groups
            for p in group["params"]
        ]

    def _measure_curvature(self, closure: Callable[[], Any]) -> None:
        """diag(dg/dw) ~ z * (g(w + r z) - g(w - r z)) / (2 r), z random signs (Hutchinson), into the state.

        Of all groups that are sampled at once: two gradients, however many there are.
        """
        sampled = [group for group in self.param_groups if group["temperature"] > 0]
        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in sampled]
        groups = [(group, members) for group, members in groups if members]
        params = [p for _, members in groups for p in members]
        with torch.no_grad():
            before = [p.clone() for p in params]
            reach = [REACH * (1 + p.abs()) for p in params]
            signs = [self._signs(p) for p in params]
        sides = []
        for side in (1, -1):
            with torch.no_grad():
                for p, w, r, z in zip(params, before, reach, signs, strict=True):
                    p.copy_(w + side * r * z)
            closure()
            with torch.no_grad():
                sides.append([g.clone() for group, members in groups for g in gradients(group, members)])
        with torch.no_grad():
            for p, w, r, z, ahead, behind in zip(params, before, reach, signs, *sides, strict=True):
                p.copy_(w)
                self.state[p]["curvature"] = z * (ahead - behind) / (2 * r)

    def _signs(self, p: Tensor) -> Tensor:
        if self._generator is None:
            self._generator = torch.Generator(device=p.device)
            self._generator.seed()
        return 2.0 * torch.empty_like(p).bernoulli_(0.5, generator=self._generator) - 1.0
