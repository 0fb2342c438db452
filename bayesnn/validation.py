"""Scores on the validation part, after each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from bayesnn.model import BayesianModel, State
from bayesnn.predictive import Predictive
from bayesnn.source import in_blocks

if TYPE_CHECKING:
    from bayesnn.stopping import EarlyStopping


def score(
    model: BayesianModel, states: Sequence[State], validation: Any, target: Any, stopping: EarlyStopping | None = None
) -> dict[str, float]:
    """Negative log likelihood (nats), and accuracy or RMSE, of the mixture of ``states`` on validation data.

    And what early stopping goes by.
    """
    model = model.copy().eval()  # draws are written into it
    model.autocast = None
    predictive = Predictive(model, [partial(in_blocks, states)], [len(states)], validation.x, target)
    y = predictive._targets(validation.y)
    row = {"val_nll": -float(predictive.log_prob(y).double().mean())}
    labels = model.likelihood.labels(y)
    if model.likelihood.kind == "classes":
        mean = predictive.mean
        guess = mean.argmax(-1) if mean.dim() > labels.dim() else mean > 0.5
        row["val_accuracy"] = float((guess == labels).double().mean())
    else:
        with suppress(ValueError):  # a distribution without a mean (Student's t with df <= 1) has no such error
            row["val_rmse"] = float((predictive.mean - y).square().mean().sqrt())
    # A function of the user's own is called whatever its name is, and with the targets as they are, soft labels too.
    own = stopping is not None and callable(stopping.metric)
    if stopping is not None and (own or stopping.column not in row):
        row[stopping.column] = stopping.measure(predictive, y if own else labels)
    return row
