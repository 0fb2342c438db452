import json

import numpy as np
import pytest
import torch

from bayesnn.cli import _runs


@pytest.fixture
def calm(run, tmp_path):
    """A linear regression by Gibbs steps: independent enough to have nothing to complain of."""
    out = tmp_path / "calm"
    how = ("--method", "gibbslinear:draws=200", "--prior", "normal", "--net", "linear", "--epochs", "300")
    assert run("fit", "sine-gap", *how, "--out", out, "--no-progress").exit_code == 0
    return out


def test_nothing_to_complain_of_is_exit_0(run, calm):
    result = run("diagnose", calm)
    assert result.exit_code == 0
    assert result.stdout.startswith("the chains agree at every input")


def test_a_complaint_is_exit_1_and_what_the_library_says(run, moons):
    result = run("diagnose", moons)
    assert (result.exit_code, result.stderr) == (1, "")
    loaded = _runs.load(moons)
    _, test = loaded.test()
    assert result.stdout == f"{loaded.posterior.diagnose(test.x)}\n"
    assert "temperature, by gradients" in result.stdout  # the training rows are there again


def test_the_training_rows_are_those_of_the_fit(moons):
    loaded = _runs.load(moons)
    loaded.data()
    assert len(loaded.posterior.train[0]) == loaded.posterior.num_data == 450


def test_a_distribution_has_its_bound(run, gap):
    result = run("diagnose", gap)
    assert result.exit_code == 1
    assert "ELBO" in result.stdout
    assert "compare with a sampler" in result.stdout


def test_inputs_of_the_user(run, moons, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    result = run("diagnose", moons, tmp_path / "x.npy", "--rows", "1", "--draws", "8")
    assert result.exit_code == 1
    loaded = _runs.load(moons)
    loaded.data()
    x = loaded.inputs.forward(torch.zeros(1, 2, dtype=torch.float64))
    assert result.stdout == f"{loaded.posterior.diagnose(x, draws=8)}\n"


def test_bad_input_is_one_line_and_exit_2(refused, moons, priced, tmp_path):
    assert "point estimates have nothing to diagnose" in refused("diagnose", priced)
    assert "without run.json" in refused("diagnose", tmp_path)
    assert "Expected rows to be an integer >= 1, got 0" in refused("diagnose", moons, "--rows", "0")
    assert "with --resize" in refused("diagnose", moons, "--resize")
    assert "there is no such file" in refused("diagnose", moons, tmp_path / "x")


def test_other_data_than_those_of_the_fit_are_refused(run, refused, tmp_path):
    out = tmp_path / "run"
    how = ("--method", "sgld:draws=8", "--widths", "4", "--epochs", "5", "--out", out, "--no-progress")
    assert run("fit", "moons", *how).exit_code == 0
    text = (out / "run.json").read_text()
    changed = json.loads(text)
    changed["inputs"]["mean"][0] += 0.1
    (out / "run.json").write_text(json.dumps(changed))
    assert f"Expected the data that {out} was fitted to, got others" in refused("diagnose", out)
    (out / "run.json").write_text(text.replace('"name": "moons"', '"name": "sine-gap"'))
    assert "error: " in refused("diagnose", out)


def test_data_that_have_changed_are_refused(run, refused, houses, tmp_path):
    file, out = tmp_path / "mine.csv", tmp_path / "run"
    file.write_text(houses.read_text())
    how = ("--target", "price", "--method", "sgld:draws=8", "--epochs", "40", "--out", out, "--no-progress")
    assert run("fit", file, *how).exit_code == 0
    file.write_text(file.read_text().replace("\n1,", "\n1000,"))
    assert f"Expected {file} as it was when the run was made" in refused("diagnose", out)
    file.unlink()
    assert "found no such file: give other inputs" in refused("diagnose", out)
    result = run("diagnose", out, houses)  # by what it predicts, without the temperature
    assert result.exit_code == 1
    assert result.stderr.startswith("warning: Without the training rows: Expected the data of this run in")
    assert "temperature, by gradients" not in result.stdout
