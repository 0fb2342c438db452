"""Losses as pure functions of the weights, which torch can compile: of a minibatch, and of all rows (a potential).

A call of compiled code has the overhead of one operation, where a forward and backward pass have that of every
operation of the net: it pays where nets and batches are small.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call, grad_and_value

from bayesnn.errors import first_line
from bayesnn.model import BayesianModel

if TYPE_CHECKING:
    from bayesnn.methods.base import PriorTerms
    from bayesnn.methods.flat import FlatWeights

# What is compiled is kept for the process, by the form of the net and the shapes of the data: chains and later fits of
# the same form compile nothing. torch's own limit, all that an older one knows, is eight forms.
FORMS = 64
AGREEMENT = 1e-3  # of the first compiled gradient with the plain one, relative: float32 keeps to 1e-5
ASIDE = 0.5  # how far from the present weights the two are compared, in units of a tensor's root mean square
Evaluated = tuple[Tensor, Tensor, Tensor]  # U / T, its gradient, and the priors' part of U
Priors = tuple[tuple[str, Any], ...]  # name of the parameter, prior


class Density(NamedTuple):
    """What a potential is made of, in a form that compiled code takes. The net is the model's own.

    Attributes
    ----------
    likelihood : module whose forward pass is the model's log likelihood.
    names : of the parameters in the module, with their shapes, in the order of the vector.
    loc, precision : of the Normal priors, a number for each weight; precision 0 where the prior is another.
    others : the other priors, by name.
    rows : the data, in the pieces that go through the net at once.
    temperature : T.
    """

    likelihood: nn.Module
    names: tuple[tuple[str, Size], ...]
    loc: Tensor
    precision: Tensor
    others: Priors
    rows: tuple[tuple[Tensor, Tensor], ...]
    temperature: float


def density_of(
    model: BayesianModel,
    weights: FlatWeights,
    loc: Tensor,
    precision: Tensor,
    others: Sequence[str],
    temperature: float,
) -> Density:
    """The density without its rows; ``weights`` are all that have a prior."""
    names = tuple((f"model.{name}", parameter.shape) for name, parameter in weights.parameters.items())
    priors = tuple((f"model.{name}", _prepared(model.log_priors[name], weights.parameters[name])) for name in others)
    return Density(AsModule(model, "log_likelihood"), names, loc, precision, priors, (), temperature)


def evaluate(vector: Tensor, density: Density) -> Evaluated:
    """U / T, with U = -log p(w) - sum_i log p(y_i | x_i, w) in float64, its gradient, and -log p(w).

    Infinite where a weight is not finite. The constants of Normal priors are left out.
    """
    gradient, of_priors = grad_and_value(_prior_part)(vector, density)
    energy = of_priors
    for x, y in density.rows:
        slope, value = grad_and_value(_data_part)(vector, density, x, y)
        gradient, energy = gradient + slope, energy + value
    energy = torch.where(torch.isfinite(vector).all(), energy, math.inf)
    return energy / density.temperature, gradient / density.temperature, of_priors


def _prior_part(vector: Tensor, density: Density) -> Tensor:
    value = 0.5 * ((vector - density.loc).square() * density.precision).sum(dtype=torch.float64)
    weights = _named(vector, density)
    for name, prior in density.others:
        value = value - prior.log_prob(weights[name]).sum(dtype=torch.float64)
    return value


def _data_part(vector: Tensor, density: Density, x: Tensor, y: Tensor) -> Tensor:
    rows: Tensor = functional_call(density.likelihood, _named(vector, density), (x, y))
    return -rows.sum(dtype=torch.float64)


def _named(vector: Tensor, density: Density) -> dict[str, Tensor]:
    parts = vector.split([shape.numel() for _, shape in density.names])
    return {name: part.view(shape) for (name, shape), part in zip(density.names, parts, strict=True)}


class CompiledLoss:
    """The mean negative log likelihood of a minibatch plus a term for priors, and its gradients by one compiled call.

    A loader's last minibatch, or a batch of another size, is compiled for itself.
    """

    def __init__(self, model: BayesianModel) -> None:
        self._nll = AsModule(model, "mean_nll")
        self._parameters = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
        self._names = {p: name for name, p in self._parameters.items()}
        self._terms: PriorTerms | None = None
        self._priors: Priors = ()
        self._checked = False
        self._scale = math.nan, torch.empty(0)  # as a number, and as a tensor: a number would be compiled in

    def backward(self, x: Tensor, y: Tensor, terms: PriorTerms, scale: float, share: float) -> Tensor:
        """Add to each parameter's gradient that of ``share * (mean nll - scale * log p(terms))``; the mean nll."""
        if terms is not self._terms:
            self._terms = terms
            self._priors = tuple((self._names[p], _prepared(prior, p)) for prior, p in terms)
        if scale != self._scale[0]:
            self._scale = scale, next(iter(self._names)).new_tensor(scale)
        weights = {name: p.detach() for name, p in self._parameters.items()}
        slopes: dict[str, Tensor]
        nll: Tensor
        arguments = weights, self._nll, self._priors, self._scale[1], x, y
        if not self._checked:
            with aside(list(self._names)):
                self._check(x, y, scale, call_compiled(_loss_gradient, *arguments, graph=x.is_cuda)[0])
        slopes, nll = call_compiled(_loss_gradient, *arguments, graph=x.is_cuda)
        # Compiled code returns one tensor for two gradients that are one expression, in a layout of its choice, and on
        # a GPU in memory that its next call overwrites; optimizers change gradients in place, and fused ones take
        # weights and gradients in the order of memory.
        without = [p for p in self._parameters.values() if p.grad is None]
        for p in without:
            p.grad = torch.empty_like(p, requires_grad=False)
            if len(without) < len(self._parameters):
                p.grad.zero_()
        grads: Any = [p.grad for p in self._parameters.values()]
        found = [slopes[name] for name in self._parameters]
        if len(without) < len(grads):
            torch._foreach_add_(grads, found, alpha=share)
        else:
            torch._foreach_copy_(grads, found)
            if share != 1:
                torch._foreach_mul_(grads, share)
        return nll.clone()

    def _check(self, x: Tensor, y: Tensor, scale: float, slopes: dict[str, Tensor]) -> None:
        """Hold the first compiled pass against a plain one."""
        loss: Tensor = self._nll(x, y).sum()
        for prior, p in self._terms or ():
            loss = loss - scale * prior.log_prob(p).sum()
        gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, list(self._names), allow_unused=True)
        expected = [torch.zeros_like(p) if g is None else g for p, g in zip(self._names, gradients, strict=True)]
        check_agreement(expected, [slopes[name] for name in self._parameters])
        self._checked = True


def _loss_gradient(
    weights: dict[str, Tensor], mean_nll: nn.Module, priors: Priors, scale: Tensor, x: Tensor, y: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    slopes, (_, nll) = grad_and_value(_loss, has_aux=True)(weights, mean_nll, priors, scale, x, y)
    return slopes, nll


def _loss(
    weights: dict[str, Tensor], mean_nll: nn.Module, priors: Priors, scale: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    nll = functional_call(mean_nll, weights, (x, y))
    loss = nll.sum()  # of nets side by side
    for name, prior in priors:
        loss = loss - scale * prior.log_prob(weights[name]).sum()
    return loss, nll.detach()


class AsModule(nn.Module):
    """A method of a model or a likelihood as a forward pass: what ``functional_call`` can call."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.model, self.method)(*inputs)


def _prepared(prior: Any, parameter: Tensor) -> Any:
    """A copy whose density does not look at values before it takes them: a branch that no graph can hold."""
    prior = copy.deepcopy(prior)
    parts = [prior]
    while parts:
        part = parts.pop()
        part._validate_args = False
        parts += [value for value in vars(part).values() if isinstance(value, Distribution)]
    prior.log_prob(parameter.detach())  # what it keeps from its first use on would otherwise make it another form
    return prior


def call_compiled(function: Callable[..., Any], *arguments: Any, graph: bool = False) -> Any:
    """``function(*arguments)`` without gradients, compiled at the first call.

    With ``graph``, for a GPU, all operations are asked for at once, as a CUDA graph: where they are small, to ask for
    each would take longer than to do it. What is returned then lies in memory that the next call overwrites.

    Raises
    ------
    RuntimeError : torch.compile cannot capture the function's net or priors, there is no C++ compiler, or there are
        more forms than FORMS.
    """
    validates = Distribution._validate_args
    # Distributions that are made in the pass must not branch on values; torch would switch that off for good.
    Distribution.set_default_validate_args(False)
    try:
        with torch.no_grad():
            if graph:
                torch.compiler.cudagraph_mark_step_begin()
            return _compiled(function, graph)(*arguments)
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        raise RuntimeError(
            f"Expected at most {FORMS} forms of net and batch in one process, got more: leave compile=True out, or "
            "give batches of one shape."
        ) from error
    except Exception as error:  # of the compiler, in whichever of its stages
        cause = getattr(error, "inner_exception", error)
        raise RuntimeError(
            f"Expected a net that torch.compile can capture, got {first_line(cause)}: leave compile=True out."
        ) from error
    finally:
        Distribution.set_default_validate_args(validates)


def check_agreement(plain: Sequence[Tensor], compiled: Sequence[Tensor]) -> None:
    """Raise where gradients by a plain and a compiled pass differ by more than rounding.

    A net that reaches a weight by another reference than the attribute that holds it, such as a list, sees another
    value of it in a plain pass than in a compiled one.

    Raises
    ------
    RuntimeError : they differ.
    """
    size = math.sqrt(sum(float(value.double().square().sum()) for value in plain))
    apart = math.sqrt(
        sum(float((one.double() - other).square().sum()) for one, other in zip(plain, compiled, strict=True))
    )
    if apart > AGREEMENT * size:  # not where either is not a number: a plain pass says that better
        raise RuntimeError(
            f"Expected the compiled pass to give the plain one's gradient, got one {apart:.2g} away from one of "
            f"length {size:.2g}: leave compile=True out, or let the net reach each weight by its own attribute."
        )


@contextmanager
def aside(tensors: Sequence[Tensor]) -> Iterator[None]:
    """The tensors are elsewhere inside, and to the bit where they were afterwards.

    At a mode a gradient is what is left of terms that cancel, which is rounding: nothing to compare with. So it is with
    a classifier that is sure of every row, until its weights are others by a good part of their size.
    """
    originals = [tensor.detach().clone() for tensor in tensors]
    stream = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for tensor in tensors:
                noise = torch.randn(tensor.shape, generator=stream, dtype=torch.float64).to(tensor)
                size = tensor.square().mean().sqrt()
                tensor.add_(ASIDE * torch.where(size > 0, size, 1.0) * noise)
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(tensors), originals)


@functools.cache
def _compiled(function: Callable[..., Any], graph: bool) -> Callable[..., Any]:
    known = inspect.signature(torch.compile).parameters
    limit: dict[str, Any] = {"recompile_limit": FORMS} if "recompile_limit" in known else {}
    # Of fixed shapes: a full batch has but one, and code for any shape is slower.
    mode = "reduce-overhead" if graph else None
    return torch.compile(function, fullgraph=True, dynamic=False, mode=mode, **limit)
