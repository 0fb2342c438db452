"""Do the defaults work? Each method with no argument but the data, against MAP with early stopping, paired over seeds.

    python benchmarks/defaults.py --seeds 10

Seed k is the split of the data and the seed of ``fit``. Reported: test NLL of each method minus that of MAP with early
stopping (20 % of the training rows held out), mean +- standard error over seeds; and for mean-field VI the ELBO and the
NLL at the default epochs and at ten times as many. ``--out`` is written after each seed; a run that finds it goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch

import bayesnn as bnn

DATA = ("digits", "breast-cancer", "diabetes", "moons", "sine-gap")


def model_for(train: bnn.data.Data) -> bnn.BayesianModel:
    """An MLP with one hidden layer of 50, the default prior, and the likelihood of the targets' kind."""
    net = bnn.nets.MLP(train.x[0].numel(), (50,), train.num_outputs)
    likelihood = bnn.likelihoods.Normal() if train.y.is_floating_point() else bnn.likelihoods.Categorical()
    return bnn.BayesianModel(net, likelihood=likelihood)


def run(name: str, seed: int, methods: list[str], longer: bool) -> dict[str, dict[str, float]]:
    """Test NLL, seconds (and ELBO) of every method on one split."""
    train, test = bnn.data.load(name, seed=seed)
    model, rows = model_for(train), {}
    fits: dict[str, Any] = {
        "MAP, early stopping": lambda: bnn.fit(
            model, train, bnn.MAP(), seed=seed, validation=0.2, early_stopping=patience(train), progress=False
        ),
        "MAP": lambda: bnn.fit(model, train, bnn.MAP(), seed=seed, progress=False),
        "SGLD": lambda: bnn.fit(model, train, bnn.SGLD(), seed=seed, progress=False),
        "MeanFieldVI": lambda: bnn.fit(model, train, bnn.MeanFieldVI(), seed=seed, progress=False),
        # Not a default: what of the shortfall is the optimiser's.
        "MeanFieldVI, lr 0.01": lambda: bnn.fit(model, train, bnn.MeanFieldVI(lr=0.01), seed=seed, progress=False),
    }
    for method in methods:
        posterior = fits[method]()
        rows[method] = report(posterior, test)
        if method == "MeanFieldVI" and longer:
            longer_fit = bnn.fit(
                model, train, bnn.MeanFieldVI(), seed=seed, epochs=10 * posterior.info["epochs"], progress=False
            )
            rows["MeanFieldVI, 10 x epochs"] = report(longer_fit, test)
    return rows


def patience(train: bnn.data.Data) -> int:
    """Epochs that make 1000 steps: a loss that is noisy or flat for a while must not stop the baseline."""
    return math.ceil(1000 / math.ceil(0.8 * len(train) / 64))


def report(posterior: bnn.Posterior, test: bnn.data.Data) -> dict[str, float]:
    """Test NLL (nats, own units), wall seconds; -ELBO / N for a variational fit, in nats of standardised targets."""
    predictive = posterior.predict(test.x)
    row = {"nll": -float(predictive.log_prob(test.y).double().mean()), "seconds": sum(posterior.info["seconds"])}
    last = posterior.history[-1]
    if "kl" in last:
        tail = [r["loss"] for r in posterior.history[-20:]]
        row["elbo"] = -(statistics.mean(tail) + last["kl"] / posterior.num_data)
    return row


def main() -> None:
    """Parse, run, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--data", nargs="+", default=list(DATA))
    parser.add_argument("--methods", nargs="+", default=["MAP, early stopping", "MAP", "SGLD", "MeanFieldVI"])
    parser.add_argument("--no-longer", action="store_true", help="leave out VI at ten times the epochs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/defaults.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, dict[str, float]]]] = {}
    if arguments.out.exists():
        results = json.loads(arguments.out.read_text())
    print("| data | method | NLL | minus MAP, early stopping | ELBO / N | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in arguments.data:
        runs = results.setdefault(name, [])
        while len(runs) < arguments.seeds:
            runs.append(run(name, len(runs), arguments.methods, not arguments.no_longer))
            arguments.out.write_text(json.dumps(results, indent=1))
        for method in runs[0]:
            nll = [r[method]["nll"] for r in runs]
            gap = [r[method]["nll"] - r["MAP, early stopping"]["nll"] for r in runs]
            elbo = mean_error([r[method]["elbo"] for r in runs]) if "elbo" in runs[0][method] else ""
            seconds = statistics.mean(r[method]["seconds"] for r in runs)
            print(f"| {name} | {method} | {mean_error(nll)} | {mean_error(gap)} | {elbo} | {seconds:.1f} |", flush=True)


def mean_error(values: list[float]) -> str:
    """Mean +- standard error of the mean."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.3f} +- {error:.3f}"


if __name__ == "__main__":
    main()
