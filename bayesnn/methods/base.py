"""The contract between ``fit`` and a method: Method (options) -> Run (one chain's mutable state) -> Source (draws).

``fit`` owns the budget, the batches, the schedules and the chains; a method owns one step. Full-batch methods, coupled
chains and methods that end in a distribution fit the same contract: see the attributes of :class:`Method` and
:meth:`Run.finish`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, PolynomialLR

from bayesnn.errors import unknown
from bayesnn.initial import Initial
from bayesnn.methods.compiled import CompiledLoss
from bayesnn.model import BayesianModel, State
from bayesnn.rng import generator, isolated

if TYPE_CHECKING:
    from bayesnn.data.augment import Augment
    from bayesnn.data.batches import Batches, Loader
    from bayesnn.rng import Streams
    from bayesnn.source import Source

Schedule = str | Callable[[Optimizer, int], LRScheduler] | None

SCHEDULES: dict[str, Callable[[Optimizer, int], LRScheduler] | None] = {
    "constant": None,
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
    "linear": lambda optimizer, steps: LinearLR(optimizer, 1.0, 1e-3, total_iters=steps),
    "sqrt": lambda optimizer, steps: PolynomialLR(optimizer, total_iters=steps, power=0.5),
}


def make_schedule(schedule: Schedule, optimizer: Optimizer, steps: int) -> LRScheduler | None:
    """torch's scheduler of that name over ``steps`` steps, or what the user's own factory gives; None for constant."""
    if callable(schedule):
        return schedule(optimizer, steps)
    factory = SCHEDULES[schedule or "constant"]
    return factory(optimizer, steps) if factory else None


def check_schedule(schedule: Schedule) -> None:
    """Raise unless ``schedule`` is a known name or a factory."""
    if schedule is not None and not callable(schedule) and schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)


def evenly(room: Sequence[int], draws: int, thin: int | None) -> Sequence[int]:
    """The steps of ``room`` after which a draw is kept: every ``thin``-th, or ``draws`` of them; the last is one."""
    gap = thin if thin is not None else max(1, len(room) // draws)
    count = min(len(room) // gap, draws if thin is None else len(room))
    return room[len(room) - 1 - gap * (count - 1) :: gap] if count else room[:0]


@dataclass(frozen=True)
class Plan:
    """What is known before the first step.

    Attributes
    ----------
    num_data : N, by which the likelihood is scaled: the rows of the training part, or what the user says.
    batch_size : rows a step, at most; those of a loader's first minibatch.
    epochs, steps_per_epoch : the budget.
    chains : number of chains.
    random_net : whether the net in train mode draws random numbers of its own (dropout, wherever it is called).
    initial : rule of the fresh weights that the chains start from, see :func:`bayesnn.initial.initialise`; None where
        they go on from others.
    independent : whether rows are drawn with replacement, ``order="iid"``: a batch of N rows is then not all of them.
    short_last : whether the last minibatch of an epoch is what the others have left, as a loader's is.
    compile : whether the gradient is compiled.
    out_shape : shape of the net's outputs for one input.
    rows : of the training part, where ``num_data`` is another number; 0 where it is theirs.
    augment : (x, generator) -> x, what the inputs of each minibatch go through before a step.
    """

    num_data: int
    batch_size: int
    epochs: int
    steps_per_epoch: int
    chains: int
    random_net: bool = False
    independent: bool = False
    short_last: bool = False
    compile: bool = False
    out_shape: tuple[int, ...] = ()
    initial: Initial | None = None
    rows: int = 0
    augment: Augment | None = None

    @property
    def steps(self) -> int:
        """Steps of one chain."""
        return self.epochs * self.steps_per_epoch

    @property
    def rows_a_step(self) -> float:
        """B, rows of a minibatch in the harmonic mean over an epoch: the variance of a mean over one goes by 1 / B."""
        rows = self.rows or self.num_data
        if self.independent:
            return self.batch_size
        if not self.short_last:
            return rows / self.steps_per_epoch
        rest = rows - (whole := self.steps_per_epoch - 1) * self.batch_size
        short = 0 < rest < self.batch_size  # else the loader drops it, or tells of another epoch
        return (whole + 1) / (whole / self.batch_size + 1 / rest) if short else self.batch_size

    @property
    def fresh(self) -> bool:
        """Whether the chains start from fresh initial weights."""
        return self.initial is not None

    @property
    def unseen(self) -> float:
        """Variance of the mean over a minibatch in units of that with replacement, (N - B) / (N - 1): 0 of all rows.

        With transforms at random it is at most 1, and of all rows no longer 0: 1 is on the safe side.
        """
        rows, independent = self.rows or self.num_data, self.independent or self.augment is not None
        return 1.0 if independent else max(rows - self.rows_a_step, 0) / max(rows - 1, 1)


class Method(ABC):
    """Options of one algorithm, a frozen dataclass: what the user passes to ``fit``.

    Attributes
    ----------
    access : ``"minibatch"``, or ``"full"`` when every step needs all rows.
    full_passes : True when the method walks over all rows beside its steps, and so needs them in memory.
    coupled : True when the chains interact and one Run holds them all.
    default_chains, default_steps : what ``fit`` takes when the user says nothing.
    infers_precisions : True when the method can infer the precisions of hierarchical priors.
    weighs_rows : False when rows drawn unevenly, ``fit(..., sampling=)``, would change what the method gives.
    """

    access: ClassVar[Literal["minibatch", "full"]] = "minibatch"
    full_passes: bool = False
    coupled: ClassVar[bool] = False
    default_chains: ClassVar[int] = 1
    default_steps: ClassVar[int] = 4000
    is_sampler: ClassVar[bool] = False
    infers_precisions: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = True
    schedule: Schedule = "constant"

    def __new__(cls, *values: Any, **options: Any) -> Self:
        """Say why a sampler does not clip: Python itself would say no more than that it knows no such option."""
        if cls.is_sampler and "clip_grad_norm" in options:
            raise ValueError(
                f"Expected no clip_grad_norm for {cls.__name__}, got {options['clip_grad_norm']!r}: a chain of clipped "
                "drift has another stationary law; lower lr, or start from a fit of MAP(clip_grad_norm=), init=."
            )
        return super().__new__(cls)

    @property
    def compiles(self) -> bool:
        """Whether the method can take compiled gradients."""
        return False

    @property
    def vectorizes(self) -> bool:
        """Whether chains can run as one: the method does to each weight the same, whichever net's it is."""
        return False

    def check(self, model: BayesianModel, plan: Plan) -> None:
        """Refuse early what this method cannot do with this model and budget."""

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        """Bytes that the result of one chain will hold."""
        return sum(tensor.nbytes for tensor in model.state().values())

    @abstractmethod
    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        """A chain's Run. ``model`` is the chain's own copy; ``init`` is a chain of a posterior to go on from."""

    def make_schedule(self, optimizer: Optimizer, steps: int) -> LRScheduler | None:
        """The schedule of one of a run's optimizers over ``steps`` steps."""
        return make_schedule(self.schedule, optimizer, steps)

    def config(self) -> dict[str, Any]:
        """The options as JSON; a callable is written by its name."""
        options: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {
            "kind": type(self).__name__,
            **{key: repr(value) if callable(value) else _plain(value) for key, value in options.items()},
        }


def _plain(value: Any) -> Any:
    """A numpy number as Python's own, which JSON takes."""
    return value.item() if hasattr(value, "item") else value


class Run(ABC):
    """One chain: the model's copy, the optimizers and all other mutable state.

    Attributes
    ----------
    optimizers : whose learning rates ``fit`` schedules; none where a step has no learning rate.
    schedule_from : steps before the schedules begin, in which other optimizers are at work.
    schedulers : those schedules, once ``fit`` has made them.
    gradient_evaluations : gradients taken, in units of one minibatch gradient.
    minibatch_noise : of a sampler, the noise of a minibatch as a share of the noise injected, in the mean over weights;
        None where not measured.
    """

    optimizers: Sequence[Optimizer]
    schedule_from: int = 0
    gradient_evaluations: int = 0
    minibatch_noise: float | None = None

    def __init__(self, model: BayesianModel, plan: Plan, streams: Streams) -> None:
        self.model, self.plan, self.streams = model, plan, streams
        self.schedulers: list[LRScheduler] = []
        self._compiled_loss: CompiledLoss | None = None
        model.train()

    def begin_epoch(self, epoch: int, batches: Batches | Loader) -> None:
        """Called before the first step of each epoch, with the data: anchors, cycles, Gibbs steps."""

    @abstractmethod
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on a minibatch; its mean negative log likelihood (nats), shape (), or (chains,) of several."""

    def backward(
        self,
        x: Tensor,
        y: Tensor,
        terms: PriorTerms,
        weight: float = 1.0,
        share: float = 1.0,
        once: bool = False,
        clear: Iterable[Tensor] = (),
    ) -> Tensor:
        """Add to each parameter's gradient that of ``share * (L + weight * prior_loss(terms, N))``.

        Parameters in ``clear`` lose the gradient that they had. Between the two passes: were it before the first, when
        nothing lies behind it in memory, the allocator would give all of that back to the system, and ask for it anew.

        L is the mean negative log likelihood of the minibatch, which is returned, shape (); of nets side by side it is
        the sum of theirs, and what is returned has one for each. The pass is compiled where the plan says so, but not
        one of a number of rows that comes ``once``: it would be compiled for itself.
        """
        if self.plan.compile and not once:
            clear_gradients(clear)
            self._compiled_loss = self._compiled_loss or CompiledLoss(self.model)
            return self._compiled_loss.backward(x, y, terms, weight / self.plan.num_data, share)
        nll = self.model.mean_nll(x, y)
        loss = (nll.sum() if nll.dim() else nll) + weight * prior_loss(terms, self.plan.num_data)
        clear_gradients(clear)
        (loss if share == 1 else share * loss).backward()
        return nll.detach()

    def peek(self, batches: Batches | Loader, count: int) -> list[tuple[Tensor, Tensor]]:
        """The first ``count`` minibatches of ``batches.peek()``, as a step sees them, on streams of their own.

        To be called before the epoch's own iterator opens: a second one beside it would restart a user's loader.
        """
        found: list[tuple[Tensor, Tensor]] = []
        with isolated(generator(0)):
            for rows in islice(batches.peek(), count):
                x, y = self.model.place(*rows)
                if self.plan.augment is not None:
                    x = self.plan.augment(x, generator(0, len(found), device=x.device))
                found.append((x, y))
        return found

    def draw(self) -> list[State]:
        """Draws to keep after this step; [] while there is nothing to keep."""
        return []

    def statistics(self) -> dict[str, float]:
        """Numbers that belong to the draws which :meth:`draw` has just given: see ``Posterior.sample_stats``."""
        return {}

    def end_epoch(self) -> dict[str, float]:
        """Metrics of the epoch that cost too much for every step, for the history."""
        return {}

    @abstractmethod
    def snapshot(self) -> list[State]:
        """States whose mixture is the present answer: for validation, and for what an interrupted run returns."""

    def weights(self) -> State:
        """Weights at which to look at gradients: one state of the present answer, at no cost to the run's streams."""
        return self.snapshot()[0]

    def finish(self, batches: Batches | Loader) -> Source | None:
        """The distribution that the run ends in, or None when the draws kept are the result.

        ``batches`` are those of the run, for a last pass over the data.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """The chain's present state, in copies: what going back to it needs."""
        return {
            "model": copy.deepcopy(self.model.state_dict()),  # a module may keep more in it than tensors
            "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in self.optimizers],
            "streams": self.streams.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(copy.deepcopy(saved))  # which takes tensors as they are: steps would change them
        self.streams.load_state_dict(state["streams"])


def split_normal(model: BayesianModel) -> tuple[dict[str, tuple[Tensor, Tensor]], list[str]]:
    """Which priors are Normal, as name -> (mean, precision), each of shape () where it is one number; and the others.

    A Normal prior's gradient is (w - m) / s^2: the KL of a Normal guide to it is closed, and with m = 0 the optimizers
    add it as weight decay. The gradient of every other prior comes from its own density.
    """
    normal: dict[str, tuple[Tensor, Tensor]] = {}
    others: list[str] = []
    for name, prior in model.log_priors.items():
        base = prior.base_dist if isinstance(prior, torch.distributions.Independent) else prior
        if isinstance(base, torch.distributions.Normal):
            normal[name] = (_one_number(base.loc), _one_number(base.scale).pow(-2))
        else:
            others.append(name)
    return normal, others


def _one_number(value: Tensor) -> Tensor:
    first = value.flatten()[0]
    return first if bool((value == first).all()) else value


def parameter_groups(model: BayesianModel, num_data: int, decay: bool = True) -> tuple[list[dict[str, Any]], list[str]]:
    """Optimizer groups with ``weight_decay = 1 / (N s^2)`` for Normal(0, s^2) priors, and the names of the rest.

    The loss that goes with them is the mean negative log likelihood plus :func:`prior_loss` of the rest. Parameters
    without a prior form a group of their own, marked ``deterministic``; one whose prior's precision is inferred has a
    group, marked ``hierarchical`` with its name, whose weight decay follows it. With ``decay=False`` every weight decay
    is 0 and all priors are left to the loss.
    """
    parameters = dict(model.named_parameters())
    normal, _ = split_normal(model)
    decays = {
        name: float(precision) / num_data
        for name, (loc, precision) in normal.items()
        if decay and loc.dim() == 0 and precision.dim() == 0 and float(loc) == 0
    }
    by_decay: dict[float, list[nn.Parameter]] = {}
    for name in model.log_priors:
        if name not in model.hyperpriors:
            by_decay.setdefault(decays.get(name, 0.0), []).append(parameters[name])
    groups: list[dict[str, Any]] = [{"params": members, "weight_decay": wd} for wd, members in by_decay.items()]
    groups += [
        {"params": [parameters[name]], "weight_decay": decays[name], "hierarchical": name} for name in model.hyperpriors
    ]
    if model.deterministic:
        free = [parameters[name] for name in model.deterministic]
        groups.append({"params": free, "weight_decay": 0.0, "deterministic": True})
    return groups, [name for name in model.log_priors if name not in decays]


PriorTerms = list[tuple[Any, nn.Parameter]]


def prior_terms(model: BayesianModel, names: Sequence[str]) -> PriorTerms:
    """(prior, parameter) of the names, found once and not at every step."""
    parameters = model.bayesian_parameters()
    return [(model.log_priors[name], parameters[name]) for name in names]


def prior_loss(terms: PriorTerms, num_data: int) -> Tensor | float:
    """-log p(w) / N of the terms: on the scale of the loss averaged over rows."""
    return -torch.stack([prior.log_prob(p) for prior, p in terms]).sum() / num_data if terms else 0.0


def fill_gradients(parameters: Iterable[Tensor]) -> None:
    """Zero gradients for the weights that the loss did not reach: their prior and their noise act all the same."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def clear_gradients(parameters: Iterable[Tensor]) -> None:
    """``zero_grad`` without its profiling hooks, which in small nets cost as much as a layer."""
    for parameter in parameters:
        parameter.grad = None


def refuse_dropout(plan: Plan, method: Method) -> None:
    """Raise when the net drops units at random: the likelihood would be random, and not the one that was stated."""
    if plan.random_net:
        raise ValueError(
            f"Expected a net without dropout for {type(method).__name__}, got one whose outputs in train mode are "
            "random: build the net with dropout=0, or use MAP."
        )


def refuse_running_statistics(model: BayesianModel, method: Method) -> None:
    """Raise when training moves buffers of the net: the weights' distribution would say nothing of them."""
    if model.moving:
        name = min(model.moving).removeprefix("net.").rpartition(".")[0]
        raise ValueError(
            f"Expected a net without running statistics for {type(method).__name__}, got {name!r}: they belong to no "
            "draw of the weights; use GroupNorm or LayerNorm, or SGLD, which re-estimates them."
        )
