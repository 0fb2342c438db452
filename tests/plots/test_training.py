import math

import numpy as np
import pytest
import torch

import bayesnn as bnn
from bayesnn import plots
from tests.plots.pictures import draw, history, legend, lines


def test_training_curves_draws_every_chain():
    ax = plots.training_curves(history())
    draw(ax)
    drawn = lines(ax)
    assert len(drawn) == 4
    np.testing.assert_allclose(drawn[1].get_ydata(), [2.0 / (1 + e) + 1 for e in range(6)])
    np.testing.assert_array_equal(drawn[2].get_xdata(), [0, 2, 4])  # epochs without validation are passed over
    assert legend(ax) == ["training NLL (nats)", "validation NLL (nats)"]
    assert ax.get_xlabel() == "epoch"
    assert ax.get_ylabel() == "nats per row"


def test_training_curves_of_methods_share_colours_and_one_legend():
    ax = plots.training_curves({"SGLD": history(), "VI": history(1)})
    draw(ax)
    assert legend(ax) == ["SGLD", "VI", "training NLL (nats)", "validation NLL (nats)"]
    colours = [line.get_color() for line in lines(ax)]
    assert len(set(colours[:4])) == 1
    assert len(set(colours)) == 2


def test_training_curves_of_one_metric():
    ax = plots.training_curves({"SGLD": history(), "VI": history(1)}, metric="val_nll")
    assert legend(ax) == ["SGLD", "VI"]
    assert ax.get_ylabel() == "validation NLL / nats per row"
    assert plots.training_curves(history(), metric="loss").get_ylabel() == "training NLL / nats per row"
    with pytest.raises(ValueError, match="rows with 'accuracy'; got"):
        plots.training_curves(history(), metric="accuracy")
    with pytest.raises(ValueError, match="rows with 'loss' or 'val_nll'"):
        plots.training_curves([])


def test_the_gap_is_between_two_numbers_in_the_same_units():
    """Of standardised targets the loss is in other units than the validation's NLL: by log sd = 4.3 nats here."""
    train, _ = bnn.data.load("diabetes")
    model = bnn.BayesianModel(torch.nn.Linear(10, 1), likelihood=bnn.likelihoods.Normal(0.7))
    posterior = bnn.fit(model, train, bnn.MAP(lr=1e-2), epochs=30, validation=0.3, batch_size=None, progress=False)
    row = posterior.history[-1]
    assert row["train_nll"] == pytest.approx(row["loss"] + math.log(float(train.target.std)))
    ax = plots.training_curves(posterior.history)
    draw(ax)
    gap = float(next(text.get_text() for text in ax.texts if "gap" in text.get_text()).split()[1])
    assert gap == pytest.approx(row["val_nll"] - row["train_nll"], rel=0.01)
    assert abs(gap) < 0.3
    classes = bnn.fit(
        bnn.BayesianModel(torch.nn.Linear(2, 2), likelihood=bnn.likelihoods.Categorical()),
        bnn.data.load("moons")[0], epochs=1, validation=0.3, progress=False,
    )  # fmt: skip
    assert "train_nll" not in classes.history[-1]
