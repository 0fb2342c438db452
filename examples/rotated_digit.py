"""The classic picture: a digit is turned until it is upside down, and the net is or is not in doubt.

    python examples/rotated_digit.py --data mnist        # where the files are; scikit-learn's digits by default

No net here has seen a turned digit. One that has learned what it does not know becomes unsure on the way.
"""

import argparse
from pathlib import Path

import bayesnn as bnn
from bayesnn.data.shift import rotated

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", choices=("digits", "mnist"))
parser.add_argument("--rows", type=int, default=10_000, help="training images, the first ones")
parser.add_argument("--epochs", type=int, default=10, help="of a single net; mean-field VI takes three times as many")
parser.add_argument("--digit", type=int, default=3)
parser.add_argument("--out", type=Path, default=Path("results/rotated_digit"))
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)

train, test = bnn.data.load(options.data)
few = (train.x[: options.rows], train.y[: options.rows])  # (rows, 1, 28, 28), (rows,)
model = bnn.BayesianModel(bnn.nets.LeNet5(train.in_shape, 10), likelihood=bnn.likelihoods.Categorical())

nets = bnn.fit(model, few, bnn.MAP(), epochs=options.epochs, chains=4, seed=0)
one = bnn.Posterior(nets.model, nets.sources[:1], nets.num_data)  # the first of the four
vi = bnn.fit(model, few, bnn.MeanFieldVI(), epochs=3 * options.epochs, seed=0)
sampled = bnn.fit(model, few, bnn.SGHMC(draws=25), epochs=options.epochs, chains=4, seed=0, init=nets)
posteriors = {"MAP": one, "ensemble of 4": nets, "mean-field VI": vi, "SGHMC, 4 chains": sampled}

own = test.x[test.y == options.digit]
image = own[one.predict(own).total.argmin()]  # (1, 28, 28): of its kind, the one that the single net is surest of
print(f"{'method':<18}{'test accuracy':>14}{'NLL':>8}{'entropy upright':>17}{'at 90 degrees':>15}")
for name, posterior in posteriors.items():
    scores = bnn.metrics.classification_table(posterior.predict(test.x, draws=25).mean, test.y)
    turned = rotated(image[None] - image.min(), 90) + image.min()
    upright, aside = (float(posterior.predict(x).total[0]) for x in (image[None], turned))  # nats
    print(f"{name:<18}{scores['accuracy']:>14.3f}{scores['nll']:>8.3f}{upright:>17.3f}{aside:>15.3f}")

panels = bnn.plots.rotation(posteriors, image, label=options.digit)
panels[0].figure.savefig(options.out / "rotation.png", dpi=150)
