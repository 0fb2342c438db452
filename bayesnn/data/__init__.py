"""Data sets and minibatches."""

from bayesnn.data.augment import Compose, Crop, Flip, InUnits, Noise, Rotation, Shift
from bayesnn.data.batches import Batches, Loader
from bayesnn.data.dataset import Data, split
from bayesnn.data.registry import load, load_test, names, sine_gap_region
from bayesnn.data.shift import SHIFTS, shift
from bayesnn.data.standardize import Standardize, standardize

__all__ = [
    "SHIFTS",
    "Batches",
    "Compose",
    "Crop",
    "Data",
    "Flip",
    "InUnits",
    "Loader",
    "Noise",
    "Rotation",
    "Shift",
    "Standardize",
    "load",
    "load_test",
    "names",
    "shift",
    "sine_gap_region",
    "split",
    "standardize",
]
