import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import datasets

import bayesnn as bnn
from bayesnn.cli import _runs

DIGITS = 1e-6  # relative: of single precision, and of nine digits written


def table(text):
    rows = list(csv.DictReader(io.StringIO(text)))
    return {name: [row[name] for row in rows] for name in rows[0]}


def floats(cells):
    return torch.tensor([float(cell) for cell in cells], dtype=torch.float64)


def by_library(folder, x, net):
    """As a user of the library would, with no code of the command line."""
    described = json.loads((folder / "run.json").read_text())
    inputs = bnn.data.Standardize.from_dict(described["inputs"])
    return bnn.Posterior.load(folder, net).predict(inputs.forward(x))


def test_classes_are_those_of_the_library(run, moons, tmp_path):
    x = torch.tensor([[0.3, -0.2], [1.0, 0.5], [-1.5, 2.0]])
    np.save(tmp_path / "x.npy", x.numpy())
    result = run("predict", moons, tmp_path / "x.npy")
    assert (result.exit_code, result.stderr) == (0, "")
    found, predictive = table(result.stdout), by_library(moons, x, bnn.nets.MLP(2, (5,), 2))
    uncertainties = ["entropy", "mutual_information", "aleatoric"]
    assert list(found) == ["p(upper)", "p(lower)", "prediction", "confidence", *uncertainties]
    for name, values in (
        ("p(upper)", predictive.mean[:, 0]),
        ("p(lower)", predictive.mean[:, 1]),
        ("confidence", predictive.mean.max(1).values),
        ("entropy", predictive.total),
        ("mutual_information", predictive.epistemic),
        ("aleatoric", predictive.aleatoric),
    ):
        assert floats(found[name]) == pytest.approx(values.double(), rel=DIGITS)
    assert found["prediction"] == [("upper", "lower")[k] for k in predictive.mean.argmax(1)]


def test_a_regression_is_in_the_targets_own_units(run, priced, houses, tmp_path):
    out = tmp_path / "out.csv"
    assert run("predict", priced, houses, "--level", "0.8", "--out", out).stdout == ""
    found = table(out.read_text())
    read = table(houses.read_text())
    x = torch.stack([floats(read["area"]), floats(read["age"])], 1)
    predictive = by_library(priced, x, bnn.nets.MLP(2, (50, 50), 1))
    lower, upper = predictive.interval(0.8)
    for name, values in (
        ("mean", predictive.mean),
        ("sd", predictive.std),
        ("epistemic_sd", predictive.epistemic.sqrt()),
        ("aleatoric_sd", predictive.aleatoric.sqrt()),
        ("lower", lower),
        ("upper", upper),
    ):
        assert floats(found[name]) == pytest.approx(values.double().flatten(), rel=DIGITS)
    assert list(found) == ["mean", "sd", "epistemic_sd", "aleatoric_sd", "lower", "upper"]
    price = floats(read["price"])
    # The least squares of a straight line leave the noise, 1e4; the prices have a spread of more than ten times that.
    assert (floats(found["mean"]) - price).square().mean().sqrt() < 0.3 * price.std()


def test_columns_are_found_by_name(run, priced, houses, tmp_path):
    moved = tmp_path / "moved.csv"
    lines = [line.split(",") for line in houses.read_text().splitlines()]
    moved.write_text("\n".join(f"{age}\t{area}\textra" for _, area, age, _ in lines) + "\n")
    moved.write_text(moved.read_text().replace("age\tarea\textra", "age\tarea\tnote"))
    assert run("predict", priced, moved).stdout == run("predict", priced, houses).stdout


def test_named_data_have_the_names_of_their_columns(run, tmp_path):
    out = tmp_path / "run"
    how = ("--method", "map", "--epochs", "1", "--out", out, "--no-progress")
    assert run("fit", "diabetes", *how).exit_code == 0
    bunch = datasets.load_diabetes(scaled=False)
    rows = [",".join(map(str, row)) for row in bunch.data[:3]]
    (tmp_path / "x.csv").write_text("\n".join([",".join(bunch.feature_names), *rows]))
    found = table(run("predict", out, tmp_path / "x.csv").stdout)
    predictive = by_library(out, torch.tensor(bunch.data[:3], dtype=torch.float64), bnn.nets.MLP(10, (50, 50), 1))
    assert floats(found["mean"]) == pytest.approx(predictive.mean.double().flatten(), rel=DIGITS)


@pytest.fixture
def scans(tmp_path):
    """Five digits as images, and the pixels that they have."""
    folder = tmp_path / "scans"
    folder.mkdir()
    pixels = np.round(datasets.load_digits().images[:5] * 255 / 16).astype(np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).convert("RGB" if i == 4 else "L").save(folder / f"{i}.{'PNG' if i == 3 else 'png'}")
    (folder / "notes.txt").write_text("no image")
    return folder, pixels


def test_images_arrays_and_the_library_agree(run, digits, scans, tmp_path):
    folder, pixels = scans
    np.save(tmp_path / "bytes.npy", pixels)
    np.save(tmp_path / "floats.npy", pixels[:, None].astype(np.float32) / 255)
    found = table(run("predict", digits, folder, "--draws", "7", "--seed", "2").stdout)
    assert found.pop("file") == ["0.png", "1.png", "2.png", "3.PNG", "4.png"]
    for name in ("bytes.npy", "floats.npy"):
        other = table(run("predict", digits, tmp_path / name, "--draws", "7", "--seed", "2").stdout)
        assert other["prediction"] == found["prediction"]
        # Passes of single precision round otherwise where memory is aligned otherwise.
        assert floats(other["p(3)"]) == pytest.approx(floats(found["p(3)"]), rel=1e-5)
    loaded = _runs.load(digits)
    x = loaded.inputs.forward(torch.from_numpy(pixels[:, None].astype(np.float32) / 255))
    predictive = loaded.posterior.predict(x, draws=7, seed=2)
    assert floats(found["p(3)"]) == pytest.approx(predictive.mean[:, 3].double(), rel=1e-5)
    total = floats(found["aleatoric"]) + floats(found["mutual_information"])
    assert floats(found["entropy"]) == pytest.approx(total, rel=1e-6)
    assert table(run("predict", digits, folder, "--seed", "3").stdout)["p(3)"] != found["p(3)"]


def test_images_of_another_size_are_scaled_when_asked(run, refused, digits, scans, tmp_path):
    folder, pixels = scans
    Image.fromarray(pixels[0]).resize((16, 12)).save(folder / "large.jpg")
    said = refused("predict", digits, folder)
    assert f"Expected images of 8 x 8 pixels, got 16 x 12 in {folder / 'large.jpg'}" in said
    found = table(run("predict", digits, folder, "--resize").stdout)
    assert found["file"][-1] == "large.jpg"
    with Image.open(folder / "large.jpg") as image:
        np.save(tmp_path / "x.npy", np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))[None])
    other = table(run("predict", digits, tmp_path / "x.npy").stdout)
    assert floats(other["p(0)"]) == pytest.approx(floats(found["p(0)"][-1:]), rel=1e-5)


def test_a_dash_is_standard_output(run, moons, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    assert run("predict", moons, tmp_path / "x.npy", "--out", "-").stdout.startswith("p(upper),")


def test_one_input_may_be_a_plain_list(run, gap, tmp_path):
    np.save(tmp_path / "x.npy", np.array([0.0, 0.5, math.pi]))
    assert len(table(run("predict", gap, tmp_path / "x.npy").stdout)["mean"]) == 3


def csv_file(folder, text):
    path = folder / "x.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("area,id\n1,2\n", "Expected a column 'age' in"),
        ("area,age\n1,2\n3,old\n", "got 'old' in line 3"),
        ("area,age\n1,\n", "got '' in line 2"),
        ("area,age\n1,inf\n", "got 'inf' in line 2"),
        ("area,age\n1\n", "Expected 2 cells in line 2"),
        ("area,age\n", "Expected rows below the header"),
        ("area,age,area\n1,2,3\n", "'area' twice"),
        ("", "got an empty one"),
    ],
)
def test_bad_tables_are_refused(refused, priced, tmp_path, text, message):
    assert message in refused("predict", priced, csv_file(tmp_path, text))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 9)), "Expected an array (N, 1, 8, 8)"),
        (np.zeros((0, 1, 8, 8)), "got shape (0, 1, 8, 8)"),
        (np.full((2, 8, 8), np.nan), "NaN or infinite"),
        (np.full((2, 8, 8), 255.0), "Expected pixels in [0, 1], or uint8"),
        (np.full((2, 8, 8), "a"), "Expected numbers"),
    ],
)
def test_bad_arrays_are_refused(refused, digits, tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    assert message.lower() in refused("predict", digits, tmp_path / "x.npy").lower()


def test_nothing_is_unpickled(refused, digits, tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "Expected an array of numbers" in refused("predict", digits, tmp_path / "x.npy")


def test_other_bad_input_is_refused(refused, digits, moons, priced, houses, scans, tmp_path):
    folder, _ = scans
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    assert f"got {folder / 'broken.png'}" in refused("predict", digits, folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "Expected PNG or JPEG files" in refused("predict", digits, empty)
    assert "without run.json" in refused("predict", empty, houses)
    assert "without images, got the folder" in refused("predict", moons, folder)
    assert "Expected a folder of images or a .npy file" in refused("predict", digits, houses)
    for name in ("gone.txt", "gone.csv", "gone.npy"):
        assert f"{name}: there is no such file" in refused("predict", priced, tmp_path / name)
    assert "convert it" in refused("predict", priced, priced / "run.json")
    assert "Expected level in (0, 1), got 1.0" in refused("predict", priced, houses, "--level", "1")
    assert "Expected draws to be an integer >= 1" in refused("predict", priced, houses, "--draws", "0")
    assert "Expected seed to be an integer >= 0" in refused("predict", priced, houses, "--seed", "-1")
    assert "Expected a folder of images with --resize" in refused("predict", priced, houses, "--resize")
    assert "than the inputs" in refused("predict", priced, houses, "--out", houses)
    assert "a folder that is there" in refused("predict", priced, houses, "--out", tmp_path / "no" / "out.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "{", "it is damaged"),
        (lambda text: text.replace('"version": 1', '"version": 99'), "version 99"),
        (lambda text: text.replace('"columns"', '"columms"'), "got no columns"),
        (lambda text: text.replace('"method": "map"', '"metod": "map"'), "got no method"),
        (lambda text: text.replace('"kind": "mlp"', '"kind": "mpl"'), "Unknown net 'mpl'"),
    ],
)
def test_a_damaged_run_is_refused(refused, run, houses, tmp_path, change, message):
    out = tmp_path / "run"
    how = ("--target", "price", "--method", "map", "--epochs", "1", "--out", out, "--no-progress")
    assert run("fit", houses, *how).exit_code == 0
    text = (out / "run.json").read_text()
    (out / "run.json").write_text(change(text))
    assert message in refused("predict", out, houses)
