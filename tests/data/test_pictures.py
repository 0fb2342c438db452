import numpy as np
import pytest
from PIL import Image

from bayesnn.data.pictures import read_pictures

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)  # (2, 2, 3)


def test_grey_is_rec_601_and_colours_come_first(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "b.png")
    names, grey = read_pictures(tmp_path, (1, 2, 2))
    assert (names, tuple(grey.shape)) == (["b.png"], (1, 1, 2, 2))
    # Pillow rounds to one of 256 levels.
    assert grey.flatten().numpy() == pytest.approx([0.299, 0.587, 0.114, 1.0], abs=1 / 255)
    _, colour = read_pictures(tmp_path, (3, 2, 2))
    assert colour[0].numpy() == pytest.approx(COLOURS.transpose(2, 0, 1) / 255)


def test_files_come_in_the_order_of_their_names(tmp_path):
    for name, level in (("b.jpeg", 40), ("a.png", 10), ("c.JPG", 90)):
        Image.fromarray(np.full((8, 8), level, dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "d.txt").write_text("no image")
    (tmp_path / "e.png").mkdir()
    names, x = read_pictures(tmp_path, (1, 8, 8))
    assert names == ["a.png", "b.jpeg", "c.JPG"]
    assert x.mean((1, 2, 3)).mul(255).numpy() == pytest.approx([10, 40, 90], abs=1)


def test_other_sizes_are_refused_or_scaled(tmp_path):
    Image.fromarray(np.full((6, 4), 51, dtype=np.uint8)).save(tmp_path / "tall.png")
    with pytest.raises(ValueError, match=r"Expected images of 2 x 3 pixels, got 4 x 6 in .*tall\.png"):
        read_pictures(tmp_path, (1, 3, 2))
    assert read_pictures(tmp_path, (1, 3, 2), resize=True)[1].numpy() == pytest.approx(np.full((1, 1, 3, 2), 0.2))


def test_what_is_no_image_is_named(tmp_path):
    with pytest.raises(ValueError, match="Expected PNG or JPEG files in"):
        read_pictures(tmp_path, (1, 2, 2))
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"Expected a PNG or JPEG image, got .*x\.png"):
        read_pictures(tmp_path, (1, 2, 2))


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((2, 2), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"Expected 8 bits a channel, got mode I;16 in .*deep\.png"):
        read_pictures(tmp_path, (1, 2, 2))


def test_other_numbers_of_channels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        read_pictures(tmp_path, (2, 2, 2))
