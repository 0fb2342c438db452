"""One chain: a method's Run through all its epochs, on minibatches, with schedules, validation and early stopping."""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bayesnn.data.batches import Batches, Loader
from bayesnn.data.weighted import WeightedBatches
from bayesnn.gradients import GradientWatch
from bayesnn.kept import Kept, is_finite
from bayesnn.methods import Method, Plan, Run
from bayesnn.model import State
from bayesnn.prepare import Task, check_numbers, constant, try_net
from bayesnn.progress import Progress
from bayesnn.rng import isolated
from bayesnn.source import Draws, Source
from bayesnn.stopping import EarlyStopping
from bayesnn.validation import score

MOST_RECORDS = 500


class Chain:
    """One Run through all its epochs, with what it leaves behind.

    Attributes
    ----------
    numbers : of the chain, or of the chains that the Run holds (:mod:`bayesnn.together`).
    keeps : the draws of each.
    statistics : of each, a row to each of its draws as they were made.
    diverged : which of them have, and ``diverged_at`` the step.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        run: Run,
        plan: Plan,
        task: Task,
        stopping: EarlyStopping | None,
        bar: Progress,
        keeps: Sequence[Kept],
        watch: GradientWatch | None = None,
    ) -> None:
        self.numbers, self.state, self.plan, self.task, self.bar = numbers, run, plan, task, bar
        self.stopping = stopping
        self.keeps, self.watch = keeps, watch
        self.statistics: list[list[dict[str, float]]] = [[] for _ in numbers]
        self.diverged: list[int] = []
        self.history: list[dict[str, Any]] = []
        self.diverged_at: int | None = None
        self._finishing = False
        self._best: tuple[float, int, dict[str, Any]] | None = None
        self.steps = 0
        self._short = False
        # Of the last step, with the weights of rows drawn unevenly, which the model forgets when the epoch ends.
        self._rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None
        self._late = _reads_late(next(run.model.parameters()).device)
        self._shapes = {task.row_shape: task.out_shape}  # of inputs, and of the net's outputs for them

    def run(self, batches: Batches | Loader, method: Method) -> None:
        """All epochs, until the budget, the patience or a NaN ends them."""
        steps = self.plan.steps - self.state.schedule_from
        schedulers = [method.make_schedule(optimizer, steps) for optimizer in self.state.optimizers]
        self.state.schedulers = [scheduler for scheduler in schedulers if scheduler is not None]
        for block in _blocks(self.plan.epochs):
            began = time.perf_counter()
            with isolated(self.state.streams.fence):
                for epoch in block:
                    loss = self._epoch(epoch, batches)
                    if self.diverged_at is not None:
                        break
            if self.diverged_at is not None:
                beside = " (and the others with it)" if len(self.numbers) > 1 else ""
                warnings.warn(
                    f"Chain {self.diverged[0]} stopped{beside}: its loss became NaN or infinite at step "
                    f"{self.diverged_at}; {len(self.keeps[0])} draws are kept. {calmer(method).capitalize()}.",
                    stacklevel=3,
                )
                return
            self._record(block[-1], loss, (time.perf_counter() - began) / len(block))
            if self._exhausted(block[-1]):
                break
        if self.watch is not None:
            self.watch.judge(self.history[-1]["epoch"])

    def _epoch(self, epoch: int, batches: Batches | Loader) -> float:
        run, total, count = self.state, 0.0, 0
        losses: deque[torch.Tensor] = deque()
        run.begin_epoch(epoch, batches)
        for x, y in self._placed(batches):
            losses.append(run.step(x, y))
            self._rows = x, y, run.model.row_weights
            self.steps += 1
            if len(losses) > self._late:
                value = self._read(losses)
                if not math.isfinite(value):
                    return value
                total += value
            self._keep(run.draw())
            if self.steps > run.schedule_from:
                for scheduler in run.schedulers:
                    scheduler.step()
            count += 1
        while losses:
            value = self._read(losses)
            if not math.isfinite(value):
                return value
            total += value
        if count < self.plan.steps_per_epoch and not self._short:
            self._short = True
            warnings.warn(
                f"Expected {self.plan.steps_per_epoch} minibatches in epoch {epoch}, got {count}: the loader ended "
                "early.",
                stacklevel=4,
            )
        return total / max(count, 1)

    def _read(self, losses: deque[torch.Tensor]) -> float:
        """The oldest of these losses; where it is no number the chain ends."""
        value = self._value(losses.popleft())
        if math.isfinite(value):
            self.bar.step(value, len(self.numbers))
        else:
            self.diverged_at = self.steps - len(losses)
            self._drop_broken()
        return value

    def _value(self, loss: torch.Tensor) -> float:
        value = float(loss)
        if not math.isfinite(value):
            self.diverged = [self.numbers[0]]
        return value

    def _keep(self, states: Sequence[State]) -> None:
        if states:
            self.keeps[0].extend(states)
            self.statistics[0] += [self.state.statistics()] * len(states)

    def _drop_broken(self) -> None:
        for kept in self.keeps:
            kept.drop_broken()

    def _placed(self, batches: Batches | Loader) -> Any:
        rows: Any = batches
        if isinstance(batches, WeightedBatches):
            rows = self._weighted(batches)
        elif not isinstance(batches, Batches):
            rows = (self._checked(x, y) for x, y in batches)
        return rows if self.plan.augment is None else ((self._augmented(x), y) for x, y in rows)

    def _augmented(self, x: torch.Tensor) -> torch.Tensor:
        assert self.plan.augment is not None
        return self.plan.augment(x, self.state.streams.augment)

    def _weighted(self, batches: WeightedBatches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Minibatches of rows drawn unevenly; while a step is made of one, the model knows its rows' weights."""
        model = self.state.model
        dtype = next(model.parameters()).dtype
        try:
            for x, y, weights in batches.weighted():
                model.row_weights = weights.to(dtype)
                yield x, y
        finally:
            model.row_weights = None

    def _checked(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A minibatch of a user's loader: what data in memory are held to before the run, one batch at a time.

        It is checked where the loader made it: on a GPU each check would be a wait.
        """
        model = self.state.model
        x, y = model.place(constant(x), constant(y), device=x.device)
        check_numbers(x, y, f" in minibatch {self.steps + 1}")
        if tuple(x.shape[1:]) not in self._shapes:  # sequences may differ in length from one minibatch to the next
            try:
                out_shape = tuple(try_net(model, x[:2]).shape[1:])
            except ValueError as error:
                raise ValueError(f"In minibatch {self.steps + 1}: {error}") from error
            self._shapes[tuple(x.shape[1:])] = out_shape
        x, y = model.place(x, model.likelihood.targets_for(y, self._shapes[tuple(x.shape[1:])]))
        return x, y

    def _record(self, epoch: int, loss: float, seconds: float) -> None:
        run, validation = self.state, self.task.validation
        row = {"chain": self.numbers[0], "epoch": epoch, "loss": loss, **self._measured(seconds)}
        if validation is not None:
            row |= in_own_units(loss, self.task)
            row |= score(run.model, run.snapshot(), validation, self.task.target, self.stopping)
        if self.watch is not None and self._rows is not None:
            row |= self.watch.look(run, *self._rows, self.steps, epoch)
        self.history.append(row)
        self.bar.epoch(row)

    def _measured(self, seconds: float) -> dict[str, Any]:
        """What the Run says of its epoch, and how long it took."""
        row: dict[str, Any] = dict(self.state.end_epoch())
        if self.state.optimizers:
            row["lr"] = self.state.optimizers[0].param_groups[0]["lr"]
        return {**row, "seconds": seconds}

    def _exhausted(self, epoch: int) -> bool:
        if self.stopping is None:
            return False
        value = self.history[-1][self.stopping.column]
        if self.stopping.improves(value, self._best[0] if self._best is not None else None):
            self._best = (value, epoch, self.state.state_dict())
        if self.stopping.patience is None:
            return False
        return epoch - (self._best[1] if self._best is not None else -1) >= self.stopping.patience

    @property
    def best(self) -> dict[str, Any] | None:
        """Chain, epoch and score that early stopping went back to."""
        if self.stopping is None or self._best is None:
            return None
        return {"chain": self.numbers[0], "epoch": self._best[1], self.stopping.column: self._best[0]}

    def results(self, batches: Batches | Loader) -> list[Source | None]:
        """Each chain's source: the distribution it ends in, or its draws; None where a NaN left nothing."""
        self._finishing = True
        self._drop_broken()
        if self._best is not None:
            self.state.load_state_dict(self._best[2])
        elif self.diverged_at is not None:
            return self._kept()
        with isolated(self.state.streams.fence):
            source = self.state.finish(batches)
        if source is not None:
            sources: Sequence[Source | None] = self._divided(source)
        elif any(map(len, self.keeps)):
            sources = self._kept()
        else:
            sources = self._divided(Draws.stack(self.state.snapshot()))
        return [self._whole(*each) for each in zip(self.numbers, self.keeps, sources, strict=True)]

    def _divided(self, source: Source) -> Sequence[Source]:
        """Each chain's part of what the Run ends in."""
        return [source]

    def _kept(self) -> list[Source | None]:
        return [kept.source() for kept in self.keeps]

    def _whole(self, number: int, kept: Kept, source: Source | None) -> Source | None:
        if source is not None and is_finite(source.last()):
            return kept.hold(source)
        self.diverged_at = self.steps  # the very last step broke it: no loss came after to show it
        self.diverged.append(number)
        return None

    def rescue(self, batches: Batches | Loader, error: BaseException, alone: bool) -> list[Source | None]:
        """What ``error`` leaves: the draws kept; after Ctrl-C, where no chain is whole (``alone``), the present state.

        Half trained or still burning in, a chain beside whole ones leaves nothing: they are the answer.
        """
        try:
            kept = any(map(len, self.keeps))
            if not self._finishing and (kept or (alone and isinstance(error, KeyboardInterrupt))):
                return self.results(batches)
        except (Exception, KeyboardInterrupt):  # it failed a second time; what is kept needs no more work
            pass
        self._drop_broken()
        return self._kept()


def in_own_units(loss: float, task: Task) -> dict[str, float]:
    """Of standardised targets the mean loss as the validation part's is, a density in their own units."""
    if task.target is None or task.validation is None:
        return {}
    log_std = task.target.std.double().log()
    shape = torch.broadcast_shapes(log_std.shape, task.validation.y.shape[1:])
    return {"train_nll": loss + float(log_std.expand(shape).sum())}


def _reads_late(device: torch.device) -> bool:
    """Whether to read each loss one step late: a GPU has work waiting, and who reads at once waits until it is done."""
    return device.type != "cpu"


def _blocks(epochs: int) -> Iterator[range]:
    """Epochs in at most MOST_RECORDS blocks, each of which ends in a row of the history.

    Where an epoch is one step of a tiny net, validating and recording every one would cost more than the steps.
    """
    size = -(-epochs // MOST_RECORDS)
    return (range(start, min(start + size, epochs)) for start in range(0, epochs, size))


def calmer(method: Method) -> str:
    """What to do about a loss that became NaN."""
    if not hasattr(method, "lr"):
        return "start from a posterior (init=), or standardise the data"
    return "lower lr" if method.lr is None else f"lower lr (now {method.lr})"
