"""Likelihoods of classes: Categorical (one of K) and Bernoulli (each label on its own)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from bayesnn.likelihoods.base import Likelihood, Params, scalar_outputs, shaped_targets, sum_events


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
    """

    kind: ClassVar[str] = "classes"

    def params(self, outputs: Tensor) -> Params:
        return {"logits": outputs.movedim(1, -1) if outputs.dim() > 2 else outputs}

    def distribution(self, params: Params) -> Any:
        return dist.Categorical(logits=params["logits"], validate_args=False)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        return torch.Size((*outputs.shape[:1], *outputs.shape[2:]))

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        return sum_events(-F.cross_entropy(outputs, y, reduction="none"))

    def check_targets(self, y: Tensor, num_outputs: int, pixels: Sequence[int] = ()) -> Tensor:
        if y.is_floating_point() or y.is_complex():
            raise ValueError(f"Expected integer class targets for Categorical, got {y.dtype}: use y.long().")
        if num_outputs < 2:
            axes = f" in outputs (batch, {', '.join(map(str, (num_outputs, *pixels)))})" if pixels else ""
            cure = "flatten the inputs, or use Bernoulli()" if pixels else "or use Bernoulli()"
            raise ValueError(f"Expected a net with one output a class (>= 2), got {num_outputs}{axes}: {cure}.")
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
