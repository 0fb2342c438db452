"""What the library costs beside plain training, as ratios with their bounds; and whether it got worse.

    make bench            # OMP_NUM_THREADS=1 python benchmarks/bench.py --out results/bench.json
    make bench-check      # the same, against benchmarks/baseline.json: what is 15 % worse in three runs of three fails

Every ratio is taken within a round, of variants that are run in turn, and given as its median over rounds and its
quartiles. Peers that are installed (``pip install -c constraints.txt -e '.[bench]'``) are timed on the rows where they
do the same work as the library, each to the library's own row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peers
import torch
from step import STEADY, Step, fit_against_bare_loop, ours, plain, time_interleaved
from torch import Tensor, nn

import bayesnn as bnn
from bayesnn.methods import Method
from bayesnn.rng import generator
from bayesnn.source import Draws

WORSE = 1.15  # times the baseline: what counts as worse
RUNS = 3  # in how many of as many runs
VARIATIONAL: dict[str, Method] = {
    "MeanFieldVI": bnn.MeanFieldVI(),
    "MeanFieldVI, local": bnn.MeanFieldVI(estimator="local"),
    "MeanFieldVI, flipout": bnn.MeanFieldVI(estimator="flipout"),
}
SAMPLERS: dict[str, Method] = {
    "SGLD": bnn.SGLD(**STEADY),
    "SGHMC": bnn.SGHMC(**STEADY),
    "SGNHT": bnn.SGNHT(**STEADY),
    "PSGLD": bnn.PSGLD(**STEADY),
}
METHODS = {**VARIATIONAL, **SAMPLERS, "IVON": bnn.IVON()}


class Case(NamedTuple):
    """A net, its minibatch, and the most that steps may cost: of each in VARIATIONAL to Adam, of samplers to SGD."""

    net: nn.Module
    x: Tensor
    bounds: dict[str, float]
    more: int = 5  # times the rounds: of steps of milliseconds, which a busy machine disturbs most


def bounds(reparam: float, local: float, flipout: float, sampler: float, psgld: float) -> dict[str, float]:
    """By the names of METHODS."""
    return {
        **dict(zip(VARIATIONAL, (reparam, local, flipout), strict=True)),
        **dict.fromkeys(SAMPLERS, sampler),
        "PSGLD": psgld,
    }


def cases() -> dict[str, Case]:
    """By title."""
    x = generator(0)
    return {
        "LeNet5, batch 64": Case(
            bnn.nets.LeNet5(), torch.randn(64, 1, 28, 28, generator=x), bounds(1.1, 2.2, 1.9, 1.05, 1.1)
        ),
        "MLP 784-400-400-10, batch 128": Case(
            bnn.nets.MLP(784, (400, 400), 10), torch.randn(128, 784, generator=x), bounds(1.7, 2.5, 2.8, 1.7, 2.0)
        ),
        "ResNet-20 with group norm, batch 64": Case(
            bnn.nets.ResNet(20, norm="group"),
            torch.randn(64, 3, 32, 32, generator=x),
            bounds(1.1, 2.3, 2.2, 1.05, 1.1),
            more=1,
        ),
    }


class Row(NamedTuple):
    """A ratio (or seconds) over rounds, and its bound; a peer's is to the library and has to be above 1."""

    values: list[float]
    bound: float | None
    least: bool = False


Rows = Iterator[tuple[str, Row]]


def steps(rounds: int) -> Rows:
    """Steps of the methods and, each to the row of the library's that does the same work, of peers."""
    for title, (net, x, most, more) in cases().items():
        y = torch.randint(10, (len(x),), generator=generator(1))
        model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
        timed: dict[str, Step] = {name: plain(net, x, y, name) for name in ("adam", "fused adam", "sgd")}
        timed |= {name: ours(model, x, y, method) for name, method in METHODS.items()}
        timed |= {name: peer.step for name, peer in peers.installed(net, x, y).items()}
        seconds = time_interleaved(timed, more * rounds, block=3)
        for name in METHODS:
            base = "sgd" if name in SAMPLERS else "adam"
            yield f"{title}: {name} to {base}", Row(ratios(seconds, name, base), most.get(name))
        yield f"{title}: MeanFieldVI to fused adam", Row(ratios(seconds, "MeanFieldVI", "fused adam"), None)
        for name, _, _, mine in peers.PEERS:
            if name in seconds:
                yield f"{title}: {name} to {mine}", Row(ratios(seconds, name, mine), 1.0, least=True)


def floor(rounds: int) -> Rows:
    """What no sampler can do without: one forward and backward pass and a normal number a weight, to torch's SGD."""
    for title, (net, x, _, more) in cases().items():
        y = torch.randint(10, (len(x),), generator=generator(1))
        weights, stream = list(net.parameters()), generator(2)
        buffer = torch.empty(sum(p.numel() for p in weights))

        def least(net: nn.Module = net, x: Tensor = x, y: Tensor = y, buffer: Tensor = buffer) -> None:
            net.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            buffer.normal_(generator=stream)  # noqa: B023

        def meanwhile(net: nn.Module = net, x: Tensor = x, y: Tensor = y, buffer: Tensor = buffer) -> None:
            filled = second.submit(buffer.normal_, generator=stream)  # noqa: B023
            net.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            filled.result()

        with ThreadPoolExecutor(1) as second:
            timed: dict[str, Step] = {"sgd": plain(net, x, y, "sgd"), "least": least, "meanwhile": meanwhile}
            seconds = time_interleaved(timed, more * rounds, 3)
        yield f"{title}: the floor of a sampler to sgd", Row(ratios(seconds, "least", "sgd"), None)
        yield f"{title}: the floor, noise in a second thread, to sgd", Row(ratios(seconds, "meanwhile", "sgd"), None)


def fits(rounds: int) -> Rows:
    """Epochs of ``fit`` over data in memory."""
    for title, (net, x, *_) in cases().items():
        if title.startswith("ResNet"):
            continue
        rows = torch.randn(256 * len(x), *x.shape[1:], generator=generator(1))
        y = torch.randint(10, (len(rows),), generator=generator(1))
        taken = fit_against_bare_loop(net, rows, y, len(x), rounds=rounds)
        yield f"{title}: fit to its steps in a bare loop", Row(taken, 1.03)


def predictive(rounds: int) -> Rows:
    """Mean and uncertainty of 1,000 inputs over draws, to as many plain forward passes."""
    made: list[tuple[str, nn.Module, Tensor, int, Any, float]] = [
        ("LeNet5, 32 draws", bnn.nets.LeNet5(), torch.randn(1000, 1, 28, 28), 32, bnn.likelihoods.Categorical(), 1.0),
        (
            "MLP 13-50-1, 1,000 draws",
            bnn.nets.MLP(13, (50,), 1),
            torch.randn(1000, 13),
            1000,
            bnn.likelihoods.Normal(),
            0.5,
        ),
    ]
    for title, net, x, draws, likelihood, bound in made:
        model = bnn.BayesianModel(net, likelihood=likelihood).eval()
        stacked = {name: p.detach().expand(draws, *p.shape).clone() for name, p in model.named_parameters()}
        posterior = bnn.Posterior(model, [Draws(stacked)], len(x))

        @torch.no_grad()
        def forward(net: nn.Module = net, x: Tensor = x, draws: int = draws) -> None:
            for _ in range(draws):
                net(x)

        def predict(posterior: bnn.Posterior = posterior, x: Tensor = x) -> None:
            posterior.predict(x).mean  # noqa: B018

        seconds = time_interleaved({"predict": predict, "forward": forward}, max(5, rounds // 3), block=1)
        yield f"{title}: predict 1,000 inputs to forward passes", Row(ratios(seconds, "predict", "forward"), bound)


def diagnostics(rounds: int) -> Rows:
    """Seconds for R-hat and ESS of 1,000,000 scalars, 4 chains of 100 draws, with a thread for each core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads, len(_cores())))
    try:
        values = np.random.default_rng(0).standard_normal((4, 100, 1_000_000), dtype=np.float32)
        began = time.perf_counter()
        bnn.diagnostics.rhat(values)
        bnn.diagnostics.ess(values)
        yield "R-hat and ESS of 1,000,000 scalars, seconds", Row([time.perf_counter() - began], 40.0)
    finally:
        torch.set_num_threads(threads)


def chains(rounds: int) -> Rows:
    """Four chains to four times one chain: one after another, and as one (``vectorize``), plain and compiled."""
    made: list[tuple[str, nn.Module, Tensor, float | None, bool, bool]] = [
        ("LeNet5, batch 64", bnn.nets.LeNet5(), torch.randn(640, 1, 28, 28), 1.0, False, False),
        ("MLP 8-50-2, batch 64", bnn.nets.MLP(8, (50,), 2), torch.randn(6400, 8), None, False, False),
        ("MLP 8-50-2, batch 64, vectorized", bnn.nets.MLP(8, (50,), 2), torch.randn(6400, 8), None, False, True),
        (
            "MLP 8-50-2, batch 64, compiled, vectorized",
            bnn.nets.MLP(8, (50,), 2),
            torch.randn(6400, 8),
            0.5,
            True,
            True,
        ),
    ]
    for title, net, x, bound, compiled, vectorized in made:
        data = x, torch.randint(2, (len(x),), generator=generator(1))
        model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
        settings: dict[str, Any] = {"epochs": 5, "batch_size": 64, "progress": False, "compile": compiled}

        def run(
            model: bnn.BayesianModel = model,
            data: tuple[Tensor, Tensor] = data,
            settings: dict[str, Any] = settings,
            **options: Any,
        ) -> Step:
            return lambda: bnn.fit(
                model, data, bnn.SGHMC(**{**STEADY, "thin": None, "draws": 5}), **settings, **options
            )

        runs = {"four": run(chains=4, vectorize=vectorized), "one": run(chains=1)}
        seconds = time_interleaved(runs, max(5, rounds // 3), block=1)
        yield f"{title}: four chains to four times one", Row([v / 4 for v in ratios(seconds, "four", "one")], bound)


def imports(rounds: int) -> Rows:
    """Seconds that ``import bayesnn`` takes beyond those of torch and pyro."""
    taken: dict[str, list[float]] = {"torch, pyro": [], "bayesnn": []}
    for _ in range(max(5, rounds // 3)):
        for names, seconds in taken.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {names}"], check=True)
            seconds.append(time.perf_counter() - began)
    more = [a - b for a, b in zip(taken["bayesnn"], taken["torch, pyro"], strict=True)]
    yield "import bayesnn beyond torch and pyro, seconds", Row(more, 0.3)


GROUPS: dict[str, Callable[[int], Rows]] = {
    "steps": steps,
    "floor": floor,
    "fits": fits,
    "predictive": predictive,
    "diagnostics": diagnostics,
    "chains": chains,
    "imports": imports,
}


def ratios(seconds: dict[str, list[float]], name: str, base: str) -> list[float]:
    """Of each round."""
    return [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]


def _cores() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def measure(groups: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """All rows of the groups, printed as they come."""
    report: dict[str, dict[str, Any]] = {}
    print("| work | median | quartiles | bound | |\n" + "|---" * 5 + "|")
    for group in groups:
        for name, (values, bound, least) in GROUPS[group](rounds):
            low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
            held = bound is None or (middle > bound if least else middle <= bound)
            side = "" if bound is None else f"{'>' if least else '<='} {bound}"
            print(
                f"| {name} | {middle:.3f} | {low:.3f} - {high:.3f} | {side} | {'' if held else 'missed'} |", flush=True
            )
            report[name] = {"median": middle, "quartiles": [low, high], "bound": bound, "least": least, "group": group}
    return report


def check(report: dict[str, dict[str, Any]], baseline: dict[str, dict[str, Any]], rounds: int) -> list[str]:
    """Rows that are worse than their baseline in this run and in each of RUNS - 1 more of their group."""

    def worse(found: dict[str, dict[str, Any]], names: set[str]) -> set[str]:
        known = names & found.keys() & baseline.keys()
        # Of a peer's row the smaller is the worse: the library has become slower beside it.
        return {
            name
            for name in known
            if (baseline[name]["median"] / found[name]["median"] if found[name]["least"]
                else found[name]["median"] / baseline[name]["median"]) > WORSE
        }  # fmt: skip

    suspects = worse(report, set(baseline))
    for _ in range(RUNS - 1):
        if not suspects:
            break
        print(f"\nWorse than the baseline, measured again: {', '.join(sorted(suspects))}\n")
        again = measure(sorted({report[name]["group"] for name in suspects}), rounds)
        suspects = worse(again, suspects)
    return sorted(suspects)


def main() -> None:
    """Measure, print, write; with --check compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("results/bench.json"))
    parser.add_argument(
        "--check", type=Path, help="a report to hold this one against, such as benchmarks/baseline.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = measure(arguments.groups, arguments.rounds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1))
    if arguments.check is not None:
        failed = check(report, json.loads(arguments.check.read_text()), arguments.rounds)
        for name in failed:
            print(f"More than {WORSE - 1:.0%} worse than the baseline in {RUNS} runs of {RUNS}: {name}")
        sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
