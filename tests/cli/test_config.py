import json
import re
from pathlib import Path

import pytest

SMALL = 'method = "map"\nepochs = 1\nbatch-size = 50\nwidths = [4]\nno-progress = true\nseed = 7\n'


def settings(out):
    return json.loads((out / "run.json").read_text())["settings"]


def test_values_are_those_of_the_flags_and_flags_win(run, tmp_path):
    file, out, again = tmp_path / "fit.toml", tmp_path / "a", tmp_path / "b"
    file.write_text(SMALL + f'data = "moons"\nout = "{out}"\n')
    result = run("fit", "--config", file)
    assert (result.exit_code, result.stderr) == (0, "")
    found = settings(out)
    assert [found[name] for name in ("method", "epochs", "batch_size", "seed")] == ["map", 1, 50, 7]
    assert json.loads((out / "run.json").read_text())["net"]["widths"] == [4]
    assert run("fit", "--config", file, "--out", again, "--seed", "8").exit_code == 0
    assert (settings(again)["seed"], settings(again)["epochs"]) == (8, 1)


def test_the_file_of_the_page_is_true(run, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text(encoding="utf-8")
    file, data, out = tmp_path / "fit.toml", tmp_path / "data.csv", tmp_path / "run"
    file.write_text(re.search(r"```toml\n(.*?)```", page, re.S)[1], encoding="utf-8")
    rows = [f"{i},{i % 3},{i % 5},{i % 7},{i / 3}" for i in range(40)]
    data.write_text("\n".join(["age,bmi,s1,s2,progression", *rows]))
    result = run("fit", data, "--config", file, "--out", out, "--epochs", "50")
    assert (result.exit_code, result.stderr) == (0, "")
    written = json.loads((out / "run.json").read_text())
    assert (written["columns"], written["net"]["widths"]) == (["age", "bmi"], [20, 20])
    assert (written["settings"]["epochs"], written["settings"]["method"]) == (50, "sghmc:draws=200")


def test_lists_are_for_flags_that_may_be_given_again(run, tmp_path):
    file, out = tmp_path / "compare.toml", tmp_path / "out"
    file.write_text('methods = ["map", "vi"]\nseeds = [0, 1]\nepochs = 1\nnet = "mlp"\nprogress = false\n')
    assert run("compare", "moons", "--config", file, "--out", out).exit_code == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [(row["method"], row["seed"]) for row in rows] == [("map", 0), ("vi", 0), ("map", 1), ("vi", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "Unknown key 'epoch': did you mean 'epochs'?"),
        ("epochs = 2.5", "Invalid value for '--epochs'"),
        ("epochs = true", "Invalid value for '--epochs'"),
        ("epochs = [1, 2]", "Invalid value for '--epochs'"),
        ('progress = "no"', "progress: Expected true or false, got 'no'"),
        ("[fit]\nepochs = 3", "Unknown key 'fit'"),
        ("epochs = {most = 3}", "Expected a value, got a table"),
        ('config = "other.toml"', "Unknown key 'config'"),
        ("epochs 3", "Expected TOML"),
    ],
)
def test_what_is_no_flag_or_value_is_refused(refused, tmp_path, text, message):
    file = tmp_path / "fit.toml"
    file.write_text(text)
    said = refused("fit", "moons", "--out", tmp_path / "run", "--config", file)
    assert message in said
    assert not (tmp_path / "run").exists()


def test_a_missing_file_is_named(refused, tmp_path):
    assert f"Expected a file, got {tmp_path / 'no.toml'}" in refused("diagnose", "--config", tmp_path / "no.toml")
