"""A convolutional autoencoder of Fashion-MNIST: is it less sure of the pixels of images that are no clothes?

    BAYESNN_DATA=DIR OMP_NUM_THREADS=1 python benchmarks/reconstruction.py --out results/reconstruction.json
    python benchmarks/reconstruction.py --methods --out results/reconstruction.json --picture pixels.png   # print, draw

Each pixel is Normal about its reconstruction, with one inferred noise; 32 numbers of code. The per-pixel uncertainty is
the epistemic variance, the variance over draws of the weights of a pixel's reconstruction. By image it is averaged over
the pixels, and the area under the ROC curve says how well that mean tells MNIST's digits and notMNIST's letters from
Fashion-MNIST's own test images; beside it what one net has, the mean square error of the reconstruction. Results are
kept after each fit, and what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bayesnn as bnn

OWN, ELSEWHERE = "fashion-mnist", ("mnist", "notmnist")
EPOCHS, BATCH, MEMBERS = 6, 128, 4
DRAWS = 40  # of all chains
SHOWN = 4  # images of each set in the picture
Result = dict[str, Any]


def fit_method(name: str, x: Tensor, seed: int, ensembles: dict[int, bnn.Posterior]) -> bnn.Posterior:
    """One of METHODS; the chains of SGHMC start in the nets of the ensemble, whose seconds count as theirs."""
    # The order in memory that convolutions are faster with on a CPU.
    net = bnn.nets.ConvAutoencoder(tuple(x.shape[1:]), code=32).to(memory_format=torch.channels_last)
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Normal())
    options: dict[str, Any] = {"batch_size": BATCH, "seed": seed, "progress": False}
    if name == "MeanFieldVI":
        return bnn.fit(model, (x, x), bnn.MeanFieldVI(lr=2e-3), epochs=MEMBERS * EPOCHS, **options)
    options |= {"epochs": EPOCHS, "chains": MEMBERS}
    if seed not in ensembles:
        ensembles[seed] = bnn.fit(model, (x, x), bnn.MAP(), **options)
    if name == "ensemble of 4":
        return ensembles[seed]
    chains = bnn.fit(model, (x, x), bnn.SGHMC(draws=DRAWS // MEMBERS), init=ensembles[seed], **options)
    chains.info["seconds"] = [*chains.info["seconds"], *ensembles[seed].info["seconds"]]
    return chains


METHODS = ("ensemble of 4", "SGHMC, from the ensemble", "MeanFieldVI")


def reconstructions(posterior: bnn.Posterior, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and epistemic variance of each pixel, shaped as x."""
    predictive = posterior.predict(x, draws=max(1, DRAWS // posterior.num_chains))
    return predictive.mean, predictive.epistemic


def scored(posterior: bnn.Posterior, sets: dict[str, Tensor]) -> Result:
    """By set the mean over its images, and against the own set the areas."""
    uncertainty, error = {}, {}
    for name, x in sets.items():
        mean, epistemic = reconstructions(posterior, x)
        uncertainty[name], error[name] = epistemic.flatten(1).mean(1), (mean - x).square().flatten(1).mean(1)
    return {
        "epistemic sd": {name: float(value.mean().sqrt()) for name, value in uncertainty.items()},
        "rmse": {name: float(value.mean().sqrt()) for name, value in error.items()},
        "auroc": {name: bnn.metrics.auroc(uncertainty[OWN], uncertainty[name]) for name in ELSEWHERE},
        "auroc of the error": {name: bnn.metrics.auroc(error[OWN], error[name]) for name in ELSEWHERE},
        "seconds": sum(posterior.info["seconds"]),
    }


def table(results: dict[str, dict[str, Result]]) -> str:
    """Markdown; a row to each method and seed."""
    columns = [f"{what} {name}" for name in (OWN, *ELSEWHERE) for what in ("epistemic sd", "rmse")]
    areas = [f"AUROC {name} ({what})" for name in ELSEWHERE for what in ("epistemic", "error")]
    heads = ["method", "seed", *columns, *areas, "seconds"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method, by_seed in results.items():
        for seed, row in by_seed.items():
            cells = [f"{row[what][name]:.4f}" for name in (OWN, *ELSEWHERE) for what in ("epistemic sd", "rmse")]
            cells += [f"{row[key][name]:.3f}" for name in ELSEWHERE for key in ("auroc", "auroc of the error")]
            lines.append(f"| {method} | {seed} | {' | '.join(cells)} | {row['seconds']:.0f} |")
    return "\n".join(lines)


def draw(posterior: bnn.Posterior, sets: dict[str, Tensor], path: Path) -> None:
    """Images of each set, their reconstruction, and the sd of each pixel of it."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(3, SHOWN * len(sets), figsize=(SHOWN * len(sets), 3.6), layout="constrained")
    shown = {name: (x[:SHOWN], *reconstructions(posterior, x[:SHOWN])) for name, x in sets.items()}
    top = max(float(epistemic.sqrt().max()) for *_, epistemic in shown.values())
    for k, (name, (x, mean, epistemic)) in enumerate(shown.items()):
        for i in range(SHOWN):
            column = axes[:, k * SHOWN + i]
            column[0].imshow(x[i, 0], cmap="gray", vmin=0, vmax=1)
            column[1].imshow(mean[i, 0], cmap="gray", vmin=0, vmax=1)
            last = column[2].imshow(epistemic[i, 0].sqrt(), cmap="magma", vmin=0, vmax=top)
            for axis in column:
                axis.set_xticks([])
                axis.set_yticks([])
        axes[0, k * SHOWN].set_title(name, loc="left", fontsize=11)
    for axis, label in zip(axes[:, 0], ("image", "reconstruction", "its sd"), strict=True):
        axis.set_ylabel(label)
    figure.colorbar(last, ax=axes[2], shrink=0.9, pad=0.005)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Parse, run what is not there yet, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", type=int, help="of the training part and of each set, for a trial run")
    parser.add_argument("--out", type=Path, default=Path("results/reconstruction.json"))
    parser.add_argument("--picture", type=Path, help="made with the last of the methods that is run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    todo = [
        (m, s) for m in arguments.methods for s in arguments.seeds
        if arguments.picture is not None or str(s) not in results.get(m, {})
    ]  # fmt: skip
    if todo:
        # Pixels in [0, 1], as they were before they were standardised: their noise is in that unit.
        sets = {name: bnn.data.load_test(name).x[: arguments.rows] for name in (OWN, *ELSEWHERE)}
        train, _ = bnn.data.load(OWN)
        x = (train.x if train.inputs is None else train.inputs.inverse(train.x))[: arguments.rows]
    ensembles: dict[int, bnn.Posterior] = {}
    for method, seed in todo:
        began = time.perf_counter()
        posterior = fit_method(method, x, seed, ensembles)
        results.setdefault(method, {})[str(seed)] = row = scored(posterior, sets)
        print(method, seed, json.dumps(row), f"{time.perf_counter() - began:.0f} s", flush=True)
        arguments.out.write_text(json.dumps(results, indent=1))
        if arguments.picture is not None:
            draw(posterior, sets, arguments.picture)
    print(table(results))


if __name__ == "__main__":
    main()
