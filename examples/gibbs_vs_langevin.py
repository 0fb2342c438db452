"""Why nets are not sampled weight by weight: Gibbs against minibatch Langevin on a Bayesian linear model.

    python examples/gibbs_vs_langevin.py --out results/gibbs_vs_langevin

Both sample the same posterior, which is known in closed form. A sweep of Gibbs visits every weight and, for each, every
row; its steps are as long as the correlation of one weight with the others allows. A step of SGHMC moves all weights at
once and reads one minibatch. Printed and drawn: seconds for an effective draw of the slowest weight, against the number
of weights and of rows. (Gibbs can draw all weights of a *linear* model at once; in a net no such law is known.)
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

import bayesnn as bnn

CORRELATION = 0.9  # of neighbouring inputs: what makes coordinate-wise steps short
NOISE = 1.0


def problem(rows: int, weights: int, seed: int = 0) -> tuple[bnn.BayesianModel, torch.Tensor, torch.Tensor]:
    """Linear regression on inputs of which each is correlated with the one before."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, weights, generator=generator)
    for j in range(1, weights):
        x[:, j] = CORRELATION * x[:, j - 1] + (1 - CORRELATION**2) ** 0.5 * x[:, j]
    w = torch.randn(weights, generator=generator)
    y = x @ w + NOISE * torch.randn(rows, generator=generator)
    net = nn.Linear(weights, 1, bias=False)
    return bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=NOISE)), x, y


def seconds_a_draw(method: bnn.methods.Method, rows: int, weights: int, epochs: int, batch: int | None) -> float:
    """Seconds of the fit over the effective draws of the weight that has the fewest."""
    model, x, y = problem(rows, weights)
    mode = bnn.fit(model, (x, y), bnn.MAP(lr=0.02), epochs=300, batch_size=None, progress=False)
    began = time.perf_counter()
    posterior = bnn.fit(model, (x, y), method, epochs=epochs, batch_size=batch, chains=1, init=mode, progress=False)
    seconds = time.perf_counter() - began
    draws = posterior.sources[0].tensors()["net.weight"][None, :, 0]
    return seconds / float(torch.as_tensor(bnn.diagnostics.ess(draws)).min())


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--weights", type=int, nargs="+", default=[4, 16, 64, 256])
parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
parser.add_argument("--sweeps", type=int, default=400, help="of Gibbs; SGHMC takes ten times as many steps")
parser.add_argument("--out", type=Path, default=Path("results/gibbs_vs_langevin"))
arguments = parser.parse_args()
torch.set_num_threads(1)
fixed_rows, fixed_weights = arguments.rows[0], arguments.weights[min(1, len(arguments.weights) - 1)]
scans = {
    "weights": [(fixed_rows, count) for count in arguments.weights],
    "rows": [(count, fixed_weights) for count in arguments.rows],
}
_, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
print("| rows | weights | Gibbs, s a draw | SGHMC, s a draw |\n|---|---|---|---|")
for ax, (what, cases) in zip(axes, scans.items(), strict=True):
    times: dict[str, list[float]] = {"Gibbs, weight by weight": [], "SGHMC, minibatches": []}
    for rows, weights in cases:
        batch = min(rows, 500)
        steps = 10 * arguments.sweeps
        gibbs = seconds_a_draw(bnn.GibbsLinear(), rows, weights, arguments.sweeps, None)
        sghmc = bnn.SGHMC(burn_in=0.2, draws=arguments.sweeps)
        langevin = seconds_a_draw(sghmc, rows, weights, max(1, steps * batch // rows), batch)
        for values, value in zip(times.values(), (gibbs, langevin), strict=True):
            values.append(value)
        print(f"| {rows:,} | {weights:,} | {gibbs:.2g} | {langevin:.2g} |", flush=True)
    for label, values in times.items():
        ax.loglog([case[what == "weights"] for case in cases], values, "o-", label=label)
    fixed = f"{fixed_rows:,} rows" if what == "weights" else f"{fixed_weights} weights"
    ax.set(xlabel=f"number of {what} ({fixed})")
axes[0].set_ylabel("seconds for an effective draw")
axes[0].legend(frameon=False)
arguments.out.mkdir(parents=True, exist_ok=True)
plt.tight_layout()
plt.savefig(arguments.out / "gibbs_vs_langevin.png", dpi=150)
plt.close()
print(f"wrote {arguments.out / 'gibbs_vs_langevin.png'}")
