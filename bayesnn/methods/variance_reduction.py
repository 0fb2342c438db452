"""Control variates for minibatch gradients: an anchor where the gradient of all rows is known.

    g(w) = g_B(w) - g_B(w0) + g_N(w0)

is unbiased, and its noise vanishes as w approaches w0. A fixed anchor at the mode is SGLD-CV (Baker et al. 2019), one
that follows the chain once an epoch is SVRG-LD (Dubey et al. 2016). Each step costs two gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from bayesnn.methods.curvature import gradients_of

Result = TypeVar("Result")


class Anchor:
    """w0 and the gradient of the mean loss over all rows there.

    Parameters
    ----------
    parameters : at their present values, which become w0.
    pieces : all rows once, as pairs (x, y).
    row_losses : (x, y) -> losses of the rows at the present parameters, (batch,), without the prior: it has no noise.
    held : further tensors that the losses depend on and that others move: they belong to w0, or g_B(w0) would be the
        gradient of another loss than g_N(w0) is.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        pieces: Iterable[tuple[Tensor, Tensor]],
        row_losses: Callable[[Tensor, Tensor], Tensor],
        held: Sequence[Tensor] = (),
    ) -> None:
        self._parameters, self._all = parameters, [*parameters, *held]
        self._weights = [p.detach().clone() for p in self._all]
        self._gradient = [torch.zeros_like(p) for p in parameters]
        rows = 0
        for x, y in pieces:
            torch._foreach_add_(self._gradient, gradients_of(row_losses(x, y).sum(), parameters))
            rows += len(x)
        torch._foreach_div_(self._gradient, rows)

    def evaluate(self, function: Callable[[], Result]) -> Result:
        """``function()`` with the parameters at w0; they are put back."""
        present = [p.detach().clone() for p in self._all]
        with torch.no_grad():
            torch._foreach_copy_(self._all, self._weights)
        try:
            return function()
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._all, present)

    def correct(self, loss: Callable[[], Tensor]) -> None:
        """Add g_N(w0) - g_B(w0) to the gradients at hand; ``loss`` is the mean loss of the same minibatch."""
        at_anchor = self.evaluate(lambda: gradients_of(loss(), self._parameters))
        for p, whole, part in zip(self._parameters, self._gradient, at_anchor, strict=True):
            correction = whole - part
            p.grad = correction if p.grad is None else p.grad.add_(correction)
