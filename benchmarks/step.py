"""What a step costs: every method against plain torch on the same net, data and batch, interleaved in one run.

    python benchmarks/step.py                 # prints medians and ratios, writes results/step.json
    make bench

Every round takes one block of steps of each variant in turn, so that a machine that slows down slows them all; ratios
are medians over rounds of the ratio within the round. ``fit`` is measured against the same method's steps in a bare
loop. Other libraries are timed beside ours where they are installed: see peers.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesnn as bnn
from bayesnn.data.batches import Batches
from bayesnn.methods import Method, Plan
from bayesnn.methods.sampler import SamplerMethod
from bayesnn.rng import Streams, generator

Step = Callable[[], object]
# One step in 30 is kept, as by default, which costs it a norm and a copy.
STEADY: dict[str, Any] = {"lr": 1e-3, "warm_up": 0.0, "burn_in": 0.0, "thin": 30}


def plain(net: nn.Module, x: Tensor, y: Tensor, optimizer: str) -> Step:
    """The training step that everybody writes: zero_grad, loss, backward, step."""
    net = copy.deepcopy(net)
    if optimizer == "sgd":
        chosen: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    else:
        chosen = torch.optim.Adam(net.parameters(), lr=1e-3, fused=optimizer == "fused adam" or None)

    def step() -> None:
        chosen.zero_grad()
        F.cross_entropy(net(x), y).backward()
        chosen.step()

    return step


def ours(model: bnn.BayesianModel, x: Tensor, y: Tensor, method: Method, compile: bool = False) -> Step:
    """One step of a method, as ``fit`` takes it; of a sampler after those in which it measures its step size."""
    run = method.start(model.copy(), Plan(60_000, len(x), 10, 1000, 1, compile=compile), Streams(0, 0))
    run.begin_epoch(0, Batches(x, y, len(x), generator=generator(0)))
    for _ in range(STEADY["thin"] if isinstance(method, SamplerMethod) else 0):
        run.step(x, y)
    return lambda: run.step(x, y)


def time_interleaved(steps: dict[str, Step], rounds: int, block: int) -> dict[str, list[float]]:
    """Seconds a step, (round,) for each variant; the first rounds warm up and are dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    warm = max(2, rounds // 10)
    for round_ in range(rounds + warm):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(block):
                step()
            if round_ >= warm:
                seconds[name].append((time.perf_counter() - began) / block)
    return seconds


def saved_bytes(step: Step) -> int:
    """Bytes that the forward pass of a step keeps for its backward pass, weights included."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = max(tensor.nbytes, sizes.get(tensor.data_ptr(), 0))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(sizes.values())


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> tuple[float, float, float]:
    """Median and quartiles over rounds of the ratio within a round."""
    ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high


def fit_against_bare_loop(net: nn.Module, x: Tensor, y: Tensor, batch: int, rounds: int) -> list[float]:
    """Ratios of ``fit``'s two epochs over in-memory data to as many of the same steps in a bare loop."""
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    method, epochs = bnn.SGLD(lr=1e-3, warm_up=0.0, burn_in=0.0, draws=1), 2

    def fitted(seed: int) -> None:
        bnn.fit(model, (x, y), method, epochs=epochs, batch_size=batch, chains=1, seed=seed, progress=False)

    def bare(seed: int) -> None:
        plan = Plan(len(x), batch, epochs, -(-len(x) // batch), 1)
        run = method.start(model.copy(), plan, Streams(seed, 0))
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(batch):
                run.step(x[rows], y[rows])

    ratios = []
    for seed in range(rounds):
        # In turn first and second: a machine that slows down slows each of them as often.
        seconds = {}
        for run in (fitted, bare) if seed % 2 else (bare, fitted):
            began = time.perf_counter()
            run(seed)
            seconds[run] = time.perf_counter() - began
        ratios.append(seconds[fitted] / seconds[bare])
    return ratios


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", help="part of a net's title: that one alone")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("results/step.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    inputs = generator(0)
    cases = {
        "MLP 8-50-2, batch 64": (bnn.nets.MLP(8, (50,), 2), torch.randn(64, 8, generator=inputs)),
        "LeNet5 28x28, batch 64": (bnn.nets.LeNet5(), torch.randn(64, 1, 28, 28, generator=inputs)),
        "MLP 784-400-400-10, batch 128": (
            bnn.nets.MLP(784, (400, 400), 10),
            torch.randn(128, 784, generator=inputs),
        ),
    }
    report = {}
    for title, (net, x) in cases.items():
        if arguments.only is not None and arguments.only not in title:
            continue
        y = torch.randint(2, (len(x),), generator=inputs)
        model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
        steps = {f"torch, {name}": plain(net, x, y, name) for name in ("adam", "fused adam", "sgd")}
        steps |= {
            "MAP": ours(model, x, y, bnn.MAP()),
            "MeanFieldVI": ours(model, x, y, bnn.MeanFieldVI()),
            "MeanFieldVI, local": ours(model, x, y, bnn.MeanFieldVI(estimator="local")),
            "MeanFieldVI, flipout": ours(model, x, y, bnn.MeanFieldVI(estimator="flipout")),
            "LowRankVI, rank 5": ours(model, x, y, bnn.LowRankVI(rank=5)),
            "LowRankVI, rank 10": ours(model, x, y, bnn.LowRankVI()),
            "RadialVI": ours(model, x, y, bnn.RadialVI()),
            "IVON": ours(model, x, y, bnn.IVON()),
            "PyroVI": ours(model, x, y, bnn.PyroVI()),
            "SGLD": ours(model, x, y, bnn.SGLD(**STEADY)),
            "SGHMC": ours(model, x, y, bnn.SGHMC(**STEADY)),
            "SGHMC, layerwise": ours(model, x, y, bnn.SGHMC(layerwise=True, **STEADY)),
            "SGHMC, control variate": ours(model, x, y, bnn.SGHMC(variance_reduction="control-variate", **STEADY)),
            "SGNHT": ours(model, x, y, bnn.SGNHT(**STEADY)),
            "PSGLD": ours(model, x, y, bnn.PSGLD(**STEADY)),
            "PSGLD, adapting": ours(model, x, y, bnn.PSGLD(adapt="always", **STEADY)),
            "PSGLD, adapting, Gamma": ours(model, x, y, bnn.PSGLD(adapt="always", gamma=True, **STEADY)),
        }
        compiled = {"MAP": bnn.MAP(), "MeanFieldVI": bnn.MeanFieldVI(), "SGHMC": bnn.SGHMC(**STEADY)}
        steps |= {f"{name}, compiled": ours(model, x, y, method, True) for name, method in compiled.items()}
        steps |= {name: peer.step for name, peer in peers.installed(net, x, y).items()}
        # Of a tiny net a block has to be long enough for its code to be in the processor's caches, as in a run it is.
        seconds = time_interleaved(steps, arguments.rounds, block=200 if title.startswith("MLP 8-") else 5)
        print(f"\n{title} ({arguments.threads} threads)\n")
        print("| step | ms | to Adam (quartiles) | to fused Adam | to SGD | MiB saved |\n|---|---|---|---|---|---|")
        report[title] = {}
        for name in steps:
            middle, low, high = ratio(seconds, name, "torch, adam")
            others = {base: ratio(seconds, name, base)[0] for base in ("torch, fused adam", "torch, sgd")}
            milliseconds = 1e3 * statistics.median(seconds[name])
            cells = " | ".join(f"{value:.2f}" for value in others.values())
            saved = None if "compiled" in name else saved_bytes(steps[name]) / 2**20  # it cannot be seen from outside
            kept = "" if saved is None else f"{saved:.1f}"
            print(f"| {name} | {milliseconds:.2f} | {middle:.2f} ({low:.2f} - {high:.2f}) | {cells} | {kept} |")
            others = {f"to {base}": value for base, value in others.items()}
            report[title][name] = {"ms": milliseconds, "to torch, adam": middle, **others, "MiB saved": saved}
        rows = torch.randn(256 * len(x), *x.shape[1:], generator=inputs)
        targets = torch.randint(2, (len(rows),), generator=inputs)
        ratios = fit_against_bare_loop(net, rows, targets, len(x), rounds=max(5, arguments.rounds // 6))
        median = statistics.median(ratios)
        print(f"\nfit, two epochs of 256 steps of SGLD, to the same steps in a bare loop: {median:.3f}")
        report[title]["fit to bare loop"] = {"median": median}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
