"""Likelihoods of classes that state how far the labels are to be believed: NoisyCategorical and NoisyDirichlet."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesnn.errors import positive
from bayesnn.likelihoods.base import Params, sum_events
from bayesnn.likelihoods.classification import Categorical, ClassWeights


class NoisyCategorical(Categorical):
    """A share of the labels is wrong: p(y | f) = (1 - noise) softmax(f)_y + noise / K, of K classes.

    With probability ``noise`` the label was drawn evenly from all classes, the right one among them. No row can cost
    more than log(K / noise) nats, so a few wrong labels cannot bend the net as they do under ``Categorical``. It is a
    density of the labels as they are observed, and so is what is predicted; :meth:`clean` has the classes behind them.

    Outputs and targets are those of :class:`Categorical`, soft labels and images included.

    Parameters
    ----------
    noise : in (0, 1); 0.1 where a tenth of the labels may be no more than a guess.
    class_weights : as in :class:`Categorical`.

    Raises
    ------
    ValueError : ``noise`` outside (0, 1).
    """

    def __init__(self, noise: float = 0.1, class_weights: ClassWeights = None) -> None:
        super().__init__(class_weights)
        if not 0 < positive("noise", noise) < 1:
            raise ValueError(f"Expected noise in (0, 1), got {noise!r}: without noise use Categorical().")
        self.noise = float(noise)
        self._options["noise"] = self.noise

    def _observed(self, outputs: Tensor) -> Tensor:
        """Log probabilities of the labels, classes along axis 1."""
        log_probs = outputs.log_softmax(1) + math.log1p(-self.noise)
        return torch.logaddexp(log_probs, log_probs.new_tensor(math.log(self.noise / outputs.shape[1])))

    def params(self, outputs: Tensor) -> Params:
        return super().params(self._observed(outputs))

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        return super().log_prob(self._observed(outputs), y)

    def clean(self, probs: Tensor) -> Tensor:
        """softmax(f) from probabilities of observed labels, (..., class): of one draw, or averaged over draws."""
        return ((probs - self.noise / probs.shape[-1]) / (1 - self.noise)).clamp_min(0)


class NoisyDirichlet(Categorical):
    """Labels of which nearly all can be believed: logits near those of a Dirichlet distribution about the label.

    A softmax likelihood asks of a net no more than that the right class be the most probable by some way, and so holds
    even spotless labels for noisy. Here a label y is an observation of the class probabilities themselves,
    Dirichlet(alpha_k = [k = y] + alpha), the posterior of a Dirichlet(alpha, ..., alpha) prior. Its probabilities are
    independent Gamma(alpha_k, 1) variables over their sum; a log-normal one with the same mean and variance has

        log p(y | f) = sum_k log Normal(f_k; mu_k, s_k^2)
        s_k^2 = log(1 + 1 / alpha_k),       mu_k = log(alpha_k) - s_k^2 / 2

    for its logarithm f_k, the net's output (Milios et al. 2018, Dirichlet-based Gaussian processes for large-scale
    calibrated classification; as the likelihood of a net Kapoor, Maddox, Izmailov & Wilson 2022, On uncertainty,
    tempering, and data augmentation in Bayesian classification: the noisy Dirichlet model). The smaller ``alpha``, the
    surer each label, and the less aleatoric uncertainty is left.

    It is a regression of the outputs on numbers made of the labels, and Normal in the outputs, so that a linear net has
    a posterior in closed form. Of the labels it is no density: what is predicted, and what ``predictive.log_prob``
    scores, is softmax(f); Pyro is told of a factor. ``loss`` in the history is of the regression, ``val_nll`` of the
    classes. Of soft labels alpha_k = y_k + alpha.

    Parameters
    ----------
    alpha : > 0, what each class is worth in labels before the label is seen.

    Raises
    ------
    ValueError : ``alpha`` not positive.
    """

    def __init__(self, alpha: float = 0.001) -> None:
        super().__init__()
        self.alpha = positive("alpha", alpha)
        self._options["alpha"] = self.alpha

    def moments(self, y: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        """(mu, s^2) of each class for targets y, each (batch, class, ...)."""
        one_hot = y if y.is_floating_point() else F.one_hot(y, num_outputs).movedim(-1, 1)
        concentration = one_hot + self.alpha
        variance = concentration.reciprocal().log1p()
        return concentration.log() - variance / 2, variance

    def is_density(self, y: Tensor) -> bool:
        return False

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        mean, variance = (moment.to(outputs) for moment in self.moments(y, outputs.shape[1]))
        squares = (outputs - mean).square() / variance
        return sum_events(-0.5 * (squares + variance.log() + math.log(2 * math.pi)).sum(1))
