"""The IDX file format of MNIST and its kin."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GZIP_MAGIC = b"\x1f\x8b"
UBYTE = 0x08


def read_idx(path: str | Path, ndim: int) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped or plain (its first bytes tell).

    Parameters
    ----------
    path : str or Path
    ndim : int
        Number of axes it must have: 3 for images, 1 for labels.

    Returns
    -------
    Tensor, uint8, of ``ndim`` axes

    Raises
    ------
    ValueError
        If the file is no such IDX file: another magic number, another size than its header says, or broken gzip.
    OSError
        If it cannot be read.

    References
    ----------
    LeCun, Cortes & Burges, The MNIST database, section "File formats": two zero bytes, one for the type (8 is unsigned
    byte), one for the number of axes; each axis as a big-endian 32-bit integer; then the bytes, last axis fastest.
    """
    path = Path(path)
    raw = path.read_bytes()
    if raw.startswith(GZIP_MAGIC):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path}: expected a whole gzip file, got a broken one ({error}): fetch it again"
            ) from error
    expected = bytes((0, 0, UBYTE, ndim))
    if raw[:4] != expected:
        raise ValueError(
            f"{path}: expected an IDX file of bytes with {ndim} axes (magic {expected.hex()}), "
            f"got magic {raw[:4].hex() or 'of an empty file'}: check which file this is"
        )
    header = 4 + 4 * ndim
    if len(raw) < header:
        raise ValueError(f"{path}: expected a header of {header} bytes, got {len(raw)} bytes: fetch it again")
    shape = tuple(int(side) for side in np.frombuffer(raw, dtype=">u4", count=ndim, offset=4))
    if len(raw) - header != math.prod(shape):
        raise ValueError(
            f"{path}: expected {math.prod(shape)} bytes after the header for shape {shape}, got {len(raw) - header}: "
            "fetch it again"
        )
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape).copy())
