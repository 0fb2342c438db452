"""MNIST and its kin: where their IDX files are found, downloaded and read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bayesnn.data.dataset import Data
from bayesnn.data.idx import read_idx

ENVIRONMENT = "BAYESNN_DATA"
Part = Literal["train", "t10k"]


@dataclass(frozen=True)
class ImageSet:
    """One family of IDX files: the url they come from (None: only from a directory), their SHA-256, their classes."""

    name: str
    url: str | None
    sha256: dict[str, str]
    classes: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts there are: "train" and "t10k" (the test part), or the latter alone."""
        return tuple(part for part in ("train", "t10k") if f"{part}-images-idx3-ubyte.gz" in self.sha256)


IMAGE_SETS = {
    image_set.name: image_set
    for image_set in (
        ImageSet(
            "mnist",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            {
                "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            },
            tuple("0123456789"),
        ),
        ImageSet(
            "fashion-mnist",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            {
                "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            },
            (
                "T-shirt/top",
                "trouser",
                "pullover",
                "dress",
                "coat",
                "sandal",
                "shirt",
                "sneaker",
                "bag",
                "ankle boot",
            ),
        ),
        ImageSet(
            "notmnist",
            None,
            {
                "t10k-images-idx3-ubyte.gz": "70ae9e06201f2827e5b0a3781a3169d735dd2efc69996b9eeaee7f10ed4044d7",
                "t10k-labels-idx1-ubyte.gz": "1fa03836e01c862542f8eb83463bb951bebec6fcb3efa28dad748c6b38a9021b",
            },
            tuple("ABCDEFGHIJ"),
        ),
    )
}


def read_images(image_set: ImageSet, part: Part, directory: str | Path | None) -> Data:
    """Read one part of an image set.

    Returns
    -------
    Data
        x (N, 1, height, width), float32 in [0, 1], not standardised; y (N,), int64.

    Raises
    ------
    FileNotFoundError
        If a file is neither found nor downloaded.
    ValueError
        If a file is broken, or a download has another checksum than the published file.
    """
    images = read_idx(find_file(image_set, f"{part}-images-idx3-ubyte.gz", directory), ndim=3)
    labels = read_idx(find_file(image_set, f"{part}-labels-idx1-ubyte.gz", directory), ndim=1)
    x = images.unsqueeze(1).to(torch.float32).div_(255.0)  # (N, 1, height, width)
    return Data(x, labels.long(), image_set.name, image_set.classes)


def find_file(image_set: ImageSet, file: str, directory: str | Path | None) -> Path:
    """Return the path of a file, from ``directory``, else from the folder BAYESNN_DATA, else downloaded.

    In a folder it may lie in a subfolder with the data set's name or directly, gzipped or plain. Several sets share
    these file names, so a file that lies directly in the folder and is another set's, by its checksum, is passed over.

    Raises
    ------
    FileNotFoundError
        If it is in no such place and cannot be downloaded.
    ValueError
        If the download has another checksum than the published file.
    """
    folder = directory if directory is not None else os.environ.get(ENVIRONMENT) or None
    if folder is not None:
        for path in candidates(Path(folder), image_set, file):
            if path.is_file():
                return path
    looked = (
        f"directory {str(directory)!r}"
        if directory is not None
        else f"{ENVIRONMENT} ({'not set' if folder is None else folder})"
    )
    remedy = f"pass directory= or set {ENVIRONMENT} to a folder that holds {image_set.name}/{file}"
    if image_set.url is None:
        raise FileNotFoundError(
            f"{image_set.name}: expected {file} in a folder, as it has no download, got none in {looked}: {remedy}"
        )
    try:
        return _download(image_set, file)
    except OSError as error:
        raise FileNotFoundError(
            f"{image_set.name}: expected {file} in a folder or by download, got none in {looked} and "
            f"{type(error).__name__} from {image_set.url}{file}: {remedy}, or go online"
        ) from error


def candidates(folder: Path, image_set: ImageSet, file: str) -> Iterator[Path]:
    """Where in ``folder`` a file of the set may lie, the likeliest first."""
    plain = file.removesuffix(".gz")
    yield folder / image_set.name / file
    yield folder / image_set.name / plain
    others = {other.sha256.get(file) for other in IMAGE_SETS.values() if other.name != image_set.name}
    packed = folder / file
    if packed.is_file() and hashlib.sha256(packed.read_bytes()).hexdigest() not in others:
        yield packed
    yield folder / plain


def _download(image_set: ImageSet, file: str) -> Path:
    import pooch

    return Path(
        pooch.retrieve(
            f"{image_set.url}{file}",
            known_hash=f"sha256:{image_set.sha256[file]}",
            fname=file,
            path=pooch.os_cache("bayesnn") / image_set.name,
            downloader=pooch.HTTPDownloader(timeout=60),
        )
    )
