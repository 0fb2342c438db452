"""New inputs of a run: a CSV file, a .npy file or a folder of images, in the units of the data it was fitted to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bayesnn.cli._runs import Run
from bayesnn.data.dataset import as_inputs, check_finite
from bayesnn.data.pictures import read_pictures
from bayesnn.data.tables import read_table

PIXEL = 2.0  # a float above is no pixel in [0, 1], even with noise on it


def read_inputs(run: Run, path: Path, resize: bool = False) -> tuple[list[str] | None, Tensor]:
    """Inputs as the net of ``run`` takes them, standardised, (batch, *in_shape), and names where they are files.

    Raises
    ------
    OSError
        If there is nothing to read.
    ValueError
        If it is none of the three, or does not fit the run: the error names the column, the line or the file.
    """
    labels = None
    if not path.exists():
        raise FileNotFoundError(f"Expected a CSV file, a .npy file or a folder, got {path}: there is no such file.")
    if path.is_dir():
        if len(run.in_shape) != 3:
            raise ValueError(f"Expected a CSV or .npy file for a net without images, got the folder {path}: give one.")
        labels, x = read_pictures(path, run.in_shape, resize)
    elif resize:
        raise ValueError(f"Expected a folder of images with --resize, got {path}: leave it out.")
    elif path.suffix.lower() == ".npy":
        x = _array(path, run.in_shape)
    elif path.suffix.lower() == ".csv":
        if run.columns is None:
            raise ValueError(f"Expected a folder of images or a .npy file for a net of images, got {path}: give one.")
        x = read_table(path).numbers(run.columns)
    else:
        raise ValueError(f"Expected a CSV file, a .npy file or a folder of images, got {path}: convert it.")
    return labels, run.inputs.forward(x if x.is_floating_point() else x.double())


def _array(path: Path, in_shape: tuple[int, ...]) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"Expected an array of numbers in {path}, got none: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"Expected one array in {path}, got an archive: save it by numpy.save.")
    without_ones = [side for side in array.shape[1:] if side != 1]
    if array.ndim == 0 or len(array) == 0 or without_ones != [side for side in in_shape if side != 1]:
        wanted = ", ".join(["N", *map(str, in_shape)])
        raise ValueError(f"Expected an array ({wanted}) in {path}, got shape {array.shape}: reshape it.")
    x = as_inputs(array).reshape(len(array), *in_shape)
    check_finite(str(path), x)
    if len(in_shape) == 3:
        if array.dtype == np.uint8:
            return x.float() / 255
        if float(x.abs().max()) > PIXEL:
            raise ValueError(f"Expected pixels in [0, 1], or uint8, in {path}, got {float(x.max()):g}: divide by 255.")
    return x


def some(x: Tensor, rows: int) -> Tensor:
    """Numbers of at most so many of the rows of ``x``, evenly spaced."""
    if rows < 1:
        raise ValueError(f"Expected rows to be an integer >= 1, got {rows}.")
    return torch.linspace(0, len(x) - 1, min(rows, len(x)), dtype=torch.float64).round().long()
