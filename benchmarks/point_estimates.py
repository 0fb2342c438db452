"""What MCDropout, SWAG and Laplace cost beside MAP: a training step, the end of the run, and a draw's prediction.

    OMP_NUM_THREADS=1 python benchmarks/point_estimates.py

Steps and draws are interleaved with MAP's in one run; figures are medians of ratios. The end of a run (Laplace's pass
over all rows) is in units of epochs of MAP's training on the same rows. Inputs are random: only time is measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import bayesnn as bnn
from bayesnn.data.batches import Batches
from bayesnn.methods import Method, Plan
from bayesnn.rng import Streams, generator
from bayesnn.source import Source

CLASSES = 10
STEADY = {"warm_up": 0.0, "burn_in": 0.0, "lr": 1e-3}
METHODS: dict[str, Method] = {
    "MAP": bnn.MAP(),
    "MCDropout": bnn.MCDropout(),
    "SWAG, update every 20 steps": bnn.SWAG(collect_every=20, **STEADY),
    "SWAG, update every step": bnn.SWAG(collect_every=1, **STEADY),
    "Laplace, diag": bnn.Laplace(curvature="diag"),
    "Laplace, kron": bnn.Laplace(),
    "Laplace, kron, weights": bnn.Laplace(predictive="weights"),
    "Laplace, full, last layer": bnn.Laplace(curvature="full", weights="last-layer"),
    "Laplace, full": bnn.Laplace(curvature="full"),
}


def nets(dropout: float) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """The nets by name, each with the shape of an input."""

    def mlp(*widths: int) -> nn.Module:
        return bnn.nets.MLP(widths[0], widths[1:], CLASSES, dropout=dropout)

    lenet = bnn.nets.LeNet5((1, 28, 28), CLASSES)
    lenet = nn.Sequential(lenet, nn.Dropout(dropout)) if dropout else lenet  # LeNet5 has none of its own
    return {
        "MLP 64-32-32-10": (mlp(64, 32, 32), (64,)),
        "LeNet5 28x28": (lenet, (1, 28, 28)),
        "MLP 784-400-400-10": (mlp(784, 400, 400), (784,)),
    }


def seconds(action: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def ratio(actions: list[Callable[[], object]], base: list[Callable[[], object]], rounds: int) -> float:
    """Median over rounds of the seconds of ``actions`` over those of ``base``, taken in turn."""
    for action in (*actions, *base):
        action()
    pairs = [(sum(map(seconds, actions)), sum(map(seconds, base))) for _ in range(rounds)]
    return statistics.median(a / b for a, b in pairs)


def forward(source: Source, model: bnn.BayesianModel, x: torch.Tensor, draws: int) -> Callable[[], object]:
    """Draws of the source and the net's answers, as a prediction takes them."""
    bound = source.bind(model.copy().eval())

    def run() -> None:
        with torch.no_grad():
            for state in source.states(draws, generator(0)):
                torch.func.functional_call(bound, state, (x,))

    return run


def main() -> None:
    """Print a table for each net."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--net", default="", help="part of the name of the nets to take; all by default")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    y = torch.randint(CLASSES, (options.rows,), generator=generator(1))
    for name in filter(lambda name: options.net in name, nets(0.0)):
        plain, shape = nets(0.0)[name]
        x = torch.randn(options.rows, *shape, generator=generator(2))
        steps = -(-options.rows // 64)
        plan = Plan(options.rows, 64, 10_000 // steps, steps, 1)

        def start(method: Method, net: nn.Module, x: torch.Tensor = x, plan: Plan = plan):
            model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Categorical())
            batches = Batches(x, y, 64, generator=generator(0))
            run = method.start(model, plan, Streams(0, 0))
            run.begin_epoch(0, batches)
            return model, run, batches

        base_model, base, base_batches = start(METHODS["MAP"], plain)
        weights = base_model.num_weights()
        print(f"\n{name}, {weights:,} weights, batch 64, {options.rows} rows")
        print(f"{'method':30} {'step':>6} {'end (epochs)':>13} {'numbers/weight':>15} {'draw':>6}")
        first = x[:64], y[:64]
        base_step = [lambda base=base, first=first: base.step(*first)] * 5
        base_draw = forward(base.finish(base_batches), base_model, x[:1000], 1)
        for label, method in METHODS.items():
            net = nets(0.2 if label == "MCDropout" else 0.0)[name][0]
            try:
                model, run, batches = start(method, net)
            except ValueError as error:
                print(f"{label:30} refused: {error}")
                continue
            step = ratio([lambda run=run, first=first: run.step(*first)] * 5, base_step, options.rounds)
            epoch = statistics.median(seconds(base_step[0]) for _ in range(30)) * steps
            sources: list[Source] = []
            finish = lambda run=run, batches=batches, s=sources: s.append(run.finish(batches))  # noqa: E731
            repeats = 5 if seconds(finish) < 2 else 1  # the first call of a kind in a process sets things up
            end = statistics.median(seconds(finish) for _ in range(repeats)) / epoch
            stored = sum(v.numel() for v in sources[0].tensors().values()) / weights
            draws = 1 if label == "MAP" else 10
            draw = ratio([forward(sources[0], model, x[:1000], draws)], [base_draw] * draws, 5)
            print(f"{label:30} {step:6.2f} {end:13.2f} {stored:15.2f} {draw:6.2f}", flush=True)


if __name__ == "__main__":
    main()
