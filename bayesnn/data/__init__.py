"""Data sets and minibatches."""

from bayesnn.data.batches import Batches, Loader
from bayesnn.data.dataset import Data, split
from bayesnn.data.registry import load, load_test, names, sine_gap_region
from bayesnn.data.shift import SHIFTS, shift
from bayesnn.data.standardize import Standardize, standardize

__all__ = [
    "SHIFTS",
    "Batches",
    "Data",
    "Loader",
    "Standardize",
    "load",
    "load_test",
    "names",
    "shift",
    "sine_gap_region",
    "split",
    "standardize",
]
