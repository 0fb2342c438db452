"""Learning over time: a boundary between two classes that turns a little from one batch to the next.

    python examples/drifting_stream.py

The law of each batch is predicted before the batch is learned from (one step ahead). In two of three settings
yesterday's posterior is today's prior: as it stands, which never forgets; or widened by a random walk of the weights,
``as_prior(drift=...)``. The third begins again with every batch. The drift was chosen on other streams than these.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import bayesnn as bnn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--batches", type=int, default=16, help="batches of a stream after the first")
parser.add_argument("--seeds", type=int, default=4, help="streams, two or more")
parser.add_argument("--steps", type=int, default=100, help="steps a batch")
parser.add_argument("--rows", type=int, default=25, help="rows a batch")
parser.add_argument("--turn", type=float, default=10.0, help="degrees by which the boundary turns a batch")
parser.add_argument("--drift", type=float, default=0.3, help="standard deviation of a weight's step a batch")
parser.add_argument("--first-seed", type=int, default=100, help="seed of the first stream")
parser.add_argument("--out", type=Path, default=Path("results/drifting_stream"))
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)

INPUTS, SCORED = 8, 500  # many rows to score on, so that the curves show the methods and not the luck of a batch
Rows = tuple[torch.Tensor, torch.Tensor]


def stream(seed: int) -> tuple[list[Rows], list[Rows], list[float]]:
    """Batches to learn from, further rows of the same laws to be scored on, and the score of the true laws there.

    x is (rows, inputs), y (rows,) in {0, 1}.
    """
    generator, learn, score, floor = torch.Generator().manual_seed(seed), [], [], []
    for t in range(options.batches + 1):
        angle = torch.tensor(options.turn * t).deg2rad()
        x = torch.randn(options.rows + SCORED, INPUTS, generator=generator)
        across = x[:, 0] * angle.cos() + x[:, 1] * angle.sin()  # (rows,): the other inputs say nothing
        truth = torch.distributions.Bernoulli(logits=5 * across)
        y = torch.bernoulli(truth.probs, generator=generator)
        learn.append((x[:-SCORED], y[:-SCORED].long()))
        score.append((x[-SCORED:], y[-SCORED:].long()))
        floor.append(-float(truth.log_prob(y)[-SCORED:].mean()))
    return learn, score, floor


net, likelihood = bnn.nets.MLP(INPUTS, (8,), 1), bnn.likelihoods.Bernoulli()
first = bnn.priors.Layerwise(gain=2.0)
method = bnn.MeanFieldVI(lr=3e-2, initial_sd=0.1)
settings = {"from scratch": None, "no forgetting": 0.0, f"drift {options.drift:g}": options.drift}

scores = np.empty((len(settings), options.seeds, options.batches))  # nats a row
floors = np.empty((options.seeds, options.batches))
for s in range(options.seeds):
    seed = options.first_seed + s
    learn, score, floor = stream(seed)
    floors[s] = floor[1:]
    for k, drift in enumerate(settings.values()):
        posterior = None
        for t, batch in enumerate(learn):
            if posterior is not None:
                scores[k, s, t - 1] = -float(posterior.predict(score[t][0], draws=50).log_prob(score[t][1]).mean())
            if t == options.batches:
                break
            onward = posterior is not None and drift is not None
            prior, start = (posterior.as_prior(drift), posterior) if onward else (first, "fresh")
            model = bnn.BayesianModel(net, prior, likelihood)
            posterior = bnn.fit(model, batch, method, epochs=options.steps, batch_size=None, init=start, seed=seed,
                                progress=False)  # fmt: skip

means = scores.mean(2)  # (setting, seed): over the stream
print(f"NLL of the next law, nats a row: mean of {options.batches} batches and {options.seeds} streams, +- its s.e.")
print(f"{'setting':<16}{'NLL':>8}{'+-':>8}{'last half':>11}{'more than drift':>18}{'+-':>8}")
root = options.seeds**0.5
for k, name in enumerate(settings):
    excess = means[k] - means[-1]  # (seed,): the same streams, so that their own ups and downs cancel
    late = scores[k, :, options.batches // 2 :].mean()
    print(f"{name:<16}{means[k].mean():>8.3f}{means[k].std(ddof=1) / root:>8.3f}{late:>11.3f}"
          f"{excess.mean():>18.3f}{excess.std(ddof=1) / root:>8.3f}")  # fmt: skip
print(f"{'the true law':<16}{floors.mean():>8.3f}")

figure = Figure(figsize=(8, 4.6), layout="constrained")
axes = figure.subplots()
degrees = options.turn * np.arange(1, options.batches + 1)
# Okabe & Ito's colours, which also differ in lightness; markers and dashes for a print in grey.
styles = [("#0072B2", "s", (0, (5, 2))), ("#D55E00", "^", (0, (1, 1.2))), ("#000000", "o", "solid")]
for k, (name, (colour, marker, dashes)) in enumerate(zip(settings, styles, strict=True)):
    mean, error = scores[k].mean(0), scores[k].std(0, ddof=1) / root
    axes.fill_between(degrees, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
    axes.plot(degrees, mean, color=colour, marker=marker, linestyle=dashes, markersize=5, label=name)
axes.plot(degrees, floors.mean(0), color="0.55", linewidth=1.2, label="the true law")
axes.axhline(np.log(2), color="0.55", linewidth=0.8, linestyle=(0, (2, 3)))
axes.text(degrees[-1], np.log(2) + 0.01, "coin toss", ha="right", va="bottom", color="0.35")
axes.set_xlabel(f"angle of the boundary (degrees; {options.turn:g} a batch of {options.rows} rows)")
axes.set_ylabel("negative log likelihood under the next law\n(nats a row; lower is better)")
axes.set_title(f"One step ahead on a stream that turns: {options.seeds} streams, mean and standard error")
axes.set_ylim(0, max(0.8, axes.get_ylim()[1]))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, ncols=2, loc="lower left")
figure.savefig(options.out / "drifting_stream.png", dpi=150)
print(f"picture: {options.out / 'drifting_stream.png'}")
