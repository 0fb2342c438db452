"""A pass at many draws of the weights at once, for nets that are linear layers and functions of single numbers.

A tiny net's pass takes less time than what surrounds it: the calls of its modules, the copying of its weights. Here
the net is called once for a block of draws, and a ``TorchFunctionMode`` sees each call that it makes. A linear layer
becomes one product with the weights of all the draws; a function of single numbers (an activation, a sum of two
layers) takes their outputs as it took one draw's. Whatever else the net does, with its weights or with what comes of
them, raises :class:`NotStackableError`, and then each draw has a pass of its own. So what is answered is right by
construction, and for every net that can be had.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from bayesnn.errors import first_line
from bayesnn.likelihoods.base import Params
from bayesnn.methods.calls import CALLS
from bayesnn.methods.compiled import AsModule
from bayesnn.model import BayesianModel, State

# What the widest layer makes of one block of draws, and their weights, on a CPU and on a GPU: to stay in the cache.
STACK_BYTES = 4 * 2**20, 64 * 2**20

_ACTIVATIONS = (
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.softsign),
    *(F.logsigmoid, F.hardtanh, F.hardswish, F.hardsigmoid, F.tanhshrink, F.hardshrink, F.softshrink),
    *(torch.relu, torch.tanh, torch.sigmoid, torch.sin, torch.cos, torch.exp, torch.abs, torch.square, torch.erf),
    *(F.tanh, F.sigmoid, Tensor.relu, Tensor.tanh, Tensor.sigmoid, Tensor.sin, Tensor.cos, Tensor.exp, Tensor.square),
)
_ARITHMETIC = (
    *(torch.add, torch.sub, torch.mul, torch.div, Tensor.add, Tensor.sub, Tensor.mul, Tensor.div),
    *(Tensor.__add__, Tensor.__radd__, Tensor.__sub__, Tensor.__rsub__, Tensor.__mul__, Tensor.__rmul__),
    *(Tensor.__truediv__, Tensor.__neg__, Tensor.__pow__),
)
BY_NUMBER = frozenset({*_ACTIVATIONS, *_ARITHMETIC})
IN_PLACE: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), torch.relu_),
    **dict.fromkeys((F.tanh, torch.tanh, Tensor.tanh), Tensor.tanh_),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, Tensor.sigmoid), Tensor.sigmoid_),
    **dict.fromkeys((torch.sin, Tensor.sin), Tensor.sin_),
    **{f: functools.partial(f, inplace=True) for f in (F.leaky_relu, F.elu, F.selu, F.celu, F.silu, F.mish)},
}
FLATTEN = frozenset({torch.flatten, Tensor.flatten})
DROPOUT = frozenset({F.dropout, F.alpha_dropout, F.feature_alpha_dropout, F.dropout1d, F.dropout2d, F.dropout3d})


class NotStackableError(Exception):
    """The net does something that is not known to treat each draw and each row by itself."""


class SpentError(NotStackableError):
    """The net asks for numbers again that an activation was written over."""


class Stacked(TorchFunctionMode):
    """Stands in for the calls of a net, so that ``net(x)`` is its outputs at all draws of ``states``.

    Parameters
    ----------
    net : in eval mode.
    states : its parameters by name, each with the draws along axis 0; those that are not there are the net's own.
    memory : for the outputs of linear layers, by the number of the call, where the next pass may write over them; what
        is missing is added. Memory that is new to the processor's cache takes as long to write as the products take.
    in_place : whether an activation is written over the layer's outputs. A net that uses them again (a residual one)
        then raises :class:`SpentError`.
    """

    def __init__(
        self,
        net: nn.Module,
        states: Mapping[str, Tensor],
        memory: dict[int, Tensor] | None = None,
        in_place: bool = False,
    ) -> None:
        super().__init__()
        self._memory, self._in_place, self._calls = memory, in_place, 0
        own = dict(net.named_parameters())
        if unknown := states.keys() - own.keys():
            raise NotStackableError(f"{sorted(unknown)[0]} is no parameter")  # a buffer, of which a net may do anything
        # By identity, which holds however the net comes by a weight.
        self._weights = {id(own[name]): value for name, value in states.items()}
        self._fixed = {id(parameter) for name, parameter in own.items() if name not in states}
        self._seen: dict[int, tuple[Tensor, bool]] = {}  # what came of x, and whether it has an axis of draws
        # Of these: what no other of them shares its memory with, and what was written over.
        self._fresh, self._spent = set[int](), set[int]()

    def outputs(self, net: nn.Module, x: Tensor) -> Tensor:
        """What ``net`` says of x (batch, ...) at each draw, (draw, batch, outputs).

        Raises
        ------
        NotStackableError : the net does what this cannot stand in for.
        """
        self._seen = {id(x): (x, False)}
        self._fresh, self._spent, self._calls = set(), set(), 0
        try:
            with self:
                out = net(x)
            result, by_draw = self._of(out)
        finally:
            self._seen = {}
        if not by_draw:
            raise NotStackableError("outputs that no weight has a part in")
        return result

    def _of(self, value: Any) -> tuple[Tensor, bool]:
        try:
            found = self._seen[id(value)]
        except KeyError:
            raise NotStackableError(f"a {type(value).__name__} that did not come of the inputs") from None
        if id(value) in self._spent:
            raise SpentError("numbers that were written over")
        return found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            result = self._linear(*CALLS[func](*args, **kwargs)[1:])
            self._fresh.add(id(result[0]))
        elif func in BY_NUMBER and not kwargs.get("inplace") and "out" not in kwargs:
            result = self._by_number(func, args, kwargs)
            self._fresh.add(id(result[0]))
        elif func in FLATTEN or func in DROPOUT:
            result = self._unchanged(func, args, kwargs)
        elif func is Tensor.dim or (func in (Tensor.shape.__get__, Tensor.size) and len(args) == 1):  # type: ignore[attr-defined]
            value, by_draw = self._of(args[0])
            shape = value.shape[1:] if by_draw else value.shape
            return len(shape) if func is Tensor.dim else shape
        else:
            raise NotStackableError(f"a call of {getattr(func, '__name__', func)}")
        self._seen[id(result[0])] = result
        return result[0]

    def _linear(self, x: Any, weight: Any, bias: Any) -> tuple[Tensor, bool]:
        """x W' + b at all draws, in memory (draw, output, row): the first layer's is one product with all weights."""
        rows, by_draw = self._of(x)
        if rows.dim() - by_draw != 2:
            raise NotStackableError(f"inputs {tuple(rows.shape)} of a linear layer")
        (w, w_by_draw), (b, b_by_draw) = self._weight(weight), self._weight(bias)
        if not w_by_draw and b_by_draw:
            raise NotStackableError("a fixed weight with a bias of each draw")
        if not w_by_draw:
            return F.linear(rows, w, b), by_draw
        b = w.new_zeros(w.shape[:2]) if b is None else b.expand(w.shape[:2])
        out = self._room(w, (*w.shape[:2], rows.shape[-2]))
        if by_draw:
            torch.baddbmm(b[..., None], w, rows.mT, out=out)
        else:
            torch.addmm(b.reshape(-1, 1), w.flatten(0, 1), rows.T, out=out.view(-1, len(rows)))
        return out.mT, True

    def _room(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        if self._memory is None:
            return like.new_empty(shape)
        number, self._calls = self._calls, self._calls + 1
        if number not in self._memory or self._memory[number].shape != shape:
            self._memory[number] = like.new_empty(shape)
        return self._memory[number]

    def _weight(self, weight: Any) -> tuple[Any, bool]:
        if weight is None or id(weight) in self._fixed:
            return weight, False
        if id(weight) not in self._weights:
            raise NotStackableError("a weight that is not a parameter itself")
        return self._weights[id(weight)], True

    def _by_number(self, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Any) -> tuple[Tensor, bool]:
        """``func`` of numbers, and of what came of x: of layers of one width, as others would broadcast."""
        given = [self._of(value) for value in args if isinstance(value, Tensor)]
        if any(isinstance(value, Tensor) for value in kwargs.values()):
            raise NotStackableError("a tensor by name")
        if len({value.shape[-2:] for value, _ in given}) != 1:
            raise NotStackableError("layers of several widths in one")
        if self._in_place and func in IN_PLACE and id(args[0]) in self._fresh:
            self._spent.add(id(args[0]))
            value, by_draw = given[0]
            options = {key: option for key, option in kwargs.items() if key != "inplace"}
            return IN_PLACE[func](value, *args[1:], **options).view_as(value), by_draw
        values = iter(value for value, _ in given)
        by_draw = any(by_draw for _, by_draw in given)
        return func(*(next(values) if isinstance(value, Tensor) else value for value in args), **kwargs), by_draw

    def _unchanged(self, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Any) -> tuple[Tensor, bool]:
        """Calls that leave the numbers of each row as they are: flatten, and dropout in eval mode."""
        value, by_draw = self._of(args[0])
        self._fresh.discard(id(args[0]))  # the result is the same memory
        row = value[0] if by_draw else value
        result = func(row, *args[1:], **kwargs)
        if len(result) != len(row) or result.data_ptr() != row.data_ptr() or (by_draw and result.shape != row.shape):
            raise NotStackableError(f"a call of {func.__name__}")
        return (value.view_as(value) if by_draw else result.view_as(result)), by_draw


@torch.no_grad()
def params_of_draws(model: BayesianModel, chain: Callable[..., Iterable[State]], pieces: Sequence[Tensor]) -> Params:
    """Parameters of the targets' distribution, each (draw, row, ...), for inputs that come in pieces (batch, ...).

    ``chain(size=n)`` gives the draws, n at a time along axis 0 of each tensor.

    Raises
    ------
    NotStackableError : this net, or its likelihood, has to be called once for each draw, or it does not pay.
    """
    size = _block_of_draws(model.net, len(pieces[0]))
    if size == 1 or model.autocast is not None:
        raise NotStackableError("layers too wide")
    parts, noise = list[Tensor](), list[State]()
    # Hooks may keep what they see.
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.net.modules())
    in_place, memory = not hooked, None if hooked else dict[int, Tensor]()
    for stacked in chain(size=size):
        weights = _part("net.", stacked)
        try:
            parts.append(_outputs(Stacked(model.net, weights, memory, in_place), model.net, pieces))
        except SpentError:
            in_place = False
            parts.append(_outputs(Stacked(model.net, weights, memory), model.net, pieces))
        noise.append(_part("likelihood.", stacked))
    own = {f"model.{name}": torch.cat([part[name] for part in noise]) for name in noise[0]}
    form, outputs = AsModule(model.likelihood, "params"), torch.cat(parts)
    try:
        params: Params = vmap(lambda own, outputs: functional_call(form, own, (outputs,)))(own, outputs)
    except Exception as error:  # vmap has an error of its own kind for each thing that a user's code may do
        raise NotStackableError(first_line(error)) from error
    return params


def _outputs(stacked: Stacked, net: nn.Module, pieces: Sequence[Tensor]) -> Tensor:
    """Outputs (draw, row, ...) for all pieces, in memory of their own."""
    each = [stacked.outputs(net, piece).clone() for piece in pieces]
    return torch.cat(each, dim=1) if len(each) > 1 else each[0]


def _part(prefix: str, state: State) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _block_of_draws(net: nn.Module, rows: int) -> int:
    """How many draws one pass of so many rows takes; 1 where it does not pay, or some weight is of no linear layer."""
    parameters = list(net.parameters())
    if any(p.dim() > 2 for p in parameters):
        return 1
    widest = max((len(p) for p in parameters if p.dim() == 2), default=0)
    numbers = max(widest * rows, sum(p.numel() for p in parameters))
    first = parameters[0]
    return max(1, STACK_BYTES[first.device.type != "cpu"] // (numbers * first.element_size())) if widest else 1
