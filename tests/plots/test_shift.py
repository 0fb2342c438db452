import numpy as np
import pytest

from bayesnn import plots
from tests.plots.pictures import draw, lines


def rows(seeds=(0,)):
    return [
        {"method": method, "seed": seed, "kind": kind, "severity": severity,
         "accuracy": 0.9 - 0.1 * severity + 0.1 * seed, "nll": (1 + severity) * (1 + (kind == "noise")), "ece": 0.1}
        for method in ("map", "sgld") for seed in seeds for kind in ("blur", "noise") for severity in range(6)
    ]  # fmt: skip


def test_a_line_is_the_mean_over_kinds():
    axes = plots.shift_curves(rows())
    draw(axes)
    assert [ax.get_ylabel() for ax in axes] == ["accuracy", "NLL (nats)", "ECE"]
    curves = [line for line in lines(axes[1]) if line.get_label() in ("map", "sgld")]
    assert len(curves) == 2
    np.testing.assert_allclose(curves[0].get_ydata(), 1.5 * np.arange(1, 7))
    assert [text.get_text() for text in axes[0].figure.legends[0].get_texts()] == ["map", "sgld"]
    assert not axes[0].collections  # one seed has no spread


def test_by_kind_there_is_a_panel_to_each_on_one_scale():
    axes = plots.shift_curves(rows(), ("nll", "accuracy"), by_kind=True)
    draw(axes)
    assert axes.shape == (2, 2)
    assert [ax.get_title() for ax in axes[0]] == ["blur", "noise"]
    for ax, factor in zip(axes[0], (1, 2), strict=True):
        np.testing.assert_allclose(lines(ax)[0].get_ydata(), factor * np.arange(1, 7))
    assert axes[0, 0].get_ylim() == axes[0, 1].get_ylim()


def test_a_bar_is_the_standard_error_over_seeds():
    axes = plots.shift_curves(rows((0, 1, 2)), ("accuracy",))
    draw(axes)
    segments = axes[0].collections[0].get_segments()
    # 0.8, 0.9, 1.0 have a standard deviation of 0.1.
    assert [float(np.diff(one[:, 1])[0]) / 2 for one in segments] == pytest.approx([0.1 / np.sqrt(3)] * 6)


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="Expected rows and metrics to draw, got 0 and 3"):
        plots.shift_curves([])
