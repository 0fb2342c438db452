"""What one gradient costs in HMC, NUTS and MCLMC, against a plain full-batch step of torch with Adam on the same net.

    python benchmarks/full_batch_cost.py    # a minute or two on one core; prints one line a net

The variants take turns in one process; processor seconds on one thread, ratios of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import bayesnn as bnn
from bayesnn.methods.base import Plan
from bayesnn.methods.full_batch import FullBatchMethod
from bayesnn.rng import Streams, isolated


def problems() -> dict[str, tuple[nn.Module, tuple[Tensor, Tensor]]]:
    digits, _ = bnn.data.load("digits")
    x = torch.randn(927, 8, generator=torch.Generator().manual_seed(0))
    return {
        "MLP 8-50-10, 927 rows": (bnn.nets.MLP(8, (50,), 10), (x, x.argmax(1))),
        "MLP 64-16-10, 1437 rows": (bnn.nets.MLP(64, (16,), 10), (digits.x.flatten(1), digits.y)),
        "LeNet5 8x8, 1437 rows": (bnn.nets.LeNet5((1, 8, 8), 10), (digits.x, digits.y)),
    }


def plain(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Seconds of one step: forward, backward, Adam (fused)."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    net(x).sum().backward()
    began = time.process_time()
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    return time.process_time() - began


def sampler(
    method: FullBatchMethod, model: bnn.BayesianModel, x: Tensor, y: Tensor, steps: int, compile: bool
) -> Iterator[float]:
    """A generator of seconds a gradient, some steps at a time."""
    run = method.start(model.copy(), Plan(len(x), len(x), 10**6, 1, 1, compile=compile), Streams(0, 0))
    with isolated(run.streams.fence):
        run.step(x, y)
    while True:
        before, began = run.gradient_evaluations, time.process_time()
        with isolated(run.streams.fence):
            for _ in range(steps):
                run.step(x, y)
        yield (time.process_time() - began) / (run.gradient_evaluations - before)


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    methods: dict[str, tuple[FullBatchMethod, int]] = {
        "HMC": (bnn.HMC(max_steps=4), 1),
        "NUTS": (bnn.NUTS(max_depth=2), 1),
        "MCLMC": (bnn.MCLMC(warm_up=0), 2),
    }
    for name, (net, (x, y)) in problems().items():
        model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
        timers = {
            f"{key}, compiled" if compile else key: sampler(method, model, x, y, steps, compile)
            for key, (method, steps) in methods.items()
            for compile in (False, True)
        }
        seconds: dict[str, list[float]] = {"plain": [], **{key: [] for key in timers}}
        for _ in range(rounds):
            seconds["plain"].append(statistics.median(plain(net, x, y) for _ in range(3)))
            for key, timer in timers.items():
                seconds[key].append(next(timer))
        base = statistics.median(seconds["plain"])
        ratios = {key: round(statistics.median(values) / base, 2) for key, values in seconds.items() if key != "plain"}
        print(
            f"{name}, {model.num_weights()} weights: plain step {1000 * base:.2f} ms; a gradient of", ratios, flush=True
        )


if __name__ == "__main__":
    main()
