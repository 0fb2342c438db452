"""Do the defaults work? Each method with no argument but the data, against MAP with early stopping, paired over seeds.

    python benchmarks/defaults.py --seeds 10

Seed k is the split of the data and the seed of ``fit``. Reported: test NLL of each method minus that of MAP with early
stopping (20 % of the training rows held out), mean +- standard error over seeds; and for mean-field VI the ELBO and the
NLL at the default epochs and at ten times as many. Results are kept in ``--out`` after each fit, and what stands there
is not run again.
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
BASELINE, LONGER, RISING = "MAP, early stopping", "MeanFieldVI, 10 x epochs", "MeanFieldVI, kl_warm_up 0.3"
METHODS = {
    BASELINE: bnn.MAP(),
    "MAP": bnn.MAP(),
    "SGLD": bnn.SGLD(),
    "MeanFieldVI": bnn.MeanFieldVI(),
    LONGER: bnn.MeanFieldVI(),
    RISING: bnn.MeanFieldVI(kl_warm_up=0.3),  # not a default: run where it is named
}
PRIORS = {"default": None, "fan-in": bnn.priors.Layerwise(), "hierarchical": bnn.priors.HierarchicalNormal()}


def model_for(train: bnn.data.Data, prior: str = "default") -> bnn.BayesianModel:
    """An MLP with one hidden layer of 50, a prior, and the likelihood of the targets' kind."""
    net = bnn.nets.MLP(train.x[0].numel(), (50,), train.num_outputs)
    likelihood = bnn.likelihoods.Normal() if train.y.is_floating_point() else bnn.likelihoods.Categorical()
    return bnn.BayesianModel(net, PRIORS[prior], likelihood)


def fit(name: str, seed: int, method: str, prior: str) -> dict[str, float]:
    """The row of one method on one split."""
    train, test = bnn.data.load(name, seed=seed)
    options: dict[str, Any] = {"seed": seed, "progress": False}
    if method == BASELINE:
        options |= {"validation": 0.2, "early_stopping": patience(train)}
    if method == LONGER:
        steps = math.ceil(len(train) / 64)
        options["epochs"] = 10 * max(1, round(bnn.MeanFieldVI.default_steps / steps))
    return report(bnn.fit(model_for(train, prior), train, METHODS[method], **options), test)


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


def table(results: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Markdown: mean +- standard error over seeds, and the difference to the baseline of the same seed."""
    lines = ["| data | method | seeds | NLL | minus MAP, early stopping | ELBO / N | seconds |", "|---" * 7 + "|"]
    for name, rows in results.items():
        for method, by_seed in rows.items():
            both = by_seed.keys() & rows.get(BASELINE, {}).keys()
            cells = [
                mean_error([row["nll"] for row in by_seed.values()]),
                mean_error([by_seed[seed]["nll"] - rows[BASELINE][seed]["nll"] for seed in both]),
                mean_error([row["elbo"] for row in by_seed.values() if "elbo" in row]),
            ]
            seconds = statistics.mean(row["seconds"] for row in by_seed.values())
            lines.append(f"| {name} | {method} | {len(by_seed)} | " + " | ".join(cells) + f" | {seconds:.1f} |")
    return "\n".join(lines)


def longer_table(results: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Markdown: what ten times the epochs change, paired by seed."""
    lines = ["| data | seeds | ELBO / N | NLL |", "|---" * 4 + "|"]
    for name, rows in results.items():
        short, long = rows.get("MeanFieldVI", {}), rows.get(LONGER, {})
        both = sorted(short.keys() & long.keys())
        cells = [mean_error([long[seed][key] - short[seed][key] for seed in both]) for key in ("elbo", "nll")]
        lines.append(f"| {name} | {len(both)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse, run what is not there yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="0 prints what stands in --out")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[name for name in METHODS if name != RISING])
    parser.add_argument("--prior", choices=PRIORS, default="default", help="give each prior an --out of its own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/defaults.json"), help="remove it after a change")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for method in arguments.methods:
        for seed in range(arguments.seeds):
            for name in arguments.data:
                kept = results.setdefault(name, {}).setdefault(method, {})
                if str(seed) not in kept:
                    kept[str(seed)] = fit(name, seed, method, arguments.prior)
                    print(name, method, seed, json.dumps(kept[str(seed)]), flush=True)
                    arguments.out.write_text(json.dumps(results, indent=1))
    print(table(results), longer_table(results), sep="\n\n")


def mean_error(values: list[float]) -> str:
    """Mean +- standard error of the mean; the mean alone of one value, nothing of none."""
    if len(values) < 2:
        return "".join(f"{value:.3f}" for value in values)
    return f"{statistics.mean(values):.3f} +- {statistics.stdev(values) / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    main()
