"""Simulation-based calibration (Talts et al. 2018): does the sampler sample the posterior, over the whole prior?

    python benchmarks/sbc.py                     # a table: chi-square and the variance of the ranks, and their p-values
    python benchmarks/sbc.py --minibatches       # the extra bias of minibatches, against batch size and lr

Weights w* are drawn from the prior and data from the likelihood, 1,000 times; each posterior is sampled, and the rank
of f(w*) among L draws of f(w) is uniform on {0, ..., L} if the sampler is right. The replications run at once, as one
model whose outputs and targets are theirs: its posterior is the product of theirs. Exact gradients, small steps, draws
thinned to independence, seeds fixed. Models: linear regression (f = the weights) and a net with one hidden layer
(f = its value at five inputs). "x 1.2" is the same sampler with its noise 1.2 times too loud: it has to fail.

With minibatches the noise of the gradient adds to that injected, and the sampled posterior is too wide: the ranks crowd
in the middle, and their variance over that of uniform ranks falls below 1. All replications take the same rows.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

import bayesnn as bnn

ROWS, INPUTS, HIDDEN, NOISE, DRAWS, BINS = 20, 3, 6, 0.5, 99, 20
STEP, THIN = 0.02, 200  # lr of SGHMC with exact gradients, and the steps after which its draws are independent
PROBES = torch.linspace(-2, 2, 5)[:, None]


class Nets(nn.Module):
    """Many nets 1-HIDDEN-1 (tanh) side by side: (batch, 1) -> (batch, nets). Every weight has the prior N(0, 1)."""

    def __init__(self, nets: int) -> None:
        super().__init__()
        self.u, self.b = (nn.Parameter(torch.zeros(nets, HIDDEN)) for _ in range(2))
        self.v, self.c = nn.Parameter(torch.zeros(nets, HIDDEN)), nn.Parameter(torch.zeros(nets))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """From the prior."""
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """The values of all nets at the same inputs."""
        hidden = torch.tanh(x[:, :, None] * self.u + self.b)
        out: Tensor = (hidden * self.v).sum(-1) / HIDDEN**0.5 + self.c
        return out


def simulate(kind: str, replications: int, seed: int) -> tuple[bnn.BayesianModel, Tensor, Tensor, Tensor]:
    """The model of all replications, inputs, targets, and f(w*), (quantity, replication)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, INPUTS if kind == "linear" else 1, generator=generator)
    net = nn.Linear(INPUTS, replications, bias=False) if kind == "linear" else Nets(replications)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
        truth = quantities(kind, {f"net.{name}": p[None] for name, p in net.named_parameters()})[0]
        y = net(x)
        y = y + NOISE * torch.randn(y.shape, generator=generator)
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=NOISE))
    return model, x, y, truth


def quantities(kind: str, tensors: dict[str, Tensor]) -> Tensor:
    """f(w) of each draw, (draw, quantity, replication)."""
    if kind == "linear":
        return tensors["net.weight"].transpose(1, 2)
    u, b, v, c = (tensors[f"net.{name}"].unsqueeze(1) for name in "ubvc")
    hidden = torch.tanh(PROBES[None, :, None] * u + b)
    return (hidden * v).sum(-1) / HIDDEN**0.5 + c


def ranks(
    kind: str, method: Any, epochs: int, replications: int, seed: int = 0, batch_size: int | None = None
) -> Tensor:
    """Ranks (quantity, replication) of f(w*) among DRAWS draws of one chain; all rows, or independent minibatches."""
    model, x, y, truth = simulate(kind, replications, seed)
    rows: dict[str, Any] = {"batch_size": batch_size, "order": "reshuffle" if batch_size is None else "iid"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of loud minibatches: what is studied
        posterior = bnn.fit(model, (x, y), method, epochs=epochs, chains=1, seed=seed, progress=False, **rows)
    draws = quantities(kind, posterior.sources[0].tensors())
    assert len(draws) == DRAWS
    return (draws < truth).sum(0)


def judge(found: Tensor) -> dict[str, float]:
    """p-values of uniformity for the worst quantity, each times the number of quantities (Bonferroni).

    Chi-square over BINS bins of the ranks; and the variance of the ranks, ((L + 1)^2 - 1) / 12 if they are uniform,
    which sees a posterior that is too wide or too narrow where chi-square does not.
    """
    levels, n = DRAWS + 1, found.shape[1]
    chi, variance, ratios = [], [], []
    expected = (levels**2 - 1) / 12
    # Kurtosis of a discrete uniform: the standard error of its sample variance.
    fourth = (levels**2 - 1) * (3 * levels**2 - 7) / 240
    error = ((fourth - expected**2) / n) ** 0.5
    for one in found:
        counts = torch.histc(one.float(), BINS, 0, levels)
        chi.append(float(stats.chisquare(counts.numpy()).pvalue))
        value = float(((one.double() - DRAWS / 2) ** 2).mean())
        ratios.append(value / expected)
        variance.append(float(2 * stats.norm.sf(abs(value - expected) / error)))
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    count = len(found)
    return {
        "chi-square p": min(1, count * min(chi)),
        "variance ratio": worst,
        "variance p": min(1, count * min(variance)),
    }


class Louder(bnn.SGHMC):
    """SGHMC with its noise 1.2 times too loud: a fault that calibration has to see."""

    def make_optimizer(self, groups: list[dict[str, Any]], num_data: int, noise: torch.Generator) -> bnn.optim.Sampler:
        """The sampler at the temperature that such noise amounts to."""
        optimizer = super().make_optimizer(groups, num_data, noise)
        for group in optimizer.param_groups:
            group["temperature"] *= 1.2**2
        return optimizer


def studies(thin: int, nuts: int) -> dict[str, tuple[str, Any, int]]:
    """Name -> (model, method, epochs): ``thin`` steps between the draws of a sampler."""
    options: dict[str, Any] = {"lr": STEP, "thin": thin, "warm_up": 0.0, "burn_in": 0.2}
    steps = int(thin * DRAWS / 0.8) + 1
    return {
        "linear, SGHMC": ("linear", bnn.SGHMC(**options), steps),
        "linear, SGHMC, noise x 1.2": ("linear", Louder(**options), steps),
        "linear, NUTS": ("linear", bnn.NUTS(draws=DRAWS, thin=nuts), 2 * nuts * DRAWS),
        "net, SGHMC": ("net", bnn.SGHMC(**options), steps),
        "net, SGHMC, noise x 1.2": ("net", Louder(**options), steps),
    }


def minibatches(replications: int) -> dict[str, dict[str, float]]:
    """Name -> verdict of linear regression by SGHMC, at the lengths of time between draws of the study above."""
    results = {}
    for batch in (5, 10):
        for lr in (0.04, 0.02, 0.01, 0.005):
            thin = round(THIN * STEP / lr)
            method = bnn.SGHMC(lr=lr, thin=thin, warm_up=0.0, burn_in=0.2)
            epochs = math.ceil((int(thin * DRAWS / 0.8) + 1) * batch / ROWS)
            found = ranks("linear", method, epochs, replications, batch_size=batch)
            name = f"linear, SGHMC, batch {batch} of {ROWS}, lr {lr}"
            results[name] = judge(found)
            print("| " + " | ".join([name, *(f"{value:.3g}" for value in results[name].values())]) + " |", flush=True)
    return results


def main() -> None:
    """Parse, run, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=1000)
    parser.add_argument("--thin", type=int, default=THIN)
    parser.add_argument("--nuts-thin", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of studies; all by default")
    parser.add_argument("--minibatches", action="store_true", help="the study of their bias")
    parser.add_argument("--out", type=Path, default=Path("results/sbc.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.minibatches:
        print("| study | chi-square p | variance of ranks / uniform | its p |\n|---|---|---|---|")
        minibatches(arguments.replications)
        return
    results = {}
    print("| study | chi-square p | variance of ranks / uniform | its p | seconds |\n|---|---|---|---|---|")
    for name, (kind, method, epochs) in studies(arguments.thin, arguments.nuts_thin).items():
        if arguments.only and name not in arguments.only:
            continue
        began = time.perf_counter()
        row = judge(ranks(kind, method, epochs, arguments.replications))
        results[name] = {**row, "seconds": time.perf_counter() - began}
        print("| " + " | ".join([name, *(f"{value:.3g}" for value in results[name].values())]) + " |", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
