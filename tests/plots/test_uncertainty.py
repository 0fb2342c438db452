import math

import numpy as np
import pytest
import torch

from bayesnn import plots
from tests.plots.pictures import classification, draw, legend


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
