import numpy as np
import pytest

from bayesnn import plots
from tests.plots.pictures import draw


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


def test_ess_histogram_counts_everything():
    values = np.r_[np.linspace(50, 350, 30), np.full(70, 500.0), np.nan]
    ax = plots.ess_histogram(values, 1000)
    draw(ax)
    assert ax.get_title() == "30.0 % of 100 below 400, 1 nan"
    assert ax.patches[0].get_data().values.sum() == 100
    assert [line.get_xdata()[0] for line in ax.get_lines()] == [400, 1000]
    with pytest.raises(ValueError, match="4 draws a chain or more"):
        plots.ess_histogram(np.array([np.nan]), 10)
    for bad in (np.inf, 0.0, -1.0):
        with pytest.raises(ValueError, match="positive and finite"):
            plots.ess_histogram(np.array([1.0, bad]), 10)
