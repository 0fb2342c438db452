"""A folder of images as inputs of a net."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg")
_MODES = {1: "L", 3: "RGB"}


def read_pictures(folder: str | Path, in_shape: Sequence[int], resize: bool = False) -> tuple[list[str], Tensor]:
    """Read the PNG and JPEG files of a folder, in the order of their names.

    Parameters
    ----------
    folder : str or Path
        Files with other endings, and folders in it, are passed over.
    in_shape : (channels, height, width)
        Of one input of the net: 1 channel is grey (colours are weighted by Rec. 601), 3 are red, green and blue.
    resize : bool
        Scale images of another size (bilinear); otherwise they are refused.

    Returns
    -------
    names : list of str
        Of the files.
    x : Tensor, (images, channels, height, width)
        float32 in [0, 1], not standardised.

    Raises
    ------
    ValueError
        If there is no image, or one that is damaged, not of 8 bits a channel, or of another size: the error names it.
    """
    from PIL import Image  # Pillow; matplotlib cannot do without it, so it is there in any case

    channels, height, width = in_shape
    if channels not in _MODES:
        raise ValueError(f"Expected a net for images of 1 or 3 channels, got {channels}: give a .npy file.")
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"Expected PNG or JPEG files in {folder}, got none: name the folder that holds them.")
    images = []
    for path in paths:
        try:
            with Image.open(path) as opened:
                if opened.mode.startswith(("I", "F")):
                    raise ValueError(f"Expected 8 bits a channel, got mode {opened.mode} in {path}: convert it.")
                image = opened.convert(_MODES[channels])
        except (OSError, SyntaxError) as error:  # what Pillow raises for a broken PNG
            raise ValueError(f"Expected a PNG or JPEG image, got {path}: {error}") from error
        if image.size != (width, height):
            if not resize:
                raise ValueError(
                    f"Expected images of {width} x {height} pixels, got {image.size[0]} x {image.size[1]} in {path}: "
                    "scale it, or ask for resize."
                )
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        images.append(np.asarray(image, dtype=np.float32).reshape(height, width, channels) / 255)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    # Strides too: where they are those of channels last, convolutions round otherwise.
    return [path.name for path in paths], x.clone(memory_format=torch.contiguous_format)
