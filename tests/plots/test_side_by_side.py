import math

import pytest

from bayesnn import plots
from tests.plots.pictures import draw, legend


def test_points_are_means_with_standard_errors():
    ax = plots.nll_against_seconds({"MAP": ([1.0, 3.0], [0.3, 0.4]), "SGHMC": ([7.0], [0.1])})
    draw(ax)
    point, _, bars = ax.containers[0]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((2.0, 0.35))
    (start, end), *_ = (bar.get_segments()[0] for bar in bars[1:])
    assert (start[1], end[1]) == pytest.approx((0.3, 0.4))  # of two values the standard error is half their distance
    assert ax.containers[1][2] == ()  # of a single one it is unknown
    assert legend(ax) == ["MAP", "SGHMC"]


@pytest.mark.parametrize("bad", [([], []), ([1.0], [1.0, 2.0]), ([1.0], [math.nan])])
def test_values_must_be_finite_and_paired(bad):
    with pytest.raises(ValueError, match="VI: seconds and nll must be finite"):
        plots.nll_against_seconds({"VI": bad})
    with pytest.raises(ValueError, match="at least one method"):
        plots.nll_against_seconds({})
