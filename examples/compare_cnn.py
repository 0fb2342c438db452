"""A convolutional net as a point estimate and in three Bayesian forms, on images.

    python examples/compare_cnn.py                                  # 8x8 digits, about a minute
    python examples/compare_cnn.py --data fashion-mnist --epochs 10

All four share one LeNet5, one prior and one likelihood; only the method of ``fit`` changes.
"""

import argparse
from pathlib import Path

import bayesnn as bnn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", choices=("digits", "mnist", "fashion-mnist"), default="digits")
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--out", type=Path, default=Path("results/compare_cnn"))
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)

train, test = bnn.data.load(options.data)  # x (N, 1, height, width), y (N,)

# An ordinary torch.nn.Module. With a Normal(0, 1) prior its MAP estimate is plain training with weight decay 1 / N, so
# that the deterministic net of the first row is the one that everybody trains.
net = bnn.nets.LeNet5(train.in_shape, train.num_outputs)
model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())

methods = {
    "MAP (point estimate)": (bnn.MAP(), 1),
    "ensemble of 5": (bnn.MAP(), 5),
    "mean-field VI": (bnn.MeanFieldVI(), 1),
    # Four chains from four starts: where they disagree, one would have been too sure of itself.
    "SGLD, 4 chains": (bnn.SGLD(), 4),
}
predictives = {}
for name, (method, chains) in methods.items():
    posterior = bnn.fit(model, train, method, epochs=options.epochs, chains=chains, seed=0)
    predictives[name] = posterior.predict(test.x)

print(f"{test.name}, {len(test)} test images, {options.epochs} epochs")
print(f"{'method':<22}{'accuracy':>10}{'NLL':>8}{'ECE':>8}{'epistemic':>11}{'aleatoric':>11}")
for name, predictive in predictives.items():
    # The mean over draws is the mixture's class probabilities: the answer that is scored.
    score = bnn.metrics.classification_table(predictive.mean, test.y)  # mean (test, 10)
    epistemic, aleatoric = predictive.epistemic.mean(), predictive.aleatoric.mean()  # () each, nats
    print(f"{name:<22}{score['accuracy']:>10.3f}{score['nll']:>8.3f}{score['ece']:>8.3f}"
          f"{epistemic:>11.3f}{aleatoric:>11.3f}")  # fmt: skip

# Is doubt where the errors are? Turn the most doubtful images away, and see how the rest fares.
curves = {name: (predictive.mean, predictive.total) for name, predictive in predictives.items()}  # (test, 10), (test,)
bnn.plots.accuracy_rejection(curves, test.y).figure.savefig(options.out / "accuracy_rejection.png", dpi=150)

sampled = predictives["SGLD, 4 chains"]
images = test.inputs.inverse(test.x)  # pixels in [0, 1], as they were before standardising: (test, 1, height, width)
gallery = bnn.plots.certainty_gallery(images, sampled.mean, test.y, sampled.total, test.classes)
gallery[0, 0].figure.savefig(options.out / "certainty.png", dpi=150)
print(f"pictures are in {options.out}")
