"""What a fit of each method holds in memory at its peak, in vectors of the net's weights, beside plain torch with Adam.

    OMP_NUM_THREADS=1 python benchmarks/memory.py    # Linux; some minutes on one core; prints a table

Each fit is a process of its own, forked from one that holds the net and the data; what its resident memory gains, at
the most, over what it was before the fit is divided by the size of the weights. Posterior included, draws in memory.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import bayesnn as bnn

BATCH = 64
DRAWS = 2  # of samplers: each is a vector more


def resident(key: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (the most so far) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))


def gained(work: Callable[[nn.Module], object], net: nn.Module, small: nn.Module) -> int:
    """Bytes by which the peak of ``work(net)``, in a process of its own, lies above what was there before.

    ``work(small)`` goes before it: libraries that are loaded at their first use are no part of the answer.
    """
    source, target = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            work(small)
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
            kept = work(net)
            os.write(target, str(resident("VmHWM") - before).encode())
            del kept
            status = 0
        finally:
            os._exit(status)
    os.close(target)
    with os.fdopen(source) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise RuntimeError("the fit failed: see above")
    return int(answer)


def plain(net: nn.Module, x: Tensor, y: Tensor) -> object:
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    for rows, targets in zip(x.split(BATCH), y.split(BATCH), strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(rows), targets).backward()
        optimizer.step()
    return optimizer


def methods() -> dict[str, tuple[bnn.methods.Method, int]]:
    """By name: the method and its epochs."""
    samplers = {kind.__name__: (kind(lr=1e-4, draws=DRAWS), 4) for kind in (bnn.SGLD, bnn.SGHMC, bnn.SGNHT, bnn.PSGLD)}
    estimators = {
        f"MeanFieldVI, {name}": (bnn.MeanFieldVI(estimator=name), 2) for name in ("reparam", "local", "flipout")
    }
    return {
        "MAP": (bnn.MAP(), 2),
        "MCDropout": (bnn.MCDropout(), 2),
        "SWAG, rank 20": (bnn.SWAG(collect_every=1, lr=1e-4), 10),
        "Laplace, kron": (bnn.Laplace(), 2),
        "Laplace, diag": (bnn.Laplace(curvature="diag"), 2),
        **estimators,
        "LowRankVI, rank 10": (bnn.LowRankVI(), 2),
        "RadialVI": (bnn.RadialVI(), 2),
        f"PyroVI, AutoNormal, {DRAWS} draws": (bnn.PyroVI(draws=DRAWS), 2),
        "IVON": (bnn.IVON(), 2),
        "SVGD, 20 particles": (bnn.SVGD(), 1),
        **{f"{name}, {DRAWS} draws": fit for name, fit in samplers.items()},
        f"HMC, {DRAWS} draws": (bnn.HMC(draws=DRAWS, max_steps=4), 8),
        f"NUTS, {DRAWS} draws": (bnn.NUTS(draws=DRAWS, max_depth=3), 8),
        f"MCLMC, {DRAWS} draws": (bnn.MCLMC(draws=DRAWS), 40),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--methods", help="names with commas between, of the first word of a row; default: all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(5 * BATCH, 784, generator=torch.Generator().manual_seed(0))
    y = torch.arange(len(x)) % 10
    net, small = (bnn.nets.MLP(784, (width, width), 10) for width in (args.width, 8))
    dropping = [bnn.nets.MLP(784, (width, width), 10, dropout=0.1) for width in (args.width, 8)]
    count = sum(p.numel() for p in net.parameters())
    vector = 4 * count
    print(f"{count:,} weights, {vector / 2**20:.1f} MiB a vector, batch {BATCH}, torch {torch.__version__}\n")
    print("| fit | vectors of the weights' length |\n|---|---:|")
    print(f"| plain torch, Adam | {gained(lambda net: plain(net, x, y), net, small) / vector:.1f} |", flush=True)
    for name, (method, epochs) in methods().items():
        if args.methods and name.split(",")[0] not in args.methods.split(","):
            continue

        def fit(net: nn.Module, method: bnn.methods.Method = method, epochs: int = epochs) -> bnn.Posterior:
            model = bnn.BayesianModel(net, bnn.priors.Normal(), bnn.likelihoods.Categorical())
            return bnn.fit(model, (x, y), method, epochs=epochs, batch_size=BATCH, chains=1, progress=False)

        nets = dropping if isinstance(method, bnn.MCDropout) else (net, small)
        print(f"| {name} | {gained(fit, *nets) / vector:.1f} |", flush=True)


if __name__ == "__main__":
    main()
