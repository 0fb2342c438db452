"""What is there to beat: scores of who does not look at the inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from bayesnn import data as bd
from bayesnn import metrics
from bayesnn.table import COLUMNS


def blind(train: bd.Data, test: bd.Data, kind: str) -> dict[str, float]:
    """Scores of who does not look at the inputs, and knows the training targets alone: what every net has to beat.

    Classes: those of the training part's frequencies (a class that it lacks counts as one row), by which the commonest
    class is the answer. Real targets: their mean, and NLL of a Normal with their mean and standard deviation. Of
    counts nothing.
    """
    if kind == "classes" and train.y.dim() == 1:
        count = max(train.num_outputs, int(test.y.max()) + 1, 2)
        rows = torch.bincount(train.y.long(), minlength=count).double().clamp_min(1)
        probs = (rows / rows.sum()).expand(len(test), count)
        return {"accuracy": metrics.accuracy(probs, test.y.long()), "nll": metrics.nll(probs, test.y.long())}
    if kind == "real" and train.y.dim() == 1:
        y, t = train.y.double(), test.y.double()
        mean, sd = y.mean(), y.std(correction=0)
        nll = 0.5 * ((t - mean) / sd).square().mean() + sd.log() + 0.5 * math.log(2 * math.pi)
        return {"rmse": metrics.rmse(mean.expand_as(t), t), "nll": float(nll)}
    return {}


def blind_sentence(scores: Mapping[str, float]) -> str:
    """The same in words; nothing where there are none."""
    if not scores:
        return ""
    named = ", ".join(f"{COLUMNS[key].heading.split()[0]} {value:.3f}" for key, value in scores.items())
    return f"Without a look at the inputs: {named}."
