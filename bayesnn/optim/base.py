"""What every sampler shares as a torch optimizer: its arguments, the gradient with the Normal prior, and the noise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bayesnn.errors import at_least, not_negative, positive


class Sampler(Optimizer):
    """Base class of the samplers.

    The loss is averaged over the minibatch, and ``weight_decay`` is a Normal prior of standard deviation
    1 / sqrt(N weight_decay): what :meth:`update` gets is g, the gradient of U / N, U = -log p(w, D).

    Parameters
    ----------
    params : parameters or groups of them, as for every torch optimizer.
    generator : source of the noise, on the parameters' device; a fresh one from the system's entropy by default.
    defaults : ``lr``, ``num_data``, ``temperature``, ``weight_decay`` and what else a group may set.

    Raises
    ------
    ValueError : lr <= 0, num_data < 1, temperature or weight_decay negative.
    """

    def __init__(self, params: Iterable[Any], generator: torch.Generator | None, **defaults: Any) -> None:
        positive("lr", defaults["lr"])
        at_least("num_data", defaults["num_data"], 1)
        for name in ("temperature", "weight_decay"):
            not_negative(name, defaults[name])
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
            if params:
                self.update(index, group, params, gradients(group, params))
        return loss

    @property
    def needs_closure(self) -> bool:
        """Whether :meth:`step` needs its closure."""
        return False

    @property
    def preconditioned(self) -> bool:
        """Whether a weight's step goes by the mean square of its gradient: see :meth:`set_mean_squares`."""
        return False

    def set_mean_squares(self, values: Mapping[Tensor, Tensor]) -> None:
        """Begin with these mean squares of the gradients, by parameter, where :attr:`preconditioned`."""

    def scales(self) -> list[Tensor] | None:
        """Root of the preconditioner of each parameter, in the order of the groups; None where it is 1."""
        return None

    @abstractmethod
    def update(self, index: int, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        """Move ``params``, of group number ``index``, in place; ``grads`` are not to be changed."""

    @abstractmethod
    def injected(self, group: dict[str, Any]) -> float:
        """Variance of the noise that a step adds to g: the measure of a minibatch gradient's own variance."""

    def normal(self, index: int, params: list[Tensor]) -> list[Tensor]:
        """One standard normal number a weight: a single call over one flat buffer a group, seen through views."""
        flat, views = self._noise.get(index, (None, []))
        if flat is None or not _alike(views, params):
            numel = sum(p.numel() for p in params)
            flat = torch.empty(numel, dtype=params[0].dtype, device=params[0].device)
            views = [
                _laid_out(part, p) for part, p in zip(flat.split([p.numel() for p in params]), params, strict=True)
            ]
            self._noise[index] = (flat, views)
        if self._generator is None:
            self._generator = torch.Generator(device=flat.device)
            self._generator.seed()
        flat.normal_(generator=self._generator)
        return views

    def buffers(self, name: str, params: list[Tensor]) -> list[Tensor]:
        """The state ``name`` of each parameter, zero at first: kept by ``state_dict`` as torch's optimizers do."""
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p)
        return [self.state[p][name] for p in params]


def gradients(group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
    """g = grad L(w) + weight_decay * w."""
    grads: Any = [p.grad for p in params]
    if group["weight_decay"] != 0:
        grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
    return list(grads)


def _laid_out(part: Tensor, p: Tensor) -> Tensor:
    """A stretch of memory as a tensor in the shape of p and its order in memory, such as channels last.

    In another order, operations on lists of tensors would go through them one by one.
    """
    dense = torch.empty_like(p, device="meta").stride() == p.stride()
    return part.as_strided(p.shape, p.stride()) if dense else part.view_as(p)


def _alike(views: list[Tensor], params: list[Tensor]) -> bool:
    return len(views) == len(params) and all(
        v.shape == p.shape and v.dtype == p.dtype and v.device == p.device for v, p in zip(views, params, strict=True)
    )
