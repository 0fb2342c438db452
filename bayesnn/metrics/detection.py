"""Telling inputs of another kind apart by how unsure a net is of them: scores, and how well they separate."""

from __future__ import annotations

import torch
from torch import Tensor

DETECTED = 0.95


def uncertainty_scores(logits: Tensor) -> dict[str, Tensor]:
    """Scores of class predictions that grow with doubt, each (batch,), float64; with p_s = softmax(logits_s).

    * ``"max probability"``: 1 - max_k p[k], with p = mean_s p_s the mixture (Hendrycks & Gimpel 2017).
    * ``"entropy"``: H(p), nats: the total uncertainty.
    * ``"expected entropy"``: mean_s H(p_s), nats: the aleatoric part.
    * ``"mutual information"``: H(p) - mean_s H(p_s), nats: the epistemic part (Houlsby et al. 2011).
    * ``"energy"``: -log sum_k exp logits_s[k], in the mean over s (Liu, Wang, Owens & Li 2020).
    * ``"variation ratio"``: the share of draws that do not vote for the class with the most votes (Freeman 1965).

    Parameters
    ----------
    logits : Tensor, (S, batch, K), K >= 2
        Of each draw of the weights.

    Returns
    -------
    dict of str to Tensor, (batch,)

    Raises
    ------
    ValueError
        If the shape is another.
    """
    if logits.ndim != 3 or logits.shape[2] < 2 or logits.numel() == 0:
        raise ValueError(f"Expected logits (draw, batch, class), 2 classes or more, got {tuple(logits.shape)}: stack.")
    logits = logits.double()
    log_p = logits.log_softmax(2)
    mixture = log_p.exp().mean(0)
    entropy = -torch.special.xlogy(mixture, mixture).sum(1)
    expected = -(log_p.exp() * log_p).sum(2).mean(0)
    # Of one draw it is 0, and rounding would rank the inputs.
    mutual = (entropy - expected).clamp_min(0) if len(logits) > 1 else torch.zeros_like(entropy)
    votes = torch.nn.functional.one_hot(logits.argmax(2), logits.shape[2]).double().mean(0)
    return {
        "max probability": 1 - mixture.max(1).values,
        "entropy": entropy,
        "expected entropy": expected,
        "mutual information": mutual,
        "energy": -logits.logsumexp(2).mean(0),
        "variation ratio": 1 - votes.max(1).values,
    }


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that an input from outside has the higher score, ties counted a half: the area under the ROC curve.

    Parameters
    ----------
    inside : Tensor, (batch,)
        Scores, high where the net is unsure, of inputs of the kind that it was fitted to.
    outside : Tensor, (batch,)
        Of inputs of another kind.

    Returns
    -------
    float in [0, 1]; 0.5 for a score that tells nothing.

    Raises
    ------
    ValueError
        If one of them is no vector, is empty, or holds NaN.
    """
    from torchmetrics.functional.classification import binary_auroc

    return float(binary_auroc(*_ranked(inside, outside), validate_args=False))


def aupr(inside: Tensor, outside: Tensor) -> float:
    """Average precision with the inputs from outside as the positives; it depends on how many of them there are.

    Parameters and errors are those of :func:`auroc`.

    Returns
    -------
    float in [0, 1]; for a score that tells nothing, the share of inputs from outside.
    """
    from torchmetrics.functional.classification import binary_average_precision

    return float(binary_average_precision(*_ranked(inside, outside), validate_args=False))


def fpr95(inside: Tensor, outside: Tensor) -> float:
    """Share of inputs from inside that are flagged where the threshold flags at least 95 % of those from outside.

    Parameters and errors are those of :func:`auroc`. (Some papers take the inputs from inside for the positives.)

    Returns
    -------
    float in [0, 1]; lower is better.
    """
    flagged, detected = roc_curve(inside, outside)
    return float(flagged[detected >= DETECTED][0])


def roc_curve(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """Share of inputs flagged from inside, and from outside, (thresholds,) each, from the highest threshold on.

    Parameters and errors are those of :func:`auroc`.
    """
    from torchmetrics.functional.classification import binary_roc

    flagged, detected, _ = binary_roc(*_ranked(inside, outside), validate_args=False)
    return flagged, detected


def detection_table(inside: dict[str, Tensor], outside: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """{"auroc", "aupr", "fpr95"} of every score, by its name, from :func:`uncertainty_scores` of both sides."""
    return {
        name: {
            "auroc": auroc(scores, outside[name]),
            "aupr": aupr(scores, outside[name]),
            "fpr95": fpr95(scores, outside[name]),
        }
        for name, scores in inside.items()
    }


def _ranked(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """Scores as ranks in [0, 1], equal ones equal, and which are from outside.

    Of other numbers torchmetrics takes the sigmoid, which makes ties of those that are large.
    """
    for name, scores in (("inside", inside), ("outside", outside)):
        if scores.ndim != 1 or len(scores) == 0 or bool(scores.isnan().any()):
            raise ValueError(
                f"Expected scores of {name} inputs, (batch,), no NaN, got {tuple(scores.shape)}: give rows."
            )
    both = torch.cat([inside.double(), outside.to(inside.device).double()])
    distinct, rank = both.unique(return_inverse=True)
    positive = torch.arange(len(both), device=both.device) >= len(inside)
    return rank.double() / max(1, len(distinct) - 1), positive.long()
