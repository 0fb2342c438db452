"""Images from elsewhere, and images that shift: every method's doubt on MNIST and Fashion-MNIST with LeNet5.

    BAYESNN_DATA=DIR OMP_NUM_THREADS=1 python benchmarks/elsewhere.py --seeds 0 1 2 --out results/elsewhere.json
    python benchmarks/elsewhere.py --seeds --out results/elsewhere.json --picture shift.png     # print and draw

MNIST against the letters of notMNIST, Fashion-MNIST against MNIST: the area under the ROC curve of each score. And the
test images turned, moved, noisy and blurred at five severities: accuracy, NLL and ECE. Default prior, batches of 128,
10 epochs a net (mean-field VI 30); the chains of SGHMC and SGLD start in the ensemble's nets and go on for 10 more. No
direction is asserted: posteriors that are faithful can lose under a shift (Izmailov et al. 2021). Results are kept
after each fit, and what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bayesnn as bnn
from bayesnn.data.shift import SEVERITIES, SHIFTS, shift

ELSEWHERE = {"mnist": "notmnist", "fashion-mnist": "mnist"}
EPOCHS, BATCH, MEMBERS = 10, 128, 4
DRAWS = 48  # of all chains
SHIFTED_ROWS, SHIFTED_DRAWS = 1000, 16  # there are 24 shifted sets
DROPOUT = 0.1
Result = dict[str, Any]


class DropoutLeNet5(bnn.nets.LeNet5):
    """LeNet5 with dropout before its dense layers: what MC dropout needs."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("dense1", "dense2", "dense3"):
            setattr(self, name, nn.Sequential(nn.Dropout(DROPOUT), getattr(self, name)))


def model_of(net: nn.Module | None = None) -> bnn.BayesianModel:
    """LeNet5 with the library's default prior."""
    return bnn.BayesianModel(net or bnn.nets.LeNet5(), likelihood=bnn.likelihoods.Categorical())


class Fits:
    """The fits of one data set and seed; the nets of the ensemble are fitted once, and chains start in them."""

    def __init__(self, train: bnn.data.Data, seed: int) -> None:
        self._train, self._seed = train, seed
        self._ensemble: bnn.Posterior | None = None

    def _fit(self, method: bnn.methods.Method, net: nn.Module | None = None, **options: Any) -> bnn.Posterior:
        options = {"epochs": EPOCHS, "batch_size": BATCH, "seed": self._seed, "progress": False, **options}
        return bnn.fit(model_of(net), self._train, method, **options)

    def ensemble(self) -> bnn.Posterior:
        """Four nets."""
        if self._ensemble is None:
            self._ensemble = self._fit(bnn.MAP(), chains=MEMBERS)
        return self._ensemble

    def one(self) -> bnn.Posterior:
        """The first of them."""
        nets = self.ensemble()
        info = {**nets.info, "seconds": nets.info["seconds"][:1]}
        return bnn.Posterior(nets.model, nets.sources[:1], nets.num_data, nets.target, [], info, nets.train)

    def chains(self, method: bnn.methods.Method) -> bnn.Posterior:
        """Chains from the ensemble's nets."""
        return self._fit(method, chains=MEMBERS, init=self.ensemble())

    def methods(self) -> dict[str, Callable[[], bnn.Posterior]]:
        """By name."""
        return {
            "MAP": self.one,
            "ensemble of 4": self.ensemble,
            "MCDropout": lambda: self._fit(bnn.MCDropout(), DropoutLeNet5()),
            "SWAG": lambda: self._fit(bnn.SWAG()),
            "Laplace, kron, last layer": lambda: self._fit(bnn.Laplace(curvature="kron", weights="last-layer")),
            "MeanFieldVI": lambda: self._fit(bnn.MeanFieldVI(), epochs=30),
            "SGLD, from the ensemble": lambda: self.chains(bnn.SGLD(draws=20)),
            "SGHMC, from the ensemble": lambda: self.chains(bnn.SGHMC(draws=20)),
        }


METHODS = tuple(Fits.methods(Fits(bnn.data.Data(torch.zeros(1, 1), torch.zeros(1)), 0)))


def scored(posterior: bnn.Posterior, test: bnn.data.Data, other: Tensor) -> Result:
    """Scores on the test part, areas against the other images, and scores against the severity of each shift."""
    draws = max(1, DRAWS // posterior.num_chains)
    predictive = posterior.predict(test.x, draws=draws)
    inside, outside = predictive.scores(), posterior.predict(other, draws=draws).scores()
    raw = test.x if test.inputs is None else test.inputs.inverse(test.x)
    raw, y = raw[:SHIFTED_ROWS], test.y[:SHIFTED_ROWS]
    curves = {}
    for kind in SHIFTS:
        curves[kind] = []
        for severity in SEVERITIES:
            x = shift(raw, kind, severity)
            x = x if test.inputs is None else test.inputs.forward(x)
            few = posterior.predict(x, draws=max(1, SHIFTED_DRAWS // posterior.num_chains))
            curves[kind].append(bnn.metrics.classification_table(few.mean, y))
    return {
        **bnn.metrics.classification_table(predictive.mean, test.y),
        "auroc": {name: bnn.metrics.auroc(score, outside[name]) for name, score in inside.items()},
        "shift": curves,
    }


def detection_table(results: dict[str, dict[str, dict[str, Result]]]) -> str:
    """Markdown: scores on the test part and the areas, mean +- standard error over the seeds."""
    lines = []
    for name, by_method in results.items():
        scores = list(next(iter(next(iter(by_method.values())).values()))["auroc"])
        lines += [
            f"{name} against {ELSEWHERE[name]}\n",
            f"| method | seeds | accuracy | NLL | ECE | AUROC: {' | '.join(scores)} | seconds |",
            "|---" * (6 + len(scores)) + "|",
        ]
        for method, by_seed in by_method.items():
            rows = list(by_seed.values())
            cells = [
                _mean(100 * r["accuracy"] for r in rows),
                *(_mean((r[s] for r in rows), 4) for s in ("nll", "ece")),
            ]
            cells += [_mean(((r["auroc"][s]) for r in rows), 3) for s in scores]
            seconds = statistics.fmean(r["seconds"] for r in rows)
            lines.append(f"| {method} | {len(rows)} | {' | '.join(cells)} | {seconds:.0f} |")
        lines.append("")
    return "\n".join(lines)


def _mean(values: Iterable[float], decimals: int = 2) -> str:
    given = list(values)
    mean = f"{statistics.fmean(given):.{decimals}f}"
    error = statistics.stdev(given) / math.sqrt(len(given)) if len(given) > 1 else math.nan
    return mean if len(given) < 2 else f"{mean} +- {error:.{decimals}f}"


def main() -> None:
    """Parse, run what is not there yet, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(ELSEWHERE), choices=list(ELSEWHERE))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("results/elsewhere.json"))
    parser.add_argument("--rows", type=int, help="of the training and test parts, for a trial run")
    parser.add_argument("--picture", type=Path, help="scores against the severity, in the mean over kinds and seeds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for seed in arguments.seeds:
        for name in arguments.data:
            train, test = bnn.data.load(name)
            other = bnn.data.load_test(ELSEWHERE[name], like=train).x[: arguments.rows]
            train, test = (part.subset(range(arguments.rows or len(part))) for part in (train, test))
            fits = Fits(train, seed)
            for method, fit in fits.methods().items():
                kept = results.setdefault(name, {}).setdefault(method, {})
                if method not in arguments.methods or str(seed) in kept:
                    continue
                began = time.perf_counter()
                posterior = fit()
                row = {**scored(posterior, test, other), "seconds": sum(posterior.info["seconds"])}
                if method.endswith("from the ensemble"):
                    row["seconds"] += sum(fits.ensemble().info["seconds"])
                kept[str(seed)] = row
                shown = {key: value for key, value in row.items() if key != "shift"}
                print(name, method, seed, json.dumps(shown), f"{time.perf_counter() - began:.0f} s", flush=True)
                arguments.out.write_text(json.dumps(results, indent=1))
    complete = {name: {method: rows for method, rows in by.items() if rows} for name, by in results.items()}
    print(detection_table({name: by for name, by in complete.items() if by}))
    if arguments.picture is not None:
        draw(complete, arguments.picture)


def draw(results: dict[str, dict[str, dict[str, Result]]], path: Path) -> None:
    """A picture to each data set: accuracy, NLL and ECE by severity, in the mean over kinds and seeds."""
    for name, by_method in results.items():
        rows = [
            {"method": method, "seed": seed, "kind": kind, "severity": severity, **scores}
            for method, by_seed in by_method.items()
            for seed, result in by_seed.items()
            for kind, curve in result["shift"].items()
            for severity, scores in enumerate(curve)
        ]
        axes = bnn.plots.shift_curves(rows)
        axes[0].figure.suptitle(f"{name}, shifted: mean over {', '.join(SHIFTS)}", fontsize=14)
        axes[0].figure.savefig(path.with_stem(f"{path.stem}-{name}"), dpi=110)


if __name__ == "__main__":
    main()
