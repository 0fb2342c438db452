"""Fashion-MNIST with LeNet5: mean-field VI, a deep ensemble, and SGLD started from MAP nets.

    BAYESNN_DATA=DIR python benchmarks/fashion_mnist.py vi --seeds 0 1 2
    BAYESNN_DATA=DIR python benchmarks/fashion_mnist.py vi --lr 0.01 --gain 3     # the library's defaults
    BAYESNN_DATA=DIR python benchmarks/fashion_mnist.py sgld --seeds 0 1 2

``vi`` takes Adam at 2e-3 by default, at which the standard deviations are still on their way after 30 epochs.
``sgld`` fits two things with the same number of gradient evaluations: a deep ensemble of 4 nets, and 4 SGLD chains that
start from 4 MAP nets trained for half of the epochs. One JSON line a fit is appended to ``--out``.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import torch

import bayesnn as bnn

CHAINS = 4


def scores(posterior: bnn.Posterior, test: bnn.data.Data) -> dict[str, float]:
    """Accuracy, NLL, Brier and ECE of the mixture on the test part."""
    return bnn.metrics.classification_table(posterior.predict(test.x).mean, test.y)


def model_of(gain: float | None = None) -> bnn.BayesianModel:
    """LeNet5 with a standard normal prior, or with sd gain / sqrt(fan_in)."""
    prior = bnn.priors.Normal(1.0) if gain is None else bnn.priors.Layerwise(gain=gain)
    return bnn.BayesianModel(bnn.nets.LeNet5(), prior, bnn.likelihoods.Categorical())


def run_vi(
    train: bnn.data.Data, test: bnn.data.Data, seed: int, epochs: int, batch: int, lr: float, gain: float | None
) -> list[dict[str, Any]]:
    """Mean-field VI."""
    method = bnn.MeanFieldVI(lr=lr)
    posterior = bnn.fit(model_of(gain), train, method, epochs=epochs, batch_size=batch, seed=seed, progress=False)
    last = posterior.history[-1]
    elbo = -(last["loss"] + last["kl"] / len(train))
    row = {"method": "MeanFieldVI", "lr": lr, "gain": gain, "elbo_per_row": elbo}
    return [{**row, **scores(posterior, test), **cost(posterior)}]


def run_sgld(train: bnn.data.Data, test: bnn.data.Data, seed: int, epochs: int, batch: int) -> list[dict[str, Any]]:
    """A deep ensemble, and SGLD from MAP nets, at the same number of gradient evaluations."""
    options: dict[str, Any] = {"batch_size": batch, "chains": CHAINS, "progress": False}
    ensemble = bnn.fit(model_of(), train, bnn.MAP(), epochs=epochs, seed=seed, **options)
    # Other seeds for the starting nets: no member is shared between the two answers.
    start = bnn.fit(model_of(), train, bnn.MAP(), epochs=epochs // 2, seed=1000 + seed, **options)
    sampler = bnn.SGLD(burn_in=0.4, draws=20)
    sampled = bnn.fit(model_of(), train, sampler, epochs=epochs - epochs // 2, seed=seed, init=start, **options)
    draws = sampled.predict(test.x[:2000]).draws
    rhat = bnn.diagnostics.rhat(draws)
    rows = [
        {"method": f"ensemble of {CHAINS}", **scores(ensemble, test), **cost(ensemble)},
        {"method": f"MAP, {epochs // 2} epochs, {CHAINS} nets (start of SGLD)", **scores(start, test), **cost(start)},
        {"method": f"SGLD, {CHAINS} chains", **scores(sampled, test), **cost(sampled, start)},
    ]
    rows[-1] |= {
        "rhat_median": float(torch.as_tensor(rhat).nanmedian()),
        "rhat_q95": float(torch.as_tensor(rhat).flatten().nanquantile(0.95)),
        "rhat_share_above_1.05": float((torch.as_tensor(rhat) > 1.05).double().mean()),
        "single_chain_accuracy": float((draws[0].mean(0).argmax(-1) == test.y[:2000]).double().mean()),
    }
    return rows


def cost(*posteriors: bnn.Posterior) -> dict[str, float]:
    """Gradient evaluations and seconds of all fits that went into an answer."""
    return {
        "gradient_evaluations": sum(sum(p.info["gradient_evaluations"]) for p in posteriors),
        "seconds": round(sum(sum(p.info["seconds"]) for p in posteriors), 1),
    }


def main() -> None:
    """Parse, run, print and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("vi", "sgld"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="default: 30 for vi, 10 for sgld")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3, help="of mean-field VI")
    parser.add_argument("--gain", type=float, help="prior sd gain / sqrt(fan_in) for mean-field VI, instead of 1")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("results/fashion_mnist.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train, test = bnn.data.load("fashion-mnist")
    vi = functools.partial(run_vi, lr=arguments.lr, gain=arguments.gain)
    study, epochs = (vi, 30) if arguments.study == "vi" else (run_sgld, 10)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        began = time.perf_counter()
        for row in study(train, test, seed, arguments.epochs or epochs, arguments.batch):
            line = json.dumps({"seed": seed, "epochs": arguments.epochs or epochs, "threads": arguments.threads, **row})
            print(line, flush=True)
            with arguments.out.open("a") as file:
                file.write(line + "\n")
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
