"""What the looks at gradient norms cost beside the fit that takes them.

OMP_NUM_THREADS=1 python benchmarks/gradient_looks.py
"""

from __future__ import annotations

import time
from typing import Any

import torch

import bayesnn as bnn
from bayesnn import gradients

FITS = {"MLP 64-50-50-10": (bnn.nets.MLP(64, (50, 50), 10), 90), "LeNet5, 8x8": (bnn.nets.LeNet5((1, 8, 8)), 25)}


def main() -> None:
    """CPU seconds of the process, as the machine may have other work."""
    torch.set_num_threads(1)
    train, _ = bnn.data.load("digits")
    look, spent = gradients.layer_norms, [0.0]

    def timed(*arguments: Any) -> gradients.Norms:
        began = time.process_time()
        norms = look(*arguments)
        spent.append(time.process_time() - began)
        return norms

    gradients.layer_norms = timed
    for name, (net, epochs) in FITS.items():
        spent.clear()
        began = time.process_time()
        model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Categorical())
        steps = bnn.fit(model, train, bnn.MAP(), epochs=epochs, progress=False).info["steps"]
        share = sum(spent) / (time.process_time() - began)
        print(f"{name}: {steps} steps, {len(spent)} looks of {1e3 * sum(spent) / len(spent):.1f} ms, {share:.1%}")


if __name__ == "__main__":
    main()
