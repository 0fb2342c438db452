"""Epistemic uncertainty where there are no data. The long study against NUTS is benchmarks/sine_gap.py."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import sine_gap


def test_sgld_is_three_times_less_sure_in_the_gap_than_on_the_data() -> None:
    report = sine_gap.run_sgld(epochs=8_000, chains=2)
    assert report["ratio"] > 3
    assert 0.005 < report["sd on the data"] < 0.1  # about noise * sqrt(weights that count / N), in the targets' units
