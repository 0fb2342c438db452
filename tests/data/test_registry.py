import gzip
import hashlib
import os
import struct
from pathlib import Path

import pytest
import torch

from bayesnn.data import load, load_test, names, sine_gap_region
from bayesnn.data.idx import read_idx
from bayesnn.data.images import IMAGE_SETS, find_file

EMBEDDED = ("digits", "diabetes", "breast-cancer", "moons", "sine-gap")


def needs_files(name):
    folder = os.environ.get("BAYESNN_DATA")
    present = folder is not None and (Path(folder) / name).is_dir()
    return pytest.mark.skipif(not present, reason=f"needs BAYESNN_DATA to name a folder that holds {name}/")


def idx(*shape, fill=None, seed=0):
    size = torch.Size(shape).numel()
    values = torch.randint(256, (size,), generator=torch.Generator().manual_seed(seed)) if fill is None else fill
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + bytes(values.tolist())


def write_set(folder, parts=("train", "t10k"), pack=True, seed=0):
    """Write a tiny image set of 20 training and 10 test images, 4x5, with classes 0 to 9."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        n = 20 if part == "train" else 10
        for kind, raw in (
            ("images-idx3", idx(n, 4, 5, seed=seed + n)),
            ("labels-idx1", idx(n, fill=torch.arange(n) % 10)),
        ):
            path = folder / f"{part}-{kind}-ubyte{'.gz' if pack else ''}"
            path.write_bytes(gzip.compress(raw) if pack else raw)


class TestEmbedded:
    @pytest.mark.parametrize(
        ("name", "sizes", "in_shape", "outputs", "dtype"),
        [
            ("digits", (1438, 359), (1, 8, 8), 10, torch.int64),
            ("diabetes", (354, 88), (10,), 1, torch.float32),
            ("breast-cancer", (455, 114), (30,), 2, torch.int64),
            ("moons", (500, 125), (2,), 2, torch.int64),
            ("sine-gap", (80, 20), (1,), 1, torch.float32),
        ],
    )
    def test_sizes_and_types(self, name, sizes, in_shape, outputs, dtype):
        for data, size in zip(load(name), sizes, strict=True):
            assert (len(data), data.in_shape, data.num_outputs) == (size, in_shape, outputs)
            assert (data.x.dtype, data.y.dtype, data.name) == (torch.float32, dtype, name)
            assert (data.target is None) == (dtype == torch.int64)

    @pytest.mark.parametrize("name", EMBEDDED)
    def test_the_training_part_is_standardised_and_the_test_part_by_the_same_constants(self, name):
        train, test = load(name)
        dims = [0, *range(2, train.x.dim())]
        mean, std = train.x.double().mean(dims), train.x.double().std(dims, correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
        torch.testing.assert_close(std, torch.ones_like(std), atol=1e-5, rtol=0)
        assert test.inputs is train.inputs

    @pytest.mark.parametrize("name", EMBEDDED)
    def test_the_seed_decides(self, name):
        first, again, other = load(name, seed=1), load(name, seed=1), load(name, seed=2)
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.y, b.y)
        assert not torch.equal(first[1].x, other[1].x)

    def test_the_global_random_states_are_left_alone(self):
        import numpy as np

        before, before_numpy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        for name in EMBEDDED:
            load(name)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert (np.random.get_state()[1] == before_numpy).all()  # noqa: NPY002

    def test_targets_keep_their_own_units(self):
        train, test = load("diabetes")
        y = torch.cat([train.y, test.y])
        assert (y.min().item(), y.max().item()) == (25.0, 346.0)
        torch.testing.assert_close(train.target.mean, train.y.mean())

    def test_images_come_back_in_0_to_1(self):
        train, _ = load("digits")
        pixels = train.inputs.inverse(train.x) * 16.0
        torch.testing.assert_close(pixels, pixels.round(), atol=1e-4, rtol=0)
        assert (pixels.min().round().item(), pixels.max().round().item()) == (0.0, 16.0)

    def test_test_fraction(self):
        assert [len(data) for data in load("breast-cancer", test_fraction=0.5)] == [285, 284]
        assert [len(data) for data in load("moons", test_fraction=0.5)] == [500, 500]
        assert [len(data) for data in load("sine-gap", test_fraction=0.001)] == [80, 1]
        with pytest.raises(ValueError, match="test_fraction"):
            load("moons", test_fraction=1.0)

    def test_sine_gap_has_its_gap_its_curve_and_its_noise(self):
        train, test = load("sine-gap", test_fraction=0.9)
        assert (len(train), len(test)) == (80, 720)
        for data in (train, test):
            low, high = sine_gap_region(data)
            assert not ((data.x > low) & (data.x < high)).any()
            assert 0.3 < (data.x < low).double().mean() < 0.7
        assert sine_gap_region() == (-0.3, 0.3)
        x = test.inputs.inverse(test.x)[:, 0]
        assert 0.3 <= x.abs().min() < 0.31
        assert 0.99 < x.abs().max() <= 1.0 + 1e-6
        noise = test.y - torch.sin(4.0 * x)
        # sd of a sample sd of n normal numbers is about sd / sqrt(2 n): 0.1 / sqrt(1440) = 0.0026.
        assert abs(noise.std().item() - 0.1) < 4 * 0.0026

    def test_an_unknown_name_gives_the_nearest(self):
        with pytest.raises(ValueError, match=r"'fashion_mnist'.*did you mean 'fashion-mnist'"):
            load("fashion_mnist")
        with pytest.raises(ValueError, match="did you mean 'notmnist'"):
            load_test("not-mnist")

    def test_names_are_what_load_takes(self):
        assert names() == (*EMBEDDED, "mnist", "fashion-mnist")


class TestIdx:
    @pytest.mark.parametrize("pack", [True, False])
    def test_reads_what_was_written(self, tmp_path, pack):
        path = tmp_path / "file"
        raw = idx(2, 3, 4, fill=torch.arange(24) + 200)
        path.write_bytes(gzip.compress(raw) if pack else raw)
        assert torch.equal(read_idx(path, ndim=3), (torch.arange(24) + 200).to(torch.uint8).reshape(2, 3, 4))

    @pytest.mark.parametrize(
        ("raw", "match"),
        [
            (b"", "got magic of an empty file"),
            (idx(6), "with 3 axes .magic 00000803., got magic 00000801"),
            (b"\x00\x00\x0d\x03" + idx(1, 1, 1)[4:], "got magic 00000d03"),
            (idx(2, 3, 4)[:10], "expected a header of 16 bytes, got 10 bytes"),
            (idx(2, 3, 4)[:-1], r"expected 24 bytes after the header for shape \(2, 3, 4\), got 23"),
            (idx(2, 3, 4) + b"\x00", "expected 24 bytes .* got 25"),
            (gzip.compress(idx(20, 30, 40))[:-100], "expected a whole gzip file"),
            (gzip.compress(idx(2, 3, 4))[:12] + b"\xff" * 40, "expected a whole gzip file"),
        ],
        ids=["empty", "labels", "floats", "header", "short", "long", "gzip-short", "gzip-broken"],
    )
    def test_a_broken_file_is_one_line_with_its_path(self, tmp_path, raw, match):
        path = tmp_path / "broken-file"
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=match) as caught:
            read_idx(path, ndim=3)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


class TestImageFiles:
    @pytest.mark.parametrize("pack", [True, False])
    @pytest.mark.parametrize("subfolder", ["", "mnist"])
    @pytest.mark.parametrize("how", ["directory", "environment"])
    def test_files_are_found(self, tmp_path, monkeypatch, pack, subfolder, how):
        write_set(tmp_path / subfolder, pack=pack)
        monkeypatch.setenv("BAYESNN_DATA", str(tmp_path if how == "environment" else tmp_path / "elsewhere"))
        train, test = load("mnist", directory=tmp_path if how == "directory" else None)
        assert (len(train), len(test), train.in_shape) == (20, 10, (1, 4, 5))
        raw = torch.frombuffer(bytearray(idx(20, 4, 5, seed=20)[16:]), dtype=torch.uint8).reshape(20, 1, 4, 5)
        torch.testing.assert_close(train.inputs.inverse(train.x), raw / 255.0)
        assert test.y.tolist() == list(range(10))

    def test_the_subfolder_goes_before_the_folder(self, tmp_path):
        write_set(tmp_path, seed=0)
        write_set(tmp_path / "mnist", seed=50)
        assert find_file(IMAGE_SETS["mnist"], "t10k-images-idx3-ubyte.gz", tmp_path).parent.name == "mnist"

    def test_files_of_another_set_are_passed_over(self, tmp_path, monkeypatch):
        write_set(tmp_path)
        file = "t10k-images-idx3-ubyte.gz"
        digest = hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
        monkeypatch.setitem(IMAGE_SETS["mnist"].sha256, file, digest)
        assert find_file(IMAGE_SETS["mnist"], file, tmp_path) == tmp_path / file
        with pytest.raises(FileNotFoundError):
            find_file(IMAGE_SETS["notmnist"], file, tmp_path)

    def test_offline_says_both_ways(self, tmp_path, monkeypatch):
        def offline(*args, **kwargs):
            raise ConnectionError("no route")

        monkeypatch.setattr("pooch.retrieve", offline)
        monkeypatch.delenv("BAYESNN_DATA", raising=False)
        expected = r"BAYESNN_DATA \(not set\) and ConnectionError from http.*: pass directory= or set .* go online"
        with pytest.raises(FileNotFoundError, match=expected) as caught:
            load("fashion-mnist")
        assert "\n" not in str(caught.value)
        with pytest.raises(FileNotFoundError, match="directory '"):
            load("mnist", directory=tmp_path)

    def test_a_download_asks_for_the_published_file(self, tmp_path, monkeypatch):
        asked = {}

        def retrieve(url, known_hash, fname, **kwargs):
            asked[url] = known_hash
            return str(tmp_path / fname)

        write_set(tmp_path)
        monkeypatch.setattr("pooch.retrieve", retrieve)
        monkeypatch.delenv("BAYESNN_DATA", raising=False)
        train, _ = load("mnist")
        assert len(train) == 20
        assert len(asked) == 4
        base = "https://ossci-datasets.s3.amazonaws.com/mnist/"
        assert asked[f"{base}train-images-idx3-ubyte.gz"].startswith("sha256:440fcabf")

    def test_notmnist_has_a_test_part_and_no_download(self, tmp_path):
        with pytest.raises(ValueError, match=r"load_test\('notmnist'\)"):
            load("notmnist")
        with pytest.raises(FileNotFoundError, match="as it has no download"):
            load_test("notmnist", directory=tmp_path)

    def test_load_test_standardises_like_the_training_data(self, tmp_path):
        write_set(tmp_path / "mnist")
        write_set(tmp_path / "notmnist", parts=("t10k",), seed=7)
        train, _ = load("mnist", directory=tmp_path)
        raw = load_test("notmnist", directory=tmp_path)
        like = load_test("notmnist", directory=tmp_path, like=train)
        assert raw.inputs is None
        assert 0.0 <= raw.x.min() < raw.x.max() <= 1.0
        torch.testing.assert_close(like.x, (raw.x - train.inputs.mean) / train.inputs.std)
        assert like.classes == tuple("ABCDEFGHIJ")
        with pytest.raises(ValueError, match="like standardised"):
            load_test("notmnist", directory=tmp_path, like=raw)
        with pytest.raises(ValueError, match="inputs of shape"):
            load_test("notmnist", directory=tmp_path, like=load("digits")[0])


class TestRealFiles:
    @pytest.mark.parametrize(
        ("name", "mean", "std", "first_classes"),
        [
            pytest.param("mnist", 0.1307, 0.3081, [980, 1135, 1032], marks=needs_files("mnist")),
            pytest.param("fashion-mnist", 0.2860, 0.3530, [1000, 1000, 1000], marks=needs_files("fashion-mnist")),
        ],
    )
    def test_well_known_numbers(self, name, mean, std, first_classes):
        train, test = load(name)
        assert train.x.shape == (60_000, 1, 28, 28)
        assert test.x.shape == (10_000, 1, 28, 28)
        assert torch.bincount(test.y)[:3].tolist() == first_classes
        assert round(train.inputs.mean.item(), 4) == mean
        assert round(train.inputs.std.item(), 4) == std

    @pytest.mark.parametrize("name", [pytest.param(name, marks=needs_files(name)) for name in IMAGE_SETS])
    def test_checksums_are_the_files(self, name):
        for file, digest in IMAGE_SETS[name].sha256.items():
            path = find_file(IMAGE_SETS[name], file, None)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest

    @needs_files("notmnist")
    def test_notmnist(self):
        letters = load_test("notmnist")
        assert letters.x.shape == (10_000, 1, 28, 28)
        assert set(letters.y.tolist()) == set(range(10))
