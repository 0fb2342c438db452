"""Transfer learning, the four cases: few or many images, of the same kind as before or of another.

    BAYESNN_DATA=DIR OMP_NUM_THREADS=1 python examples/transfer.py    # --quick for a look

LeNet5 learns MNIST. Then it meets scikit-learn's digits (the same ten classes from another scanner) and Fashion-MNIST
(none of them), 50 images or 500: from scratch, with a frozen trunk, fine-tuned, and with its weights as the mean of a
prior whose scale the marginal likelihood sets.
"""

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F

import bayesnn as bnn

SIDE = 20  # of the box in which MNIST's digits lie
SCALES = (0.05, 0.1, 0.2, 0.4)  # shares of the vague prior's standard deviation

CASES = ("small-similar", "small-different", "large-similar", "large-different")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seeds", type=int, default=3, help="subsets of the data, and fits to them")
parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
parser.add_argument("--rows", type=int, nargs=2, default=(50, 500), help="few and many")
parser.add_argument("--steps", type=int, default=300, help="of a point estimate; samplers take twice as many")
parser.add_argument("--quick", action="store_true", help="one seed, few steps: whether it runs, not what comes out")
options = parser.parse_args()
if options.quick:
    options.seeds, options.rows, options.steps, SCALES = 1, (20, 40), 10, SCALES[:2]

likelihood = bnn.likelihoods.Categorical()
plain = bnn.priors.Normal(1.0)  # of a point estimate: a weight decay of 1 / N, which leaves the data their say
vague = bnn.priors.Layerwise(gain=3.0)
lenet = bnn.nets.LeNet5((1, SIDE, SIDE), num_outputs=10)


def pixels(part: bnn.data.Data) -> torch.Tensor:
    return part.inputs.inverse(part.x).clamp(0, 1)  # (N, 1, height, width)


source, _ = bnn.data.load("mnist")
rows = 500 if options.quick else 20_000
boxes = pixels(source)[:rows, :, 4:24, 4:24]  # (N, 1, 20, 20)
center, spread = boxes.mean(), boxes.std()


def as_source(images: torch.Tensor) -> torch.Tensor:
    """Images at the source's size and standardised by its constants: what the net has learned to see."""
    sized = F.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    return (sized - center) / spread


began = time.perf_counter()
first = bnn.BayesianModel(lenet, plain, likelihood)
pretrained = bnn.fit(first, (as_source(boxes), source.y[:rows]), bnn.MAP(lr=2e-3), epochs=3, progress=False).net()
print(f"pretrained on {rows:,} images of MNIST in {time.perf_counter() - began:.0f} s")

targets = {"similar": ("digits", 500 / 1797), "different": ("fashion-mnist", 0.5)}  # the latter has its own test part


def fits(kind: str, few: bnn.data.Data, steps: int, seed: int) -> dict[str, tuple]:
    """Name -> (function from inputs to probabilities, seconds, note)."""
    # The same ten classes keep the head; other ones get a new one, about which nothing is known.
    net = pretrained if kind == "similar" else bnn.nets.replace_head(pretrained, 10, seed=seed)
    new = {} if kind == "similar" else {"dense3.*": vague}
    found: dict[str, tuple] = {}

    def run(name, model, method, start="net", count=steps, data=few, trunk=None, spent=0.0, note=""):
        epochs = max(1, round(count / -(-len(data) // 64)))  # batches of 64
        began = time.perf_counter()
        posterior = bnn.fit(model, data, method, epochs=epochs, chains=1, seed=seed, init=start, progress=False)
        seconds = spent + time.perf_counter() - began

        def predict(test: bnn.data.Data) -> torch.Tensor:
            inputs = test if trunk is None else bnn.nets.features(trunk, test)
            return posterior.predict(inputs.x, draws=20).mean  # (N, 10)

        found[name] = (predict, seconds, note)

    run("from scratch, MAP", bnn.BayesianModel(lenet, plain, likelihood), bnn.MAP(lr=3e-3), "fresh", 2 * steps)
    run("from scratch, SGHMC", bnn.BayesianModel(lenet, vague, likelihood), bnn.SGHMC(draws=20), "fresh", 2 * steps)
    frozen = bnn.nets.features(net, few)  # (N, 84): the trunk is passed once, not in every epoch
    head = bnn.BayesianModel(torch.nn.Linear(84, 10), vague, likelihood)
    run("frozen, last layer by SGHMC", head, bnn.SGHMC(draws=20), "fresh", 2 * steps, frozen, net)
    run("fine-tuned, MAP", bnn.BayesianModel(net, plain, likelihood), bnn.MAP())

    candidates = {scale: bnn.priors.ByName(new, default=bnn.priors.Informative(net, scale, vague)) for scale in SCALES}
    began = time.perf_counter()
    epochs = max(1, round(steps / -(-len(few) // 64) / 2))
    model = bnn.BayesianModel(net, vague, likelihood)
    choice = bnn.choose_prior(model, few, candidates, epochs=epochs, seed=seed, init="net")
    spent = time.perf_counter() - began
    vi = bnn.MeanFieldVI(lr=2e-3, initial_sd=0.1 * choice.name)  # below the prior's sd in every layer
    note = f"scale {choice.name:g}"
    run("informative prior, VI", choice.model, vi, spent=spent, note=note)
    run("informative prior, SGHMC", choice.model, bnn.SGHMC(draws=20), count=2 * steps, spent=spent, note=note)
    return found


results = {}
for case in options.cases:
    size, kind = case.split("-")
    name, part = targets[kind]
    train, test = bnn.data.load(name, test_fraction=part)
    count = options.rows[size == "large"]
    steps = options.steps * (2 if size == "large" else 1)
    test = test.subset(range(100 if options.quick else min(len(test), 1000)))
    seen = bnn.data.Data(as_source(pixels(test)), test.y)
    table: dict[str, list[tuple[float, ...]]] = {}
    notes: dict[str, list[str]] = {}
    for seed in range(options.seeds):
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]
        few = train.subset(chosen)
        few = bnn.data.Data(as_source(pixels(few)), few.y, classes=few.classes)
        for name, (predict, seconds, note) in fits(kind, few, steps, seed).items():
            scores = bnn.metrics.classification_table(predict(seen), seen.y)
            table.setdefault(name, []).append((scores["accuracy"], scores["nll"], scores["ece"], seconds))
            notes.setdefault(name, []).append(note)
    results[case] = table
    print(f"\n{case}: {count} images of {train.name}, {len(seen)} to test on, {options.seeds} seeds")
    print(f"{'mean ± standard error':<30}{'accuracy':>16}{'NLL':>16}{'ECE':>16}{'seconds':>9}", flush=True)
    for name, rows_of in table.items():
        values = np.array(rows_of, dtype=float)  # (seed, score)
        error = values.std(0, ddof=min(1, len(values) - 1)) / len(values) ** 0.5
        cells = "".join(f"{m:>8.3f} ± {e:.3f}" for m, e in zip(values.mean(0)[:3], error[:3], strict=True))
        why = ", ".join(dict.fromkeys(filter(None, notes[name])))
        print(f"{name:<30}{cells}{values[:, 3].mean():>9.1f}  {why}".rstrip(), flush=True)

if "small-similar" in results:
    print("\nFew images of a kind that is known, NLL and ECE:")
    for name in ("from scratch, MAP", "from scratch, SGHMC", "informative prior, VI", "informative prior, SGHMC"):
        _, nll, ece, _ = np.mean(results["small-similar"][name], axis=0)
        print(f"{name:<30}{nll:>8.3f}{ece:>8.3f}")
