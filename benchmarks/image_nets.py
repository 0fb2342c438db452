"""The nets of courses on MNIST, Fashion-MNIST and CIFAR-10: each study's methods, their scores and what they cost.

    BAYESNN_DATA=DIR OMP_NUM_THREADS=1 python benchmarks/image_nets.py mnist-lenet5 --out results/image_nets.json
    python benchmarks/image_nets.py --out results/image_nets.json                   # print what is there

Chains of SG-MCMC start in the nets of the study's ensemble, whose gradients and seconds count as theirs. Results are
kept after each fit, and what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import bayesnn as bnn

DRAWS = 100  # of all chains
HE = bnn.priors.Layerwise(gain=2**0.5)  # sd sqrt(2 / fan-in): signals keep their size through layers of ReLU (He 2015)
Row = dict[str, float]


@dataclass(frozen=True)
class Fit:
    """One method; ``start`` names the fit in whose nets its chains start."""

    method: bnn.methods.Method
    epochs: int
    chains: int = 1
    start: str | None = None


@dataclass(frozen=True)
class Study:
    """Data, net, prior, and the methods in an order in which each start comes before what starts there."""

    data: str
    net: Callable[[], nn.Module]
    fits: dict[str, Fit]
    prior: bnn.priors.Prior | None = None  # the library's default
    batch: int = 128
    likelihood: bnn.likelihoods.Likelihood = field(default_factory=bnn.likelihoods.Categorical)

    def model(self) -> bnn.BayesianModel:
        """A fresh net."""
        return bnn.BayesianModel(self.net(), self.prior, self.likelihood)


def _convnet() -> nn.Module:
    """Three convolutions and no wide layer, 44,138 weights; in the order in memory that a CPU is fastest with."""
    return bnn.nets.ConvNet((1, 28, 28), 10, channels=(24, 48, 64), dense=()).to(memory_format=torch.channels_last)


CHAINS = {
    "ensemble of 4": Fit(bnn.MAP(), 10, 4),
    "SGHMC": Fit(bnn.SGHMC(draws=25), 10, 4, "ensemble of 4"),
}
STUDIES = {
    "mnist-lenet5": Study(
        "mnist",
        bnn.nets.LeNet5,
        {
            "MAP": Fit(bnn.MAP(), 10),
            **CHAINS,
            "SGHMC, T = 0.1": Fit(bnn.SGHMC(draws=25, temperature=0.1), 10, 4, "ensemble of 4"),
        },
    ),
    "mnist-lenet5-he": Study(
        "mnist",
        bnn.nets.LeNet5,
        {
            "MAP": Fit(bnn.MAP(), 10),
            **CHAINS,
            "MeanFieldVI": Fit(bnn.MeanFieldVI(lr=2e-3), 30),
        },
        HE,
    ),
    "mnist-lenet5-wide": Study(
        "mnist",
        bnn.nets.LeNet5,
        {
            **CHAINS,
            "SGLD": Fit(bnn.SGLD(draws=25), 10, 4, "ensemble of 4"),
            "ensemble of 4, 20 epochs": Fit(bnn.MAP(), 20, 4),
            "SGLD, from 20 epochs": Fit(bnn.SGLD(draws=25), 10, 4, "ensemble of 4, 20 epochs"),
        },
        bnn.priors.Layerwise(gain=6.0),
    ),
    "mnist-lenet5-unit": Study(
        "mnist",
        bnn.nets.LeNet5,
        CHAINS,
        bnn.priors.Normal(1.0),
    ),
    # Labels as observations of the classes' probabilities: see NoisyDirichlet.
    "mnist-lenet5-dirichlet": Study(
        "mnist",
        bnn.nets.LeNet5,
        CHAINS,
        likelihood=bnn.likelihoods.NoisyDirichlet(),
    ),
    "mnist-mlp": Study(
        "mnist",
        lambda: bnn.nets.MLP(784, (512, 512), 10),
        {"MAP": Fit(bnn.MAP(), 20), "MeanFieldVI": Fit(bnn.MeanFieldVI(lr=1e-3), 20)},
        bnn.priors.Normal(1.0),
    ),
    "fashion-convnet": Study(
        "fashion-mnist",
        _convnet,
        {
            "MAP": Fit(bnn.MAP(lr=3e-3), 8),
            "ensemble of 4": Fit(bnn.MAP(lr=3e-3), 8, 4),
            "SGHMC": Fit(bnn.SGHMC(draws=25), 8, 4, "ensemble of 4"),
        },
    ),
    # Equal budgets: 60 epochs in all, one chain each.
    "cifar10-resnet20": Study(
        "cifar10",
        lambda: bnn.nets.ResNet(20, norm="frn"),
        {
            "MAP": Fit(bnn.MAP(), 60),
            "SGHMC": Fit(bnn.SGHMC(draws=30), 60),
            "SGHMC, 3 cycles": Fit(bnn.SGHMC(lr=0.1, cycles=3, warm_up=0.0, burn_in=0.0, draws=30), 60),
            "MeanFieldVI": Fit(bnn.MeanFieldVI(lr=1e-3), 60),
        },
        batch=32,
    ),
    # Half of that.
    "cifar10-resnet20-half": Study(
        "cifar10",
        lambda: bnn.nets.ResNet(20, norm="frn"),
        {
            "MAP": Fit(bnn.MAP(), 30),
            "SGHMC, 2 cycles": Fit(bnn.SGHMC(lr=0.1, cycles=2, warm_up=0.0, burn_in=0.0, draws=30), 30),
            "MeanFieldVI": Fit(bnn.MeanFieldVI(lr=1e-3), 30),
        },
        batch=32,
    ),
    # Equal budgets: 20 epochs in all.
    "cifar10-resnet20-he": Study(
        "cifar10",
        lambda: bnn.nets.ResNet(20, norm="frn"),
        {
            "MAP": Fit(bnn.MAP(), 20),
            "SGHMC": Fit(bnn.SGHMC(draws=30), 20),
            "MeanFieldVI": Fit(bnn.MeanFieldVI(lr=2e-3), 20),
        },
        HE,
        batch=32,
    ),
}


def load(name: str) -> tuple[bnn.data.Data, bnn.data.Data]:
    """Training and test part; "cifar10" is the first 4,000 training images, of which a fifth are the test part."""
    if name != "cifar10":
        return bnn.data.load(name)
    file = np.load(Path(os.environ["BAYESNN_DATA"]) / "cifar10-subset" / "cifar10_train_first4000.npz")
    x, y = (file[key] for key in sorted(file.files, key=lambda key: -file[key].ndim))
    data = bnn.data.Data.of(x.transpose(0, 3, 1, 2).astype("float32") / 255, y.astype("int64"), name)
    return bnn.data.standardize(*bnn.data.split(data, 0.2, 0))


def run(
    study: Study, name: str, train: bnn.data.Data, test: bnn.data.Data, seed: int, fitted: dict[str, bnn.Posterior]
) -> Row:
    """Fit one method, and first where it starts; its scores on the test part."""

    def fit(name: str) -> bnn.Posterior:
        if name not in fitted:
            one = study.fits[name]
            init = {} if one.start is None else {"init": fit(one.start)}
            options: dict[str, Any] = {"epochs": one.epochs, "batch_size": study.batch, "chains": one.chains, **init}
            fitted[name] = bnn.fit(study.model(), train, one.method, seed=seed, progress=False, **options)
        return fitted[name]

    posterior = fit(name)
    predictive = posterior.predict(test.x, draws=max(1, DRAWS // posterior.num_chains))
    spent, start = [posterior], study.fits[name].start
    while start is not None:
        spent.append(fitted[start])
        start = study.fits[start].start
    return {
        **bnn.metrics.classification_table(predictive.mean, test.y),
        "gradients": sum(sum(each.info["gradient_evaluations"]) for each in spent),
        "seconds": sum(sum(each.info["seconds"]) for each in spent),
    }


def table(results: dict[str, dict[str, dict[str, Row]]]) -> str:
    """Markdown, a table to each study, mean +- standard error over the seeds."""
    lines = []
    for study, by_method in results.items():
        lines += [f"{study}\n", "| method | seeds | accuracy, % | NLL | ECE | gradients | seconds |", "|---" * 7 + "|"]
        for method, by_seed in by_method.items():
            rows = list(by_seed.values())
            cells = [_mean((100 * r["accuracy"] for r in rows), 2)]
            cells += [_mean((r[score] for r in rows), 4) for score in ("nll", "ece")]
            cells += [f"{statistics.fmean(r[key] for r in rows):,.0f}" for key in ("gradients", "seconds")]
            lines.append(f"| {method} | {', '.join(by_seed)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _mean(values: Iterable[float], decimals: int) -> str:
    given = list(values)
    mean = f"{statistics.fmean(given):.{decimals}f}"
    return mean if len(given) < 2 else f"{mean} +- {statistics.stdev(given) / math.sqrt(len(given)):.{decimals}f}"


def main() -> None:
    """Parse, run what is not there yet, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="study", help=", ".join(STUDIES))
    parser.add_argument("--methods", nargs="+", help="of the study; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", type=int, help="of the training and test parts, for a trial run")
    parser.add_argument("--out", type=Path, default=Path("results/image_nets.json"))
    arguments = parser.parse_args()
    known = {*STUDIES} | {name for study in STUDIES.values() for name in study.fits}
    if unknown := {*arguments.studies, *(arguments.methods or ())} - known:
        parser.error(f"no study or method {min(unknown)!r}: take of {', '.join(sorted(known))}")
    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.studies:
        study = STUDIES[name]
        train, test = (part.subset(range(min(arguments.rows or len(part), len(part)))) for part in load(study.data))
        for seed in arguments.seeds:
            fitted: dict[str, bnn.Posterior] = {}
            for method in arguments.methods or study.fits:
                kept = results.setdefault(name, {}).setdefault(method, {})
                if str(seed) in kept:
                    continue
                began = time.perf_counter()
                row = kept[str(seed)] = run(study, method, train, test, seed, fitted)
                print(name, method, seed, json.dumps(row), f"{time.perf_counter() - began:.0f} s", flush=True)
                arguments.out.write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
