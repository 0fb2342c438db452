"""``compare``: the same data, net and budget for many methods -> one table, one report."""

from __future__ import annotations

import itertools
import math
import platform
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesnn import data as bd
from bayesnn import nets
from bayesnn.comparison import Comparison, Fitted, Row, score
from bayesnn.errors import DivergedError, at_least, first_line, is_real, unknown
from bayesnn.fit import DEFAULT_BATCH, fit
from bayesnn.likelihoods import Categorical, Likelihood, Normal
from bayesnn.methods import MAP, SGLD, MeanFieldVI, Method
from bayesnn.model import BayesianModel
from bayesnn.posterior import Posterior
from bayesnn.priors import PriorRule
from bayesnn.rng import generator, isolated

MakeNet = Callable[[bd.Data], nn.Module]

DEFAULT_METHODS = ("map", "ensemble", "vi", "sgld")
# Steps of a chain, and the least number of passes, when the user names no epochs. 1,250 are 60 epochs of the digits;
# the scale of the noise takes longer to settle.
_STEPS, _LEAST_EPOCHS = {"classes": 1250, "other": 2500}, 10
# The letters are no digits and no clothes: for these two sets they are the usual data from elsewhere.
_OOD_LETTERS = ("mnist", "fashion-mnist")

NETS: dict[str, MakeNet] = {
    "mlp": lambda data: nets.MLP(math.prod(data.in_shape), (50, 50), data.num_outputs),
    "lenet5": lambda data: nets.LeNet5(data.in_shape, data.num_outputs),
    "convnet": lambda data: nets.ConvNet(data.in_shape, data.num_outputs),
}


def named_settings() -> dict[str, tuple[Method, int]]:
    """The methods that :func:`compare` knows by name, as (method, chains): the library's defaults, no more."""
    return {"map": (MAP(), 1), "ensemble": (MAP(), 5), "vi": (MeanFieldVI(), 1), "sgld": (SGLD(), 4)}


def compare(
    data: str | tuple[bd.Data, bd.Data],
    net: str | MakeNet | Sequence[str | MakeNet] | None = None,
    methods: Sequence[str] | Mapping[str, Method | tuple[Method, int]] = DEFAULT_METHODS,
    *,
    epochs: int | None = None,
    batch_size: int | None = DEFAULT_BATCH,
    seeds: Sequence[int] = (0,),
    likelihood: Likelihood | None = None,
    prior: PriorRule | None = None,
    validation: Any = 0.1,
    ood: str | bd.Data | Tensor | None = None,
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
    epochs : passes over the data, the same for each method and chain; by default as many as give about 1,250 steps
        (2,500 for targets that are not classes), and at least 10.
    batch_size : rows a step; None takes all.
    seeds : of initial weights, noise, order of the data and the validation part. The test part is always the same.
    likelihood : ``Categorical()`` for integer targets and ``Normal()`` (inferred noise) for real ones by default.
    prior : the library's default, ``Layerwise(gain=3.0)``, where none is given.
    validation : a share of the training rows, or (x, y), scored after each epoch for the training curves; or None.
    ood : inputs from elsewhere for the picture of entropies: a name for :func:`bayesnn.data.load_test`, ``Data`` or a
        tensor, as the net takes them. By default, for images, the notMNIST letters (for MNIST and Fashion-MNIST, where
        there is a file) or the test images with the pixels of each in random order.
    out : folder to save to, see :meth:`Comparison.save`.
    directory : where data files lie, see :func:`bayesnn.data.load`.
    progress : a line and a bar to each fit, on standard error.

    Returns
    -------
    Comparison
        After Ctrl-C, what was complete by then. A fit that an error ends costs its row, once another is complete.

    Raises
    ------
    ValueError, TypeError : unknown names, names given twice, ``out`` that is a file, and all that ``fit`` refuses.
    FileNotFoundError : the data are neither found nor downloaded.
    """
    if out is not None:
        check_folder(out)
    train, test = _parts(data, directory)
    makers = _makers(net, train)
    if likelihood is None:
        likelihood = Normal() if train.y.is_floating_point() else Categorical()
    settings = _settings(methods, likelihood.kind)
    seeds = [at_least("seeds", seed, 0) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"Expected seeds, each once, got {seeds}: pass seeds=(0, 1, 2).")
    if epochs is None:
        share = float(validation) if is_real(validation) else 0.0
        rows = round(len(train) * (1 - share))
        steps = _STEPS["classes" if likelihood.kind == "classes" else "other"]
        epochs = max(_LEAST_EPOCHS, round(steps / max(1, math.ceil(rows / (batch_size or rows)))))
    elsewhere = _elsewhere(ood, train, test, directory) if likelihood.kind == "classes" else None

    how: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "validation": validation, "progress": progress}
    comparison = Comparison([], {
        "data": train.name, "num_train": len(train), "num_test": len(test), "kind": likelihood.kind,
        "nets": list(makers),
        "methods": {name: {**method.config(), "chains": chains} for name, (method, chains) in settings.items()},
        "prior": None,  # as the models have it, the library's default included: filled in below
        "likelihood": likelihood.config(),
        "epochs": epochs, "batch_size": batch_size, "seeds": seeds,
        "validation": float(validation) if is_real(validation) else None,
        "ood": elsewhere[0] if elsewhere is not None else None, "threads": torch.get_num_threads(),
        "versions": versions(),
    }, {}, train, test, elsewhere)  # fmt: skip
    try:
        for seed, (net_name, make), (name, (method, chains)) in itertools.product(
            seeds, makers.items(), settings.items()
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
                    posterior = fit(model, train, method, chains=chains, seed=seed, **how)
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
                nothing = dict.fromkeys((*comparison.scores, "seconds", "gradient_evaluations"), math.nan)
                comparison.rows.append({**row, **nothing})
                continue
            predictive = posterior.predict(test.x)
            row |= score(predictive, test.y, likelihood.kind)
            row["seconds"] = sum(posterior.info["seconds"])
            row["gradient_evaluations"] = sum(posterior.info["gradient_evaluations"])
            # One seed's posteriors are kept: the draws of a sampler are the large part.
            if seed == seeds[0]:
                total = predictive.total if likelihood.kind == "classes" else None
                comparison.fitted[net_name, name] = Fitted(posterior, predictive.mean, total)
            comparison.rows.append(row)
    except KeyboardInterrupt:  # in a fit, between fits or while scoring: what is whole is kept
        comparison.interrupted = True
    if out is not None:
        comparison.save(out)
    return comparison


def check_folder(out: str | Path) -> None:
    """Raise ValueError where ``out`` cannot be a folder, as it or what it should lie in is a file."""
    there = next((path for path in (Path(out), *Path(out).parents) if path.exists()), None)
    if there is not None and not there.is_dir():
        raise ValueError(f"Expected a folder in out, got {out}, but {there} is a file: name another.")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("bayesnn", "torch", "pyro-ppl", "numpy", "torchmetrics", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _parts(data: Any, directory: str | Path | None) -> tuple[bd.Data, bd.Data]:
    if isinstance(data, str):
        return bd.load(data, directory)
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, bd.Data) for part in data):
        return data[0], data[1]
    raise TypeError(
        f"Expected a name or (train, test) of bayesnn.data.Data, got {type(data).__name__}: split it with "
        "bayesnn.data.split."
    )


def _makers(net: Any, train: bd.Data) -> dict[str, MakeNet]:
    if net is None:
        net = "lenet5" if len(train.in_shape) == 3 else "mlp"
    makers: dict[str, MakeNet] = {}
    for one in [net] if isinstance(net, str) or callable(net) else net:
        if isinstance(one, nn.Module):
            raise TypeError(f"Expected a function from data to a net, got {type(one).__name__}: pass lambda data: net.")
        if callable(one):
            name, make = getattr(one, "__name__", "net").strip("<>"), one
        elif one in NETS:
            name, make = one, NETS[one]
        else:
            raise unknown("net", one, NETS)
        if name in makers:
            raise ValueError(f"Expected nets of different names, got {name!r} twice: leave one out, or name it by def.")
        makers[name] = make
    return makers


def _settings(methods: Any, kind: str) -> dict[str, tuple[Method, int]]:
    if isinstance(methods, str):
        raise TypeError(f"Expected a sequence of method names, got the string {methods!r}: pass ({methods!r},).")
    if isinstance(methods, Mapping):
        pairs = {name: one if isinstance(one, tuple) else (one, one.default_chains) for name, one in methods.items()}
    else:
        known = named_settings()
        for name in methods:
            if name not in known:
                raise unknown("method", name, known)
        twice = next((name for i, name in enumerate(methods) if name in methods[:i]), None)
        if twice is not None:
            raise ValueError(f"Expected each method once, got {twice!r} twice: leave one out.")
        pairs = {name: known[name] for name in methods}
    if not pairs:
        raise ValueError(f"Expected at least one method, got none: known are {', '.join(named_settings())}.")
    return pairs


def _elsewhere(ood: Any, train: bd.Data, test: bd.Data, directory: str | Path | None) -> tuple[str, Tensor] | None:
    if isinstance(ood, str):
        ood = bd.load_test(ood, directory, like=train)
    elif ood is None and train.name in _OOD_LETTERS:
        try:
            ood = bd.load_test("notmnist", directory, like=train)
        except FileNotFoundError:
            ood = None
    if ood is not None:
        x = ood.x if isinstance(ood, bd.Data) else torch.as_tensor(ood)
        if tuple(x.shape[1:]) != train.in_shape:
            raise ValueError(f"Expected ood inputs of shape {train.in_shape}, got {tuple(x.shape[1:])}: reshape them.")
        return (ood.name if isinstance(ood, bd.Data) and ood.name else "other inputs"), x
    if len(train.in_shape) == 3:
        return "test images, pixels shuffled", shuffle_pixels(test.x)
    return None


def shuffle_pixels(x: Tensor, seed: int = 0) -> Tensor:
    """Images (batch, C, H, W) with the pixels of each in a random order of its own, the same for its channels."""
    flat = x.flatten(2)  # (batch, C, H * W)
    order = torch.rand(len(x), flat.shape[2], generator=generator(seed)).argsort(1).to(x.device)  # (batch, H * W)
    return flat.gather(2, order[:, None].expand_as(flat)).view_as(x)
