"""Likelihoods of classes: Categorical (one of K) and Bernoulli (each label on its own)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from bayesnn.errors import unknown
from bayesnn.likelihoods.base import Likelihood, Params, scalar_outputs, shaped_targets, sum_events

ClassWeights = Sequence[float] | Tensor | Literal["balanced"] | None
SUM_TOLERANCE = 1e-3  # of soft labels: those of half precision are off by about so much


def mixture_uncertainty(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Expected entropy and mutual information of draws of class probabilities, in nats.

    ``log_probs`` is (draw, ..., class). With p the mixture's mean over draws,
    aleatoric = E[H(p_s)] and epistemic = E[KL(p_s || p)] (as Depeweg et al. 2018): their sum is H(p)
    and, unlike the difference of two entropies, the mean KL does not fall below zero by rounding.
    """
    log_probs = log_probs.double()
    probs = log_probs.exp()
    log_mean = probs.mean(0).log()
    aleatoric = -torch.where(probs > 0, probs * log_probs, 0.0).sum(-1).mean(0)
    divergence = torch.where(probs > 0, probs * (log_probs - log_mean), 0.0).sum(-1)
    return aleatoric, divergence.mean(0).clamp_min(0.0)


class Categorical(Likelihood):
    """y ~ Categorical(softmax(outputs)); outputs (batch, class) are logits, y (batch,) integers in [0, class).

    Of images, outputs (batch, class, height, width) and y (batch, height, width): a class for each pixel, segmentation.
    Class probabilities then have the class last, (batch, height, width, class). Of sequences the classes are on axis 1
    of the outputs as well, (batch, class, time).

    Soft labels are floating targets of the outputs' shape, (batch, class, ...), not negative and of sum 1 over the
    classes. With p = softmax(f) and w the class weights, all 1 by default,

        log p(y | f) = w_y log p_y,        of soft labels sum_k w_k y_k log p_k = -KL(y || p) - H(y)    (w = 1)

    the entropy of the labels included: a label that is sure counts as the integer does. Of soft labels, and with
    weights, it is no density of y but a power of one, 1/n of the likelihood of n votes whose shares y are: the
    posterior is a generalised one, and Pyro's model has a factor. What is predicted is a single label all the same:
    ``predictive.log_prob`` is never weighted, and of soft labels it is sum_k y_k log p(k | x, D), the expected score of
    a label drawn from y (of images, where that has no closed form, a lower bound of it).

    Parameters
    ----------
    class_weights : a positive number (or 0) for each class, which multiplies the log likelihood of its rows, so that
        the posterior has sum_i w_{y_i} rows in place of N; or ``"balanced"``, N / (K n_k) with the n_k rows of each of
        the K classes that the training part has, which ``fit`` counts: these sum to N.

    Raises
    ------
    ValueError : weights that are negative, not finite, or all 0.
    TypeError : weights by class in a dict, which may lack one.
    """

    kind: ClassVar[str] = "classes"
    class_weights: Tensor | None

    def __init__(self, class_weights: ClassWeights = None) -> None:
        if isinstance(class_weights, Mapping):
            raise TypeError(
                "Expected class_weights to be numbers in the order of the classes, got a dict: give [weight of class "
                "0, weight of class 1, ...]."
            )
        super().__init__(**({} if class_weights is None else {"class_weights": class_weights}))
        self.register_buffer("class_weights", None, persistent=False)  # its numbers are in the options
        if isinstance(class_weights, str) and class_weights != "balanced":
            raise unknown("class_weights", class_weights, ("balanced",))
        if class_weights is not None and not isinstance(class_weights, str):
            self._weigh(torch.as_tensor(class_weights, dtype=torch.float64))

    def _weigh(self, weights: Tensor) -> None:
        if weights.dim() != 1 or not bool((weights >= 0).all() and weights.isfinite().all() and weights.any()):
            raise ValueError(f"Expected class weights >= 0 and finite, one a class, got {weights.tolist()}.")
        self.class_weights = weights.detach().clone()
        self._options["class_weights"] = weights.tolist()

    def learn(self, y: Tensor | None, num_outputs: int) -> None:
        if self._options.get("class_weights") != "balanced":
            return
        if y is None:
            raise ValueError("Expected class_weights in numbers with a loader, got 'balanced': give one to each class.")
        if y.is_floating_point():
            count = y.double().movedim(1, -1).reshape(-1, num_outputs).sum(0)
        else:
            count = y.flatten().bincount(minlength=num_outputs).double()
        self._weigh((count.sum() / ((count > 0).sum() * count)).where(count > 0, 0.0))

    def row_weights(self, y: Tensor) -> Tensor | None:
        """What the log likelihood of each label is multiplied by, of the shape of hard labels; None where all are 1."""
        if self.class_weights is None:
            return None
        if y.is_floating_point():
            return y.movedim(1, -1) @ self.class_weights.to(y)
        return self.class_weights[y]

    def params(self, outputs: Tensor) -> Params:
        return {"logits": outputs.movedim(1, -1) if outputs.dim() > 2 else outputs}

    def distribution(self, params: Params) -> Any:
        return dist.Categorical(logits=params["logits"], validate_args=False)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        return torch.Size((*outputs.shape[:1], *outputs.shape[2:]))

    def takes(self, outputs: Tensor, y: Tensor) -> bool:
        return y.shape == (outputs.shape if y.is_floating_point() else self.target_shape(outputs))

    def is_density(self, y: Tensor) -> bool:
        return not y.is_floating_point() and "class_weights" not in self._options

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        weights = self.class_weights
        if weights is not None:
            weights = weights.to(outputs)
        elif "class_weights" in self._options:
            raise ValueError("Expected class weights in numbers, got 'balanced' outside of fit(), which counts rows.")
        y = y.to(outputs) if y.is_floating_point() else y
        return sum_events(-F.cross_entropy(outputs, y, weights, reduction="none"))

    def elementwise_log_prob(self, params: Params, y: Tensor) -> Tensor:
        if not y.is_floating_point():
            return super().elementwise_log_prob(params, y)
        return (y.movedim(1, -1) * params["logits"].log_softmax(-1)).sum(-1)

    def mixture_log_prob(self, params: Params, y: Tensor) -> Tensor:
        logits = params["logits"]
        if not y.is_floating_point() or logits.dim() > 3:
            return super().mixture_log_prob(params, y)
        return (y * (logits.log_softmax(-1).logsumexp(0) - math.log(len(logits)))).sum(-1)

    def labels(self, y: Tensor) -> Tensor:
        return y.argmax(1) if y.is_floating_point() else y

    def check_targets(self, y: Tensor, num_outputs: int, pixels: Sequence[int] = ()) -> Tensor:
        soft = y.is_floating_point() and y.shape[1:] == torch.Size((num_outputs, *pixels)) and num_outputs > 1
        if (y.is_floating_point() or y.is_complex()) and not soft:
            axes = ", ".join(map(str, ("batch", num_outputs, *pixels)))
            raise ValueError(
                f"Expected integer class targets for Categorical, got {y.dtype}: use y.long(), or give soft labels "
                f"({axes})."
            )
        if num_outputs < 2:
            axes = f" in outputs (batch, {', '.join(map(str, (num_outputs, *pixels)))})" if pixels else ""
            cure = "flatten the inputs, or use Bernoulli()" if pixels else "or use Bernoulli()"
            raise ValueError(f"Expected a net with one output a class (>= 2), got {num_outputs}{axes}: {cure}.")
        if self.class_weights is not None and len(self.class_weights) != num_outputs:
            raise ValueError(
                f"Expected a weight for each of {num_outputs} classes, got {len(self.class_weights)}: give one to each "
                "output of the net."
            )
        if soft:
            return soft_labels(y)
        if not pixels and y.shape[1:] == (num_outputs,):
            raise ValueError(
                f"Expected one class a row, (batch,), got {tuple(y.shape)}: of one-hot rows use y.argmax(1)."
            )
        y = shaped_targets("Categorical", y, 1, pixels).long()
        y = y.squeeze(1) if pixels else y
        if len(y) and (int(y.min()) < 0 or int(y.max()) >= num_outputs):
            raise ValueError(
                f"Expected class targets in [0, {num_outputs}), the net's number of outputs, got "
                f"{int(y.min())} to {int(y.max())}: count classes from 0, or give the net more outputs."
            )
        return y

    def mean(self, params: Params) -> Tensor:
        return params["logits"].softmax(-1)

    def uncertainty(self, params: Params) -> tuple[Tensor, Tensor]:
        return mixture_uncertainty(params["logits"].log_softmax(-1))


def soft_labels(y: Tensor) -> Tensor:
    """``y`` if it holds probabilities of the classes, (batch, class, ...), else a ValueError."""
    if len(y):
        least, off = float(y.min()), float((y.double().sum(1) - 1).abs().max())
        if not (least >= 0 and off <= SUM_TOLERANCE):  # written so that nan fails too
            raise ValueError(
                f"Expected soft labels >= 0 that sum to 1 over the classes, got {least:.3g} and a sum that is off by "
                f"{off:.3g}: divide each row by its sum, or use y.long() for classes."
            )
    return y


class Bernoulli(Likelihood):
    """y ~ Bernoulli(sigmoid(outputs)), each label on its own; y (batch,), (batch, label, ...) of 0 and 1."""

    kind: ClassVar[str] = "classes"

    def params(self, outputs: Tensor) -> Params:
        return {"logits": scalar_outputs(outputs)}

    def distribution(self, params: Params) -> Any:
        return dist.Bernoulli(logits=params["logits"], validate_args=False)

    def elementwise_log_prob(self, params: Params, y: Tensor) -> Tensor:
        logits = params["logits"]  # whose precision decides: torch's Bernoulli would take that of the targets
        return -F.binary_cross_entropy_with_logits(logits, y.to(logits).expand_as(logits), reduction="none")

    def check_targets(self, y: Tensor, num_outputs: int, pixels: Sequence[int] = ()) -> Tensor:
        y = shaped_targets("Bernoulli", y, num_outputs, pixels)
        y = y if y.is_floating_point() else y.to(torch.get_default_dtype())
        if not ((y == 0) | (y == 1)).all():
            raise ValueError(f"Expected targets 0 or 1 for Bernoulli, got {y.min():g} to {y.max():g}: recode them.")
        return y

    def mean(self, params: Params) -> Tensor:
        return params["logits"].sigmoid()

    def uncertainty(self, params: Params) -> tuple[Tensor, Tensor]:
        logits = params["logits"]
        return mixture_uncertainty(torch.stack((F.logsigmoid(-logits), F.logsigmoid(logits)), -1))
