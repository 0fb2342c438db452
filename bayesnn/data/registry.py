"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from bayesnn.data.dataset import Data, split
from bayesnn.data.images import IMAGE_SETS, read_images
from bayesnn.data.standardize import apply_standardize, standardize
from bayesnn.errors import unknown

SINE_GAP = (-0.3, 0.3)
SINE_GAP_NOISE = 0.1


def names() -> tuple[str, ...]:
    """Return the names that :func:`load` takes."""
    return (*_EMBEDDED, *(name for name, image_set in IMAGE_SETS.items() if "train" in image_set.parts))


def load(
    name: str, directory: str | Path | None = None, test_fraction: float = 0.2, seed: int = 0
) -> tuple[Data, Data]:
    """Load a data set as a training and a test part, inputs standardised by the training part.

    ================= ============== ======== =====================================================================
    name              one input      target   what it is
    ================= ============== ======== =====================================================================
    "digits"          (1, 8, 8)      10       handwritten digits, 1,797 rows; pixels in [0, 1] before standardising
    "diabetes"        (10,)          floating progression of diabetes after a year, 442 rows
    "breast-cancer"   (30,)          2        Wisconsin diagnostic, 569 rows
    "moons"           (2,)           2        two half circles with noise of sd 0.2, 500 training rows
    "sine-gap"        (1,)           floating y = sin(4 x) + noise of sd 0.1, 80 training rows, about half
                                              with x in [-1, -0.3], half in [0.3, 1]; see :func:`sine_gap_region`
    "mnist"           (1, 28, 28)    10       60,000 + 10,000 handwritten digits; pixels as above
    "fashion-mnist"   (1, 28, 28)    10       60,000 + 10,000 pieces of clothing; pixels as above
    ================= ============== ======== =====================================================================

    Parameters
    ----------
    name : str
        One of :func:`names`.
    directory : str or Path, optional
        Where the files of the last two lie, directly or in a subfolder of that name, gzipped or plain. By default the
        environment variable BAYESNN_DATA says where. What is not there is downloaded (about 12 and 31 MB) into
        pooch's cache, and its checksum compared.
    test_fraction : float
        Share of the test part, in (0, 1). The last two come with a test part and take that.
    seed : int
        Of the split, stratified by class, and of what is random in "moons" and "sine-gap".

    Returns
    -------
    train, test : Data
        x (N, *in_shape), float32, standardised per feature or, for images, over all pixels; ``inputs`` has the
        constants. y (N,), int64 for classes, else float32 in its own units; then ``target`` has its constants.

    Raises
    ------
    ValueError
        If the name is unknown, ``test_fraction`` is outside (0, 1), or a file is broken.
    FileNotFoundError
        If files are neither found nor downloaded.
    """
    if name in _EMBEDDED:
        if not 0.0 < test_fraction < 1.0:
            raise ValueError(f"load: expected a test_fraction in (0, 1), got {test_fraction}: 0.2 tests on a fifth")
        train, test = split(_EMBEDDED[name](test_fraction, seed), test_fraction, seed)
    elif name not in IMAGE_SETS:
        raise unknown("data set", name, names())
    elif "train" not in IMAGE_SETS[name].parts:
        raise ValueError(f"load: expected a data set with a training part, got {name!r}: use load_test({name!r})")
    else:
        train = read_images(IMAGE_SETS[name], "train", directory)
        test = read_images(IMAGE_SETS[name], "t10k", directory)
    train, test = standardize(train, test)
    return train, test


def load_test(name: str, directory: str | Path | None = None, like: Data | None = None) -> Data:
    """Load the test part of an image set alone, as what lies outside the distribution of another set.

    Parameters
    ----------
    name : str
        "mnist", "fashion-mnist" or "notmnist" (10,000 letters A to J; from a directory only, there is no download).
    directory : str or Path, optional
        As in :func:`load`.
    like : Data, optional
        The data a net was trained on: its constants standardise these images too, as that net must see them.

    Returns
    -------
    Data
        x (N, 1, 28, 28), float32: standardised by ``like.inputs``, or pixels in [0, 1] without ``like``. y (N,), int64:
        this set's own classes.

    Raises
    ------
    ValueError
        If the name is unknown, ``like`` is not standardised or has inputs of another shape, or a file is broken.
    FileNotFoundError
        If files are neither found nor downloaded.

    Examples
    --------
    >>> train, test = load("mnist")  # doctest: +SKIP
    >>> letters = load_test("notmnist", like=train)  # doctest: +SKIP
    """
    if name not in IMAGE_SETS:
        raise unknown("image set", name, IMAGE_SETS)
    if like is not None and like.inputs is None:
        raise ValueError(f"load_test: expected like standardised, got {like!r}: pass what load or standardize gave")
    data = read_images(IMAGE_SETS[name], "t10k", directory)
    if like is None or like.inputs is None:
        return data
    return apply_standardize(data, like.inputs, None, like.in_shape)


def sine_gap_region(data: Data | None = None) -> tuple[float, float]:
    """Return the limits (low, high) between which "sine-gap" has no inputs.

    Parameters
    ----------
    data : Data, optional
        A part of "sine-gap": the limits come in the units of its x, standardised or not. Without it they come in the
        inputs' own units, (-0.3, 0.3).
    """
    if data is None or data.inputs is None:
        return SINE_GAP
    low, high = data.inputs.forward(torch.tensor(SINE_GAP, dtype=torch.float64)).tolist()
    return low, high


def _digits(test_fraction: float, seed: int) -> Data:
    from sklearn import datasets

    bunch = datasets.load_digits()
    return Data.of(bunch.images[:, None].astype("float32") / 16.0, bunch.target, "digits", tuple("0123456789"))


def _diabetes(test_fraction: float, seed: int) -> Data:
    from sklearn import datasets

    bunch = datasets.load_diabetes(scaled=False)
    return Data.of(bunch.data.astype("float32"), bunch.target.astype("float32"), "diabetes")


def _breast_cancer(test_fraction: float, seed: int) -> Data:
    from sklearn import datasets

    bunch = datasets.load_breast_cancer()
    classes = [str(name) for name in bunch.target_names]
    return Data.of(bunch.data.astype("float32"), bunch.target, "breast-cancer", classes)


def _moons(test_fraction: float, seed: int) -> Data:
    from sklearn import datasets

    x, y = datasets.make_moons(_total(500, test_fraction), noise=0.2, random_state=seed)
    return Data.of(x.astype("float32"), y, "moons", ("upper", "lower"))


def _sine_gap(test_fraction: float, seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    total = _total(80, test_fraction)
    size = torch.empty(total, dtype=torch.float64).uniform_(SINE_GAP[1], 1.0, generator=generator)
    side = torch.where(torch.arange(total) % 2 == 0, -1.0, 1.0)
    x = side * size
    noise = torch.randn(total, generator=generator, dtype=torch.float64)
    y = torch.sin(4.0 * x) + SINE_GAP_NOISE * noise
    return Data(x.float()[:, None], y.float(), "sine-gap")


def _total(num_train: int, test_fraction: float) -> int:
    """Return the number of rows of which ``num_train`` are left when the test part is taken away."""
    return max(round(num_train / (1.0 - test_fraction)), num_train + 1)


_EMBEDDED: dict[str, Callable[[float, int], Data]] = {
    "digits": _digits,
    "diabetes": _diabetes,
    "breast-cancer": _breast_cancer,
    "moons": _moons,
    "sine-gap": _sine_gap,
}
