"""Variational inference with any of Pyro's guides, by Pyro's own ELBO."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, autoguide
from torch import Tensor

from bayesnn.errors import at_least, positive, unknown
from bayesnn.methods.base import Method, Plan, Run, Schedule, check_schedule, clear_gradients
from bayesnn.methods.variational import VALIDATION_DRAWS, refuse_variational
from bayesnn.model import BayesianModel, State, mangled
from bayesnn.rng import Streams, isolated
from bayesnn.source import Draws, Source

Guide = Callable[..., Any]
GUIDES: dict[str, type[autoguide.AutoGuide]] = {
    cls.__name__: cls
    for cls in (
        autoguide.AutoNormal,
        autoguide.AutoDiagonalNormal,
        autoguide.AutoMultivariateNormal,
        autoguide.AutoLowRankMultivariateNormal,
        autoguide.AutoIAFNormal,
    )
}
PYROS_STARTS = (autoguide.init_to_median, autoguide.init_to_feasible)


@dataclass(frozen=True)
class PyroVI(Method):
    """q(w) is a guide of Pyro's, fitted by maximising Pyro's evidence lower bound (Bingham et al. 2019).

    One step of Adam over the guide's parameters minimises ``Trace_ELBO``'s estimate with S samples w_s of the guide,

        -ELBO = 1/S sum_s  log q(w_s) - log p(w_s) - (N / B) sum_{i in batch} log p(y_i | x_i, w_s)

    on ``model.pyro_model``, whose plate has the factor N / B. An arbitrary guide cannot be written to a file without
    running code from it, so the result is ``draws`` independent samples of the fitted guide.

    Parameters
    ----------
    guide : name of an autoguide (``"AutoNormal"``, ``"AutoDiagonalNormal"``, ``"AutoMultivariateNormal"``,
        ``"AutoLowRankMultivariateNormal"``, ``"AutoIAFNormal"``); a class or a function that makes a guide of Pyro's
        model, ``functools.partial(AutoLowRankMultivariateNormal, rank=5)``; or a guide itself, a function of arguments
        named (x, y, num_data) or a module, which samples each weight by its name (``"net.0.weight"``). Autoguides
        whose start would be Pyro's default start at the chain's initial weights instead: at the median of the prior
        the units of a layer are all alike.
    lr : Adam's learning rate.
    draws : samples of the guide that are kept.
    mc_samples : samples a step, averaged.
    schedule : of the learning rate, see :class:`bayesnn.MAP`.

    Raises
    ------
    ValueError : the guide does not sample every weight, or not in its shape.

    References
    ----------
    Bingham et al. 2019, Pyro: deep universal probabilistic programming, JMLR 20(28).
    Kucukelbir et al. 2017, Automatic differentiation variational inference, JMLR 18(14).
    """

    default_steps: ClassVar[int] = 20000
    infers_precisions: ClassVar[bool] = True

    guide: str | Guide = "AutoNormal"
    lr: float = 1e-2
    draws: int = 100
    mc_samples: int = 1
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        if isinstance(self.guide, str):
            if self.guide not in GUIDES:
                raise unknown("guide", self.guide, GUIDES)
        elif isinstance(self.guide, autoguide.AutoGuide):
            name = type(self.guide).__name__
            raise TypeError(f"Expected the class of an autoguide, got one made for a model: pass {name} itself.")
        elif not callable(self.guide):
            raise TypeError(f"Expected a guide's name, class or function, got {self.guide!r}: 'AutoNormal' is usual.")
        positive("lr", self.lr)
        at_least("draws", self.draws, 1)
        at_least("mc_samples", self.mc_samples, 1)
        check_schedule(self.schedule)

    def check(self, model: BayesianModel, plan: Plan) -> None:
        refuse_variational(model, plan, self)

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        return self.draws * super().draw_bytes(model, plan)

    def make_guide(self, model: BayesianModel) -> Guide:
        """The guide of one chain, which starts at the weights of ``model``; its parameters appear when it is called."""
        make: Guide = GUIDES[self.guide] if isinstance(self.guide, str) else self.guide
        options = {} if isinstance(make, torch.nn.Module) else inspect.signature(make).parameters
        if isinstance(make, torch.nn.Module) or {"x", "y", "num_data"} <= options.keys():
            return copy.deepcopy(make)
        if "init_loc_fn" not in options or options["init_loc_fn"].default not in PYROS_STARTS:
            made: Guide = make(model.pyro_model)
            return made
        start = {name: p.detach().clone() for name, p in model.bayesian_parameters().items()}
        made = make(model.pyro_model, init_loc_fn=autoguide.init_to_value(values=start))
        return made

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return _PyroRun(self, model, plan, streams, init)


class _ELBO(Trace_ELBO):
    """Pyro's ELBO, which remembers the mean negative log likelihood ``nll`` of the rows that it was taken on."""

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Any]:
        self.nll, num_data = 0.0, args[2]
        for model_trace, guide_trace in super()._get_traces(model, guide, args, kwargs):  # type: ignore[no-untyped-call]
            # N / B is in it already.
            self.nll -= float(model_trace.nodes["y"]["log_prob_sum"].detach()) / (num_data * self.num_particles)
            yield model_trace, guide_trace


class _PyroRun(Run):
    def __init__(self, method: PyroVI, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None) -> None:
        super().__init__(model, plan, streams)
        if init is not None:
            model.load_state(init.last())
        self._method = method
        self._elbo: Any = _ELBO(num_particles=method.mc_samples)  # type: ignore[no-untyped-call]
        self._guide: Guide | None = None
        self._store: Any = None
        self._latent = [*model.log_priors, *(f"precisions.{mangled(name)}" for name in model.hyperpriors)]
        parameters = dict(model.named_parameters())
        free = [parameters[name] for name in model.deterministic]
        # One group, which the schedule knows from the start; the guide's parameters join it when they first appear.
        self._optimizer = torch.optim.Adam([{"params": free}], lr=method.lr, fused=True)
        self.optimizers = [self._optimizer]
        self._args: tuple[Any, ...] = ()
        self._kl: list[float] = []

    @property
    def _parameters(self) -> list[Tensor]:
        """All that is optimised."""
        found: list[Tensor] = self._optimizer.param_groups[0]["params"]
        return found

    @contextmanager
    def _alone(self, noise: torch.Generator) -> Iterator[None]:
        """Pyro's global state is this chain's: its parameter store, its random numbers, the type and place of what
        flows make.

        Its checks of values are off: they are dear, and a loss of NaN is for ``fit`` to see.
        """
        dtype, first = torch.get_default_dtype(), next(self.model.parameters())
        place = torch.device(first.device) if first.device.type != "cpu" else nullcontext()  # it slows each operation
        with place, isolated(noise), pyro.validation_enabled(False), pyro.get_param_store().scope(self._store) as store:
            torch.set_default_dtype(first.dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(dtype)
        self._store = store

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        self._args = (x, y, self.plan.num_data)
        with self._alone(self.streams.noise):
            if self._guide is None:
                self._guide = self._set_up()
            clear_gradients(self._parameters)
            with poutine.trace(param_only=True) as seen:
                loss = self._elbo.loss_and_grads(self.model.pyro_model, self._guide, *self._args)
            self._join(seen.trace.nodes)
            self._optimizer.step()
        self._kl.append(loss - self.plan.num_data * self._elbo.nll)
        self.gradient_evaluations += self._method.mc_samples
        return torch.tensor(self._elbo.nll)

    def _set_up(self) -> Guide:
        guide = self._method.make_guide(self.model)
        self._drawn(guide)
        return guide

    def _join(self, nodes: dict[str, Any]) -> None:
        """Optimise the parameters among the sites of a trace, too."""
        known = {id(p) for p in self._parameters}
        for site in nodes.values():
            if site["type"] == "param":
                p = site["value"].unconstrained()
                if id(p) not in known and p.requires_grad:
                    known.add(id(p))
                    self._parameters.append(p)

    @torch.no_grad()
    def _drawn(self, guide: Guide) -> State:
        """A sample of every weight from the guide, by name."""
        nodes: dict[str, Any] = poutine.trace(guide).get_trace(*self._args).nodes
        shapes = {name: value.shape for name, value in self.model.state().items()}
        missing = [name for name in self._latent if name not in nodes or nodes[name]["type"] != "sample"]
        if missing:
            raise ValueError(
                f"Expected a guide that samples every weight, got none for {', '.join(missing[:3])}: "
                f"pyro.sample({missing[0]!r}, ...) in it, or use an autoguide."
            )
        values = {name: nodes[name]["value"] for name in self._latent}
        for name, value in values.items():
            if value.shape != shapes[name]:
                raise ValueError(
                    f"Expected the guide to sample {name!r} in shape {tuple(shapes[name])}, got {tuple(value.shape)}: "
                    "use .expand(shape).to_event()."
                )
        return {name: value.detach().clone() for name, value in values.items()}

    def _states(self, count: int, noise: torch.Generator) -> list[State]:
        if self._guide is None:
            return [self.model.state()]
        with self._alone(noise):
            return [{**self.model.state(), **self._drawn(self._guide)} for _ in range(count)]

    def end_epoch(self) -> dict[str, float]:
        """Mean over the steps of log q(w) - log p(w): the KL, by Monte Carlo and while q moves."""
        kl, self._kl = sum(self._kl) / max(len(self._kl), 1), []
        return {"kl": kl}

    def snapshot(self) -> list[State]:
        # Fixed noise: the validation score of two epochs differs by the fit and not by the draws.
        return self._states(VALIDATION_DRAWS, torch.Generator(self.streams.noise.device).manual_seed(0))

    def finish(self, batches: Any) -> Draws:
        return Draws.stack(self._states(self._method.draws, self.streams.noise))

    def _buffers(self) -> list[Tensor]:
        """Of a guide that is a module: the order in which a flow takes the weights is drawn at random, and kept."""
        return list(self._guide.buffers()) if isinstance(self._guide, torch.nn.Module) else []

    def state_dict(self) -> dict[str, Any]:
        own = {"parameters": self._parameters, "buffers": self._buffers()}
        copies = {kind: [tensor.detach().clone() for tensor in tensors] for kind, tensors in own.items()}
        return {**super().state_dict(), **copies, "args": self._args}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._args = state["args"]
        if self._guide is None and self._args:  # another run's: its rows bring forth the guide
            with self._alone(self.streams.noise):
                self._guide = self._set_up()
                with poutine.trace(param_only=True) as seen:
                    self._guide(*self._args)
                self._join(seen.trace.nodes)
        del self._parameters[len(state["parameters"]) :]  # those that came later come again
        super().load_state_dict(state)
        with torch.no_grad():
            for tensor, value in zip(
                self._parameters + self._buffers(), state["parameters"] + state["buffers"], strict=True
            ):
                tensor.copy_(value)
