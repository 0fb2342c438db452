import numpy as np
import pytest

from bayesnn import plots
from bayesnn.diagnostics import mcse_mean, rhat
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


def test_running_means_end_at_the_chains_means():
    values = np.random.default_rng(0).normal(size=(3, 40, 2))
    panels = plots.running_mean(values, ["bias", "scale"])
    draw(panels)
    ends = [line.get_ydata()[-1] for line in panels[1].get_lines()]
    np.testing.assert_allclose(ends, values[:, :, 1].mean(1))
    assert panels[1].get_lines()[0].get_ydata()[9] == pytest.approx(values[0, :10, 1].mean())
    band = panels[0].patches[0].get_extents().transformed(panels[0].transData.inverted())
    centre, error = values[..., 0].mean(), mcse_mean(values)[0]
    assert (band.y0, band.y1) == pytest.approx((centre - 2 * error, centre + 2 * error))
    with pytest.raises(ValueError, match="4 draws to a chain or more; got 3"):
        plots.running_mean(values[:, :3])
