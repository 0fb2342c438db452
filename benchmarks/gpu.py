"""Steps a second on a GPU: plain torch, MAP, MeanFieldVI and SGHMC on LeNet5 and ResNet-20, and the share of the card.

    python benchmarks/gpu.py --out results/gpu.json

Every round takes one block of steps of each variant in turn; the clock is read after the GPU has worked off a block.
Operations are those of one forward and backward pass (torch's own count). The card's peak is what a matrix product
of 8192 x 8192 x 8192 reaches in the same run: in bfloat16 for rows that say so, in TensorFloat32, in which torch has
its convolutions compute, for the others. ``fit`` is timed over whole epochs: with data on the card, and with data that
stay in the machine's memory and are moved batch by batch.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import bayesnn as bnn
from bayesnn.data.batches import Batches
from bayesnn.methods import Method, Plan
from bayesnn.rng import Streams, generator

Step = Callable[[], object]
SIDE = 8192  # of the matrices whose product is the card's peak
METHODS: dict[str, Method] = {
    "MAP": bnn.MAP(),
    "MeanFieldVI": bnn.MeanFieldVI(),
    "SGHMC": bnn.SGHMC(lr=1e-3, warm_up=0.0, burn_in=0.0, draws=10_000),
}


def plain(net: nn.Module, x: Tensor, y: Tensor, optimizer: str, bf16: bool) -> Step:
    """The training step that everybody writes."""
    net = copy.deepcopy(net)
    chosen: torch.optim.Optimizer
    if optimizer == "SGD":
        chosen = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    else:
        chosen = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step() -> None:
        chosen.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        chosen.step()

    return step


def ours(net: nn.Module, x: Tensor, y: Tensor, method: Method, bf16: bool, compile: bool = False) -> Step:
    """One step of a method, as ``fit`` takes it."""
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical()).copy().to(x.device)
    model.autocast = torch.bfloat16 if bf16 else None
    run = method.start(model, Plan(60_000, len(x), 10, 1000, 1, compile=compile), Streams(0, 0, x.device))
    run.begin_epoch(0, Batches(x, y, len(x), generator=generator(0)))
    return lambda: run.step(x, y)


def operations(net: nn.Module, x: Tensor, y: Tensor) -> int:
    """Floating-point operations of one forward and backward pass."""
    counter = FlopCounterMode(display=False)
    with counter:
        F.cross_entropy(copy.deepcopy(net)(x), y).backward()
    return counter.get_total_flops()


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        seconds = min(clock(lambda: a @ b, 10, device) for _ in range(5))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return 2 * SIDE**3 / seconds


def clock(step: Step, times: int, device: torch.device) -> float:
    """Seconds a step, until the device has done it."""
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        step()
    wait(device)
    return (time.perf_counter() - began) / times


def wait(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fit_rate(net: nn.Module, rows: tuple[Tensor, Tensor], batch: int, device: torch.device, resident: bool) -> float:
    """Steps a second of ``fit`` over eight epochs, without the seconds that begin and end it: the best of two."""
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    seconds: dict[int, list[float]] = {1: [], 9: []}
    with mock.patch("bayesnn.prepare.fits", return_value=resident):
        for epochs in (1, 9, 1, 9):
            began = time.perf_counter()
            bnn.fit(model, rows, bnn.MAP(), epochs=epochs, batch_size=batch, chains=1, device=device, progress=False)
            seconds[epochs].append(time.perf_counter() - began)
    return 8 * math.ceil(len(rows[0]) / batch) / (min(seconds[9]) - min(seconds[1]))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--block", type=int, default=20, help="steps of a variant in a round")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--channels-last", action="store_true", help="the order of images and kernels in memory")
    parser.add_argument("--out", type=Path, default=Path("results/gpu.json"))
    arguments = parser.parse_args()
    device, inputs = torch.device(arguments.device), generator(0)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peaks = {"": peak(device, torch.float32), ", bf16": peak(device, torch.bfloat16)}
    report: dict[str, object] = {"device": card, "torch": torch.__version__, "peak": peaks}
    print(
        f"{card}, torch {torch.__version__}; a matrix product: "
        f"{peaks[''] / 1e12:.0f} TFLOP/s in TF32, {peaks[', bf16'] / 1e12:.0f} in bfloat16"
    )
    print(
        "| net, batch | step | steps a second | to SGD (quartiles) | TFLOP/s | share of the peak |\n" + "|---" * 6 + "|"
    )
    for title, net, shape in (
        ("LeNet5", bnn.nets.LeNet5(), (1, 28, 28)),
        ("ResNet-20", bnn.nets.ResNet(20, norm="batch"), (3, 32, 32)),
    ):
        for batch in arguments.batches:
            x = torch.randn(batch, *shape, generator=inputs).to(device)
            y = torch.randint(10, (batch,), generator=inputs).to(device)
            net = net.to(device)
            if arguments.channels_last:
                net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
            steps: dict[str, Step] = {}
            for suffix in peaks:
                for optimizer in ("SGD", "Adam"):
                    steps[f"torch, {optimizer}{suffix}"] = plain(net, x, y, optimizer, bool(suffix))
                for name, method in METHODS.items():
                    steps[f"{name}{suffix}"] = ours(net, x, y, method, bool(suffix))
            if title == "LeNet5":
                for name, method in METHODS.items():
                    steps[f"{name}, compiled"] = ours(net, x, y, method, False, compile=True)
            for step in steps.values():
                clock(step, arguments.block, device)  # compiles, and picks its kernels
            seconds = {name: [] for name in steps}
            for _ in range(arguments.rounds):
                for name, step in steps.items():
                    seconds[name].append(clock(step, arguments.block, device))
            count = operations(net, x, y)
            for name, taken in seconds.items():
                ratios = [a / b for a, b in zip(taken, seconds["torch, SGD"], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                rate = 1 / statistics.median(taken)
                share = count * rate / peaks[", bf16" if "bf16" in name else ""]
                print(
                    f"| {title}, {batch} | {name} | {rate:.0f} | {middle:.2f} ({low:.2f} - {high:.2f}) | "
                    f"{count * rate / 1e12:.2f} | {share:.2%} |",
                    flush=True,
                )
                report[f"{title}, {batch}, {name}"] = {"steps a second": rate, "to SGD": middle, "share": share}
            rows = (
                torch.randn(40 * batch, *shape, generator=inputs),
                torch.randint(10, (40 * batch,), generator=inputs),
            )
            bare = 1 / statistics.median(seconds["MAP"])
            for resident in (True, False):
                rate = fit_rate(net, rows, batch, device, resident)
                where = "on the card" if resident else "moved batch by batch"
                name = f"fit of MAP, data {where}"
                print(f"| {title}, {batch} | {name} | {rate:.0f} | of MAP's: {rate / bare:.2f} | | |", flush=True)
                report[f"{title}, {batch}, {name}"] = {"steps a second": rate, "of MAP's": rate / bare}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
