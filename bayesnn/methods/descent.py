"""Going down a gradient: torch's optimizers by name, and the clipping of what they are given."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayesnn.errors import fraction, positive, unknown
from bayesnn.methods.base import Method

# All of them add weight decay to the gradient, as a Normal prior's is, and go through the weights one by one.
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
}


@dataclass(frozen=True)
class Descending(Method):
    """The options of every method that goes down a gradient with one of torch's optimizers; each by its name.

    Parameters
    ----------
    optimizer : ``"adam"``, ``"sgd"``, ``"rmsprop"``, ``"adagrad"``, ``"adadelta"``, ``"adamax"`` or ``"nadam"``, or an
        optimizer class that needs no closure.
    momentum : of SGD, in [0, 1).
    clip_grad_norm : C, the most that the norm of the gradient of a step may be: where it is more, the gradient is
        scaled to C (``torch.nn.utils.clip_grad_norm_``). None clips nothing. The mean of clipped minibatch gradients
        is not the clipped mean: where many steps are clipped to the end, the fit ends beside the optimum. The share is
        ``clipped`` in the history.
    """

    optimizer: str | type[torch.optim.Optimizer] = field(default="adam", kw_only=True)
    momentum: float = field(default=0.9, kw_only=True)
    clip_grad_norm: float | None = field(default=None, kw_only=True)

    def check_descent(self) -> None:
        """Raise ValueError where an option cannot be."""
        own = isinstance(self.optimizer, type) and issubclass(self.optimizer, torch.optim.Optimizer)
        if not own and (not isinstance(self.optimizer, str) or self.optimizer not in OPTIMIZERS):
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if not isinstance(self.optimizer, str) and _needs_closure(self.optimizer):
            raise ValueError(
                f"Expected an optimizer that steps without a closure, got {self.optimizer.__name__}: a step has one "
                "gradient, of a minibatch, and none to compare it with; take 'adam' or 'sgd'."
            )
        fraction("momentum", self.momentum, "it is SGD's memory of the gradient")
        if self.clip_grad_norm is not None:
            positive("clip_grad_norm", self.clip_grad_norm)

    def make_optimizer(self, groups: Sequence[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        """The optimizer over ``groups``; unknown keys of a group stay with it, as torch does.

        A group that says nothing of weight decay has none, whatever a user's own class does by default: there all
        priors are in the gradient.
        """
        own: dict[str, dict[str, Any]] = {"adam": {"fused": True}, "sgd": {"momentum": self.momentum}}
        options = own.get(self.optimizer, {}) if isinstance(self.optimizer, str) else {}
        make: Any = OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
        made: torch.optim.Optimizer = make([{"weight_decay": 0.0, **group} for group in groups], lr=lr, **options)
        return made


def _needs_closure(optimizer: type[torch.optim.Optimizer]) -> bool:
    """Whether ``step`` cannot be called without arguments, as that of LBFGS."""
    _, *arguments = inspect.signature(optimizer.step).parameters.values()  # without self
    return any(one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD for one in arguments)


class Descent:
    """Steps of an optimizer on gradients that are clipped where the method says so.

    Parameters
    ----------
    method : whose options count.
    groups : of the optimizer. Where gradients are clipped they have to be the whole of what is minimised: no part may
        be left to weight decay.
    lr : learning rate.

    Attributes
    ----------
    optimizer : that takes the steps.
    """

    def __init__(self, method: Descending, groups: Sequence[dict[str, Any]], lr: float) -> None:
        self.optimizer, self._most = method.make_optimizer(groups, lr), method.clip_grad_norm
        self._clipped: list[Tensor] = []

    def step(self) -> None:
        """One step, on g * min(1, C / |g|), |g| the norm over all tensors together."""
        if self._most is not None:
            tensors = [tensor for group in self.optimizer.param_groups for tensor in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(tensors, self._most)
            self._clipped.append(norm > self._most)
        self.optimizer.step()

    def end_epoch(self) -> dict[str, float]:
        """Share of the steps since the last call whose gradient was clipped, for the history; {} without clipping."""
        if not self._clipped:
            return {}
        share, self._clipped = torch.stack(self._clipped).double().mean(), []
        return {"clipped": float(share)}
