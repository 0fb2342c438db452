"""Local reparameterization and flipout for linear and convolution calls, wherever in a net they are made.

A ``TorchFunctionMode`` is active while the net is called. It sees each call itself, however the function was imported
and whatever its arguments are named, and knows the weights by identity. What it cannot serve is *refused*: the
parameter holds an ordinary sample of its weights, and the rest of the net is served all the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from bayesnn.methods.calls import CALLS, Op, explicit, gradients
from bayesnn.methods.flat import FlatWeights

PROBE_ROWS, PROBE_NOISE = 8, 0.1


# These ask a parameter for its form and not for its values.
_FORM = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad", "layout")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point),
}


class _Slices(NamedTuple):
    """Of one parameter: slices of mu, sigma and sigma * eps, and its own values."""

    mu: Tensor
    sigma: Tensor
    shift: Tensor
    value: Tensor


class Estimator(TorchFunctionMode, ABC):
    """A stand-in for linear and convolution calls, and the leaves that take the gradients of what it served.

    A served call sees two leaves in place of a parameter w: its means, and its ``spread``, of which the noise is made.
    Where a parameter has any other use, at whatever step, the pass is void and has to be taken again with that
    parameter refused. Such a use is seen by the mode or, where the mode is blind (in scripted code), by the gradient
    that the parameter itself then has.

    Parameters
    ----------
    weights : whose slices the parameters are.
    mu, sigma, shift : vectors over the weights; the estimator writes sigma * eps into ``shift``.
    candidates : names of the parameters to serve.
    held : names of those whose parameter holds a sample all the same, for the density of its prior.
    generator : of all noise.

    Attributes
    ----------
    served : names of the parameters that a call may be served for.
    refused : names refused so far, for whoever reports them to empty.
    probed : whether :meth:`probe` has been done, or what it found was restored.
    """

    by_rows: ClassVar[bool] = False  # whether a call can be served only where axis 0 of its input is the batch's rows
    log_factor: ClassVar[float] = 1.0  # d spread / d rho = log_factor * spread

    def __init__(
        self,
        weights: FlatWeights,
        mu: Tensor,
        sigma: Tensor,
        shift: Tensor,
        candidates: Iterable[str],
        held: Iterable[str],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self._weights, self._mu, self._generator = weights, mu, generator
        self._sigma, self._shift = sigma, shift
        self._names = {id(p): name for name, p in weights.parameters.items()}
        self._spread = self._make_spread()
        self._means, self._spreads = self._leaves(mu), self._leaves(self._spread)
        self._scratch, self._zero = torch.empty_like(mu), torch.zeros_like(mu[0])
        self._views = [weights.views(vector) for vector in (mu, sigma, shift, weights.vector)]
        self._rows = 0
        self._called: dict[str, Any] = {}
        self._void: set[str] = set()
        self._record: list[tuple[str, Tensor]] | None = None
        self.served, self._held = set(candidates), set(held)
        self.refused: list[str] = []
        self.probed = False
        self._refuse(())

    def _leaves(self, vector: Tensor) -> dict[str, Tensor]:
        return {name: view.detach().requires_grad_() for name, view in self._weights.views(vector).items()}

    @abstractmethod
    def _make_spread(self) -> Tensor:
        """The vector of all spreads."""

    @abstractmethod
    def _draw_noise(self, sampled: Iterable[_Slices]) -> None:
        """Fill the spread, and ``shift`` at least for ``sampled``."""

    @abstractmethod
    def _serve(self, op: Op, x: Tensor, name: str, bias: Tensor | None) -> Tensor | None:
        """The outputs of a call with the weight ``name``, or None where it cannot be served."""

    def _refuse(self, names: Iterable[str]) -> None:
        """Take these by plain reparameterization from now on."""
        self.refused += sorted(names)
        self.served -= set(names)
        # In the order of the weights, not of a set: the noise is drawn in it.
        plain = [name for name in self._weights.parameters if name not in self.served or name in self._held]
        self._sampled = {name: _Slices(*(views[name] for views in self._views)) for name in plain}

    def restore(self, served: Iterable[str]) -> None:
        """Go back to what an earlier run had found out."""
        self.served, self.probed = set(served), True
        self._refuse(())

    def take(self, loss: Callable[[], Tensor], rows: int) -> Tensor | None:
        """The loss of a batch of so many rows, after its backward pass; None where the pass is void: take it again."""
        self._rows = rows
        self._called.clear()
        self._void.clear()
        for leaves in (self._means, self._spreads, self._weights.parameters):
            for leaf in leaves.values():
                leaf.grad = None
        self._draw_noise(self._sampled.values())
        for part in self._sampled.values():
            torch.add(part.mu, part.shift, out=part.value)
        try:
            with self:
                result = loss()
            result.backward()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # It may be what served it that failed, which cannot be differentiated twice or computed anew by a
            # checkpoint: a pass without it will tell.
            found = self._void or self.served & set(self._called)
            if not found:
                raise
        else:
            parameters = self._weights.parameters
            found = self._void or {name for name in self.served if parameters[name].grad is not None}
        self._refuse(found)
        return None if found else result.detach()

    def write(self, mu_grad: Tensor, rho_grad: Tensor, first: bool) -> None:
        """Write (or add) the gradients of a pass with respect to mu and rho."""
        spread_grad = self._weights.gather((leaf.grad for leaf in self._spreads.values()), self._scratch)
        torch.addcmul(self._zero if first else rho_grad, spread_grad, self._spread, value=self.log_factor, out=rho_grad)
        out = mu_grad if first else self._scratch
        self._weights.gather((leaf.grad for leaf in self._means.values()), out)
        if not first:
            mu_grad.add_(out)
        mu_views, rho_views = self._weights.views(mu_grad), self._weights.views(rho_grad)
        for name, part in self._sampled.items():
            g = self._weights.parameters[name].grad
            if g is not None:
                mu_views[name].add_(g)
                rho_views[name].addcmul_(g, part.shift)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CALLS:
            op, x, weight, bias = CALLS[func](*args, **kwargs)
            name = self._ours(weight)
            has_rows = x.dim() == weight.dim() if op.options else x.dim() >= 2
            # Inside torch.func's transforms a row is not an axis, and noise has rules of its own.
            if name is not None and has_rows and not is_functorch_wrapped_tensor(x):
                if self._record is not None:
                    self._record.append((name, x))
                    return func(*args, **kwargs)
                out = self._serve(op, x, name, bias)
                if out is not None:
                    return out
        if func not in _FORM:
            self._watch(args)
            self._watch(kwargs.values())
        return func(*args, **kwargs)

    def _ours(self, parameter: Tensor | None) -> str | None:
        name = self._names.get(id(parameter))
        return name if name in self.served else None

    def _bias(self, bias: Tensor | None) -> tuple[str | None, Tensor | None, Tensor | None]:
        """Name, mean and spread of a call's bias; one that is not served is its own mean and has no spread."""
        name = self._ours(bias)
        return (None, bias, None) if name is None else (name, self._means[name], self._spreads[name])

    def _watch(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, (tuple, list)):
                self._watch(value)
            elif isinstance(value, dict):
                self._watch(value.values())
            elif (name := self._ours(value)) is not None:
                self._void.add(name)

    def probe(self, net: nn.Module, x: Tensor) -> None:
        """Refuse what would be served wrongly because rows of the batch are not rows of the net.

        Each row has noise of its own, which leaves the expected loss alone only if a row's loss depends on no other
        row (as it does under batch statistics). And flipout gives one draw of the weights to one row of a call, which
        has to be one row of the batch (and not, say, a token). Both are seen by moving the rows up by one: what
        belongs to the rows moves with them. Done once.
        """
        if self.probed:
            return
        self.probed = True
        generator = torch.Generator(device=x.device).manual_seed(0)
        self._weights.vector.normal_(generator=generator).mul_(PROBE_NOISE).add_(self._mu)
        rows = x[:PROBE_ROWS]
        before, moved = self._recorded(net, rows), self._recorded(net, torch.cat([rows[1:], rows[-1:]]))
        self._weights.vector.copy_(self._mu)
        refused: set[str] = set()
        for (name, h), (other, moved_h) in zip(before, moved, strict=False):
            if (name == "" or self.by_rows) and not (name == other and _moves_with_rows(h, moved_h, len(rows))):
                refused |= {name} if name else self.served
        if len(before) != len(moved):
            refused |= self.served
        self._refuse(refused)

    def _recorded(self, net: nn.Module, x: Tensor) -> list[tuple[str, Tensor]]:
        """(name of the weight, input) of every call that could be served, and of the outputs under the name ""."""
        self._record = []
        try:
            with torch.no_grad(), self:
                outputs = net(x)
            return [*self._record, ("", outputs)]
        finally:
            self._record = None


def _moves_with_rows(h: Tensor, moved: Tensor, rows: int) -> bool:
    if len(h) != rows or h.shape != moved.shape:
        return False
    expected = torch.cat([h[1:], h[-1:]])
    tolerance = torch.finfo(h.dtype).eps ** 0.5 * h.abs().amax()
    return bool(((moved - expected).abs() <= tolerance).all())


class Local(Estimator):
    """Sample pre-activations instead of weights (Kingma, Salimans & Welling 2015).

        out = op(x, mu, mu_b) + sqrt(op(x^2, sigma^2, sigma_b^2)) * xi,        xi ~ N(0, 1) for each element of out

    Exact where each row of the batch meets each weight once: a linear layer on (batch, features). Where a weight is
    used at many positions of one call (convolutions; a linear layer on further axes) each pre-activation still has
    its law under q, but the positions are taken for independent, which they are not. A weight or a bias that is used
    by two calls is refused.
    """

    log_factor = 2.0

    def _make_spread(self) -> Tensor:
        return torch.empty_like(self._mu)

    def _draw_noise(self, sampled: Iterable[_Slices]) -> None:
        torch.mul(self._sigma, self._sigma, out=self._spread)
        for part in sampled:
            part.shift.normal_(generator=self._generator).mul_(part.sigma)

    def _serve(self, op: Op, x: Tensor, name: str, bias: Tensor | None) -> Tensor | None:
        b_name, b_mu, b_var = self._bias(bias)
        used = {name} if b_name is None else {name, b_name}
        if not used.isdisjoint(self._called):
            self._void |= used & set(self._called)
            return op(x, self._weights.parameters[name], bias)
        self._called |= dict.fromkeys(used)
        mu, var = self._means[name], self._spreads[name]
        sample: Callable[..., Tensor] = _LocalSample.apply
        return sample(*explicit(op, x, mu), mu, var, b_mu, b_var, self._generator)


class _LocalSample(torch.autograd.Function):
    """out = m + sqrt(v) xi by two calls forward and four back, with few passes over the activations.

    With k = xi / (2 sqrt(v)), d out / d v = k: the gradients are those of op(x, mu, b) at g and of op(x^2, var, b_var)
    at g k. Where v = 0, all that v is made of is 0, and so are its gradients: k is 0 there.

    Works in place where it can, and squares x again for the backward pass: fresh memory costs more than arithmetic.
    """

    @staticmethod
    def forward(
        ctx: Any,
        op: Op,
        x: Tensor,
        mu: Tensor,
        var: Tensor,
        b_mu: Tensor | None,
        b_var: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        m, v = op(x, mu, b_mu), op(x * x, var, b_var)
        # 0 where v = 0, or -0, and where a kernel (Winograd) leaves a sum of squares a little below 0: its root is NaN.
        inverse = v.rsqrt().nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        k = torch.empty_like(m).normal_(0, 0.5, generator=generator).mul_(inverse)
        ctx.save_for_backward(x, mu, var, k)
        ctx.op = op
        return m.addcmul_(v, k, value=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, mu, var, k = ctx.saved_tensors
        _, x_needs, _, _, b_needs, b_var_needs, _ = ctx.needs_input_grad
        g_squares, g_var, g_b_var = gradients(ctx.op, k.mul_(g), x * x, var, x_needs, b_var_needs)
        if g_squares is not None:
            g_squares.mul_(x)
        g_x, g_mu, g_b = gradients(ctx.op, g, x, mu, x_needs, b_needs)
        if g_x is not None and g_squares is not None:
            g_x.add_(g_squares, alpha=2)
        return None, g_x, g_mu, g_var, g_b, g_b_var, None


class Flipout(Estimator):
    """One weight sample a step, with its signs flipped for each row (Wen, Vicol, Ba, Tran & Grosse 2018).

        out_n = op(x_n, mu, mu_b) + r_n * op(s_n * x_n, sigma * eps, sigma_b * eps_b)

    r_n and s_n are random signs of row n, one for each output and input channel, so that row n sees the weights
    mu + sigma * eps * r_n s_n' (its bias mu_b + sigma_b * eps_b * r_n): a sample of q, at all positions of a
    convolution and in all calls that use the weight. Unbiased for the ELBO; rows are uncorrelated.
    """

    by_rows = True

    def _make_spread(self) -> Tensor:
        return self._shift

    def _draw_noise(self, sampled: Iterable[_Slices]) -> None:
        self._shift.normal_(generator=self._generator).mul_(self._sigma)

    def _serve(self, op: Op, x: Tensor, name: str, bias: Tensor | None) -> Tensor | None:
        if len(x) != self._rows:
            return None
        op, x = explicit(op, x, self._weights.parameters[name])
        axis = 1 if op.options else -1  # of the channels
        if name not in self._called:
            outputs = len(self._weights.parameters[name])
            self._called[name] = self._signs(x.shape[axis], x), self._signs(outputs, x)
        s, r = self._called[name]
        if s.shape[1] != x.shape[axis]:
            return None  # the weight in another number of groups
        b_name, b_mu, b_spread = self._bias(bias)
        # A bias has the signs of its weight: beside a second weight it would have two laws at once.
        if b_name is not None and self._called.setdefault(b_name, name) != name:
            self._void.add(b_name)
        shape = [len(x)] + [1] * (x.dim() - 1)
        shape[axis] = -1
        noise = op(x * s.view(shape), self._spreads[name], b_spread)
        return torch.addcmul(op(x, self._means[name], b_mu), r.view(shape), noise)

    def _signs(self, channels: int, like: Tensor) -> Tensor:
        """Random signs (rows, channels): the lowest bit of each byte of random integers, which is far cheaper."""
        count = self._rows * channels
        words = torch.empty(-(-count // 8), dtype=torch.int64, device=like.device).random_(generator=self._generator)
        signs = words.view(torch.int8)[:count].bitwise_and_(1).mul_(2).sub_(1)
        return signs.to(like.dtype).view(self._rows, channels)


ESTIMATORS: dict[str, type[Estimator] | None] = {"reparam": None, "local": Local, "flipout": Flipout}
