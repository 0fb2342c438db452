"""``compare``: the same data, net and budget for many methods -> one table, one report."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesnn import data as bd
from bayesnn.blind import blind
from bayesnn.budget import Budget, epochs_within
from bayesnn.compare_setup import MakeNet, check_folder, elsewhere, makers, parts, settings, shifted_tests, versions
from bayesnn.comparison import Comparison, Fitted, score
from bayesnn.errors import DivergedError, at_least, first_line, is_real
from bayesnn.fit import DEFAULT_BATCH, fit
from bayesnn.likelihoods import Categorical, Likelihood, Normal
from bayesnn.methods import Method
from bayesnn.metrics import auroc
from bayesnn.model import BayesianModel
from bayesnn.posterior import Posterior
from bayesnn.priors import PriorRule
from bayesnn.reproduce import command_line, python_call
from bayesnn.rng import generator, isolated
from bayesnn.table import Row

DEFAULT_METHODS = ("map", "ensemble", "vi", "sgld")
# Steps of a chain, and the least number of passes, when the user names no epochs. 1,250 are 60 epochs of the digits;
# the scale of the noise takes longer to settle.
_STEPS, _LEAST_EPOCHS = {"classes": 1250, "other": 2500}, 10
OOD_ROWS = 2000  # at most: each is a forward pass of every draw


def compare(
    data: str | tuple[bd.Data, bd.Data],
    net: str | MakeNet | Sequence[str | MakeNet] | None = None,
    methods: Sequence[str] | Mapping[str, Method | tuple[Method, int]] = DEFAULT_METHODS,
    *,
    epochs: int | None = None,
    batch_size: int | None = DEFAULT_BATCH,
    budget: str = "epochs",
    seeds: Sequence[int] = (0,),
    likelihood: Likelihood | None = None,
    prior: PriorRule | None = None,
    validation: Any = 0.1,
    ood: str | bd.Data | Tensor | None = None,
    shifts: bool = False,
    device: str | None = None,
    out: str | Path | None = None,
    directory: str | Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Fit the same net to the same data with many methods, and score their predictive distributions on the test part.

    Parameters
    ----------
    data : name of a data set (:func:`bayesnn.data.names`), or (train, test) as :class:`bayesnn.data.Data`.
    net : ``"mlp"`` (two layers of 50), ``"lenet5"``, ``"convnet"``, a function from the training data to a module, or a
        sequence of these. By default LeNet5 for images and the MLP for all else.
    methods : names, of ``"map"`` (the deterministic baseline), ``"ensemble"`` (five of them), ``"vi"`` (mean-field),
        ``"sgld"`` (four chains); or a dict of name to method, or to (method, chains).
    epochs : passes over the data that the budget is counted in; by default as many as give about 1,250 steps (2,500 for
        targets that are not classes), and at least 10. None with a budget of time.
    batch_size : rows a step; None takes all.
    budget : what is equal. ``"epochs"``: each chain of each method gets ``epochs``, so that a method with five chains
        takes five times the gradients of one. ``"gradients"``: each method gets the gradients of ``epochs``, all its
        chains together. ``"time:SECONDS"``: each method gets as many epochs as fit into the seconds, all its chains one
        after another. For the last two the method's own cost is measured on short fits of one chain, which are thrown
        away and count for nothing, see :func:`bayesnn.budget.epochs_within`.
    seeds : of initial weights, noise, order of the data and the validation part. The test part is always the same.
    likelihood : ``Categorical()`` for integer targets and ``Normal()`` (inferred noise) for real ones by default.
    prior : the library's default, ``Layerwise(gain=3.0)``, where none is given.
    validation : a share of the training rows, or (x, y), scored after each epoch for the training curves; or None.
    ood : inputs from elsewhere, for classes, that predictive entropy should tell apart (the first 2,000): a name for
        :func:`bayesnn.data.load_test`, ``Data`` or a tensor, as the net takes them. By default, for images, the
        notMNIST letters (for MNIST and Fashion-MNIST, where there is a file) or the test images with the pixels of each
        in random order.
    shifts : whether to score the test images (the first 1,000) also turned, moved, noisy and blurred, at each severity:
        :func:`bayesnn.data.shift`. For classes and images.
    device : to fit on, see :func:`bayesnn.fit`; by default that of the nets as they are made, the CPU.
    out : folder to save to, see :meth:`Comparison.save`.
    directory : where data files lie, see :func:`bayesnn.data.load`.
    progress : a line and a bar to each fit, on standard error.

    Returns
    -------
    Comparison
        After Ctrl-C, what was complete by then. A fit that an error ends costs its row, once another is complete.

    Raises
    ------
    ValueError, TypeError : unknown names, names given twice, ``out`` that is a file, ``epochs`` with a budget of time,
        ``shifts`` of what are no images, and all that ``fit`` refuses.
    FileNotFoundError : the data are neither found nor downloaded.
    """
    arguments = {k: v for k, v in locals().items() if k not in ("out", "directory", "progress")}
    if out is not None:
        check_folder(out)
    spend = Budget.parse(budget)
    if spend.kind == "time" and epochs is not None:
        raise ValueError(f"Expected epochs or a budget of time, got epochs={epochs} and {budget!r}: leave one out.")
    train, test = parts(data, directory)
    by_net = makers(net, train)
    if likelihood is None:
        likelihood = Normal() if train.y.is_floating_point() else Categorical()
    by_method = settings(methods)
    seeds = [at_least("seeds", seed, 0) for seed in seeds]
    arguments["seeds"] = tuple(seeds)
    epochs = at_least("epochs", epochs, 1) if epochs is not None else None
    batch_size = at_least("batch_size", batch_size, 1) if batch_size is not None else None
    if likelihood.kind == "classes" and test.y.dim() > 2:
        raise ValueError(f"Expected a class for each test row, got targets of shape {tuple(test.y.shape)}: use fit.")
    if isinstance(likelihood, Categorical) and test.y.is_floating_point():
        raise ValueError("Expected classes to score by, got soft labels in the test part: give it y.argmax(1).")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"Expected seeds, each once, got {seeds}: pass seeds=(0, 1, 2).")
    if epochs is None and spend.kind != "time":
        share = float(validation) if is_real(validation) else 0.0
        rows = round(len(train) * (1 - share))
        steps = _STEPS["classes" if likelihood.kind == "classes" else "other"]
        epochs = max(_LEAST_EPOCHS, round(steps / max(1, math.ceil(rows / (batch_size or rows)))))
    outside = elsewhere(ood, train, test, directory, OOD_ROWS) if likelihood.kind == "classes" else None
    shifted = shifted_tests(train, test, likelihood.kind) if shifts else {}

    defaults = {k: p.default for k, p in inspect.signature(compare).parameters.items() if p.default is not p.empty}
    comparison = Comparison([], {
        "data": train.name, "num_train": len(train), "num_test": len(test), "kind": likelihood.kind,
        "nets": list(by_net),
        "methods": {name: {**method.config(), "chains": chains} for name, (method, chains) in by_method.items()},
        "prior": None,  # as the models have it, the library's default included: filled in below
        "likelihood": likelihood.config(), "blind": blind(train, test, likelihood.kind),
        "budget": budget, "epochs": epochs, "batch_size": batch_size, "seeds": seeds,
        "validation": float(validation) if is_real(validation) else None,
        "ood": outside[0] if outside is not None else None, "device": device, "threads": torch.get_num_threads(),
        "call": python_call(arguments, defaults), "command": command_line(arguments, defaults, torch.get_num_threads()),
        "versions": versions(),
    }, {}, train, test, outside)  # fmt: skip
    how: dict[str, Any] = {"batch_size": batch_size, "validation": validation, "device": device}
    planned: dict[tuple[str, str], int] = {}  # epochs, measured with the first seed
    try:
        for seed, (net_name, make), (name, (method, chains)) in itertools.product(
            seeds, by_net.items(), by_method.items()
        ):
            if progress:
                print(f"{net_name}, {name}, seed {seed}", file=sys.stderr, flush=True)
            with isolated(generator(seed)):  # for modules without reset_parameters: fit keeps their initial values
                model = BayesianModel(make(train), prior, likelihood)
            rule = model.prior
            comparison.settings["prior"] = rule.config() if hasattr(rule, "config") else repr(rule)
            row: Row = {"net": net_name, "method": name, "seed": seed}
            posterior: Posterior | None = None
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                try:
                    key = net_name, name
                    if key not in planned:
                        planned[key] = _epochs(spend, epochs, model, train, method, chains, seed, how)
                    row["epochs"] = planned[key]
                    posterior = fit(
                        model, train, method, chains=chains, seed=seed, epochs=planned[key], progress=progress, **how
                    )
                except Exception as error:
                    if not comparison.rows and not isinstance(error, DivergedError):
                        raise  # nothing is complete yet: an argument that fit refuses is better said at once
                    row["error"] = first_line(error)  # the other methods' results are worth keeping
                    warnings.warn(row["error"], stacklevel=1)
            for warning in caught:  # they shall say whose they are
                warnings.warn(f"{net_name}, {name}, seed {seed}: {warning.message}", warning.category, stacklevel=2)
            if posterior is not None and posterior.info["interrupted"] and posterior.info["error"] is None:
                raise KeyboardInterrupt
            # One that an error cut short had less than the budget of the others.
            if posterior is None or posterior.info["interrupted"]:
                if posterior is not None:
                    row["error"] = posterior.info["error"]
                comparison.rows.append({**row, **dict.fromkeys(comparison.columns, math.nan)})
                continue
            try:
                predictive = posterior.predict(test.x)
                row |= score(predictive, test.y, likelihood.kind)
                total = predictive.total.cpu() if likelihood.kind == "classes" else None
                entropy = posterior.predict(outside[1]).total.cpu() if outside is not None else None
                if total is not None and entropy is not None:
                    row["ood_auroc"] = auroc(total, entropy)
                under_shift = [
                    {"net": net_name, "method": name, "seed": seed, "kind": kind, "severity": severity,
                     **score(posterior.predict(x), test.y[: len(x)], likelihood.kind)}
                    for (kind, severity), x in shifted.items()
                ]  # fmt: skip
            except Exception as error:
                if not comparison.rows:
                    raise
                row["error"] = first_line(error)
                warnings.warn(f"{net_name}, {name}, seed {seed}: {row['error']}", stacklevel=2)
                comparison.rows.append({**row, **dict.fromkeys(comparison.columns, math.nan)})
                continue
            row["seconds"] = sum(posterior.info["seconds"])
            row["gradient_evaluations"] = sum(posterior.info["gradient_evaluations"])
            # The first posterior of a method is kept, and no more: the draws of a sampler are the large part.
            if key not in comparison.fitted:
                comparison.fitted[key] = Fitted(posterior, predictive.mean.cpu(), total, entropy)
            comparison.rows.append(row)
            comparison.shifted += under_shift
    except KeyboardInterrupt:  # in a fit, between fits or while scoring: what is whole is kept
        comparison.interrupted = True
    if out is not None:
        try:
            comparison.save(out)
        except Exception as error:  # what was fitted is worth more than its pictures
            warnings.warn(f"Not all of the report could be written to {out}: {first_line(error)}", stacklevel=2)
    return comparison


def _epochs(
    spend: Budget,
    epochs: int | None,
    model: BayesianModel,
    train: bd.Data,
    method: Method,
    chains: int,
    seed: int,
    how: Mapping[str, Any],
) -> int:
    """Epochs of each chain: as given, or as many as the budget has room for."""
    if spend.kind == "epochs" and epochs is not None:
        return epochs

    def cost(n: int) -> float:
        """Seconds of one chain of n epochs, or its gradients in passes over the data, which hold for any batch."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # so short a fit has not converged, and is not to
            info = fit(model, train, method, chains=1, seed=seed, epochs=n, progress=False, **how).info
        if info["interrupted"]:
            raise KeyboardInterrupt if info["error"] is None else RuntimeError(info["error"])
        passes: float = info["gradient_evaluations"][0] * info["epochs"] / info["steps"]
        return float(info["seconds"][0]) if spend.kind == "time" else passes

    if spend.kind == "time":
        with contextlib.suppress(ValueError):
            cost(1)  # caches, the processor, what is imported late: no part of the method
        return epochs_within(spend.seconds / chains, cost)
    return epochs_within(float(epochs or 1) / chains, cost)
