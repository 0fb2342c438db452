"""Any score of this package as a torchmetrics.Metric, for loops that see one batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Accumulated(Metric):
    """Keeps what :meth:`update` gets, and gives ``score`` of all of it: none of these scores is a mean over batches.

    Parameters
    ----------
    score : a function of tensors with the batch as the first axis, such as :func:`bayesnn.metrics.aurc`.
    arguments : how many tensors it takes.
    options : its other arguments.

    Raises
    ------
    ValueError
        If :meth:`update` gets another number of tensors; of :meth:`compute`, what ``score`` raises.

    Examples
    --------
    >>> metric = Accumulated(adaptive_ece, bins=10)
    >>> for probs, y in batches:
    ...     metric.update(probs, y)
    >>> metric.compute()
    """

    full_state_update = False

    def __init__(self, score: Callable[..., Any], arguments: int = 2, **options: Any) -> None:
        super().__init__()
        self._score, self._options = score, options
        self._names = [f"argument_{k}" for k in range(arguments)]
        for name in self._names:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, *tensors: Tensor) -> None:
        """Keep one more batch."""
        if len(tensors) != len(self._names):
            raise ValueError(f"Expected {len(self._names)} tensors, got {len(tensors)}: say arguments={len(tensors)}.")
        for name, tensor in zip(self._names, tensors, strict=True):
            getattr(self, name).append(tensor.detach())

    def compute(self) -> Any:
        """The score of all batches."""
        kept = [getattr(self, name) for name in self._names]
        return self._score(*(torch.cat(v) if isinstance(v, list) else v for v in kept), **self._options)
