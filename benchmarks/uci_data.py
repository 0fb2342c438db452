"""The UCI regression sets and their standard splits (Hernandez-Lobato & Adams 2015; Gal & Ghahramani 2016)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

import bayesnn as bnn

SPLITS = 20


def directory() -> Path:
    """Where the files lie: the folder ``uci`` in ``BAYESNN_DATA``."""
    root = os.environ.get("BAYESNN_DATA")
    if root is None or not (Path(root) / "uci").is_dir():
        raise FileNotFoundError(f"Expected a folder uci in BAYESNN_DATA, got {root!r}: put concrete.txt etc. there.")
    return Path(root) / "uci"


def load(name: str, split: int) -> tuple[bnn.data.Data, bnn.data.Data]:
    """Training and test part of standard split ``split`` (from 0), standardised by the training part.

    A constant feature stays constant. The splits are permutations by numpy's legacy generator, seed 1, in turn.
    """
    if not 0 <= split < SPLITS:
        raise ValueError(f"Expected a split from 0 to {SPLITS - 1}, got {split}.")
    table = np.loadtxt(directory() / f"{name}.txt")
    legacy = np.random.RandomState(1)
    for _ in range(split + 1):
        order = legacy.choice(len(table), len(table), replace=False)
    count = round(0.9 * len(table))
    x, y = torch.tensor(table[:, :-1], dtype=torch.float32), torch.tensor(table[:, -1], dtype=torch.float32)
    train, test = (bnn.data.Data(x[rows], y[rows], name) for rows in (order[:count], order[count:]))
    train, test = bnn.data.standardize(train, test)
    return train, test
