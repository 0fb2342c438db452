"""Minibatches whose rows are drawn with unequal probabilities, each with the weight that makes up for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bayesnn.data.batches import Batches
from bayesnn.errors import unknown


class WeightedBatches(Batches):
    """Minibatches of rows drawn with replacement, row i with probability pi_i: ``order="iid"`` but for these.

    With i_1 to i_B the rows drawn and l_i the log likelihood of row i,

        N / B sum_b l_{i_b} / (N pi_{i_b})

    has the expectation sum_i l_i whatever the pi are, so long as none is 0: the weights 1 / (N pi_i) make the minibatch
    one of the whole data. They are 1 for equal pi. The variance is least with pi_i proportional to the size of the
    row's gradient (Zhao & Zhang 2015, Stochastic optimization with importance sampling); pi far from that raise it.

    Parameters
    ----------
    x, y : Tensor, shape (N, ...)
    probs : Tensor, shape (N,), float64
        pi, positive, of sum 1.
    batch_size, generator, device
        As in :class:`Batches`.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        probs: Tensor,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(x, y, batch_size, "iid", generator, device)
        self._cumulated = probs.double().cpu().cumsum(0)
        self.weights = (1 / (len(probs) * probs)).to(self.device)

    def weighted(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Walk an epoch of (x_b, y_b, weights 1 / (N pi) of its rows)."""
        for rows in self.indices():
            yield *self._rows(rows), self.weights[rows.to(self.device)]

    def _draw_rows(self) -> Tensor:
        assert self.generator is not None
        options: Any = {"dtype": torch.float64, "generator": self.generator, "device": self.generator.device}
        # A number below the sum of the first i + 1 probabilities and not below that of the first i draws row i. torch's
        # own multinomial takes at most 2^24 rows.
        place = torch.rand(self.batch_size, **options).cpu() * self._cumulated[-1]
        return torch.searchsorted(self._cumulated, place, right=True).clamp_max(self.num_data - 1)


def row_probabilities(sampling: str | Sequence[float] | Tensor, y: Tensor) -> Tensor:
    """pi of each row, (N,) in float64, from what ``fit`` takes as ``sampling=``.

    Parameters
    ----------
    sampling : ``"balanced"``, by which every class of ``y`` is as likely, 1 / (K n_{y_i}); or a positive number for
        each row, to which its probability is proportional.
    y : (N, ...), the targets of the training part.

    Raises
    ------
    ValueError : numbers of another count, or not positive and finite; targets that are not one class a row.
    """
    if isinstance(sampling, str):
        if sampling != "balanced":
            raise unknown("sampling", sampling, ("balanced",))
        if y.dim() != 1 or (y.is_floating_point() and not ((y == 0) | (y == 1)).all()):
            raise ValueError(
                f"Expected one class a row for sampling='balanced', got {y.dtype} targets {tuple(y.shape)}: give a "
                "number for each row."
            )
        _, label, count = y.unique(return_inverse=True, return_counts=True)
        probs: Tensor = 1 / (len(count) * count[label].double())
        return probs
    numbers = torch.as_tensor(sampling, dtype=torch.float64)
    if numbers.shape != (len(y),):
        raise ValueError(
            f"Expected sampling= to hold a number for each of {len(y)} training rows, got {tuple(numbers.shape)}: give "
            "one to each, without those of the validation part."
        )
    if not bool((numbers > 0).all() and numbers.isfinite().all()):
        raise ValueError(
            f"Expected sampling= to be positive and finite, got {float(numbers.min()):.3g} to "
            f"{float(numbers.max()):.3g}: a row that is never drawn would be no part of the data; leave it out of them."
        )
    return numbers / numbers.sum()
