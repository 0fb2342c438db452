"""Other class frequencies than those of the training data: what the probabilities are there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayesnn.metrics.classification import as_class_probs


def prior_shift(
    probs: Tensor, before: Tensor | Sequence[float], after: Tensor | Sequence[float] | None = None
) -> Tensor:
    """Class probabilities where the classes have other frequencies, and each looks as it did.

        p'(k | x) proportional to p(k | x) after_k / before_k

    by Bayes' rule, for p(x | k) that do not change (Saerens, Latinne & Decaestecker 2002, section 2). With balanced
    ``after``, the default, it is what weights for the classes, or sampling the rare ones more often, are meant to give;
    but those change the likelihood, which is then that of no data, and with it the width of the posterior. Here the
    posterior is that of the data as they are, and only what is made of its predictions changes.

    Where every class that there is after has a probability of exactly 0, of rounding, the formula is 0 / 0. Of these
    classes x then tells nothing, and the row is their frequencies ``after``; of a single class it is 1, the limit.

    Parameters
    ----------
    probs : (batch, K), or (batch,) of class 1 of two
        ``predictive.mean``, of the mixture.
    before : (K,), frequencies or counts in the training part.
    after : (K,), where the predictions are to hold; all classes equally frequent by default.

    Returns
    -------
    Tensor, (batch, K)

    Raises
    ------
    ValueError
        If the numbers of classes differ, a class has no frequency before, or one after is negative.

    Examples
    --------
    >>> prior_shift(torch.tensor([[0.9, 0.1]]), before=[9, 1])
    tensor([[0.5000, 0.5000]])
    """
    given = as_class_probs(probs)
    old = torch.as_tensor(before).to(given)
    new = torch.ones_like(old) if after is None else torch.as_tensor(after).to(given)
    if old.shape != given.shape[1:] or new.shape != old.shape:
        raise ValueError(
            f"Expected frequencies of {given.shape[1]} classes, got {tuple(old.shape)} before and {tuple(new.shape)} "
            "after: one to each."
        )
    if not (bool((old > 0).all()) and bool((new >= 0).all()) and float(new.sum()) > 0):
        raise ValueError(
            "Expected frequencies above 0 before and none below 0 after, got others: a class that was never seen has "
            "no probability to go by."
        )
    weighted = given * (new / old)
    weighted = torch.where(weighted.any(1, keepdim=True), weighted, new)
    return weighted / weighted.sum(1, keepdim=True)
