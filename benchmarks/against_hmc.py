"""Every method against the long HMC of benchmarks/reference (made by benchmarks/hmc_reference.py).

    BAYESNN_DATA=DIR OMP_NUM_THREADS=1 python benchmarks/against_hmc.py digits-mlp --seeds 0 1 2

Agreement and total variation as in Izmailov et al. (2021), NLL and ECE on the test part, CPU seconds of the fit on one
thread, warm start and what is compiled in this process included; mean and standard error over seeds. Total variation of
a regression is half the integral of |p - q| over the target, and there is no agreement. Agreement is over all inputs,
total variation over the test part. Methods that say "from MAP" start each of their chains from a MAP net of its own.
Results are kept in ``--out`` after each fit, and what stands there is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hmc_reference import CHAINS, FOLDER, GRID, PROBLEMS, Problem, inputs, predictive, read
from torch import Tensor

import bayesnn as bnn

DRAWS = 100  # of a chain, or of a distribution
START = 200  # epochs of the MAP nets that chains start from
KEEP: dict[str, Any] = {"burn_in": 0.2, "draws": DRAWS}  # of a sampler
BASELINES = ("deep ensemble of 4", "MeanFieldVI")
Make = Callable[[Problem], bnn.methods.Method]
Fit = Callable[[Problem, bnn.data.Data, int], bnn.Posterior]


def plain(method: bnn.methods.Method, epochs: int, chains: int = 1, dropout: float = 0.0) -> Fit:
    """A fit from fresh weights."""

    def run(problem: Problem, train: bnn.data.Data, seed: int) -> bnn.Posterior:
        options: dict[str, Any] = {"epochs": epochs, "chains": chains, "seed": seed, "progress": False}
        return bnn.fit(problem.model(dropout), train, method, compile=problem.compile and method.compiles, **options)

    return run


def warm(make: Make, epochs: int, batch: int | None = 64) -> Fit:
    """Chains that start from a MAP net each, trained for START epochs with seeds of their own."""

    def run(problem: Problem, train: bnn.data.Data, seed: int) -> bnn.Posterior:
        start = plain(bnn.MAP(lr=5e-3), START, CHAINS)(problem, train, 1000 + seed)
        options: dict[str, Any] = {"epochs": epochs, "chains": CHAINS, "seed": seed, "progress": False}
        method = make(problem)
        options["compile"] = problem.compile and method.compiles
        return bnn.fit(problem.model(), train, method, init=start, batch_size=batch, **options)

    return run


METHODS: dict[str, Fit] = {
    "MAP": plain(bnn.MAP(lr=5e-3), 400),
    "deep ensemble of 4": plain(bnn.MAP(lr=5e-3), 400, CHAINS),
    "MeanFieldVI": plain(bnn.MeanFieldVI(lr=5e-3), 1000),
    "MeanFieldVI, local": plain(bnn.MeanFieldVI(lr=5e-3, estimator="local"), 1000),
    "MeanFieldVI, flipout": plain(bnn.MeanFieldVI(lr=5e-3, estimator="flipout"), 1000),
    "LowRankVI": plain(bnn.LowRankVI(lr=5e-3), 1000),
    "FullRankVI": plain(bnn.FullRankVI(lr=5e-3), 1000),
    "RadialVI": plain(bnn.RadialVI(lr=5e-3), 1000),
    "IVON": plain(bnn.IVON(), 1000),
    "SVGD, 20 particles": plain(bnn.SVGD(particles=20), 400),
    "MCDropout": plain(bnn.MCDropout(lr=5e-3), 400, dropout=0.1),
    "Laplace, kron": plain(bnn.Laplace(lr=5e-3), 400),
    "Laplace, full, last layer": plain(bnn.Laplace(lr=5e-3, curvature="full", weights="last-layer"), 400),
    "SWAG": plain(bnn.SWAG(), 400),
    "multi-SWAG of 4": plain(bnn.SWAG(), 400, CHAINS),
    "SGLD, from MAP": warm(lambda p: bnn.SGLD(lr=p.lr / 5, **KEEP), 2000),
    "PSGLD, from MAP": warm(lambda p: bnn.PSGLD(**KEEP), 2000),
    "SGHMC, from MAP": warm(lambda p: bnn.SGHMC(lr=p.lr, momentum=0.95, **KEEP), 6000, 512),
    "SGHMC, batches of 64, from MAP": warm(lambda p: bnn.SGHMC(lr=p.lr / 5, **KEEP), 2000),
    "SGHMC, all rows, from MAP": warm(lambda p: bnn.SGHMC(lr=p.lr, momentum=0.99, **KEEP), 14000, None),
    "SGHMC, own step, from MAP": warm(lambda p: bnn.SGHMC(**KEEP), 2000),
    "SGHMC, 4 cycles, from MAP": warm(
        lambda p: bnn.SGHMC(lr=p.lr, momentum=0.95, burn_in=0.0, draws=DRAWS, cycles=4, exploration=0.2), 6000, 512
    ),
    "SGNHT, from MAP": warm(lambda p: bnn.SGNHT(lr=p.lr, momentum=0.95, **KEEP), 6000, 512),
    "NUTS, from MAP": warm(lambda p: bnn.NUTS(draws=DRAWS), 200, None),
    "MCLMC, from MAP": warm(lambda p: bnn.MCLMC(burn_in=0.3, draws=DRAWS), 8000, None),
}


def scores(stored: Tensor, reference: Tensor, test: bnn.data.Data, regression: bool) -> dict[str, float]:
    """The row of a predictive distribution: class probabilities of all inputs, or densities on the grid."""
    if not regression:
        ours, theirs = stored[: len(test)], reference[: len(test)]
        return {
            "agreement": bnn.metrics.agreement(stored, reference),
            "total variation": bnn.metrics.total_variation(ours, theirs),
            "NLL": bnn.metrics.nll(ours, test.y),
            "ECE": bnn.metrics.ece(ours, test.y),
        }
    assert test.target is not None
    step = float(GRID[1] - GRID[0])
    place = ((test.target.forward(test.y) - GRID[0]) / step).to(stored)
    below = place.floor().long().clamp(0, len(GRID) - 2)[:, None]
    at_targets = torch.lerp(stored.gather(1, below), stored.gather(1, below + 1), place[:, None] - below)
    return {
        "agreement": math.nan,
        "total variation": float(0.5 * step * (stored - reference).abs().sum(1).mean()),
        "NLL": float(-(at_targets / float(test.target.std)).log().mean()),
        "ECE": math.nan,
    }


def table(name: str, results: dict[str, dict[str, dict[str, float]]], hmc: list[dict[str, float]]) -> str:
    """Markdown: mean and standard error over seeds; the total variation paired with the baselines'."""
    columns = ("agreement", "total variation", "NLL", "ECE", "seconds")
    head = f"| {name} | seeds | " + " | ".join(columns) + " | TV less ensemble's | TV less VI's |"
    lines = [head, "|---" * 9 + "|"]
    for label, row in zip(("HMC, reference", "HMC, second run"), hmc, strict=False):
        lines.append(f"| {label} | 1 | " + " | ".join(_mean([row[column]]) for column in columns) + " | | |")
    for method, by_seed in results.items():
        cells = [_mean([row[column] for row in by_seed.values()]) for column in columns]
        for baseline in BASELINES:
            both = results.get(baseline, {}).keys() & by_seed.keys()
            pairs = [
                by_seed[seed]["total variation"] - results[baseline][seed]["total variation"] for seed in sorted(both)
            ]
            cells.append(_mean(pairs) if pairs and method != baseline else "")
        lines.append(f"| {method} | {len(by_seed)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    if any(math.isnan(value) for value in values):  # a regression has no agreement and no ECE
        return ""
    mean = f"{statistics.fmean(values):.3g}"
    return mean if len(values) < 2 else f"{mean} +- {statistics.stdev(values) / math.sqrt(len(values)):.1g}"


def main() -> None:
    """Parse, run what is not there yet, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="+", choices=PROBLEMS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: print what stands in --out")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("results/against_hmc.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.problems:
        problem, results = PROBLEMS[name], kept.setdefault(name, {})
        parts = problem.data()
        reference, _ = read(name, 0)
        for seed in arguments.seeds:
            for method in arguments.methods:
                if str(seed) in results.setdefault(method, {}):
                    continue
                began = time.process_time()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    posterior = METHODS[method](problem, parts[0], seed)
                seconds = time.process_time() - began
                stored = predictive(posterior, inputs(*parts, problem.regression), problem.regression, DRAWS)
                row = {**scores(stored, reference, parts[1], problem.regression), "seconds": seconds}
                results[method][str(seed)] = row
                print(name, method, seed, json.dumps(row), flush=True)
                arguments.out.write_text(json.dumps(kept, indent=1))
        runs = [read(name, run) for run in (0, 1) if (FOLDER / f"{name}-{run}.safetensors").exists()]
        hmc = [
            {**scores(stored, reference, parts[1], problem.regression), "seconds": numbers.get("seconds", math.nan)}
            for stored, numbers in runs
        ]
        print(table(name, {method: results[method] for method in METHODS if results.get(method)}, hmc), flush=True)


if __name__ == "__main__":
    main()
