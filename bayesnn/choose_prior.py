"""Which of several priors: by the marginal likelihood of the data, or by what is predicted of rows held out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

import torch

from bayesnn.data.dataset import Data, in_memory
from bayesnn.errors import at_least, unknown
from bayesnn.fit import as_method, fit
from bayesnn.methods import Laplace, Method
from bayesnn.model import BayesianModel
from bayesnn.priors import PriorRule
from bayesnn.rng import generator
from bayesnn.source_laplace import LaplaceSource

By = Literal["evidence", "held-out"]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Choice(Generic[Name]):
    """What :func:`choose_prior` found.

    Attributes
    ----------
    name : of the best prior among the candidates.
    model : the model with that prior.
    scores : of every candidate, nats: differences of them are log Bayes factors, or log ratios of what was predicted.
    """

    name: Name
    model: BayesianModel
    scores: dict[Name, float]


def choose_prior(
    model: BayesianModel,
    data: Any,
    candidates: Mapping[Name, PriorRule],
    by: By = "evidence",
    method: Method | type[Method] | str | None = None,
    folds: int = 4,
    **options: Any,
) -> Choice[Name]:
    """The prior with the best score: empirical Bayes over a handful of candidates, such as scales.

    ``by="evidence"``: the log marginal likelihood of all rows, log p(D | prior) = log of the integral of p(D | w) p(w)
    dw, as :class:`bayesnn.Laplace` has it (MacKay 1992): exact in a linear model with Normal noise, and one fit for
    each candidate. It is the sum over rows of log p(y_i | x_i, the rows before i): a prior is charged for all that it
    had to learn, from the first row on, and a narrow one about weights that are nearly right is cheap.

    ``by="held-out"``: sum over rows of log p(y_i | x_i, the other folds), by the very method that will be used; one fit
    a fold for each candidate. It asks for what is to be predicted once the data are there, as the marginal likelihood
    does not (Lotfi et al. 2022), and so the two may differ.

    Parameters
    ----------
    model : net and likelihood; its own prior is not looked at.
    data : Data, or a pair (x, y): rows in memory.
    candidates : priors by name: ``{s: Informative(net, s) for s in (0.03, 0.1, 0.3, 1.0)}``.
    method : of the fits, as ``fit`` takes it; ``Laplace()`` by default, and the only one that has an evidence.
    folds : of ``"held-out"``; rows go to folds by order of their targets, so that each has its share of every class.
    options : what else :func:`bayesnn.fit` takes (``epochs``, ``init``, ``seed``).

    Raises
    ------
    ValueError
        If there is no candidate, or the evidence is asked of a method that has none; and as ``fit``.
    TypeError
        If ``data`` is a loader; and as ``fit``.

    References
    ----------
    MacKay 1992, Bayesian interpolation, Neural Computation 4(3).
    Lotfi, Izmailov, Benton, Goldblum & Wilson 2022, Bayesian model selection, the marginal likelihood, and
    generalization, ICML.
    """
    if by not in get_args(By):
        raise unknown("score of a prior", by, get_args(By))
    if not candidates:
        raise ValueError("Expected at least one candidate, got none: give priors by name.")
    method, rows = as_method(method, Laplace), in_memory(data)
    if by == "evidence" and not isinstance(method, Laplace):
        raise ValueError(f"Expected Laplace() for the evidence, got {type(method).__name__}: or say by='held-out'.")
    options = {"progress": False, **options}
    part = None if model.part is None else sorted(model.part)
    models = {name: BayesianModel(model.net, prior, model.likelihood, part) for name, prior in candidates.items()}
    score = _evidence if by == "evidence" else _held_out
    parts = _folds(rows, folds, options.get("seed", 0)) if by == "held-out" else []
    scores = {name: score(one, rows, method, options, parts) for name, one in models.items()}
    best = max(scores, key=lambda name: scores[name] if math.isfinite(scores[name]) else -math.inf)
    return Choice(best, models[best], scores)


def _evidence(
    model: BayesianModel, data: Data, method: Method, options: dict[str, Any], _: list[torch.Tensor]
) -> float:
    """log p(D) of the best mode among the chains."""
    sources = fit(model, data, method, **options).sources
    return max(source.log_evidence for source in sources if isinstance(source, LaplaceSource))


def _held_out(
    model: BayesianModel, data: Data, method: Method, options: dict[str, Any], folds: list[torch.Tensor]
) -> float:
    """Sum over folds of log p(their targets | the other folds)."""
    total = 0.0
    for k, fold in enumerate(folds):
        others = torch.cat([other for j, other in enumerate(folds) if j != k])
        predictive = fit(model, data.subset(others), method, **options).predict(data.x[fold])
        total += float(predictive.log_prob(data.y[fold]).double().sum())
    return total


def _folds(data: Data, folds: int, seed: int) -> list[torch.Tensor]:
    """Rows of each fold, shuffled and then dealt out by order of their targets."""
    if at_least("folds", folds, 2) > len(data):
        raise ValueError(f"Expected folds <= {len(data)}, the number of rows, got {folds}: leave fewer.")
    order = torch.randperm(len(data), generator=generator(seed, 0, 7))
    if data.y.dim() == 1:
        order = order[data.y.cpu()[order].argsort(stable=True)]
    return [order[k::folds].sort().values for k in range(folds)]
