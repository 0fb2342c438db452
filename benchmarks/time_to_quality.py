"""Seconds of training until LeNet5 reaches a negative log likelihood on Fashion-MNIST's test images: ours and peers.

    BAYESNN_DATA=DIR python benchmarks/time_to_quality.py
    pip install -c constraints.txt posteriors torchopt bayesian-torch blitz-bayesian-pytorch torchbnn ivon-opt

All train on the same rows, a quarter of an epoch each in turn, so that what else the machine does meets all alike; only
the training is timed. The library's methods have their defaults (``MeanFieldVI`` also Adam at 2e-3, see
``fashion_mnist.py``) and one chain; a peer does what its documentation does, by :mod:`peers`. After each epoch the NLL
is that of a mixture: of DRAWS samples of a variational net; of a sampler's states at the quarters of the later half of
the epochs so far, its warm-up excepted; of a point estimate alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peers
import torch
import torch.nn.functional as F
from torch import Tensor

import bayesnn as bnn
from bayesnn.data.batches import Batches
from bayesnn.methods import Method, Plan
from bayesnn.rng import Streams, generator

DRAWS = 8
QUARTERS = 4
ROWS = 1000  # test images in one pass
SAMPLERS = ("SGLD", "PSGLD", "SGHMC", "SGNHT", "BAOA")


class Contestant:
    """One method on its way.

    Parameters
    ----------
    step : trains on a minibatch.
    draws : the nets of the mixture at present, as functions of the images to logits.
    collects : whether the mixture is over time, and from which epoch on.

    Attributes
    ----------
    seconds : of training.
    scores : (seconds, NLL, accuracy) after each epoch.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor], object],
        draws: Callable[[], Sequence[Callable[[Tensor], Tensor]]],
        collects: bool = False,
        first: float = 0.0,
    ) -> None:
        self._step, self._draws, self._collects, self._first = step, draws, collects, first
        self.seconds = 0.0
        self.scores: list[tuple[float, float, float]] = []
        self._past: list[Tensor] = []

    def train(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take these minibatches, timed."""
        began = time.perf_counter()
        for x, y in batches:
            self._step(x, y)
        self.seconds += time.perf_counter() - began

    @torch.no_grad()
    def look(self, epochs: float, test: bnn.data.Data) -> None:
        """After so many epochs: note what a sampler predicts, and score what is predicted where an epoch is whole."""
        whole = epochs == int(epochs)
        if not (whole or self._collects):
            return
        nets = self._draws()
        probabilities = torch.stack([_probabilities(net, test.x) for net in nets]).mean(0)
        if self._collects and epochs > self._first:
            self._past.append(probabilities)
            probabilities = torch.stack(self._past[len(self._past) // 2 :]).mean(0)
        if whole:
            nll = float(F.nll_loss(probabilities.log(), test.y))
            accuracy = float((probabilities.argmax(1) == test.y).double().mean())
            self.scores.append((self.seconds, nll, accuracy))


def _probabilities(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([net(part).softmax(1) for part in x.split(ROWS)])


def ours(method: Method, train: bnn.data.Data, batch: int, epochs: int) -> Contestant:
    """A method of the library, as ``fit`` runs one chain of it."""
    model = bnn.BayesianModel(bnn.nets.LeNet5(), likelihood=bnn.likelihoods.Categorical())
    batches = Batches(train.x, train.y, batch, generator=generator(1))
    plan = Plan(len(train), batch, epochs, len(train) // batch, 1)
    run = method.start(model, plan, Streams(0, 0))
    run.begin_epoch(0, batches)
    steps = plan.steps - run.schedule_from
    schedules = [method.make_schedule(optimizer, steps) for optimizer in run.optimizers]
    taken = 0

    def step(x: Tensor, y: Tensor) -> None:
        nonlocal taken
        run.step(x, y)
        taken += 1
        if taken > run.schedule_from:
            for schedule in schedules:
                if schedule is not None:
                    schedule.step()

    def draws() -> list[Callable[[Tensor], Tensor]]:
        found = []
        for state in run.snapshot()[:DRAWS]:
            copy = model.copy().eval()
            copy.load_state(state)
            found.append(copy.net)
        return found

    warm_up = getattr(method, "warm_up", 0.0) * epochs if method.is_sampler else 0.0
    return Contestant(step, draws, method.is_sampler, warm_up)


def theirs(name: str, peer: peers.Peer, x: Tensor, y: Tensor) -> Contestant:
    """A peer, which trains on what ``x`` and ``y`` hold."""

    def step(rows: Tensor, targets: Tensor) -> None:
        x.copy_(rows)
        y.copy_(targets)
        peer.step()

    sampler = name.split(", ")[-1] in SAMPLERS
    return Contestant(step, lambda: [peer.outputs] * (1 if sampler else DRAWS), sampler)


def contestants(train: bnn.data.Data, batch: int, epochs: int) -> dict[str, Contestant]:
    """All of them, the plain net first."""
    methods: dict[str, Method] = {
        "MAP": bnn.MAP(),
        "MeanFieldVI": bnn.MeanFieldVI(),
        "MeanFieldVI, lr 2e-3": bnn.MeanFieldVI(lr=2e-3),
        "MeanFieldVI, local": bnn.MeanFieldVI(estimator="local"),
        "MeanFieldVI, flipout": bnn.MeanFieldVI(estimator="flipout"),
        "IVON": bnn.IVON(),
        "SGLD": bnn.SGLD(),
        "PSGLD": bnn.PSGLD(),
        "SGHMC": bnn.SGHMC(),
        "SGNHT": bnn.SGNHT(),
    }
    x, y = torch.empty(batch, 1, 28, 28), torch.zeros(batch, dtype=torch.int64)
    net = bnn.nets.LeNet5()
    torch_alone = peers.descent(net, lambda: F.cross_entropy(net(x), y))
    found = {"torch, Adam": theirs("torch, Adam", torch_alone, x, y)}
    found |= {name: ours(method, train, batch, epochs) for name, method in methods.items()}
    for name, peer in peers.installed(bnn.nets.LeNet5(), x, y).items():
        found[name] = theirs(name, peer, x, y)
    return found


def table(results: dict[str, list[Any]], level: float) -> str:
    """Markdown: for each contestant the seconds to the level, and what it came to."""
    lines = [f"| method | seconds to NLL {level:g} | seconds an epoch | best NLL | accuracy there |", "|---" * 5 + "|"]

    def reached(scores: list[Any]) -> float:
        return next((float(seconds) for seconds, nll, _ in scores if nll <= level), math.inf)

    for name, scores in sorted(results.items(), key=lambda item: (reached(item[1]), min(s[1] for s in item[1]))):
        best = min(scores, key=lambda score: float(score[1]))
        there = f"{reached(scores):.0f}" if math.isfinite(reached(scores)) else "not reached"
        lines.append(
            f"| {name} | {there} | {scores[-1][0] / len(scores):.1f} | {best[1]:.3f} | {100 * best[2]:.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train all, quarter by quarter, write what there is after each epoch, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--nll", type=float, default=0.27)
    parser.add_argument("--only", nargs="+", help="names of contestants")
    parser.add_argument("--rows", type=int, help="of the training part, for a trial run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("results/time_to_quality.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train, test = bnn.data.load("fashion-mnist")
    rows = (arguments.rows or len(train)) // arguments.batch * arguments.batch  # peers take batches of one size
    train = bnn.data.Data(train.x[:rows], train.y[:rows])
    all_of_them = contestants(train, arguments.batch, arguments.epochs)
    racing = {name: one for name, one in all_of_them.items() if arguments.only is None or name in arguments.only}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    order = generator(0)
    for epoch in range(arguments.epochs):
        indices = torch.randperm(rows, generator=order).split(arguments.batch)
        for quarter in range(QUARTERS):
            part = indices[len(indices) * quarter // QUARTERS : len(indices) * (quarter + 1) // QUARTERS]
            batches = [(train.x[index], train.y[index]) for index in part]
            for name, one in racing.items():
                one.train(batches)
                one.look(epoch + (quarter + 1) / QUARTERS, test)
                if quarter == QUARTERS - 1:
                    seconds, nll, accuracy = one.scores[-1]
                    print(f"epoch {epoch + 1} {name}: {seconds:.1f} s, NLL {nll:.4f}, {accuracy:.4f}", flush=True)
        arguments.out.write_text(json.dumps({name: one.scores for name, one in racing.items()}, indent=1))
    print(table({name: one.scores for name, one in racing.items()}, arguments.nll))


if __name__ == "__main__":
    main()
