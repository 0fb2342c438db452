"""Simulation-based calibration in short; the study is benchmarks/sbc.py."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import sbc


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear, SGHMC", "linear, NUTS", "net, SGHMC"])
def test_ranks_are_uniform(name: str) -> None:
    kind, method, epochs = sbc.studies(thin=30, nuts=1)[name]
    verdict = sbc.judge(sbc.ranks(kind, method, epochs, replications=300, seed=1))
    assert verdict["chi-square p"] > 1e-3
    assert verdict["variance p"] > 1e-3


@pytest.mark.slow
def test_noise_that_is_off_by_a_fifth_is_seen() -> None:
    kind, method, epochs = sbc.studies(thin=30, nuts=1)["net, SGHMC, noise x 1.2"]
    verdict = sbc.judge(sbc.ranks(kind, method, epochs, replications=300, seed=1))
    assert verdict["variance p"] < 1e-3
    assert verdict["variance ratio"] < 1
