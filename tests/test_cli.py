import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import bayesnn as bnn
from bayesnn.cli import app

SHORT = ["compare", "breast-cancer", "--methods", "map,vi", "--epochs", "1", "--no-progress"]


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_compare_prints_the_table_and_saves_the_same(tmp_path):
    out = tmp_path / "results"
    result = run(*SHORT, "--seeds", "0", "--seeds", "1", "--batch-size", "32", "--out", str(out))
    assert result.exit_code == 0, result.output
    table = (out / "table.md").read_text().split("\n\n")[0]
    assert result.stdout.startswith(table)
    assert str(out) in result.stdout.splitlines()[-1]
    saved = json.loads((out / "results.json").read_text())
    assert [(row["method"], row["seed"]) for row in saved["rows"]] == [("map", 0), ("vi", 0), ("map", 1), ("vi", 1)]
    assert (saved["epochs"], saved["batch_size"], saved["nets"]) == (1, 32, ["mlp"])
    assert (out / "reliability.png").is_file()


def test_net_may_be_given_several_times():
    result = run("compare", "digits", "--net", "mlp", "--net", "convnet", "--methods", "map", "--epochs", "1")
    assert [line.split("|")[1].strip() for line in result.stdout.splitlines()] == ["net", "-------", "mlp", "convnet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "digit"], "error: Unknown data set 'digit': did you mean 'digits'?"),
        (["compare", "digits", "--methods", "map,vy"], "error: Unknown method 'vy': did you mean 'vi'?"),
        (["compare", "digits", "--net", "lenet"], "error: Unknown net 'lenet': did you mean 'lenet5'?"),
        (["compare", "moons", "--net", "lenet5"], "error: "),
        (["compare", "digits", "--epochs", "0"], "error: Expected epochs to be an integer >= 1, got 0"),
        (["compare", "digits", "--batch-size", "0"], "error: Expected batch_size to be an integer >= 1, got 0"),
    ],
)
def test_errors_of_the_user_are_one_line_and_exit_2(arguments, message):
    result = run(*arguments, "--no-progress")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_missing_files_are_one_line_and_exit_2(tmp_path, monkeypatch):
    import pooch

    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(pooch, "retrieve", offline)
    result = run("compare", "mnist", "--data-dir", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: mnist: expected train-images-idx3-ubyte.gz in a folder or by download")
    assert result.stderr.count("\n") == 1


def test_warnings_are_one_line_too(monkeypatch):
    import bayesnn.compare  # noqa: F401

    module = sys.modules["bayesnn.compare"]

    def diverge(*_, **__):
        raise bnn.DivergedError("lower lr")

    monkeypatch.setattr(module, "fit", diverge)
    result = run("compare", "moons", "--methods", "map", "--no-progress")
    assert result.stderr == "warning: mlp, map, seed 0: lower lr\n"
    assert "diverged" in result.stdout


def test_version_and_names():
    assert run("--version").stdout == f"bayesnn {bnn.__version__}\n"
    assert run("data").stdout.split() == list(bnn.data.names())


def test_the_installed_command_has_no_traceback_either():
    command = [sys.executable, "-c", "from bayesnn.cli import main; main()", "compare", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Unknown data set 'nothing'")
    assert done.stderr.count("\n") == 1
