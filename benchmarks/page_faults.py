"""How much of a step on a CPU is memory that the allocator gave back to the system and asks for anew.

    OMP_NUM_THREADS=1 python benchmarks/page_faults.py
    MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TOP_PAD_=268435456 \
        OMP_NUM_THREADS=1 python benchmarks/page_faults.py

The variables are of glibc's allocator. Each method is alone in the process while it is timed, as in a fit.
"""

from __future__ import annotations

import gc
import resource
import statistics
import time

import torch
from step import STEADY, Step, ours, plain

import bayesnn as bnn
from bayesnn.rng import generator

STEPS, WARM = 12, 3


def measure(step: Step) -> tuple[float, float, float]:
    """Milliseconds a step (median), of which in the system (mean), and pages asked for (mean)."""
    for _ in range(WARM):
        step()
    before, seconds = resource.getrusage(resource.RUSAGE_SELF), []
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    after = resource.getrusage(resource.RUSAGE_SELF)
    system, pages = after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt
    return 1e3 * statistics.median(seconds), 1e3 * system / STEPS, pages / STEPS


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    net, x = bnn.nets.ResNet(20, norm="group"), torch.randn(64, 3, 32, 32, generator=generator(0))
    y = torch.randint(10, (64,), generator=generator(1))
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    methods = {
        "MeanFieldVI": bnn.MeanFieldVI(),
        "MeanFieldVI, local": bnn.MeanFieldVI(estimator="local"),
        "SGHMC": bnn.SGHMC(**STEADY),
    }
    print("| ResNet-20, batch 64 | ms a step | of which in the system | pages a step |\n|---|---|---|---|")
    for name in ("torch, Adam", *methods):
        step = ours(model, x, y, methods[name]) if name in methods else plain(net, x, y, "adam")
        milliseconds, system, pages = measure(step)
        print(f"| {name} | {milliseconds:.0f} | {system:.0f} | {pages:,.0f} |", flush=True)
        del step
        gc.collect()


if __name__ == "__main__":
    main()
