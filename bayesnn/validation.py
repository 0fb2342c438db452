"""Scores of a run on the validation part, after each epoch."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

from bayesnn.methods import Run
from bayesnn.predictive import Predictive


def score(run: Run, validation: Any, target: Any) -> dict[str, float]:
    """Negative log likelihood (nats), and accuracy or RMSE, of what the run would answer now, on validation data."""
    states, training = run.snapshot(), run.model.training
    run.model.eval()
    autocast, run.model.autocast = run.model.autocast, None
    try:
        predictive = Predictive(run.model, [partial(iter, states)], [len(states)], validation.x, target)
        y = predictive._targets(validation.y)
        row = {"val_nll": -float(predictive.log_prob(y).double().mean())}
        if run.model.likelihood.kind == "classes":
            mean = predictive.mean
            guess = mean.argmax(-1) if mean.dim() > y.dim() else mean > 0.5
            row["val_accuracy"] = float((guess == y).double().mean())
        else:
            with suppress(ValueError):  # a distribution without a mean (Student's t with df <= 1) has no such error
                row["val_rmse"] = float((predictive.mean - y).square().mean().sqrt())
    finally:
        run.model.train(training)
        run.model.autocast = autocast
    return row
