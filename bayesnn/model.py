"""BayesianModel: a net, a prior over its weights and a likelihood, as a log joint in torch and as a Pyro model.

    log p(w, D) = log p(w) + sum_i log p(y_i | x_i, w)

A minibatch of B of the N rows estimates the sum by (N / B) times its own: the model owns that factor.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Gamma, constraints
from torch.func import functional_call

from bayesnn.errors import at_least
from bayesnn.likelihoods import Likelihood
from bayesnn.nets._parts import Part, frozen_modules, select_part
from bayesnn.priors import Layerwise, Prior, PriorRule, normal_of_precision
from bayesnn.rng import generator, isolated

if TYPE_CHECKING:
    from bayesnn.predictive import Predictive

State = dict[str, Tensor]


class BayesianModel(nn.Module):
    """Net + prior + likelihood.

    Parameters
    ----------
    net : any ``torch.nn.Module`` from inputs (batch, ...) to outputs (batch, ...). It is not touched: fitting works
        on copies, and the net stays the deterministic baseline. Frozen parts of it compute as they do at prediction,
        in training as well: see :meth:`train`.
    prior : a prior of :mod:`bayesnn.priors`, or any callable ``(name, parameter, module) -> distribution | None``;
        ``Layerwise(gain=3.0)`` by default: standard deviation 3 / sqrt(fan_in), 1 for biases. Parameters with
        ``requires_grad=False`` are constants and get no prior.
    likelihood : a likelihood of :mod:`bayesnn.likelihoods`.
    bayesian : which part of the net has priors; the rest is deterministic: optimised, with no prior and no noise.
        None is all that ``prior`` says; ``"last-layer"`` the module with parameters that was registered last; a name or
        a list of names of modules or parameters, or shell-style patterns of them (``"layers.2"``, ``"head.*"``); or a
        function ``(name, parameter, module) -> bool``. The likelihood's own parameters are not concerned.

    Attributes
    ----------
    log_priors : dict of parameter name (``"net.0.weight"``, ``"likelihood.log_scale"``) to its prior distribution.
    hyperpriors : dict of parameter name to (shape, rate) of the Gamma prior of its precision, where that is inferred.
    precisions : module whose buffers are those precisions, ``net__0__weight`` for ``"net.0.weight"``.
    part : names of the net's parameters that ``bayesian`` selects, without the prefix ``net.``; None for all.
    deterministic : names of the trainable parameters without a prior.
    autocast : dtype in which the net's layers compute, by torch.autocast; None, their own, but in a fit that says else.
    row_weights : 1 / (N pi_i) of the rows of the minibatch at hand, (batch,), where each was drawn with probability
        pi_i and not 1 / N; what their log likelihoods are multiplied by. ``fit`` sets it; None else.
    moving : names of the buffers that a forward pass in train mode changes (running statistics): they belong to a draw
        as its weights do. Those of normalisation layers to begin with; ``fit`` looks for others.

    Examples
    --------
    >>> model = BayesianModel(nn.Linear(3, 1), prior=priors.Normal(1.0), likelihood=likelihoods.Normal(scale=0.1))
    >>> model.log_joint(x, y, num_data=1000)      # ()
    """

    def __init__(
        self,
        net: nn.Module,
        prior: PriorRule | None = None,
        likelihood: Likelihood | None = None,
        bayesian: Part = None,
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"Expected net to be a torch.nn.Module, got {type(net).__name__}: wrap it in one.")
        for name, part in (
            ("prior= to be an object", prior),
            ("likelihood= to be one of bayesnn.likelihoods", likelihood),
        ):
            if isinstance(part, type):
                raise TypeError(f"Expected {name}, got the class {part.__name__}: call it, {part.__name__}().")
        if not isinstance(likelihood, Likelihood):
            raise TypeError(f"Expected likelihood= to be one of bayesnn.likelihoods, got {likelihood!r}: say which.")
        if next(net.parameters(), None) is None:
            raise ValueError(f"Expected a net with parameters, got {type(net).__name__} without any: give one to fit.")
        for name, parameter in net.named_parameters():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ValueError(
                    f"Expected materialised parameters, got a lazy {name!r}: call the net on data once first."
                )
            if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"Expected trainable parameters in float32 or float64, got {name!r} in {parameter.dtype}: convert "
                    "the net; fit(precision='bf16') computes in half precision beside weights that keep every step."
                )
        self.net = net
        self.autocast: torch.dtype | None = None
        self.row_weights: Tensor | None = None
        # Noise in single precision beside a net in double would be no better than single.
        self.likelihood = likelihood.double() if next(net.parameters()).dtype == torch.float64 else likelihood
        self.prior: PriorRule = prior if prior is not None else Layerwise(gain=3.0)
        still = frozen_modules(net)
        self.moving = {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if isinstance(module, nn.modules.batchnorm._NormBase) and module not in still
            for name, _ in module.named_buffers(recurse=False)
        }
        self.part = select_part(net, bayesian)
        self.precisions = nn.Module()
        self._set_priors()
        if isinstance(self.prior, Prior) and (lost := self.prior.unmatched(net)):
            names = ", ".join(name for name, _ in itertools.islice(net.named_parameters(), 4))
            warnings.warn(
                f"Expected every rule of the prior to meet a parameter, got none for {lost[0]!r}: the net's names are "
                f"{names}, ...",
                stacklevel=2,
            )

    def _set_priors(self) -> None:
        owners = {
            f"{prefix}.{local}" if prefix else local: (module, parameter)
            for prefix, module in self.net.named_modules()
            for local, parameter in module.named_parameters(recurse=False)
        }
        self.log_priors: dict[str, TorchDistributionMixin] = {}
        self.hyperpriors: dict[str, tuple[float, float]] = {}
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad and (self.part is None or name in self.part):
                prior = self.prior(name, parameter.detach(), owners[name][0])
                if prior is not None:
                    _check_prior(name, prior, parameter)
                    self.log_priors[f"net.{name}"] = prior
                    if hasattr(prior, "hyperprior"):
                        self.hyperpriors[f"net.{name}"] = prior.hyperprior
        self._restore_precisions()
        stated: dict[str, Any] = getattr(self.prior, "likelihood_priors", dict)()
        own = dict(self.likelihood.named_parameters())  # noise that is fixed has no prior
        stated = {name: prior for name, prior in stated.items() if name in own}
        for name, prior in {**self.likelihood.priors(), **stated}.items():
            self.log_priors[f"likelihood.{name}"] = prior
        self.deterministic = [
            name for name, p in self.named_parameters() if p.requires_grad and name not in self.log_priors
        ]

    def _restore_precisions(self) -> None:
        """A buffer for each inferred precision, at the mean of its prior to begin with; priors at those there are."""
        parameters = dict(self.named_parameters())
        for name, (shape, rate) in self.hyperpriors.items():
            value = getattr(self.precisions, mangled(name), None)
            if value is None:
                self.precisions.register_buffer(mangled(name), parameters[name].new_tensor(shape / rate))
            else:
                self.log_priors[name] = normal_of_precision(value, parameters[name].shape)

    def precision(self, name: str) -> Tensor:
        """The present precision of the prior of parameter ``name``, shape ()."""
        value: Tensor = getattr(self.precisions, mangled(name))
        return value

    def set_precision(self, name: str, value: Tensor) -> None:
        """Give the prior of parameter ``name`` another precision."""
        buffer = self.precision(name)
        buffer.copy_(value)
        self.log_priors[name] = normal_of_precision(buffer.clone(), self.log_priors[name].event_shape)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BayesianModel:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._set_priors()  # the priors' own tensors follow the parameters' device and dtype
        return self

    def train(self, mode: bool = True) -> BayesianModel:
        """torch's train mode, in which frozen parts of the net stay as they are at prediction.

        A submodule with parameters, none of which is trained, remains in eval mode with all that is in it: running
        statistics stay put, and nothing is dropped.
        """
        super().train(mode)
        for module in frozen_modules(self.net) if mode else ():
            module.eval()
        return self

    def copy(self) -> BayesianModel:
        """A model with its own net and likelihood, sharing nothing with this one."""
        return copy.deepcopy(self)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        """Parameters of the distribution of the targets of x at the present weights, noise included.

        With targets, :meth:`log_likelihood` of theirs.
        """
        return self.likelihood.params(self.outputs(x)) if y is None else self.log_likelihood(x, y)

    def outputs(self, x: Tensor) -> Tensor:
        """What the net says of x, in its own dtype; layers compute in ``autocast`` (torch.autocast) where it is set."""
        if self.autocast is None:
            out: Tensor = self.net(x)
            return out
        with torch.autocast(x.device.type, self.autocast):
            out = self.net(x)
        return out.to(next(iter(self.parameters())).dtype)

    @contextmanager
    def at_full_precision(self) -> Iterator[None]:
        """For what rounding would spoil, such as differences of gradients."""
        autocast, self.autocast = self.autocast, None
        try:
            yield
        finally:
            self.autocast = autocast

    @contextmanager
    def evenly(self) -> Iterator[None]:
        """For rows other than those of the minibatch at hand, each of which counts once."""
        weights, self.row_weights = self.row_weights, None
        try:
            yield
        finally:
            self.row_weights = weights

    def bayesian_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that have a prior, by name, in the order of ``log_priors``."""
        parameters = dict(self.named_parameters())
        return {name: parameters[name] for name in self.log_priors}

    def num_weights(self) -> int:
        """Number of weights with a prior."""
        return sum(parameter.numel() for parameter in self.bayesian_parameters().values())

    def log_prior(self) -> Tensor:
        """log p(w) at the present weights, shape (); with log p(w | tau) p(tau) where a precision tau is inferred."""
        parameters = dict(self.named_parameters())
        zero = next(iter(parameters.values())).new_zeros(())
        terms = [self.log_priors[name].log_prob(parameters[name]) for name in self.log_priors]
        terms += [Gamma(shape, rate).log_prob(self.precision(name)) for name, (shape, rate) in self.hyperpriors.items()]
        return torch.stack(terms).sum() if terms else zero

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y_i | x_i, w) of each row at the present weights, shape (batch,).

        Targets of another shape than the likelihood's are reshaped or refused, (batch, 1) taken as (batch,). Their
        values are not checked: this is what every training step calls, on data that ``fit`` has checked.
        """
        outputs = self.outputs(x)
        if not self.likelihood.takes(outputs, y):
            y = self._checked(y, outputs)
        log_prob = self.likelihood.log_prob(outputs, y)
        return log_prob if self.row_weights is None else self.row_weights * log_prob

    def mean_nll(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean negative log likelihood of the rows (nats), shape ()."""
        return -self.log_likelihood(x, y).mean()

    def log_joint(self, x: Tensor, y: Tensor, num_data: int | None = None) -> Tensor:
        """log p(w) + (N / B) sum_i log p(y_i | x_i, w), shape (); ``num_data`` is N, the batch's own B by default.

        Raises
        ------
        ValueError : ``y`` has another number of rows, shape, dtype or values than the likelihood takes.
        """
        scale = (num_data if num_data is not None else len(x)) / len(x)
        outputs = self.outputs(x)
        return self.log_prior() + scale * self.likelihood.log_prob(outputs, self._checked(y, outputs)).sum()

    def _checked(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Targets in the form that the likelihood takes with these outputs, or a ValueError."""
        y = self.likelihood.targets_for(y, outputs.shape[1:])
        if len(y) != len(outputs):
            raise ValueError(f"Expected targets for {len(outputs)} inputs, got {len(y)}: give each its target.")
        return y

    def pyro_model(self, x: Tensor, y: Tensor | None = None, num_data: int | None = None) -> Tensor:
        """The same model for Pyro: sample statements for the weights, then a plate over the rows.

        Parameters
        ----------
        x : inputs (batch, ...).
        y : targets, or None to sample them. Their shape is checked as in :meth:`log_likelihood`.
        num_data : N when the batch is a part of the data: the plate scales the likelihood by N / B. By default
            the batch is the whole data.

        Returns
        -------
        The targets (batch, ...).
        """
        priors = dict(self.log_priors)
        for name, (shape, rate) in self.hyperpriors.items():
            a, b = self.precision(name).new_tensor((shape, rate))
            tau = pyro.sample(f"precisions.{mangled(name)}", pyro.distributions.Gamma(a, b))
            priors[name] = normal_of_precision(tau, priors[name].event_shape)
        weights = {name: pyro.sample(name, prior) for name, prior in priors.items()}
        rows = torch.arange(len(x), device=x.device)  # given, so that Pyro draws no indices of its own
        if y is not None and (self.row_weights is not None or not self.likelihood.is_density(y)):
            log_prob = functional_call(self, weights, (x, y))
            with pyro.plate("data", size=num_data or len(x), subsample=rows):
                pyro.factor("y", log_prob)
            return y
        distribution = self.likelihood.distribution(functional_call(self, weights, (x,)))
        if y is not None and y.shape != distribution.batch_shape:
            y = self._checked(y, self.net(x))
        with pyro.plate("data", size=num_data or len(x), subsample=rows):
            events = len(distribution.batch_shape) - 1
            targets: Tensor = pyro.sample("y", distribution.to_event(events), obs=y)
        return targets

    def prior_predictive(self, x: Any, draws: int = 100, seed: int = 0) -> Predictive:
        """What the model says of the targets of ``x`` before it has seen any: weights drawn from the prior.

        In a standardised target's units where the data are to be standardised. A prior whose functions nobody would
        have believed in is one to change before the fit, not after it.

        Parameters
        ----------
        x : inputs (batch, ...): a tensor, array, data frame or list.
        draws : of the weights; parameters without a prior keep their present values.
        seed : of the draws.
        """
        from bayesnn.posterior import Posterior
        from bayesnn.source import Draws

        return Posterior(self, [Draws.stack(list(self.prior_states(draws, seed)))], 0).predict(x)

    @torch.no_grad()
    def prior_states(self, draws: int, seed: int = 0) -> Iterator[State]:
        """Draws from the prior as named tensors; parameters without a prior keep their present values."""
        device = next(self.parameters()).device
        with isolated(generator(at_least("seed", seed, 0), 0, 6, device=device)):
            for _ in range(at_least("draws", draws, 1)):
                state, priors = self.state(), dict(self.log_priors)
                for name, (shape, rate) in self.hyperpriors.items():
                    tau = Gamma(*self.precision(name).new_tensor((shape, rate))).sample()
                    priors[name] = normal_of_precision(tau, priors[name].event_shape)
                    state[f"precisions.{mangled(name)}"] = tau
                yield {**state, **{name: prior.sample() for name, prior in priors.items()}}

    def state(self) -> State:
        """A copy of what one draw is: trainable parameters, inferred precisions, and buffers that training may move."""
        with torch.no_grad():
            state = {name: p.detach().clone() for name, p in self.named_parameters() if p.requires_grad}
            state.update({name: b.clone() for name, b in self.named_buffers() if self._is_drawn(name)})
        return state

    def _is_drawn(self, buffer: str) -> bool:
        return buffer in self.moving or buffer.startswith("precisions.")

    def place(self, *tensors: Tensor, device: torch.device | None = None) -> tuple[Tensor, ...]:
        """Floating tensors in the net's dtype, all on its device or on the one given; from pinned memory unawaited."""
        net = next(iter(self.parameters()))
        device = net.device if device is None else device
        return tuple(
            v.to(device, net.dtype if v.is_floating_point() else v.dtype, non_blocking=v.is_pinned()) for v in tensors
        )

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Write a state into this model's parameters and buffers (in place; shapes and names must agree)."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        missing = [name for name, p in self.named_parameters() if p.requires_grad and name not in state]
        if missing or set(state) - set(tensors):
            raise ValueError(
                f"Expected a state of the net's own parameters, got {len(set(state) - set(tensors))} unknown and "
                f"{len(missing)} missing names (such as {(missing or sorted(set(state) - set(tensors)))[0]!r}): "
                "give the net that the state was made with."
            )
        with torch.no_grad():
            for name, value in state.items():
                if tensors[name].shape != value.shape:
                    raise ValueError(
                        f"Expected {name!r} of shape {tuple(tensors[name].shape)}, got {tuple(value.shape)}: "
                        "give the net that the state was made with."
                    )
                tensors[name].copy_(value)
        for name in self.hyperpriors:
            self.set_precision(name, self.precision(name))


def mangled(name: str) -> str:
    """A parameter's name as that of a buffer, which may hold no dot."""
    return name.replace(".", "__")


def _check_prior(name: str, prior: Any, parameter: Tensor) -> None:
    if getattr(prior, "event_shape", None) != parameter.shape:
        raise ValueError(
            f"Expected the prior of {name!r} to have event shape {tuple(parameter.shape)}, got "
            f"{tuple(getattr(prior, 'event_shape', ()))}: use .expand(parameter.shape).to_event(parameter.dim())."
        )
    try:
        support = prior.support
    except (AttributeError, NotImplementedError):  # a density of the user's own need not say
        return
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    bounded = (constraints.greater_than, constraints.greater_than_eq, constraints.less_than, constraints.interval)
    if isinstance(support, bounded):  # a weight may take any value on its way: the density would fail in mid-run
        raise ValueError(
            f"Expected the prior of {name!r} to have the whole line for its support, got {support}: "
            "use Normal, Laplace or StudentT."
        )
