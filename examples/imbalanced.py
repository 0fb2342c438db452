"""Rare classes: handwritten digits of which 5 to 9 have a twentieth of their rows, and what may be done about it.

    python examples/imbalanced.py

Test digits are equally frequent, so that a score is a mean over classes; weighted by the training part's frequencies it
is that of data like those. The plain posterior, and that of minibatches drawn evenly by class (the same, made of other
minibatches), are meant for data like the training part's; ``prior_shift`` takes the predictions of the plain one to
equal frequencies. Class weights ask for those frequencies in the fit, and change what posterior it is.
"""

import argparse

import torch
from torch import nn

import bayesnn as bnn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seeds", type=int, default=5, help="of the rare rows that are kept, and of the fits")
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("--share", type=float, default=0.05, help="of the rows of the rare classes that are kept")
options = parser.parse_args()

train, test = bnn.data.load("digits")
RARE = torch.arange(10) >= 5


def imbalanced(seed: int) -> bnn.data.Data:
    """The training part with a share of the rows of the rare classes."""
    keep = torch.rand(len(train), generator=torch.Generator().manual_seed(seed)) < options.share
    return train.subset(keep | ~RARE[train.y])


def scores(probs: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The columns of the table, (6,): recalls, then scores at equal and at the training part's frequencies."""
    recall = bnn.metrics.class_recall(probs, test.y)
    each = -probs[torch.arange(len(probs)), test.y].log().double()
    nll = torch.stack([each[test.y == k].mean() for k in range(10)])
    as_train = count / count.sum()
    means = recall[~RARE].mean(), recall[RARE].mean(), recall.mean(), nll.mean(), as_train @ recall, as_train @ nll
    return torch.stack(means)


METHODS = {"MAP": bnn.MAP(), "SGHMC": bnn.SGHMC(draws=50)}
FITS = {  # class_weights of the likelihood, sampling of the rows
    "plain": (None, None),
    "weighted sampling": (None, "balanced"),
    "class weights": ("balanced", None),
    "both": ("balanced", "balanced"),
}
table: dict[str, list[torch.Tensor]] = {}
for seed in range(options.seeds):
    data = imbalanced(seed)
    count = data.y.bincount(minlength=10).double()
    blind = (count / count.sum()).expand(len(test), 10)
    table.setdefault("who does not look", []).append(scores(blind, count))
    for method_name, method in METHODS.items():
        for name, (weights, sampling) in FITS.items():
            net = nn.Sequential(nn.Flatten(), bnn.nets.MLP(64, (50,), 10))
            model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Categorical(class_weights=weights))
            posterior = bnn.fit(
                model, data, method, epochs=options.epochs, seed=seed, sampling=sampling, progress=False
            )
            probs = posterior.predict(test.x).mean.double()
            table.setdefault(f"{method_name}, {name}", []).append(scores(probs, count))
            if name == "plain":
                shifted = bnn.prior_shift(probs, before=count)
                table.setdefault(f"{method_name}, plain, prior_shift", []).append(scores(shifted, count))

print(f"{len(data)} rows, {int(count[~RARE].sum())} of the common classes 0 to 4 and {int(count[RARE].sum())} of the "
      f"rare 5 to 9 (the last seed's); means over {options.seeds} seeds and their standard errors.")  # fmt: skip
heads = ("recall, common", "recall, rare", "balanced accuracy", "balanced NLL", "accuracy as train", "NLL as train")
print(f"| {'':<27} | {' | '.join(heads)} |")
print(f"|{'-' * 29}|{'|'.join('-' * (len(head) + 1) + ':' for head in heads)}|")
for name, rows in table.items():
    each = torch.stack(rows)
    error = each.std(0) / options.seeds**0.5 if options.seeds > 1 else torch.zeros(len(heads))
    cells = (f"{m:.3f} ± {e:.3f}".rjust(len(h)) for m, e, h in zip(each.mean(0), error, heads, strict=True))
    print(f"| {name:<27} | {' | '.join(cells)} |")
