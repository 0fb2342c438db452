"""How far labels are to be believed: handwritten digits as they are, and with a fifth of the labels replaced.

    python examples/noisy_labels.py

The test labels are as they are, and scored are the classes behind the labels. ``Categorical`` has no place for the
belief that labels are right, or that some are wrong: ``NoisyDirichlet`` states the one, ``NoisyCategorical`` the other.
"""

import argparse

import torch
from torch import nn

import bayesnn as bnn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seeds", type=int, default=3, help="of the replaced labels and of the fits")
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("--noise", type=float, default=0.2, help="share of labels that are replaced by one of the ten")
options = parser.parse_args()

train, test = bnn.data.load("digits")
LIKELIHOODS = {
    "Categorical": bnn.likelihoods.Categorical(),
    f"NoisyCategorical({options.noise:g})": bnn.likelihoods.NoisyCategorical(options.noise),
    "NoisyDirichlet(0.1)": bnn.likelihoods.NoisyDirichlet(0.1),
    "NoisyDirichlet(0.001)": bnn.likelihoods.NoisyDirichlet(0.001),
}


def replaced(seed: int, noise: float) -> bnn.data.Data:
    """The training part with that share of its labels drawn evenly from all ten."""
    stream = torch.Generator().manual_seed(seed)
    guess = torch.randint(10, (len(train),), generator=stream)
    wrong = torch.rand(len(train), generator=stream) < noise
    return bnn.data.Data(train.x, torch.where(wrong, guess, train.y), "digits", train.classes)


def scores(likelihood: bnn.likelihoods.Likelihood, data: bnn.data.Data, gain: float, seed: int) -> torch.Tensor:
    """Accuracy, NLL, aleatoric and epistemic uncertainty (nats) of the classes, means over the test part, (4,)."""
    net = nn.Sequential(nn.Flatten(), bnn.nets.MLP(64, (50,), 10))
    model = bnn.BayesianModel(net, bnn.priors.Layerwise(gain=gain), likelihood)
    posterior = bnn.fit(model, data, bnn.SGHMC(draws=50), epochs=options.epochs, chains=2, seed=seed,
                        progress=False)  # fmt: skip
    draws = posterior.predict(test.x).draws.flatten(0, 1).double()  # (draw, batch, class)
    if isinstance(likelihood, bnn.likelihoods.NoisyCategorical):
        draws = likelihood.clean(draws)
    probs = draws.mean(0)
    aleatoric = torch.special.entr(draws).sum(-1).mean()
    epistemic = torch.special.entr(probs).sum(-1).mean() - aleatoric
    accuracy, nll = bnn.metrics.accuracy(probs, test.y), bnn.metrics.nll(probs, test.y)
    return torch.tensor([accuracy, nll, aleatoric, epistemic])


HEADS = ("accuracy", "NLL", "aleatoric", "epistemic")
print(f"{'labels':<11}{'prior gain':>10}  {'likelihood':<23}{''.join(f'{head:>11}' for head in HEADS)}")
for noise in (0.0, options.noise):
    for gain in (1.0, 3.0):
        for name, likelihood in LIKELIHOODS.items():
            rows = [scores(likelihood, replaced(seed, noise), gain, seed) for seed in range(options.seeds)]
            cells = "".join(f"{value:>11.3f}" for value in torch.stack(rows).mean(0).tolist())
            print(f"{'noisy' if noise else 'as they are':<11}{gain:>10g}  {name:<23}{cells}")
