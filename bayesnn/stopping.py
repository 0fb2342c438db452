"""Early stopping and the best checkpoint, by any score on the validation part."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from bayesnn import metrics
from bayesnn.errors import at_least, unknown
from bayesnn.predictive import Predictive

Goal = Literal["min", "max"]
Measure = Callable[[Predictive, Tensor], float]
CRPS_SAMPLES = 200


class Metric(NamedTuple):
    """A score of predictions: which direction is good, which kind of targets it is for (None: any), and the score."""

    goal: Goal
    kind: Literal["classes", "numbers"] | None
    measure: Measure


def _of_classes(goal: Goal, score: Callable[[Tensor, Tensor], float]) -> Metric:
    return Metric(goal, "classes", lambda predictive, y: score(*_rows(predictive, y)))


def _of_mean(score: Callable[[Tensor, Tensor], float]) -> Metric:
    return Metric("min", "numbers", lambda predictive, y: score(predictive.mean, y))


def _rows(predictive: Predictive, y: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (rows, K) or (rows,), and classes (rows,): each pixel or yes-or-no target is a row."""
    mean = predictive.mean
    return (mean.flatten(0, -2) if mean.dim() > y.dim() else mean.flatten()), y.flatten()


METRICS: dict[str, Metric] = {
    "nll": Metric("min", None, lambda predictive, y: -float(predictive.log_prob(y).double().mean())),
    "accuracy": _of_classes("max", metrics.accuracy),
    "balanced_accuracy": _of_classes("max", metrics.balanced_accuracy),
    "brier": _of_classes("min", metrics.brier),
    "ece": _of_classes("min", metrics.ece),
    "mce": _of_classes("min", metrics.mce),
    "adaptive_ece": _of_classes("min", metrics.adaptive_ece),
    "classwise_ece": _of_classes("min", metrics.classwise_ece),
    "rmse": _of_mean(metrics.rmse),
    "mae": _of_mean(metrics.mae),
    "crps": Metric(
        "min", "numbers", lambda predictive, y: metrics.crps_samples(predictive.sample(CRPS_SAMPLES, seed=0), y)
    ),
}


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when a validation score has not improved for a while, and go back to the best epoch.

    ``fit(..., early_stopping=5)`` is ``EarlyStopping(5)``. The state that is gone back to is the whole of the chain:
    weights, the guide's parameters, the optimizer, the random streams.

    Parameters
    ----------
    patience : epochs without an improvement after which to stop; None goes on to the last epoch, and then back to the
        best one (the best checkpoint).
    metric : ``"nll"``, of classes ``"accuracy"``, ``"balanced_accuracy"``, ``"brier"``, ``"ece"``, ``"mce"``,
        ``"adaptive_ece"`` or ``"classwise_ece"``, of real targets and counts ``"rmse"``, ``"mae"`` (of the predictive
        mean) or ``"crps"``; or a function of (:class:`bayesnn.Predictive`, targets) to a number. It stands in the
        history as ``val_`` and its name.
    goal : ``"min"`` or ``"max"``, of a function; a name has its own.

    Notes
    -----
    The proper scores (``nll``, ``brier``, ``crps``) see a posterior that is too sure; accuracy does not, and a constant
    prediction of the class frequencies has an ``ece`` of 0. The score of the epoch chosen is the best of many: it is
    optimistic, test on other rows.
    """

    patience: int | None = 5
    metric: str | Measure = "nll"
    goal: Goal | None = None

    def __post_init__(self) -> None:
        if self.patience is not None:
            at_least("early_stopping", self.patience, 1)
        if isinstance(self.metric, str):
            if self.metric not in METRICS:
                raise unknown("metric", self.metric, METRICS)
            if self.goal not in (None, METRICS[self.metric].goal):
                raise ValueError(
                    f"Expected goal={METRICS[self.metric].goal!r} for {self.metric!r}, got {self.goal!r}: leave it out."
                )
        elif not callable(self.metric):
            raise TypeError(f"Expected a metric's name or a function, got {self.metric!r}: 'nll' is usual.")
        elif self.goal not in ("min", "max"):
            raise ValueError(f"Expected goal='min' or 'max' with a function, got {self.goal!r}: say which is better.")

    @property
    def column(self) -> str:
        """Its name in the history."""
        return f"val_{self.metric if isinstance(self.metric, str) else getattr(self.metric, '__name__', 'metric')}"

    def check(self, kind: str) -> None:
        """Raise ValueError where the metric is not one of such targets."""
        wanted = METRICS[self.metric].kind if isinstance(self.metric, str) else None
        if wanted is not None and (kind == "classes") != (wanted == "classes"):
            fits = [name for name, metric in METRICS.items() if metric.kind in (None, _other(wanted))]
            raise ValueError(
                f"Expected a metric of {_other(wanted)}, got {self.metric!r}, which is of {wanted}: take one of "
                f"{', '.join(fits)}."
            )

    def measure(self, predictive: Predictive, y: Tensor) -> float:
        """The score of an epoch."""
        measure = METRICS[self.metric].measure if isinstance(self.metric, str) else self.metric
        return float(measure(predictive, y))

    def improves(self, value: float, best: float | None) -> bool:
        """Whether a score is better than the best so far; one that is no number never is."""
        if math.isnan(value):
            return False
        goal = METRICS[self.metric].goal if isinstance(self.metric, str) else self.goal
        return best is None or (value > best if goal == "max" else value < best)


def _other(kind: str) -> str:
    return "numbers" if kind == "classes" else "classes"
