"""Overconfidence cured? Epistemic uncertainty in a gap of the data: SGLD against long NUTS on the same model.

    python benchmarks/sine_gap.py            # about 40 minutes on one core; prints one line a method, writes JSON

The net is an MLP 1-20-1 (tanh) that carries its scales itself, so that every weight has the prior N(0, 1): hidden
weights times 4, hidden biases times 3, outputs times 1/4. That prior is that of Neal (1996), finite in the width, and
lets the function turn within the gap; and it spares SGLD, which has one step size, weights of different scales. The
noise is known.
Reported: mean over inputs of the epistemic standard deviation in the gap and on the data, their ratio, and the largest
rank-normalised split R-hat of the function over 4 chains.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bayesnn as bnn


class ScaledMLP(nn.Module):
    """f(x) = (sum_j v_j tanh(4 u_j x + 3 b_j) + c) / 4, with all of u, b, v, c of prior N(0, 1)."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(1, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1) -> (batch, 1)."""
        hidden = torch.tanh(4 * x @ self.hidden.weight.T + 3 * self.hidden.bias)
        output: Tensor = self.output(hidden) / 4
        return output


def problem() -> tuple[bnn.BayesianModel, bnn.data.Data, Tensor]:
    """The model, the data, and 25 inputs across the gap."""
    train, _ = bnn.data.load("sine-gap")
    assert train.target is not None
    noise = 0.1 / float(train.target.std)  # the true noise, in the standardised units that the net sees
    model = bnn.BayesianModel(ScaledMLP(), bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=noise))
    low, high = bnn.data.sine_gap_region(train)
    return model, train, torch.linspace(low, high, 25)[:, None]


def summarise(inside: Tensor, on_data: Tensor) -> dict[str, float]:
    """Numbers of the study from function values (chain, draw, input)."""
    spread = [values.flatten(0, 1).std(0, correction=0).mean() for values in (inside, on_data)]
    rhat = bnn.diagnostics.rhat(torch.cat((inside, on_data), dim=-1))
    return {
        "sd in the gap": float(spread[0]),
        "sd on the data": float(spread[1]),
        "ratio": float(spread[0] / spread[1]),
        "largest R-hat": float(rhat.max()),
    }


def run_sgld(epochs: int, chains: int = 4) -> dict[str, float]:
    """SGLD with full batches: exact gradients cost nothing on 80 rows."""
    model, train, gap = problem()
    method = bnn.SGLD(lr=2.5e-3, burn_in=0.1, warm_up=0.01, draws=1000)
    began = time.perf_counter()
    posterior = bnn.fit(model, train, method, epochs=epochs, batch_size=None, chains=chains, seed=0, progress=False)
    seconds = time.perf_counter() - began
    return {**summarise(*(posterior.predict(x).draws for x in (gap, train.x))), "seconds": seconds}


def run_nuts(draws: int, warm_up: int, chains: int = 4) -> dict[str, float]:
    """Pyro's NUTS on the same log joint, from starts of its own."""
    from pyro.infer import MCMC, NUTS

    model, train, gap = problem()
    assert train.target is not None
    began, posteriors = time.perf_counter(), []
    potential, split = flat_potential(model, train)
    for chain in range(chains):
        generator = bnn.rng.generator(chain, 9)
        with bnn.rng.isolated(generator):
            start = 0.5 * torch.randn(sum(p.numel() for p in model.bayesian_parameters().values()))
            check_potential(model, train, potential, split, start)
            kernel = NUTS(potential_fn=lambda site: potential(site["w"]), max_tree_depth=8)
            sampler = MCMC(kernel, draws, warmup_steps=warm_up, initial_params={"w": start}, disable_progbar=True)
            sampler.run()
        weights = sampler.get_samples()["w"].detach()
        source = bnn.source.Draws(split(weights))
        posteriors.append(bnn.Posterior(model, [source], len(train), train.target))
    values = [torch.cat([p.predict(x).draws for p in posteriors]) for x in (gap, train.x)]
    return {**summarise(*values), "seconds": time.perf_counter() - began}


def flat_potential(
    model: bnn.BayesianModel, train: bnn.data.Data
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], dict[str, Tensor]]]:
    """-log joint of one flat vector of weights, up to a constant, and the function that names its parts.

    Written out by hand: a leapfrog step of the general path costs three times as much on 61 weights.
    """
    assert train.target is not None
    shapes = {name: p.shape for name, p in model.bayesian_parameters().items()}
    sizes = [shape.numel() for shape in shapes.values()]
    x, y, noise = train.x, train.target.forward(train.y).flatten(), 0.1 / float(train.target.std)

    def split(w: Tensor) -> dict[str, Tensor]:
        parts = w.split(sizes, dim=-1)
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def potential(w: Tensor) -> Tensor:
        u, b, v, c = w.split(sizes)
        residual = (y - (torch.tanh(4 * x * u + 3 * b) @ v + c) / 4) / noise
        return 0.5 * (w @ w + residual @ residual)

    return potential, split


def check_potential(
    model: bnn.BayesianModel,
    train: bnn.data.Data,
    potential: Callable[[Tensor], Tensor],
    split: Callable[[Tensor], dict[str, Tensor]],
    start: Tensor,
) -> None:
    """The potential written by hand must differ from the model's by a constant: compare two differences."""
    assert train.target is not None
    y = train.target.forward(train.y)
    energies = []
    for w in (start, 0.5 * start):
        with torch.no_grad():
            model.load_state(split(w))
            energies.append((potential(w), -model.log_joint(train.x, y)))
    (mine, models), (mine_half, models_half) = energies
    torch.testing.assert_close(mine - mine_half, models - models_half, rtol=1e-4, atol=1e-2)


def main() -> None:
    """Parse, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=320_000, help="SGLD steps a chain (an epoch is one step)")
    parser.add_argument("--nuts-draws", type=int, default=1000)
    parser.add_argument("--nuts-warm-up", type=int, default=500)
    parser.add_argument("--methods", nargs="+", choices=("SGLD", "NUTS"), default=["SGLD", "NUTS"])
    parser.add_argument("--out", type=Path, default=Path("results/sine_gap.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    for name, run in (
        ("SGLD", lambda: run_sgld(arguments.epochs)),
        ("NUTS", lambda: run_nuts(arguments.nuts_draws, arguments.nuts_warm_up)),
    ):
        if name not in arguments.methods:
            continue
        report[name] = run()
        print(name, {key: round(value, 4) for key, value in report[name].items()}, flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
