"""UCI regression on the standard splits: every method, with the same options on all data sets, beside bde.

    BAYESNN_DATA=DIR OMP_NUM_THREADS=1 python benchmarks/uci.py --data yacht energy concrete
    pip install sklearn-contrib-bde==1.0.2        # optional: the peer is then run on the same splits

One hidden layer of 50 ReLU units; standardised inputs and targets. Two noise models: homoscedastic (one inferred scale)
and heteroscedastic (a second output of the net). RMSE and log-likelihood (LL, of the predictive mixture) in the
targets' own units, mean +- standard error over splits, and the difference to bde's, paired by split. Options were
chosen on parts held out of the training rows (``--validate``), never on a test part. Results are kept in ``--out``
after each fit, and what stands there is not run again. Seconds are processor seconds of the fit in this process: those
of the library's first fit of a form of net and data include some of its compilation, bde compiles in every fit.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uci_data

import bayesnn as bnn
from bayesnn.source import Draws

WIDTH = 50
CHAINS = 4
BATCH = 64
START = 1000  # epochs of the nets that chains start from
PEER = "bde"
NOISES = ("homoscedastic", "heteroscedastic")


def model_of(noise: str, in_features: int, dropout: float = 0.0) -> bnn.BayesianModel:
    """The net of the benchmark under a noise model."""
    two = noise == "heteroscedastic"
    net = bnn.nets.MLP(in_features, (WIDTH,), 2 if two else 1, dropout=dropout)
    likelihood = bnn.likelihoods.HeteroscedasticNormal() if two else bnn.likelihoods.Normal()
    return bnn.BayesianModel(net, bnn.priors.Normal(1.0), likelihood)


class Starts:
    """The MAP nets of a split, fitted once, in which chains start: homoscedastic ones.

    A heteroscedastic net at its mode has given up the rows that it fits badly: their noise is large and they have no
    pull any more (Seitzer et al. 2022). Its chains start in homoscedastic nets that got a second output, a constant.

    Attributes
    ----------
    seconds : that the nets took.
    """

    def __init__(self, train: bnn.data.Data, seed: int) -> None:
        self._train, self._seed, self.seconds = train, seed, 0.0
        self._nets: bnn.Posterior | None = None

    def __call__(self, noise: str) -> bnn.Posterior:
        if self._nets is None:
            began = time.process_time()
            self._nets = plain(bnn.MAP(lr=5e-3), START, CHAINS)(NOISES[0], self._train, self._seed, self)
            self.seconds = time.process_time() - began
        return self._nets if noise == NOISES[0] else widened(self._nets, model_of(noise, self._train.in_shape[0]))


def widened(nets: bnn.Posterior, model: bnn.BayesianModel) -> bnn.Posterior:
    """Homoscedastic nets as heteroscedastic ones, of the same mean and of their noise at all inputs."""
    sources = []
    for source in nets.sources:
        old, new = source.last(), model.state()
        scale = float(old["likelihood.log_scale"].exp())
        for name, value in new.items():
            if value.shape == old[name].shape:
                value.copy_(old[name])
            else:  # of the last layer: a row, or a bias, for each of the two outputs
                value[0] = old[name].squeeze(0)
                value[1] = math.log(math.expm1(scale)) if value.dim() == 1 else 0.0
        sources.append(Draws.stack([new]))
    return bnn.Posterior(model, sources, nets.num_data, nets.target, [], nets.info)


Fit = Callable[[str, bnn.data.Data, int, Starts], bnn.Posterior]


def plain(method: bnn.methods.Method, epochs: int, chains: int = 1, dropout: float = 0.0) -> Fit:
    """A fit from fresh weights."""

    def run(noise: str, train: bnn.data.Data, seed: int, starts: Starts) -> bnn.Posterior:
        model = model_of(noise, train.in_shape[0], dropout=dropout)
        options: dict[str, Any] = {"chains": chains, "compile": method.compiles, "progress": False}
        return bnn.fit(model, train, method, epochs=epochs, batch_size=BATCH, seed=seed, **options)

    return run


def warm(method: bnn.methods.Method, epochs: int, full: bool = True) -> Fit:
    """Chains from MAP nets: see :class:`Starts`."""

    def run(noise: str, train: bnn.data.Data, seed: int, starts: Starts) -> bnn.Posterior:
        model = model_of(noise, train.in_shape[0])
        options: dict[str, Any] = {"chains": CHAINS, "progress": False, "init": starts(noise), "seed": seed}
        options |= {"batch_size": None if full else BATCH, "compile": method.compiles}
        return bnn.fit(model, train, method, epochs=epochs, **options)

    return run


KEEP: dict[str, Any] = {"burn_in": 0.2, "draws": 100}  # of a sampler
METHODS: dict[str, Fit] = {
    "MAP": plain(bnn.MAP(lr=5e-3), START),
    "deep ensemble of 4": plain(bnn.MAP(lr=5e-3), START, CHAINS),
    "MCDropout": plain(bnn.MCDropout(lr=5e-3), START, dropout=0.05),
    "SWAG": plain(bnn.SWAG(), START),
    "multi-SWAG of 4": plain(bnn.SWAG(), START, CHAINS),
    "Laplace, kron": plain(bnn.Laplace(lr=5e-3), START),
    "Laplace, full, last layer": plain(bnn.Laplace(lr=5e-3, curvature="full", weights="last-layer"), START),
    "MeanFieldVI": plain(bnn.MeanFieldVI(lr=5e-3), 2000),
    "LowRankVI": plain(bnn.LowRankVI(lr=5e-3), 2000),
    "FullRankVI": plain(bnn.FullRankVI(), 2000),
    "RadialVI": plain(bnn.RadialVI(lr=5e-3), 2000),
    "IVON": plain(bnn.IVON(lr=0.05), 2000),
    "SVGD, 20 particles": plain(bnn.SVGD(particles=20), 500),
    "SGLD, from MAP": warm(bnn.SGLD(**KEEP), 500, full=False),
    "PSGLD, from MAP": warm(bnn.PSGLD(**KEEP), 500, full=False),
    "SGHMC, from MAP": warm(bnn.SGHMC(**KEEP), 500, full=False),
    "SGNHT, from MAP": warm(bnn.SGNHT(**KEEP), 500, full=False),
    # A large energy variance: in the steps that there are, going farther is worth more than the bias that it costs.
    "MCLMC, from MAP": warm(bnn.MCLMC(energy_variance=0.1, burn_in=0.5, draws=200), 20000),
    "HMC, from MAP": warm(bnn.HMC(draws=100, max_steps=64), 200),
    "NUTS, from MAP": warm(bnn.NUTS(draws=100, max_depth=6), 100),
}


def ours(
    method: str, noise: str, train: bnn.data.Data, test: bnn.data.Data, split: int, starts: Starts
) -> dict[str, float]:
    """One fit of the library, scored on the test part; its seconds include those of the nets it started from."""
    warmed = method.endswith("from MAP")
    if warmed:
        starts(noise)
    began = time.process_time()
    posterior = METHODS[method](noise, train, split, starts)
    seconds = time.process_time() - began + (starts.seconds if warmed else 0.0)
    draws = None if posterior.num_draws[0] is not None else 200
    prediction = posterior.predict(test.x, draws=draws)
    return {
        "RMSE": bnn.metrics.rmse(prediction.mean, test.y),
        "LL": float(prediction.log_prob(test.y).mean()),
        "seconds": seconds,
    }


def peer(train: bnn.data.Data, test: bnn.data.Data, split: int) -> dict[str, float]:
    """sklearn-contrib-bde with 4 members, 1,000 epochs, 5,000 steps of warm-up, 2,000 of sampling, each tenth kept."""
    import jax
    from bde import BdeRegressor

    assert train.target is not None
    began = time.process_time()
    estimator = BdeRegressor(
        n_members=4, hidden_layers=[WIDTH], epochs=1000, warmup_steps=5000, n_samples=2000, n_thinning=10, seed=split
    )
    with contextlib.redirect_stderr(io.StringIO()):  # a line of progress for every step
        estimator.fit(train.x.numpy(), train.target.forward(train.y).numpy())
    seconds = time.process_time() - began
    raw = torch.as_tensor(np.array(estimator.predict(test.x.numpy(), raw=True))).double()
    jax.clear_caches()  # what each fit compiles stays mapped: after some fifty of them the process may map no more
    raw = raw.reshape(-1, len(test), 2)  # (member and draw, row, location and raw scale)
    centre, unit = float(train.target.mean), float(train.target.std)
    loc, scale = centre + unit * raw[..., 0], unit * (torch.nn.functional.softplus(raw[..., 1]) + 1e-6)
    log_prob = torch.distributions.Normal(loc, scale).log_prob(test.y.double())
    mixture = torch.logsumexp(log_prob, 0) - math.log(len(raw))
    return {"RMSE": bnn.metrics.rmse(loc.mean(0), test.y), "LL": float(mixture.mean()), "seconds": seconds}


def held_out(train: bnn.data.Data) -> tuple[bnn.data.Data, bnn.data.Data]:
    """A training part split again, 9 to 1, standardised anew."""
    assert train.inputs is not None
    raw = bnn.data.Data(train.inputs.inverse(train.x), train.y, train.name)
    rest, validation = bnn.data.standardize(*bnn.data.split(raw, 0.1, seed=0))
    return rest, validation


def table(results: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Markdown: mean +- standard error over splits, and paired differences to the peer."""
    lines = [
        "| data | noise, method | splits | RMSE | LL | RMSE less bde's | LL less bde's | seconds |",
        "|---" * 8 + "|",
    ]
    for name, rows in results.items():
        for label, by_split in sorted(rows.items()):
            cells = [_mean([row[score] for row in by_split.values()]) for score in ("RMSE", "LL")]
            both = sorted(rows.get(PEER, {}).keys() & by_split.keys())
            for score in ("RMSE", "LL"):
                pairs = [by_split[split][score] - rows[PEER][split][score] for split in both]
                cells.append(_mean(pairs) if pairs and label != PEER else "")
            seconds = statistics.fmean(row["seconds"] for row in by_split.values())
            lines.append(f"| {name} | {label} | {len(by_split)} | " + " | ".join(cells) + f" | {seconds:.0f} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} +- {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def main() -> None:
    """Parse, run what is not there yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["yacht", "energy", "concrete"])
    parser.add_argument("--splits", type=int, nargs="+", default=list(range(uci_data.SPLITS)))
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, PEER], default=[*METHODS, PEER])
    parser.add_argument("--noise", nargs="+", choices=NOISES, default=list(NOISES))
    parser.add_argument("--validate", action="store_true", help="score on a part held out of the training rows")
    parser.add_argument("--out", type=Path, help="results/uci.json by default, of --validate results/uci_validate.json")
    arguments = parser.parse_args()
    if arguments.out is None:
        arguments.out = Path("results/uci_validate.json" if arguments.validate else "results/uci.json")
    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    has_peer = importlib.util.find_spec("bde") is not None
    for name in arguments.data:
        for split in arguments.splits:
            train, test = uci_data.load(name, split)
            if arguments.validate:
                train, test = held_out(train)
            starts = Starts(train, split)
            for method in arguments.methods:
                for noise in arguments.noise if method != PEER else [""]:
                    label = f"{noise}, {method}" if noise else PEER
                    kept = results.setdefault(name, {}).setdefault(label, {})
                    if str(split) in kept or (method == PEER and not has_peer):
                        continue
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        row = ours(method, noise, train, test, split, starts) if noise else peer(train, test, split)
                    kept[str(split)] = row
                    print(name, label, split, json.dumps(row), flush=True)
                    arguments.out.write_text(json.dumps(results, indent=1))
    print(table({name: {label: rows for label, rows in by.items() if rows} for name, by in results.items()}))


if __name__ == "__main__":
    main()
