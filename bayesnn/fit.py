"""``fit``: what the user calls. It checks, plans, runs the chains one after another, and loses nothing of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from bayesnn.chain import Chain, calmer
from bayesnn.data.augment import Augment, in_units
from bayesnn.data.batches import Batches, Loader, Order
from bayesnn.errors import DivergedError, at_least, first_line, unknown
from bayesnn.gradients import GradientWatch
from bayesnn.history import History
from bayesnn.initial import FRESH, Initial, initialise
from bayesnn.kept import Kept
from bayesnn.methods import MAP, METHODS, Method, Plan
from bayesnn.model import BayesianModel
from bayesnn.posterior import Posterior
from bayesnn.prepare import Task, constant, prepare
from bayesnn.progress import Progress
from bayesnn.rng import Streams
from bayesnn.source import Source
from bayesnn.stopping import EarlyStopping
from bayesnn.storage import Store
from bayesnn.together import begin_together

DEFAULT_BATCH = 64
NOISE_LOUD = 0.2  # share of minibatches in a sampler's noise above which the user is told


def fit(
    model: BayesianModel,
    data: Any,
    method: Method | type[Method] | str | None = None,
    *,
    epochs: int | None = None,
    batch_size: int | None = DEFAULT_BATCH,
    chains: int | None = None,
    seed: int = 0,
    validation: Any = None,
    early_stopping: int | EarlyStopping | None = None,
    init: Posterior | str | Callable[[torch.nn.Module], Any] = "fresh",
    order: Order = "reshuffle",
    sampling: Literal["balanced"] | Sequence[float] | torch.Tensor | None = None,
    num_data: int | None = None,
    augment: Augment | None = None,
    device: torch.device | str | None = None,
    compile: bool = False,
    vectorize: bool = False,
    precision: Literal["full", "bf16"] = "full",
    store: str | Path | None = None,
    progress: bool = True,
) -> Posterior:
    """Fit the posterior of ``model`` to ``data``.

    Parameters
    ----------
    model : net, prior and likelihood. It is not changed: every chain works on a copy.
    data : :class:`bayesnn.data.Data`, a pair (x, y) of tensors or arrays, or an iterable of minibatches (x, y) such as
        a ``DataLoader``. Where the data carry a ``target`` transform, the net is fitted to standardised targets and all
        predictions are given back in the targets' own units.
    method : what to fit: ``MAP()`` (the default), ``MeanFieldVI()``, ``SGLD()``, ... or the name of one.
    epochs : passes over the data; by default as many as give the method's default number of steps.
    batch_size : rows a step, at most: an epoch is divided evenly. None, or more than there are, takes all of them:
        exact gradients. A loader has its own.
    chains : independent chains, each with its own initial weights, noise and order of the data; the method's default
        otherwise (4 for samplers, 1 else). ``MAP()`` with ``chains=5`` is a deep ensemble.
    seed : of everything random. On the CPU the same seed gives the same bits (for the same number of threads), and a
        chain's draws do not depend on how many other chains there are.
    validation : (x, y), Data, or a share of the rows of ``data`` to hold out. Scored after each epoch
        (of more than 500 epochs: after 500 of them, evenly spaced) into the history.
    early_stopping : stop when the validation negative log likelihood has not improved for so many epochs, and go back
        to the best one, or by another score: ``EarlyStopping(5, "accuracy")``; ``EarlyStopping(None)`` goes on to the
        end and then back to the best epoch. Which one that was is in ``info["best"]``. Not for samplers.
    init : where the chains start. ``"fresh"``: initial weights drawn anew by each module's ``reset_parameters``; the
        net's present trainable weights are discarded (parameters that no module resets, and frozen ones, keep their
        values). ``"kaiming_normal"``, ``"kaiming_uniform"``, ``"xavier_normal"``, ``"xavier_uniform"``,
        ``"trunc_normal"``, ``"orthogonal"``, ``"prior"``, or a function ``(net) -> None``: fresh ones by that rule,
        drawn for each chain, see :func:`bayesnn.initial.initialise`. ``"net"``: the net's present weights, for a
        pretrained net. A posterior: its chains go on, with new noise.
    order : ``"reshuffle"`` (each row once an epoch), ``"iid"`` (rows drawn with replacement), ``"sequential"``.
    sampling : rows drawn with replacement and unequal probabilities: ``"balanced"``, every class as often, or a number
        for each row of the training part, to which its probability is proportional. A row drawn with probability pi
        counts 1 / (N pi), so that the posterior is that of the data as they are; what changes is the noise of the
        minibatches. Not for loaders, methods that need all rows, SWAG, ``compile`` and ``vectorize``.
    num_data : N, by which the mean log likelihood of the rows is multiplied: their number, unless a loader does not
        tell it, or the rows are not so many independent observations (docs/augmentation.md). Not for methods that sum
        over all rows.
    augment : (x, generator) -> x, a random transform such as ``data.Rotation(15)`` that the inputs of each minibatch go
        through, each row with its own draw; never those of the validation part. It sees images that ``data`` says are
        standardised in their own units. Not for methods that sum over all rows.
    device : where to compute: by default where the net is; ``"auto"`` is the GPU where there is one. Data in memory
        move there as a whole where they take at most half of what is free on it; else, and from a loader, by batches.
    compile : compile loss and gradient (torch.compile): the first of a form of net and batch takes seconds, and those
        after it, where net and batch are small, a fraction of their time. Numbers differ from plain ones by rounding.
        Not for MCDropout, SVGD, PyroVI, GibbsLinear and the estimators of MeanFieldVI, nor for nets with dropout or
        running statistics.
    vectorize : run all chains as one, on nets side by side: with ``compile=True`` four chains of a small net take a
        step in the time of one and a half. The chains share one stream of noise, one step size (``lr=None`` keeps to
        the stiffest of them) and SGNHT's thermostats, so that a chain's draws depend on how many there are, and one
        that diverges ends all. For MAP and the samplers with minibatches, data in memory, and nets that torch.func.vmap
        can take; convolutions are slower so on a CPU.
    precision : ``"bf16"`` computes the forward and backward pass of the net in bfloat16 (torch.autocast); weights,
        noise, likelihood and predictions stay float32. It pays on large nets and hardware that has it, and rounds
        gradients to two or three digits. Not for full-batch methods, whose energies need every digit.
    store : an empty directory, or a new one, to which draws are written as they are made, twice a minute or oftener;
        :meth:`bayesnn.Posterior.load` reads it, also after a crash. The posterior reads them from there one at a time,
        so that neither of the two takes memory that grows with the draws. By default they are kept in memory. Where the
        disk is full the run stops, and what could not be written is in memory.
    progress : show a progress bar, and before a long run the expected seconds and bytes.

    Returns
    -------
    Posterior
        After Ctrl-C, or an error in mid-run, what there is so far, with a warning, ``info["interrupted"]`` and, of an
        error, its first line in ``info["error"]``; where no draw is kept and no chain is whole, the error itself (after
        Ctrl-C, the present weights).

    Raises
    ------
    ValueError, TypeError : arguments or data that cannot be; one line that says what was expected.
    DivergedError : the loss of every chain became NaN before a draw was kept.
    """
    if not isinstance(model, BayesianModel):
        raise TypeError(
            f"Expected a BayesianModel, got {_kind(model)}: wrap it, BayesianModel(net, prior, likelihood)."
        )
    method, device = as_method(method), _device(device, model)
    seed = at_least("seed", seed, 0)
    chains = at_least("chains", chains if chains is not None else method.default_chains, 1)
    if batch_size is not None:
        batch_size = at_least("batch_size", batch_size, 1)
    if early_stopping is not None:
        if not isinstance(early_stopping, EarlyStopping):
            early_stopping = EarlyStopping(at_least("early_stopping", early_stopping, 1))
        early_stopping.check(model.likelihood.kind)
        if validation is None:
            raise ValueError("Expected validation= with early_stopping, got none: hold out a share, validation=0.1.")
        if method.is_sampler:
            raise ValueError(f"Expected no early_stopping for {type(method).__name__}: a chain has no best epoch.")
    if order not in get_args(Order):
        raise unknown("order", order, get_args(Order))
    if precision not in ("full", "bf16"):
        raise unknown("precision", precision, ("full", "bf16"))
    initial = None if isinstance(init, Posterior) or init == "net" else init
    if initial is not None and not callable(initial) and initial not in FRESH:
        raise unknown("init", init, (*FRESH, "net"))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("Expected at least one trainable parameter, got none: set requires_grad on some of the net's.")
    with torch.inference_mode(False):  # tensors made inside of inference_mode() could not be trained on
        model = model.copy().to(device)
        task = prepare(model, data, validation, num_data, seed, sampling)
    if sampling is not None:
        _check_sampling(method, batch_size, order, compile, vectorize)
        order = "iid"
    plan = replace(_plan(method, task, batch_size, epochs, chains, order, initial), compile=compile)
    rows = None if task.x is None else len(task.x)
    if rows is not None and num_data is not None and num_data != rows:
        _refuse_sums(method, f"num_data={rows}, the rows", num_data, "its sums count each row once")
        plan = replace(plan, rows=rows)
    if augment is not None:
        _refuse_sums(method, "no augment=", "one", "its sums over all rows would be of other inputs each time")
        plan = replace(plan, augment=_augment(augment, task, model))
    if model.hyperpriors and not method.infers_precisions:
        raise ValueError(
            f"Expected priors of known precision for {type(method).__name__}, got a HierarchicalNormal: "
            "use a sampler such as SGHMC, or MeanFieldVI."
        )
    if compile and not method.compiles:
        raise ValueError(
            f"Expected compile=False for {type(method).__name__}, got True: its gradients cannot be compiled."
        )
    if precision == "bf16" and method.access == "full":
        raise ValueError(
            f"Expected precision='full' for {type(method).__name__}, got 'bf16': its energies need every digit."
        )
    if precision == "bf16" and any(p.dtype != torch.float32 for p in model.parameters()):
        raise ValueError("Expected a float32 net for precision='bf16', got another dtype: convert it, or leave it out.")
    for option, wanted in (("compile", compile), ("vectorize", vectorize)):
        if wanted and (plan.random_net or model.moving):
            raise ValueError(
                f"Expected {option}=False for a net with dropout or running statistics, got True: such passes are not "
                "pure."
            )
    if vectorize:
        _check_vectorizes(method, model, task, early_stopping)
    method.check(model, plan)
    if chains > 1 and plan.fresh:
        _warn_if_alike(model, plan, seed)
    if isinstance(init, Posterior) and chains > init.num_chains and method.is_sampler:
        warnings.warn(
            f"{chains} chains start from {init.num_chains}: R-hat cannot tell whether they agree. Start from as many.",
            stacklevel=2,
        )

    sources: list[Source] = []
    told: list[str] = []  # about gradients: once is enough
    history = History()
    info: dict[str, Any] = {
        "method": method.config(), "seed": seed, "epochs": plan.epochs, "batch_size": plan.batch_size,
        "precision": precision, "augment": None if augment is None else repr(augment),
        "inputs": None if task.inputs is None or len(task.row_shape) < 3 else task.inputs.to_dict(),
        "steps": plan.steps, "out_shape": list(plan.out_shape),
        "round": init.info.get("round", 0) + 1 if isinstance(init, Posterior) else 0,
        "gradient_evaluations": [], "minibatch_noise": [], "sample_stats": [], "seconds": [], "diverged": [],
        "best": [],
        "interrupted": False, "error": None,
    }  # fmt: skip
    train = (task.x, task.y) if task.x is not None and task.y is not None else None
    posterior = Posterior(model, sources, task.num_data, task.target, history, info, train)
    disk = Store(store, posterior) if store is not None else None
    # Whoever calls fit inside of no_grad() or inference_mode() gets the same run.
    with Progress(progress, plan, chains * method.draw_bytes(model, plan)) as bar, torch.inference_mode(False):

        def begin(numbers: Sequence[int]) -> tuple[Chain, Batches | Loader]:
            """These chains at their start, with their minibatches: one, or all of them as one."""
            streams = [Streams(seed, chain, device, info["round"]) for chain in numbers]
            copies = [model.copy() for _ in numbers]
            froms = init.sources if isinstance(init, Posterior) else [None]
            starts = [froms[chain % len(froms)] for chain in numbers]
            for copy, stream in zip(copies, streams, strict=True):
                copy.autocast = torch.bfloat16 if precision == "bf16" else None
                if plan.initial is not None:
                    initialise(copy, plan.initial, stream.fence)
            keeps = disk.keep(numbers) if disk is not None else [Kept() for _ in numbers]
            batches = [task.batches(plan.batch_size, order, stream.shuffle) for stream in streams]
            if vectorize:
                return begin_together(method, copies, starts, plan, task, streams[0], bar, keeps, batches)
            run = method.start(copies[0], plan, streams[0], starts[0])
            return Chain(
                numbers, run, plan, task, early_stopping, bar, keeps, GradientWatch(told, method.is_sampler)
            ), batches[0]

        for numbers in [range(chains)] if vectorize else [[chain] for chain in range(chains)]:
            worker: Chain | None = None
            began = time.perf_counter()
            try:
                worker, batches = begin(numbers)
                worker.run(batches, method)
                found = worker.results(batches)
            except (Exception, KeyboardInterrupt) as error:  # hours of work may lie behind: it is not to be lost
                found = worker.rescue(batches, error, alone=not sources) if worker is not None else []
                if not sources and all(source is None for source in found):
                    if disk is not None:
                        disk.abandon()
                    raise
                info["interrupted"] = True
                info["error"] = None if isinstance(error, KeyboardInterrupt) else first_line(error)
                warnings.warn(_stopped(error, worker, len(sources)), stacklevel=2)
            sources.extend(source for source in found if source is not None)
            if worker is not None:
                # A broken draw that was left out at the end has a row as well.
                whole = [
                    rows[: source.num_draws] if source.num_draws is not None else []
                    for rows, source in zip(worker.statistics, found, strict=True)
                    if source is not None
                ]
                info["sample_stats"] += [
                    {name: [row[name] for row in rows] for name in (rows[0] if rows else {})} for rows in whole
                ]
                history.extend(sorted(worker.history, key=lambda row: row["chain"]))
                seconds = (time.perf_counter() - began) / len(numbers)
                for _ in numbers:
                    info["gradient_evaluations"].append(worker.state.gradient_evaluations)
                    info["minibatch_noise"].append(worker.state.minibatch_noise)
                    info["seconds"].append(seconds)
                info["best"] += [worker.best] if worker.best is not None else []
                info["diverged"] += [{"chain": chain, "step": worker.diverged_at} for chain in worker.diverged]
            if disk is not None and sources and len(sources) < chains:
                _write(disk.whole, info)
            if info["interrupted"]:
                break
    if not sources:
        if disk is not None:
            disk.abandon()
        first = info["diverged"][0]
        raise DivergedError(
            f"Expected a finite loss, got NaN or infinity in chain {first['chain']} at step {first['step']}, before a "
            f"draw was kept: {calmer(method)}."
        )
    loudest = max((share for share in info["minibatch_noise"] if share is not None), default=0.0)
    if loudest > NOISE_LOUD:
        warnings.warn(
            f"Minibatches add {loudest:.0%} of the noise that {type(method).__name__} injects, in the mean over "
            "weights, so the posterior is wider than it should be: lower lr, raise batch_size, or leave lr=None.",
            stacklevel=2,
        )
    if disk is not None:
        _write(disk.close, info)
    return posterior


def _write(what: Callable[[], None], info: dict[str, Any]) -> None:
    """Write to the store; where the disk does not take it, the posterior is whole all the same."""
    try:
        what()
    except (OSError, KeyboardInterrupt) as error:
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else first_line(error)
        info["interrupted"] = info["interrupted"] or isinstance(error, KeyboardInterrupt)
        info["error"] = info["error"] if isinstance(error, KeyboardInterrupt) else why
        warnings.warn(f"The store could not be written, save the posterior elsewhere: {why}", stacklevel=3)


def _stopped(error: BaseException, worker: Chain | None, whole: int) -> str:
    """The warning after an error in mid-run."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted: the posterior holds what there is so far."
    step, kept = (worker.steps, len(worker.keeps[0])) if worker is not None else (0, 0)
    beside = f" beside {whole} whole chain{'s' * (whole > 1)}" if whole else ""
    return f"Stopped in chain {whole} at step {step} with {kept} draws kept{beside}: {first_line(error)}"


def _check_vectorizes(method: Method, model: BayesianModel, task: Task, early_stopping: EarlyStopping | None) -> None:
    """Refuse what is of one chain alone."""
    name = type(method).__name__
    for hinders, what in (
        (not method.vectorizes, f"for {name} with these options: its chains cannot run as one"),
        (task.loader is not None, "with a loader: its minibatches are those of one chain; give data in memory"),
        (early_stopping is not None, "with early_stopping: each chain would stop at another epoch"),
        (bool(model.hyperpriors), "with a HierarchicalNormal: its precisions are those of one chain"),
    ):
        if hinders:
            raise ValueError(f"Expected vectorize=False {what}.")


def _check_sampling(method: Method, batch_size: int | None, order: Order, compile: bool, vectorize: bool) -> None:
    """Refuse what takes all rows as often, or does not know their weights."""
    name = type(method).__name__
    for hinders, what in (
        (method.access == "full" or method.full_passes, f"for {name}, which needs all rows"),
        (not method.weighs_rows, f"for {name}, whose spread is the noise of minibatches drawn evenly"),
        (batch_size is None, "with batch_size=None, which takes all rows; give a number"),
        (order == "sequential", "with order='sequential'; leave order= out"),
        (compile, "with compile=True"),
        (vectorize, "with vectorize=True"),
    ):
        if hinders:
            raise ValueError(f"Expected no sampling= {what}, got one: leave it out.")


def _refuse_sums(method: Method, expected: str, got: Any, why: str) -> None:
    """Refuse for methods that take sums over all rows what holds for averages over minibatches alone."""
    if method.access == "full" or method.full_passes:
        raise ValueError(f"Expected {expected} for {type(method).__name__} with these options, got {got}: {why}.")


def _augment(augment: Augment, task: Task, model: BayesianModel) -> Augment:
    """The transform of inputs as the net gets them; errors if it does not take them."""
    x = task.x if task.x is not None else next(task.loader.peek())[0] if task.loader is not None else None
    assert x is not None
    (rows,) = model.place(constant(x[:2]))
    return in_units(augment, task.inputs, rows)


def _kind(model: Any) -> str:
    return f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__


def _device(device: torch.device | str | None, model: torch.nn.Module) -> torch.device:
    """The device, if there is such a one here."""
    if device is None:
        return next((p.device for p in model.parameters()), torch.device("cpu"))
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        known = "'cpu' or 'cuda'" if torch.cuda.is_available() else "'cpu', for torch finds no GPU here"
        raise ValueError(f"Expected a device that is here, got {str(device)!r}: use {known}.") from error
    return found


def as_method(method: Method | type[Method] | str | None, default: type[Method] = MAP) -> Method:
    """The method that is meant: an object as it is, a class or its name with the default options; or an error."""
    if method is None:
        return default()
    if isinstance(method, str):
        by_name = {name.lower(): cls for name, cls in METHODS.items()}
        if method.lower() not in by_name:
            raise unknown("method", method, METHODS)
        return by_name[method.lower()]()
    if isinstance(method, type) and issubclass(method, Method):
        return method()
    if not isinstance(method, Method):
        raise TypeError(
            f"Expected a method such as SGLD(), got {type(method).__name__}: known are {', '.join(METHODS)}."
        )
    return method


def _plan(
    method: Method,
    task: Task,
    batch_size: int | None,
    epochs: int | None,
    chains: int,
    order: Order,
    initial: Initial | None,
) -> Plan:
    if (method.access == "full" or method.full_passes) and task.loader is not None:
        raise ValueError(f"Expected data in memory for {type(method).__name__}, which needs all rows, got a loader.")
    if task.loader is not None and order != "reshuffle":
        raise ValueError(f"Expected no order= with a loader, which has its own, got {order!r}.")
    if method.access == "full" and order == "iid":
        raise ValueError(
            f"Expected order='reshuffle' or 'sequential' for {type(method).__name__}, which takes every row once a "
            "step, got 'iid': leave order= out."
        )
    if task.batch_rows is not None:
        size = task.batch_rows
    else:
        size = task.num_data if batch_size is None or method.access == "full" else min(batch_size, task.num_data)
    steps = len(task.batches(size, order, torch.Generator()))
    if epochs is None:
        epochs = max(1, round(method.default_steps / steps))
    epochs = at_least("epochs", epochs, 1)
    about: dict[str, Any] = {"independent": order == "iid", "short_last": task.loader is not None}
    about |= {"out_shape": task.out_shape, "initial": initial}
    return Plan(task.num_data, size, epochs, steps, chains, task.random_net, **about)


def _warn_if_alike(model: BayesianModel, plan: Plan, seed: int) -> None:
    """Say which weights every chain starts from alike: no module resets them."""
    fresh = []
    for chain in (0, 1):
        copy = model.copy()
        assert plan.initial is not None
        initialise(copy, plan.initial, Streams(seed, chain, next(model.parameters()).device).fence)
        fresh.append(dict(copy.net.named_parameters()))
    alike = [
        name
        for name, value in fresh[0].items()
        # Constants such as zero biases are alike by design.
        if value.requires_grad and torch.equal(value, fresh[1][name]) and value.numel() > 1 and value.std() > 0
    ]
    if alike:
        warnings.warn(
            f"All chains start from the same {', '.join(alike[:3])}{', ...' if len(alike) > 3 else ''}: no module "
            "resets them. Give their module a reset_parameters() method, or pass init=.",
            stacklevel=3,
        )
