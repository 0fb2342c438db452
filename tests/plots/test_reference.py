"""Every plot beside a small picture of it that a person has looked at."""

import numpy as np
import pytest
from PIL import Image

from bayesnn import plots
from tests.plots.gallery import GALLERY, REFERENCE, _roc, chains, render

# Root mean square of the difference in grey, 0 to 255. What another release of matplotlib sets a little differently
# stays below; the smallest of changes in what is shown, a line that moves, is above: see the last test.
TOLERANCE = 4.0


def difference(picture, name):
    kept = np.asarray(Image.open(REFERENCE / f"{name}.png").convert("RGB"))
    assert picture.shape == kept.shape, f"{name}: {picture.shape} pixels, and {kept.shape} in the reference"
    return float(np.sqrt(np.mean((picture.mean(-1) - kept.mean(-1)) ** 2)))


def test_every_plot_has_a_reference_and_every_reference_a_plot():
    assert set(GALLERY) == set(plots.__all__)
    assert {path.stem for path in REFERENCE.glob("*.png")} == set(plots.__all__)


@pytest.mark.parametrize("name", GALLERY)
def test_the_picture_is_the_one_that_was_looked_at(name):
    found = difference(render(GALLERY[name]()), name)
    assert found < TOLERANCE, f"{name} is off by {found:.1f}: if that is meant, python -m tests.plots.gallery, and look"


def test_a_change_is_seen():
    moved = _roc()
    for line in moved.get_lines()[1:2]:
        line.set_ydata(line.get_ydata() ** 1.2)
    assert difference(render(moved), "detection_roc") > TOLERANCE
    values, names = chains()
    values[0] += 0.5
    assert difference(render(plots.traces(values, names)), "traces") > TOLERANCE
    plain = _roc()
    plain.set_xlabel("")
    assert difference(render(plain), "detection_roc") > TOLERANCE
