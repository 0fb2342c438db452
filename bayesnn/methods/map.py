"""The point estimate: maximum a posteriori, the deterministic baseline; with several chains a deep ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bayesnn.errors import positive
from bayesnn.methods.base import (
    Plan,
    Run,
    Schedule,
    check_schedule,
    fill_gradients,
    parameter_groups,
    prior_terms,
)
from bayesnn.methods.descent import Descending, Descent
from bayesnn.model import BayesianModel, State
from bayesnn.rng import Streams
from bayesnn.source import Draws, Source


@dataclass(frozen=True)
class MAP(Descending):
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
    clip_grad_norm : C: where the gradient of U / N = -log p(w, D) / N, the prior's part included, has a norm over all
        weights of more than C, it is scaled to C (``torch.nn.utils.clip_grad_norm_``). The share of such steps is
        ``clipped`` in the history: minibatch gradients that are clipped to the end move the optimum. None: never.
    """

    compiles = True

    @property
    def vectorizes(self) -> bool:
        """An optimizer of the user's own may join the weights of a tensor, and the norm of a gradient joins all."""
        return isinstance(self.optimizer, str) and self.clip_grad_norm is None

    lr: float = 1e-3
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        check_schedule(self.schedule)
        self.check_descent()

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return MAPRun(self, model, plan, streams, init)


class MAPRun(Run):
    """Descent of U / N; what the methods that begin with a point estimate share."""

    def __init__(self, method: MAP, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None) -> None:
        super().__init__(model, plan, streams)
        if init is not None:
            model.load_state(init.last())
        # A Normal prior enters as L2 weight decay, added to the gradient. What a user's own optimizer makes of weight
        # decay is not known (AdamW's moves the mode), and what is clipped has to be the whole gradient: there the prior
        # is part of the loss.
        decay = isinstance(method.optimizer, str) and method.clip_grad_norm is None
        groups, others = parameter_groups(model, plan.num_data, decay)
        self._others = prior_terms(model, others)
        self._descent = Descent(method, groups, method.lr)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._bayesian = list(model.bayesian_parameters().values())
        self.optimizers = [self._descent.optimizer]

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        nll = self.backward(x, y, self._others, clear=self._parameters)
        fill_gradients(self._bayesian)
        self._descent.step()
        self.gradient_evaluations += 1
        return nll

    def end_epoch(self) -> dict[str, float]:
        return self._descent.end_epoch()

    def weights(self) -> State:
        return self.model.state()

    def snapshot(self) -> list[State]:
        return [self.model.state()]

    def finish(self, batches: Any) -> Source:
        return Draws.stack(self.snapshot())
