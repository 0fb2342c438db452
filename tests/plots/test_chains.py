import numpy as np
import pytest

from bayesnn import plots
from bayesnn.diagnostics import rhat
from tests.plots.pictures import draw


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
