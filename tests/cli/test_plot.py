import re

import pytest
from PIL import Image

from bayesnn.cli.plot import _FIGURES, PICTURES

CHAINS = {"traces", "rhat", "autocorrelation", "ranks"}
MOONS = {"training-curves", "reliability", "accuracy-rejection", "confusion", "boundary", "weights", *CHAINS}
IMAGES = {"entropy", "certainty", "rotation", "filters"}
DIGITS = {"training-curves", "reliability", "accuracy-rejection", "confusion", "weights", *IMAGES}
GAP = {"training-curves", "weights", "band", "pit", "coverage"}
RUNS = {"moons": MOONS, "digits": DIGITS, "gap": GAP}


@pytest.mark.parametrize(
    ("name", "picture"), [(name, picture) for name, has in RUNS.items() for picture in sorted(has)]
)
def test_a_picture_is_written(run, request, tmp_path, name, picture):
    out = tmp_path / "picture.png"
    result = run("plot", request.getfixturevalue(name), picture, "--out", out)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    with Image.open(out) as image:
        assert len(image.convert("L").getcolors()) > 10  # something is drawn


@pytest.mark.parametrize(("name", "has"), RUNS.items())
def test_a_picture_that_a_run_has_not_is_refused(refused, request, tmp_path, name, has):
    folder, out = request.getfixturevalue(name), tmp_path / "picture.png"
    for picture in set(PICTURES) - has:
        said = refused("plot", folder, picture, "--out", out)
        assert set(re.split(r", |: it has ", said.strip().rstrip("."))) >= has
    assert not out.exists()


def test_help_lists_the_pictures(run):
    text = run("plot", "--help").stdout
    assert all(f"  {name} " in text for name in PICTURES)
    assert set(PICTURES) == set(_FIGURES)


def test_a_vector_picture(run, gap, tmp_path):
    assert run("plot", gap, "pit", "--out", tmp_path / "pit.svg").exit_code == 0
    assert "<svg" in (tmp_path / "pit.svg").read_text()


def test_bad_input_is_one_line_and_exit_2(refused, gap, tmp_path):
    assert "Unknown picture 'bands': did you mean 'band'?" in refused("plot", gap, "bands", "--out", tmp_path / "a.png")
    assert "Expected a file .png, .pdf or .svg" in refused("plot", gap, "band", "--out", tmp_path / "a.bmp")
    assert "a folder that is there" in refused("plot", gap, "band", "--out", tmp_path / "no" / "a.png")
    assert "without run.json" in refused("plot", tmp_path, "band", "--out", tmp_path / "a.png")


@pytest.mark.parametrize("picture", ["band", "coverage", "weights"])
def test_the_seed_is_that_of_the_samples(run, gap, tmp_path, picture):
    drawn = []
    for seed in (0, 1, 1):
        assert run("plot", gap, picture, "--seed", seed, "--out", tmp_path / "picture.png").exit_code == 0
        drawn.append((tmp_path / "picture.png").read_bytes())
    assert drawn[0] != drawn[1] == drawn[2]
