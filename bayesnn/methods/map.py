"""The point estimate: maximum a posteriori, the deterministic baseline; with several chains a deep ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesnn.errors import positive, unknown
from bayesnn.methods.base import (
    Method,
    Plan,
    Run,
    Schedule,
    check_schedule,
    clear_gradients,
    fill_gradients,
    parameter_groups,
    prior_terms,
)
from bayesnn.model import BayesianModel, State
from bayesnn.rng import Streams
from bayesnn.source import Draws, Source

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
class MAP(Method):
    """Minimise -log p(w, D) / N = mean_i -log p(y_i | x_i, w) - log p(w) / N.

    ``fit(..., method=MAP(), chains=5)`` is a deep ensemble of five (Lakshminarayanan et al. 2017, without adversarial
    examples): each chain has its own initialisation and order of the data.

    Parameters
    ----------
    lr : learning rate; good ones are near 1e-3 for Adam, NAdam, Adamax and RMSprop, 1e-2 for SGD and Adagrad, and 1
        for Adadelta.
    optimizer : ``"adam"``, ``"sgd"``, ``"rmsprop"``, ``"adagrad"``, ``"adadelta"``, ``"adamax"`` or ``"nadam"``, or an
        optimizer class that needs no closure.
    momentum : of SGD.
    schedule : ``"constant"``, ``"cosine"``, ``"linear"``, ``"sqrt"``, or a factory
        ``(optimizer, steps) -> LRScheduler``.
    """

    compiles = True

    @property
    def vectorizes(self) -> bool:
        """An optimizer of the user's own may join the weights of a tensor."""
        return isinstance(self.optimizer, str)

    lr: float = 1e-3
    optimizer: str | type[torch.optim.Optimizer] = "adam"
    momentum: float = 0.9
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        check_schedule(self.schedule)
        if isinstance(self.optimizer, str) and self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over ``groups``; unknown keys of a group stay with it, as torch does."""
        own: dict[str, dict[str, Any]] = {"adam": {"fused": True}, "sgd": {"momentum": self.momentum}}
        options = own.get(self.optimizer, {}) if isinstance(self.optimizer, str) else {}
        make: Any = OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
        made: torch.optim.Optimizer = make(groups, lr=self.lr, **options)
        return made

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return MAPRun(self, model, plan, streams, init)


class MAPRun(Run):
    """Descent of U / N; what the methods that begin with a point estimate share."""

    def __init__(self, method: MAP, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None) -> None:
        super().__init__(model, plan, streams)
        if init is not None:
            model.load_state(init.last())
        # A Normal prior enters as L2 weight decay, added to the gradient. What a user's own optimizer makes of weight
        # decay is not known (AdamW's moves the mode): there the prior is part of the loss.
        groups, others = parameter_groups(model, plan.num_data, decay=isinstance(method.optimizer, str))
        self._others = prior_terms(model, others)
        self._optimizer = method.make_optimizer(groups)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._bayesian = list(model.bayesian_parameters().values())
        self.optimizers = [self._optimizer]

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        clear_gradients(self._parameters)
        nll = self.backward(x, y, self._others)
        fill_gradients(self._bayesian)
        self._optimizer.step()
        self.gradient_evaluations += 1
        return nll

    def snapshot(self) -> list[State]:
        return [self.model.state()]

    def finish(self, batches: Any) -> Source:
        return Draws.stack(self.snapshot())
