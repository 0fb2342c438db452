"""The improved variational online Newton method (Shen et al. 2024) as a torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bayesnn.errors import at_least, fraction, is_real, not_negative, positive


class IVON(Optimizer):
    r"""Mean-field variational inference at the cost of Adam: natural gradients of the mean and the precision of q.

    The parameters hold the mean m of :math:`q(w) = N(m, \mathrm{diag}(\sigma^2))`, :math:`\sigma^2 = 1 / (N s)` with
    :math:`s = h + \delta`, h the curvature of the mean loss and :math:`\delta = 1 / (N s_0^2)` (``weight_decay``) that
    of a Normal(0, :math:`s_0^2`) prior. With g the gradient of the loss, averaged over a minibatch, at a sample
    :math:`w = m + \sigma\epsilon`, one step is (algorithm 1, with S samples averaged)

    .. math::
        \hat h &= \overline{g\,\epsilon / \sigma}, \qquad r = (1 - \beta_2) (\hat h - h) / s \\
        s &\leftarrow s\, (1 + r + r^2 / 2)                                                                 \\
        \bar g &\leftarrow \beta_1 \bar g + (1 - \beta_1)\, \overline{g}                                     \\
        m &\leftarrow m - \mathrm{clip}\Big(\mathrm{lr}\,(h_0 + \delta)\,
            \frac{\bar g / (1 - \beta_1^t) + \delta m}{s}\Big)

    The term :math:`r^2 / 2` (Lin, Schmidt & Khan 2020) keeps s > 0 however wrong :math:`\hat h` is: a step can halve s
    at most. The paper writes the same update for h = s - delta. ``lr`` means what it means in SGD as long as h is h_0.

    .. code-block:: python

        optimizer = IVON(net.parameters(), lr=0.1, num_data=N, weight_decay=1 / (N * s0**2))
        for x, y in batches:
            with optimizer.sampled():  # the weights are a sample of q in here, and m again afterwards
                loss(net(x), y).backward()  # the loss averaged over the rows; enter again for more samples
            optimizer.step()
        with torch.no_grad(), optimizer.sampled(train=False):
            net(x)  # one draw of the predictive distribution

    Parameters
    ----------
    params : parameters or groups of them, as for every torch optimizer.
    lr : step size, > 0.
    num_data : N, the number of rows of the whole training data (the paper's lambda).
    hess_init : h_0 > 0, h at the start; it also sets the size of the steps.
    beta1 : memory of the gradient in [0, 1).
    beta2 : memory of the curvature in [0, 1). The relative variance of s is about (1 - beta2) / 2 * N / B.
    weight_decay : delta >= 0, a Normal prior of standard deviation 1 / sqrt(N delta). Other priors: add -log p(w) / N
        to the loss; h then is the curvature of both.
    clip_radius : the most that a weight moves in a step, in its own units. The paper clips the step before it is
        multiplied by lr: however small lr becomes, rare large gradients then lose against frequent small ones.
    generator : source of the noise, on the parameters' device; a fresh one from the system's entropy by default.

    Raises
    ------
    ValueError : lr, hess_init or clip_radius <= 0, num_data < 1, beta1 or beta2 outside [0, 1), weight_decay negative.
    RuntimeError : ``step()`` without a sample since the last one.

    References
    ----------
    Shen, Daheim, Cong, Nickl, Marconi, Bazan, Yokota, Gurevych, Cremers, Khan & Möllenhoff (2024), Variational learning
    is effective for large deep networks, ICML, algorithm 1.
    Lin, Schmidt & Khan (2020), Handling the positive-definite constraint in the Bayesian learning rule, ICML.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        num_data: int,
        hess_init: float = 0.1,
        beta1: float = 0.9,
        beta2: float = 0.9999,
        weight_decay: float = 0.0,
        clip_radius: float = math.inf,
        generator: torch.Generator | None = None,
    ) -> None:
        positive("lr", lr)
        at_least("num_data", num_data, 1)
        positive("hess_init", hess_init)
        fraction("beta1", beta1, "it is the memory of the gradient")
        fraction("beta2", beta2, "it is the memory of the curvature")
        not_negative("weight_decay", weight_decay)
        if not is_real(clip_radius) or not clip_radius > 0:
            raise ValueError(f"Expected clip_radius > 0, got {clip_radius!r}: inf clips nothing.")
        self._generator, self._samples = generator, 0
        defaults = {"lr": lr, "num_data": num_data, "hess_init": hess_init, "beta1": beta1, "beta2": beta2,
                    "weight_decay": weight_decay, "clip_radius": clip_radius, "steps": 0}  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its weights start with s = hess_init + weight_decay."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            self.state[p]["momentum"] = torch.zeros_like(p)
            self.state[p]["precision"] = torch.full_like(p, group["hess_init"] + group["weight_decay"])

    @contextmanager
    def sampled(self, train: bool = True) -> Iterator[None]:
        """The parameters are a sample of q inside, and its mean outside.

        With ``train`` the gradients are cleared at the start, and those found at the end are kept for :meth:`step`. A
        weight that the loss did not reach has the gradient 0: its prior acts all the same.
        """
        with torch.no_grad():
            trained = [(group, _trained(group)) for group in self.param_groups]
            groups = [(members, self._shifts(group, members)) for group, members in trained if members]
            params = [p for members, _ in groups for p in members]
            for p in params if train else ():
                p.grad = None
            means = [p.clone() for p in params]
            for members, shifts in groups:
                torch._foreach_add_(members, shifts)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(params, means)
        if train:
            self._collect(params, [shift for _, shifts in groups for shift in shifts])

    def _shifts(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        """sigma * epsilon of each parameter: one call of the generator a group."""
        if self._generator is None:
            self._generator = torch.Generator(device=params[0].device)
            self._generator.seed()
        flat = torch.cat([self.state[p]["precision"].flatten() for p in params]).mul_(group["num_data"]).rsqrt_()
        flat.mul_(torch.empty_like(flat).normal_(generator=self._generator))
        parts = flat.split([p.numel() for p in params])
        return [part.view(p.shape) for part, p in zip(parts, params, strict=True)]

    @torch.no_grad()
    def _collect(self, params: list[Tensor], shifts: list[Tensor]) -> None:
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
        products: Any = torch._foreach_mul(grads, shifts)
        self._samples += 1
        for p, g, product in zip(params, grads, products, strict=True):
            sums = self.state[p]
            if self._samples == 1:
                sums["gradient"], sums["product"] = g.clone(), product
            else:
                sums["gradient"] += g
                sums["product"] += product

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step from the samples since the last one; with a closure, which backpropagates, from one sample of it."""
        loss = None
        if closure is not None:
            with torch.enable_grad(), self.sampled():
                loss = closure()
        if not self._samples:
            raise RuntimeError(
                "Expected a sample of the weights before step(), got none: run backward inside `with "
                "optimizer.sampled():`, or pass a closure."
            )
        for group in self.param_groups:
            params = [p for p in _trained(group) if "gradient" in self.state[p]]
            if params:
                self._update(group, params)
        self._samples = 0
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        N, delta, S = group["num_data"], group["weight_decay"], self._samples
        momentum, s = ([self.state[p][name] for p in params] for name in ("momentum", "precision"))
        g, r = ([self.state[p].pop(name) for p in params] for name in ("gradient", "product"))
        group["steps"] += 1
        # 1 / sigma^2 = N s makes h_hat / s = N mean(g sigma epsilon), and r = (1 - beta2) (h_hat / s - 1 + delta / s).
        forget = 1 - group["beta2"]
        torch._foreach_mul_(r, forget * N / S)
        torch._foreach_sub_(r, forget)
        if delta:
            torch._foreach_add_(r, torch._foreach_reciprocal(s), alpha=forget * delta)
        half: Any = torch._foreach_mul(r, 0.5)
        torch._foreach_add_(half, 1.0)
        torch._foreach_mul_(half, r)
        torch._foreach_addcmul_(s, s, half)
        torch._foreach_mul_(momentum, group["beta1"])
        torch._foreach_add_(momentum, g, alpha=(1 - group["beta1"]) / S)
        move: Any = torch._foreach_mul(momentum, 1 / (1 - group["beta1"] ** group["steps"]))
        if delta:
            torch._foreach_add_(move, params, alpha=delta)
        rate = group["lr"] * (group["hess_init"] + delta)
        torch._foreach_div_(move, s)
        if group["clip_radius"] < math.inf and rate > 0:
            torch._foreach_clamp_min_(move, -group["clip_radius"] / rate)
            torch._foreach_clamp_max_(move, group["clip_radius"] / rate)
        torch._foreach_add_(params, move, alpha=-rate)

    @torch.no_grad()
    def log_sd(self) -> dict[Tensor, Tensor]:
        """Logarithm of the standard deviation of each parameter's weights under q: -log(N s) / 2."""
        return {
            p: self.state[p]["precision"].mul(group["num_data"]).log_().mul_(-0.5)
            for group in self.param_groups
            for p in group["params"]
        }

    @torch.no_grad()
    def set_log_sd(self, values: dict[Tensor, Tensor]) -> None:
        """Start from other standard deviations than those of ``hess_init``."""
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["precision"].copy_((-2 * values[p]).exp() / group["num_data"])


def _trained(group: dict[str, Any]) -> list[Tensor]:
    return [p for p in group["params"] if p.requires_grad]
