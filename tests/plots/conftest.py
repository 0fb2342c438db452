import sys

import matplotlib as mpl
import pytest


@pytest.fixture(autouse=True)
def no_global_state():
    style = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == style
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []
