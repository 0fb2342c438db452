"""Reference predictive distributions by long Hamiltonian Monte Carlo on four small nets.

    BAYESNN_DATA=DIR python benchmarks/hmc_reference.py digits-mlp        # hours for all four; one file a run
    python benchmarks/against_hmc.py digits-mlp                           # every method against what was made here

A run is four chains from their own initial weights. Run 0 is the reference; run 1, with other seeds, is the floor: what
agreement and total variation are left to the Monte Carlo error of HMC. ``benchmarks/reference/NAME-RUN.safetensors``
holds the predictive distribution only: class probabilities (input, class), test inputs first and then the training
ones; or the density of standardised targets on ``GRID`` at the test inputs (input, point).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uci_data
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import bayesnn as bnn

FOLDER = Path(__file__).parent / "reference"
CHAINS = 4
GRID = torch.linspace(-4.0, 4.0, 401)  # of the standardised target: at noise 0.2 a standard deviation has ten points


def mlp(*widths: int) -> Callable[[float], nn.Module]:
    """How to make an MLP of these widths, inputs and outputs included, given the share of units to drop."""
    return lambda dropout: bnn.nets.MLP(widths[0], widths[1:-1], widths[-1], dropout=dropout)


def digits_cnn(dropout: float) -> nn.Module:
    """1,898 weights; strides for pooling: twice as fast on a CPU."""
    first, second = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Conv2d(8, 16, 3)
    head = (nn.Dropout(dropout), nn.Linear(64, 10)) if dropout else (nn.Linear(64, 10),)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), *head)


@dataclass(frozen=True)
class Problem:
    """A model, its data, and the HMC transitions of each chain (``warm_up`` of them to adapt).

    ``lr`` is near N / 2 times the square of HMC's own step size: what the curvature of the posterior bears.
    """

    net: Callable[[float], nn.Module]  # of the share of units to drop
    data: Callable[[], tuple[bnn.data.Data, bnn.data.Data]]
    transitions: int
    prior: bnn.priors.Prior = field(default_factory=lambda: bnn.priors.Normal(1.0))
    lr: float = 0.15  # of the minibatch samplers that are held against it
    warm_up: float = 0.3
    regression: bool = False
    compile: bool = True  # of convolutions over so many rows compiled code is the slower

    def model(self, dropout: float = 0.0) -> bnn.BayesianModel:
        """The net under its prior; of a regression the noise is inferred."""
        likelihood = bnn.likelihoods.Normal() if self.regression else bnn.likelihoods.Categorical()
        return bnn.BayesianModel(self.net(dropout), self.prior, likelihood)


def digits() -> tuple[bnn.data.Data, bnn.data.Data]:
    """1,438 and 359 images of 8x8."""
    return bnn.data.load("digits")


PROBLEMS = {
    "digits-mlp": Problem(mlp(64, 16, 10), digits, 500),
    "digits-mlp2": Problem(mlp(64, 32, 32, 10), digits, 500, lr=0.03),
    "digits-cnn": Problem(digits_cnn, digits, 500, lr=0.03, compile=False),
    # Under standard normal weights four chains of three million gradients still had R-hat up to 1.30.
    "concrete": Problem(
        mlp(8, 50, 1), lambda: uci_data.load("concrete", 0), 800, bnn.priors.Layerwise(gain=1.0), 4e-3, regression=True
    ),
}


def inputs(train: bnn.data.Data, test: bnn.data.Data, regression: bool) -> Tensor:
    """Where predictive distributions are compared: all rows, the test part first; of a regression the test part."""
    return test.x if regression else torch.cat((test.x, train.x))


def predictive(posterior: bnn.Posterior, x: Tensor, regression: bool, draws: int | None = None) -> Tensor:
    """Class probabilities (input, class), or the density of the standardised target on the grid (input, point)."""
    prediction = posterior.predict(x, draws=draws)
    if not regression:
        return prediction.mean
    assert posterior.target is not None
    mean, sd = float(posterior.target.mean), float(posterior.target.std)
    points = [prediction.log_prob(torch.full((len(x),), mean + sd * float(point))) for point in GRID]
    return torch.stack(points, 1).exp() * sd


def convergence(posterior: bnn.Posterior, x: Tensor) -> dict[str, float]:
    """R-hat and effective draws of what is predicted: class probabilities or conditional means."""
    draws = posterior.predict(x).draws
    rhat, ess = bnn.diagnostics.rhat(draws), bnn.diagnostics.ess(draws)
    return {  # R-hat of what never changes, a probability that is 0 in every draw, is not a number
        "rhat_median": float(np.nanmedian(rhat)),
        "rhat_99": float(np.nanquantile(rhat, 0.99)),
        "rhat_max": float(np.nanmax(rhat)),
        "rhat_undefined": int(np.isnan(rhat).sum()),
        "ess_median": float(np.nanmedian(ess)),
        "ess_min": float(np.nanmin(ess)),
    }


def make(name: str, run: int, transitions: int | None) -> dict[str, Any]:
    """One run of HMC; its numbers. The predictive distribution goes to its file."""
    problem = PROBLEMS[name]
    train, test = problem.data()
    method = bnn.HMC(warm_up=problem.warm_up, map_steps=500, draws=1000)
    steps, began = transitions or problem.transitions, time.process_time()
    posterior = bnn.fit(
        problem.model(), train, method, epochs=steps, batch_size=None, chains=CHAINS, seed=run,
        compile=problem.compile, progress=False,
    )  # fmt: skip
    x = inputs(train, test, problem.regression)
    numbers = {
        "seconds": time.process_time() - began,
        "gradients": sum(posterior.info["gradient_evaluations"]),
        "draws": CHAINS * int(posterior.num_draws[0] or 0),
        "divergent": sum(row["divergent"] for row in posterior.history if row["epoch"] == steps - 1),
        "accept": [row["accept"] for row in posterior.history if row["epoch"] == steps - 1],
        **convergence(posterior, x),
    }
    FOLDER.mkdir(exist_ok=True)
    config = {
        "method": method.config(),
        "transitions": steps,
        "chains": CHAINS,
        "seed": run,
        "torch": torch.__version__,
    }
    metadata = {"config": json.dumps(config), "numbers": json.dumps(numbers)}
    save_file(
        {"predictive": predictive(posterior, x, problem.regression).float()},
        FOLDER / f"{name}-{run}.safetensors",
        metadata,
    )
    return numbers


def read(name: str, run: int) -> tuple[Tensor, dict[str, Any]]:
    """The predictive distribution of a run and its numbers."""
    with safe_open(FOLDER / f"{name}-{run}.safetensors", "pt") as file:
        return file.get_tensor("predictive"), json.loads(file.metadata()["numbers"])


def main() -> None:
    """Parse, run, print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="+", choices=PROBLEMS)
    parser.add_argument("--runs", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--transitions", type=int, help="of each chain; the problem's own by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.problems:
        for run in arguments.runs:
            print(name, run, json.dumps(make(name, run, arguments.transitions)), flush=True)


if __name__ == "__main__":
    main()
