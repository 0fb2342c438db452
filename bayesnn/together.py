"""Chains that run as one: nets of one form side by side, whose gradients are taken at once.

K chains with a step in common are one chain of the net that holds all K: its log joint is the sum of theirs, and no
term joins two of them. What a sampler or an optimizer does to each weight it does to the weights of all K.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from bayesnn.chain import Chain, in_own_units
from bayesnn.data.augment import Augment
from bayesnn.data.batches import Batches, Loader
from bayesnn.errors import first_line
from bayesnn.kept import Kept
from bayesnn.methods import Method, Plan, Run
from bayesnn.methods.compiled import AsModule
from bayesnn.model import BayesianModel, State
from bayesnn.prepare import Task
from bayesnn.progress import Progress
from bayesnn.rng import Streams
from bayesnn.source import Draws, Source
from bayesnn.validation import score


class SideBySide(BayesianModel):
    """The trainable parameters of K models of one form, each with an axis of K in front; the rest is the first's.

    A minibatch has rows and nets for its first two axes: x (batch, K, ...) and y (batch, K, ...).
    """

    def __init__(self, models: Sequence[BayesianModel]) -> None:
        first = models[0]
        part = first.part

        def chosen(name: str, *_: object) -> bool:
            return part is None or name in part

        super().__init__(copy.deepcopy(first.net), first.prior, copy.deepcopy(first.likelihood), chosen)
        self.autocast, self.log_priors = first.autocast, first.log_priors
        # In a tuple it is no part of this module: its parameters are none of ours.
        self._form = first, AsModule(first, "log_likelihood")
        each = [dict(model.named_parameters()) for model in models]
        self._names = [name for name, p in self.named_parameters() if p.requires_grad]
        for name, p in self.named_parameters():
            if p.requires_grad:
                p.data = torch.stack([own[name].detach() for own in each])
        self.train()  # frozen parts of the form as well

    def train(self, mode: bool = True) -> SideBySide:
        super().train(mode)
        self.one.train(mode)
        return self

    @property
    def one(self) -> BayesianModel:
        """The first of the models, whose form the others have."""
        return self._form[0]

    def each(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y_i | x_i, w_k) of each row under each net, (K, batch)."""
        _, form = self._form
        self.one.autocast = self.autocast
        own = dict(self.named_parameters())
        weights = {f"model.{name}": own[name] for name in self._names}
        found: Tensor = vmap(lambda w, x, y: functional_call(form, w, (x, y)), (0, 1, 1))(weights, x, y)
        return found

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each row of the minibatch, the sum over the nets, each of which has a row of its own there; (batch,)."""
        return self.each(x, y).sum(0)

    def mean_nll(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each net, (K,)."""
        return -self.each(x, y).mean(1)

    def try_on(self, x: Tensor, y: Tensor) -> None:
        """Raise unless the net can be mapped over; ``x`` and ``y`` are a few rows without the axis of nets."""
        K = len(next(p for p in self.parameters() if p.requires_grad))
        rows = [v.unsqueeze(1).expand(-1, K, *v.shape[1:]) for v in (x, y)]
        try:
            with torch.no_grad():
                self.each(*rows)
        except Exception as error:  # vmap has an error of its own kind for each thing that it cannot do
            raise ValueError(
                f"Expected a net that torch.func.vmap can take for vectorize=True, got: {first_line(error)}: leave "
                "vectorize=True out."
            ) from error


class BatchesSideBySide(Batches):
    """The minibatches of K chains, each in an order of its own, as rows (batch, K, ...)."""

    def __init__(self, batches: Sequence[Batches]) -> None:
        first = batches[0]
        super().__init__(first.x, first.y, first.batch_size, first.order, first.generator, first.device)
        self._each = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.in_order:
            yield from self.all_rows()
            return
        for rows in zip(*(batches.indices() for batches in self._each), strict=True):
            x, y = self._rows(torch.stack(rows, 1).flatten())
            yield x.unflatten(0, (-1, len(rows))), y.unflatten(0, (-1, len(rows)))

    def peek(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from map(self._for_all, super().peek())

    def all_rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from map(self._for_all, super().all_rows())

    def _for_all(self, rows: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The same rows for every chain, uncopied."""
        x, y = (v.unsqueeze(1).expand(-1, len(self._each), *v.shape[1:]) for v in rows)
        return x, y


@dataclass(frozen=True)
class OfAll:
    """A transform of the images (batch, K, ...) of all chains at once, each its own draw."""

    augment: Augment

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.augment(x.flatten(0, 1), generator).view_as(x)


OF_ALL = ("gradient_norm", "kinetic_temperature")


class ChainsTogether(Chain):
    """K chains with one Run, on a model :class:`SideBySide`; one that diverges ends the others with it."""

    def __init__(self, run: Run, plan: Plan, task: Task, bar: Progress, keeps: Sequence[Kept]) -> None:
        super().__init__(range(len(keeps)), run, plan, task, None, bar, keeps)
        assert isinstance(run.model, SideBySide)
        self._one = run.model.one
        self._losses, self._count = torch.zeros(len(keeps), dtype=torch.float64), 0

    def _value(self, loss: Tensor) -> float:
        each = loss.to("cpu", torch.float64)
        mean = float(each.mean())
        if not math.isfinite(mean):
            self.diverged = (~torch.isfinite(each)).nonzero().flatten().tolist()
        self._losses += each
        self._count += 1
        return mean

    def _keep(self, states: Sequence[State]) -> None:
        for state in states:
            for kept, own in zip(self.keeps, split(state), strict=True):
                kept.extend([own])
        if states:
            # What is measured of all chains' weights together is none of one chain's.
            row = {name: value for name, value in self.state.statistics().items() if name not in OF_ALL}
            for rows in self.statistics:
                rows += [row] * len(states)

    def _record(self, epoch: int, loss: float, seconds: float) -> None:
        """A row for each chain, with its share of the seconds; what the Run measures is of all together."""
        run, validation = self.state, self.task.validation
        measured, means = self._measured(seconds / len(self.keeps)), (self._losses / self._count).tolist()
        states = [split(state) for state in run.snapshot()] if validation is not None else []
        for chain in self.numbers:
            row = {"chain": chain, "epoch": epoch, "loss": means[chain], **measured}
            if validation is not None:
                row |= in_own_units(means[chain], self.task)
                row |= score(self._one, [each[chain] for each in states], validation, self.task.target)
            self.history.append(row)
        self.bar.epoch(row)
        self._losses, self._count = torch.zeros_like(self._losses), 0

    def _divided(self, source: Source) -> Sequence[Source]:
        assert isinstance(source, Draws)
        draws = [split(state) for state in source.states(None, torch.Generator())]
        return [Draws.stack([draw[chain] for draw in draws]) for chain in self.numbers]


def begin_together(
    method: Method,
    models: Sequence[BayesianModel],
    starts: Sequence[Source | None],
    plan: Plan,
    task: Task,
    streams: Streams,
    bar: Progress,
    keeps: Sequence[Kept],
    batches: Sequence[Batches | Loader],
) -> tuple[ChainsTogether, BatchesSideBySide]:
    """Chains that begin as these models do, or where ``starts`` end, with the minibatches of each.

    Raises
    ------
    ValueError : torch.func.vmap cannot take the net.
    """
    for model, start in zip(models, starts, strict=True):
        if start is not None:
            model.load_state(start.last())
    together = SideBySide(models)
    assert task.x is not None
    assert task.y is not None
    together.try_on(*models[0].place(task.x[:2], task.y[:2]))
    goes_on = None if starts[0] is None else Draws.stack([together.state()])
    if plan.augment is not None:
        plan = replace(plan, augment=OfAll(plan.augment))
    run = method.start(together, plan, streams, goes_on)
    own = [each for each in batches if isinstance(each, Batches)]
    return ChainsTogether(run, plan, task, bar, keeps), BatchesSideBySide(own)


def split(state: State) -> list[State]:
    """The states of K nets from that of :class:`SideBySide`."""
    each = {name: value.unbind() for name, value in state.items()}
    return [{name: values[k] for name, values in each.items()} for k in range(len(next(iter(each.values()))))]
