import math
import sys
import warnings

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bayesnn import metrics, plots
from bayesnn.diagnostics import rhat


@pytest.fixture(autouse=True)
def no_global_state():
    style = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == style
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def draw(ax):
    """Render everything: what cannot be drawn, or laid out (matplotlib warns), fails here."""
    first = ax if isinstance(ax, Axes) else ax.ravel()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FigureCanvasAgg(first.figure).draw()


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def lines(ax):
    return [line for line in ax.get_lines() if len(line.get_xdata()) > 0]


def classification(rows=600, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.softmax(2 * torch.randn(rows, classes, generator=generator), 1)
    return probs, torch.multinomial(probs, 1, generator=generator)[:, 0]


def history(chains=2, epochs=6):
    rows = [{"chain": c, "epoch": e, "loss": 2.0 / (1 + e) + c} for c in range(chains) for e in range(epochs)]
    for row in rows[::2]:
        row["val_nll"] = row["loss"] + 0.5
    return rows


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


def test_entropy_histogram_shares_and_auroc():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    inside, outside = rng.uniform(0, 1.5, 300).round(1), rng.uniform(0.5, math.log(10), 200).round(1)
    ax = plots.entropy_histogram(
        torch.from_numpy(inside), outside, max_entropy=math.log(10), labels=("digits", "noise")
    )
    draw(ax)
    auroc = roc_auc_score(np.r_[np.zeros(300), np.ones(200)], np.r_[inside, outside])
    assert ax.get_title() == f"AUROC {auroc:.3f}"
    for patch in ax.patches:
        assert patch.get_data().values.sum() == pytest.approx(1)
    assert legend(ax) == ["digits", "noise", "uniform prediction"]
    assert ax.get_xlabel() == "predictive entropy / nats"


def test_entropy_histogram_of_methods():
    low, high = torch.linspace(0, 1, 50), torch.linspace(0, 2, 9)
    panels = plots.entropy_histogram({"a": low, "b": low / 2}, {"a": high, "b": high})
    draw(panels)
    assert [panel.get_title()[:8] for panel in panels] == ["a: AUROC", "b: AUROC"]
    assert panels[0].get_ylim() == panels[1].get_ylim()
    with pytest.raises(ValueError, match="same keys"):
        plots.entropy_histogram({"a": low}, {"b": high})


@pytest.mark.parametrize("channels", [1, 3])
def test_certainty_gallery_orders_and_names(channels):
    probs, y = classification(30)
    uncertainty = torch.arange(30.0).flip(0)
    images = torch.arange(30.0 * channels * 25).reshape(30, channels, 5, 5)
    names = ["cat", "dog", "sweet_pepper_long", "owl"]
    axes = plots.certainty_gallery(images, probs, y, uncertainty, names, count=3)
    draw(axes)
    assert axes.shape == (4, 3)
    assert [ax.get_xlabel() for ax in axes[0]] == ["0 nats", "1 nats", "2 nats"]
    assert [ax.get_xlabel() for ax in axes[2]] == ["29 nats", "28 nats", "27 nats"]
    short = ["cat", "dog", "sweet_pepper_…", "owl"]
    assert axes[0, 0].get_title() == f"predicted {short[probs[29].argmax()]}\ntrue {short[y[29]]}"
    np.testing.assert_allclose([bar.get_width() for bar in axes[3, 0].patches], probs[0], rtol=1e-6)
    shown = np.asarray(axes[0, 0].images[0].get_array())
    assert shown.min() == 0
    assert shown.max() == 1


def test_certainty_gallery_of_many_classes_shows_five():
    probs, y = classification(8, classes=20)
    names = [f"class {i}" for i in range(20)]
    images, uncertainty = torch.linspace(0, 1, 8 * 3 * 16).reshape(8, 3, 4, 4), torch.linspace(0, 1, 8)
    axes = plots.certainty_gallery(images, probs, y, uncertainty, names, count=9)
    draw(axes)
    assert axes.shape == (4, 4)
    assert len(axes[1, 0].patches) == 5
    with pytest.raises(ValueError, match=r"images must be \(n, 1, H, W\)"):
        plots.certainty_gallery(images[:, 0], probs, y, uncertainty, names)
    with pytest.raises(ValueError, match=r"\(8, 3\), \(8,\) and \(8,\)"):
        plots.certainty_gallery(images, probs, y, uncertainty, names[:3])


def test_predictive_band_sorts_its_inputs():
    x = torch.tensor([2.0, 0.0, 1.0])
    ax = plots.predictive_band(
        x, 10 * x, 10 * x - 2, 10 * x + 2, 10 * x - 1, 10 * x + 1, data=(x, x), truth=9 * x, level=0.9
    )
    draw(ax)
    mean = next(line for line in ax.get_lines() if line.get_label() == "predictive mean")
    np.testing.assert_array_equal(mean.get_ydata(), [0, 10, 20])
    total, epistemic = (collection.get_paths()[0].get_extents() for collection in ax.collections)
    assert (total.y0, total.y1) == (-2, 22)
    assert (epistemic.y0, epistemic.y1) == (-1, 21)
    assert legend(ax) == ["90 % predictive interval", "90 % epistemic interval", "data", "truth", "predictive mean"]
    with pytest.raises(ValueError, match="mean must be"):
        plots.predictive_band(x, x[:, None], x, x)
    with pytest.raises(ValueError, match="belong together"):
        plots.predictive_band(x, x, x, x, epistemic_lower=x)


def test_traces_draw_each_chain_and_say_rhat():
    values = np.random.default_rng(0).normal(size=(3, 40, 2))
    panels = plots.traces(values, ["bias", "scale"])
    draw(panels)
    np.testing.assert_array_equal(panels[1].get_lines()[2].get_ydata(), values[2, :, 1])
    assert panels[0].get_title().startswith(f"bias   (R-hat {rhat(values)[0]:.3f}, bulk ESS")
    assert panels[1].get_xlabel() == "draw (a colour to each of 3 chains)"


def test_traces_of_one_chain_say_so_without_a_warning(recwarn):
    panels = plots.traces(np.sin(np.arange(20.0))[None, :, None])
    assert "one chain: no R-hat" in panels[0].get_title()
    assert len(recwarn) == 0
    with pytest.raises(ValueError, match="1 to 8 quantities"):
        plots.traces(np.zeros((2, 5, 9)))
    with pytest.raises(ValueError, match="names must be 1"):
        plots.traces(np.zeros((2, 5, 1)), ["a", "b"])


def test_rhat_histogram_counts_everything():
    values = np.r_[np.linspace(1.0, 1.2, 90), np.full(10, np.inf), np.nan]
    ax = plots.rhat_histogram(values, threshold=1.1)
    draw(ax)
    assert ax.get_title() == "55.0 % of 100 above 1.1, 1 nan"
    counts = ax.patches[0].get_data().values
    assert counts.sum() == 100
    assert counts[-1] == 10
    with pytest.raises(ValueError, match="at least two chains"):
        plots.rhat_histogram(np.array([np.nan]))


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
