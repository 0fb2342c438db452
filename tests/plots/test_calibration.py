import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from bayesnn import metrics, plots
from tests.plots.pictures import classification, draw, legend


def test_reliability_draws_what_ece_adds_up():
    probs, y = classification()
    ax = plots.reliability(probs, y, bins=10, label="SGLD")
    draw(ax)
    confidence, accuracy, count = (column.numpy() for column in metrics.confidence_bins(probs, y, 10))
    full = count > 0
    curve = next(line for line in ax.get_lines() if line.get_label() == "accuracy")
    np.testing.assert_array_equal(curve.get_xdata(), confidence[full])
    np.testing.assert_array_equal(curve.get_ydata(), accuracy[full])
    gap = np.abs(curve.get_xdata() - curve.get_ydata()) @ count[full] / len(y)
    assert gap == pytest.approx(metrics.ece(probs, y, 10), abs=1e-6)
    assert ax.get_title() == f"SGLD: ECE {100 * gap:.1f} %"
    strip = [bar.get_height() for bar in ax.containers[1]]
    np.testing.assert_allclose(np.array(strip) / max(strip), count[full] / count.max())
    assert ax.texts[0].get_text() == f"{int(count.max())}"


def test_reliability_band_holds_a_calibrated_model():
    inside, points = 0, 0
    for seed in range(20):
        ax = plots.reliability(*classification(2000, seed=seed), bins=10)
        curve = next(line for line in ax.get_lines() if line.get_label() == "accuracy").get_ydata()
        for bar, value in zip(ax.containers[0], curve, strict=True):
            inside += bar.get_y() - 1e-9 <= value <= bar.get_y() + bar.get_height() + 1e-9
            points += 1
    # A discrete 90 % band holds at least 90 %, and more in small bins.
    share = inside / points
    assert share > 0.9 - 3 * math.sqrt(0.09 / points)
    assert share < 0.99


def test_reliability_of_methods_side_by_side():
    probs, y = classification()
    panels = plots.reliability({"MAP": probs**4 / (probs**4).sum(1, keepdim=True), "SGLD": probs}, y)
    draw(panels)
    assert panels.shape == (2,)
    assert [panel.get_title().split(":")[0] for panel in panels] == ["MAP", "SGLD"]
    (shared,) = panels[0].figure.legends
    assert [text.get_text() for text in shared.get_texts()] == ["accuracy", "90 % band of a calibrated model"]
    axes = Figure(layout="constrained").subplots(1, 2)
    assert plots.reliability({"a": probs, "b": probs}, y, ax=axes)[1] is axes[1]
    with pytest.raises(ValueError, match="axes must be 1, one to a panel; got 2"):
        plots.reliability({"a": probs}, y, ax=axes)
    with pytest.raises(ValueError, match="ax must be one matplotlib Axes; got ndarray"):
        plots.reliability(probs, y, ax=axes)


def test_accuracy_rejection_starts_at_accuracy_and_drops_the_uncertain():
    probs, y = classification(500)
    uncertainty = torch.rand(500, generator=torch.Generator().manual_seed(1))
    ax = plots.accuracy_rejection({"random": (probs, uncertainty)}, y)
    draw(ax)
    x, value = ax.get_lines()[0].get_data()
    assert len(x) == 481  # from all 500 rows down to 20
    assert x[-1] == 0
    assert value[-1] == pytest.approx(metrics.accuracy(probs, y))
    half = np.flatnonzero(np.isclose(x, 0.5))[0]
    certain = uncertainty.argsort()[:250]
    assert value[half] == pytest.approx(metrics.accuracy(probs[certain], y[certain]))
    assert legend(ax) == ["random"]
    with pytest.raises(ValueError, match="SGLD: probs and uncertainty must have one row for each of the 500"):
        plots.accuracy_rejection({"SGLD": (probs, uncertainty[:10])}, y)
