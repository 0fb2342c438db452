import numpy as np
import torch
from matplotlib.figure import Figure

from bayesnn import plots
from tests.plots.pictures import classification, draw, history


def test_axes_of_the_caller_are_drawn_on_and_returned():
    probs, y = classification(100)
    x = torch.linspace(0, 1, 5)
    for plot in (
        lambda ax: plots.training_curves(history(), ax=ax),
        lambda ax: plots.reliability(probs, y, ax=ax),
        lambda ax: plots.accuracy_rejection({"a": (probs, probs[:, 0])}, y, ax=ax),
        lambda ax: plots.entropy_histogram(x, x, ax=ax),
        lambda ax: plots.predictive_band(x, x, x - 1, x + 1, ax=ax),
        lambda ax: plots.traces(np.random.default_rng(0).normal(size=(2, 9, 1)), axes=ax)[0],
        lambda ax: plots.rhat_histogram(1 + x, ax=ax),
    ):
        figure = Figure(layout="constrained")
        mine, other = figure.subplots(1, 2)
        assert plot(mine) is mine
        assert mine.has_data()
        assert figure.axes == [mine, other]
        draw(mine)
