import numpy as np
import pytest
import torch

from bayesnn import plots
from tests.plots.pictures import draw, legend


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
