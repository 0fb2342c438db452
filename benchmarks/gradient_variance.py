"""Variance of the gradient of mean-field VI's three estimators, at a trained posterior and a fixed batch.

    python benchmarks/gradient_variance.py        # digits, LeNet5 and an MLP: prints a table, and writes it to results/

The posterior is fitted with plain reparameterization and the defaults. At its means and standard deviations the same
minibatch is taken again and again with new noise; the figure is the variance of the gradient of the loss with respect
to the means of the first layer's weights, averaged over the weights.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

import bayesnn as bnn
from bayesnn.methods import Plan
from bayesnn.rng import Streams

ESTIMATORS = ("reparam", "local", "flipout")


def first_layer_gradients(
    model: bnn.BayesianModel, posterior: bnn.Posterior, x: Tensor, y: Tensor, estimator: str, passes: int
) -> Tensor:
    """Gradients (pass, weight) of the loss of one batch with respect to the first weight's means."""
    method = bnn.MeanFieldVI(estimator=estimator)
    plan = Plan(posterior.num_data, len(x), passes, 1, 1)
    run = method.start(model.copy(), plan, Streams(1, 0), posterior.sources[0])
    group = run.optimizers[0].param_groups[0]
    group["lr"] = 0.0  # the same place again and again
    weights = next(iter(model.bayesian_parameters().values())).numel()
    gradients = []
    for _ in range(passes):
        run.step(x, y)
        gradients.append(group["params"][0].grad[:weights].clone())  # the first of the parameters are the means
    return torch.stack(gradients)


def first_layer_variances(
    model: bnn.BayesianModel, posterior: bnn.Posterior, x: Tensor, y: Tensor, passes: int
) -> dict[str, tuple[float, float]]:
    """(variance averaged over the weights, its standard error over ten parts of the passes) for each estimator."""
    variances = {}
    for estimator in ESTIMATORS:
        gradients = first_layer_gradients(model, posterior, x, y, estimator, passes)
        parts = torch.stack([part.var(0).mean() for part in gradients.split(passes // 10)])
        variances[estimator] = float(gradients.var(0).mean()), float(parts.std() / math.sqrt(len(parts)))
    return variances


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=1000)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--epochs", type=int, default=None, help="of the fit; the default budget otherwise")
    parser.add_argument("--out", type=Path, default=Path("results/gradient_variance.json"))
    arguments = parser.parse_args()
    train, _ = bnn.data.load("digits")
    nets = {"LeNet5": bnn.nets.LeNet5((1, 8, 8), 10), "MLP 64-64-64-10": bnn.nets.MLP(64, (64, 64), 10)}
    rows = []
    print("| net, on digits | median sd | batch | estimator | variance | plain / this |\n|---|---|---|---|---|---|")
    for title, net in nets.items():
        model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Categorical())
        data = bnn.data.Data(train.x if title == "LeNet5" else train.x.flatten(1), train.y)
        posterior = bnn.fit(model, data, bnn.MeanFieldVI(), epochs=arguments.epochs, progress=False)
        sd = float(posterior.sources[0].tensors()["log_sd/" + next(iter(model.log_priors))].exp().median())
        for batch in arguments.batches:
            variances = first_layer_variances(model, posterior, data.x[:batch], data.y[:batch], arguments.passes)
            plain, plain_error = variances["reparam"]
            for estimator, (variance, error) in variances.items():
                gain = plain / variance
                gain_error = gain * math.hypot(error / variance, plain_error / plain) if estimator != "reparam" else 0.0
                row = {"net": title, "sd": sd, "batch": batch, "estimator": estimator, "variance": variance}
                rows.append(row | {"gain": gain, "gain_error": gain_error})
                cells = f"{title} | {sd:.3f} | {batch} | {estimator} | {variance:.2e} | {gain:.1f} +- {gain_error:.1f}"
                print(f"| {cells} |", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
