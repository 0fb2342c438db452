import numpy as np
import pytest

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
