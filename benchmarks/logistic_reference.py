"""The posterior of logistic regression on breast-cancer by long NUTS: what the tests hold the samplers to.

    python benchmarks/logistic_reference.py  # some minutes on one core; writes tests/posteriors/breast_cancer_nuts.json

31 weights (30 standardised inputs and a bias) under Normal(0, 1), float64, the training part of the standard split. The
outputs of one linear layer, all with the same targets, are independent copies of that posterior: a chain of them gives
as many draws a transition.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import bayesnn as bnn


def problem(copies: int) -> tuple[bnn.BayesianModel, tuple[torch.Tensor, torch.Tensor]]:
    train, _ = bnn.data.load("breast-cancer")
    net = nn.Linear(30, copies)
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Bernoulli()).double()
    return model, (train.x.double(), train.y[:, None].repeat(1, copies))


def run(draws: int, warm_up: int, chains: int, copies: int, seed: int) -> dict[str, Any]:
    """Fit, and the moments with what says how far they can be believed."""
    model, data = problem(copies)
    method = bnn.NUTS(draws=draws, warm_up=warm_up / (warm_up + draws))
    began = time.perf_counter()
    posterior = bnn.fit(model, data, method, epochs=warm_up + draws, chains=chains, seed=seed, progress=False)
    seconds = time.perf_counter() - began
    states = [source.tensors() for source in posterior.sources]
    values = np.stack([torch.cat((s["net.weight"], s["net.bias"][..., None]), -1).numpy() for s in states])
    mean, sd = values.mean((0, 1, 2)), values.std((0, 1, 2), ddof=1)
    # Averages over the copies: their series have the Monte-Carlo error of the moments.
    averages, squares = values.mean(2), ((values - mean) ** 2).mean(2)
    error = bnn.diagnostics.mcse_mean(averages)
    error_sd = bnn.diagnostics.mcse_mean(squares) / (2 * sd)
    by_copy = values.transpose(0, 2, 1, 3).reshape(-1, values.shape[1], values.shape[3])  # every copy for a chain
    ends = {row["chain"]: row for row in posterior.history}
    return {
        "weights": "net.weight[copy, 0..29], net.bias[copy]",
        "mean": mean.round(6).tolist(),
        "sd": sd.round(6).tolist(),
        "largest_error_of_means_in_sd": round(float((error / sd).max()), 5),
        "largest_error_of_sds_in_sd": round(float((error_sd / sd).max()), 5),
        "least_ess_of_means": round(float((sd**2 / error**2).min())),
        "largest_rhat": round(float(bnn.diagnostics.rhat(by_copy).max()), 5),
        "chains": chains,
        "copies_a_chain": copies,
        "draws_a_chain": draws,
        "warm_up": warm_up,
        "seed": seed,
        "divergent": sum(row["divergent"] for row in ends.values()),
        "gradient_evaluations": posterior.info["gradient_evaluations"],
        "seconds": round(seconds),
        "command": "python benchmarks/logistic_reference.py",
    }


def main() -> None:
    """Parse, run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=250)
    parser.add_argument("--warm-up", type=int, default=200)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--copies", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("tests/posteriors/breast_cancer_nuts.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = run(arguments.draws, arguments.warm_up, arguments.chains, arguments.copies, arguments.seed)
    arguments.out.write_text(json.dumps(report, indent=1))
    print({key: value for key, value in report.items() if key not in ("mean", "sd")})


if __name__ == "__main__":
    main()
