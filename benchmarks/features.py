"""What a frozen trunk costs in every epoch, and its features once.

    OMP_NUM_THREADS=1 python benchmarks/features.py

Processor seconds of an epoch of MAP on LeNet5 with random images: all layers trained, all but the head frozen, and the
head alone on the features; and of the pass that makes the features.
"""

import argparse
import time
from statistics import median

import torch

import bayesnn as bnn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rows", type=int, default=640)
parser.add_argument("--rounds", type=int, default=3)
options = parser.parse_args()

stream = torch.Generator().manual_seed(0)
x = torch.randn(options.rows, 1, 28, 28, generator=stream)
data = bnn.data.Data(x, torch.randint(10, (options.rows,), generator=stream))
net = bnn.nets.LeNet5()
frozen = bnn.nets.freeze(net, but="last-layer")
likelihood = bnn.likelihoods.Categorical()
models = {
    "all layers": (bnn.BayesianModel(net, likelihood=likelihood), data),
    "frozen trunk": (bnn.BayesianModel(frozen, likelihood=likelihood), data),
    "features": (bnn.BayesianModel(torch.nn.Linear(84, 10), likelihood=likelihood), bnn.nets.features(frozen, data)),
}


def seconds(work) -> float:
    began = time.process_time()  # not those of other jobs
    work()
    return time.process_time() - began


def an_epoch(model: bnn.BayesianModel, rows: bnn.data.Data) -> float:
    """The second of two epochs: what comes before the first step is in both."""
    one, two = (seconds(lambda n=n: bnn.fit(model, rows, bnn.MAP(), epochs=n, progress=False)) for n in (1, 2))
    return two - one


times: dict[str, list[float]] = {name: [] for name in (*models, "making the features")}
for _ in range(options.rounds):
    times["making the features"].append(seconds(lambda: bnn.nets.features(frozen, data)))
    for name, (model, rows) in models.items():
        times[name].append(an_epoch(model, rows))
for name, values in times.items():
    print(f"{name:<22}{1000 * median(values):>8.1f} ms")
