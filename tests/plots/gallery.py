"""One small picture of every plot, from data that are the same everywhere.

    python -m tests.plots.gallery

writes them to tests/plots/reference after a change that is meant: look at them before they are kept.
"""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import bayesnn as bnn
from bayesnn import plots
from bayesnn.source import Draws
from tests.plots.pictures import classification, history

REFERENCE = Path(__file__).parent / "reference"
DPI = 40


def posterior(net, draws=12, shrink=0.5):
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    stream = torch.Generator().manual_seed(0)
    stacked = {n: shrink * torch.randn(draws, *p.shape, generator=stream) for n, p in model.named_parameters()}
    return bnn.Posterior(model, [Draws(stacked)], 10)


def chains():
    """Three chains of two quantities: one that mixes, and one of which a chain is elsewhere."""
    values = np.random.default_rng(0).normal(size=(3, 60, 2))
    values[2, :, 1] += 2
    return values, ["bias", "scale"]


def images(count=12, side=8):
    ramp = torch.linspace(0, 1, side)
    return (torch.arange(1.0, count + 1)[:, None, None] * ramp[:, None] * ramp.flip(0)).remainder(1)[:, None]


def _band():
    x = torch.linspace(-2, 2, 60)
    width = 0.1 + 0.3 * x.abs()
    return plots.predictive_band(x, x.sin(), x.sin() - width, x.sin() + width, x.sin() - width / 2, x.sin() + width / 2,
                                 data=(x[10:30], x[10:30].sin()), truth=x.sin(), level=0.9)  # fmt: skip


def _entropy():
    inside, outside = torch.linspace(0, 1.2, 200) ** 2, torch.linspace(0.4, 2, 150)
    return plots.entropy_histogram(
        {"a": inside, "b": inside / 2}, {"a": outside, "b": outside}, max_entropy=math.log(10)
    )


def _gallery():
    probs, y = classification(12)
    entropy = -(probs * probs.log()).sum(1)
    return plots.certainty_gallery(images(), probs, y, entropy, ("ant", "bee", "cat", "dog"))


def _boundary():
    x = torch.stack([torch.linspace(-1, 1, 30), torch.linspace(-1, 1, 30).sin() + 0.3], 1)
    return plots.decision_boundary(posterior(bnn.nets.MLP(2, (5,), 2), shrink=1), (x, (x[:, 0] > 0).long()))


def _rejection():
    probs, y = classification()
    doubt = 1 - probs.max(1).values
    return plots.accuracy_rejection({"by doubt": (probs, doubt), "the wrong way": (probs, -doubt)}, y)


def _roc():
    grid = (torch.arange(200) + 0.5) / 200
    return plots.detection_roc({"entropy": (grid, grid.sqrt()), "useless": (grid, grid)})


def _shift():
    rows = [
        {"method": m, "seed": s, "kind": k, "severity": v, "accuracy": 0.95 - 0.1 * v - 0.02 * s, "nll": 0.1 + v * c,
         "ece": 0.02 * v + 0.01 * s}
        for m, c in (("MAP", 0.5), ("VI", 0.2)) for s in (0, 1) for k in ("noise", "blur") for v in range(6)
    ]  # fmt: skip
    return plots.shift_curves(rows)


def _rotation():
    lenet = posterior(bnn.nets.LeNet5((1, 8, 8), 3))
    return plots.rotation({"a": lenet}, images()[3], angles=range(0, 181, 30))


def _activation():
    net = bnn.nets.ConvNet((1, 16, 16), 3, channels=(6, 6), dense=(), global_average=True)
    x = torch.zeros(1, 16, 16)
    x[0, 3:12, 4:7], x[0, 9:12, 4:12] = 1.0, 0.8  # an L
    return plots.class_activation(posterior(net), x, label=1)


def _weights():
    return plots.weights_against_prior(posterior(bnn.nets.MLP(20, (8,), 5)))


PIT = ((torch.arange(500) + 0.5) / 500) ** 1.2

GALLERY = {
    "accuracy_rejection": _rejection,
    "autocorrelation": lambda: plots.autocorrelation(*chains()),
    "certainty_gallery": _gallery,
    "class_activation": _activation,
    "confusion_matrix": lambda: plots.confusion_matrix(*classification()),
    "coverage_curve": lambda: plots.coverage_curve({"a": PIT, "b": PIT**2}),
    "decision_boundary": _boundary,
    "detection_roc": _roc,
    "entropy_histogram": _entropy,
    "ess_histogram": lambda: plots.ess_histogram(np.geomspace(40, 900, 300), 1000),
    "feature_maps": lambda: plots.feature_maps(posterior(bnn.nets.LeNet5((1, 8, 8), 3)), images()[2]),
    "filters": lambda: plots.filters(posterior(bnn.nets.LeNet5((1, 8, 8), 3))),
    "nll_against_seconds": lambda: plots.nll_against_seconds(
        {"MAP": ([1.0, 1.2], [0.3, 0.32]), "VI": ([3.0, 3.4], [0.2, 0.23]), "SGHMC": ([9.0, 8.0], [0.1, 0.12])}
    ),
    "pit_histogram": lambda: plots.pit_histogram(PIT),
    "predictive_band": _band,
    "ranks": lambda: plots.ranks(*chains()),
    "reliability": lambda: plots.reliability(*classification()),
    "rhat_histogram": lambda: plots.rhat_histogram(1 + np.geomspace(0.001, 0.3, 300)),
    "rotation": _rotation,
    "shift_curves": _shift,
    "running_mean": lambda: plots.running_mean(*chains()),
    "traces": lambda: plots.traces(*chains()),
    "training_curves": lambda: plots.training_curves(history()),
    "weights_against_prior": _weights,
}


def render(ax):
    """The picture as (height, width, 3), 0 to 255."""
    figure = (ax if isinstance(ax, Axes) else np.asarray(ax).ravel()[0]).figure
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for name, make in GALLERY.items():
        Image.fromarray(render(make())).quantize(64).save(REFERENCE / f"{name}.png", optimize=True)
