import json
import re
import shlex
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import bayesnn as bnn
import bayesnn.compare
from bayesnn.cli import app

SHORT = ["compare", "moons", "--methods", "map,vi", "--epochs", "1", "--no-progress"]


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


def test_budget_and_shifts_arrive(tmp_path):
    command = ["compare", "digits", "--net", "mlp", "--methods", "map", "--epochs", "2", "--no-progress"]
    result = run(*command, "--budget", "gradients", "--shifts", "--device", "cpu", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    saved = json.loads((tmp_path / "results.json").read_text())
    assert (saved["budget"], saved["device"]) == ("gradients", "cpu")
    assert {row["kind"] for row in saved["shifted"]} == set(bnn.data.SHIFTS)
    assert str(tmp_path / "report.html") in result.stdout.splitlines()[-1]
    # What the report says to type is what was typed.
    words = shlex.split(saved["command"])
    assert words[1:] == ["bayesnn", *command[:-1], "--budget", "gradients", "--shifts", "--device", "cpu"]
    assert words[0] == f"OMP_NUM_THREADS={saved['threads']}"


def test_in_a_terminal_the_table_is_drawn_and_fits():
    import os
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from bayesnn.cli import main; main()", *SHORT]
    environment = {**os.environ, "COLUMNS": "70", "TERM": "xterm"}
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 0, done.stderr
    assert "|" not in shown
    assert "─" in shown
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.splitlines()]
    assert any(line.split()[0] == "map" for line in lines if line.strip())
    assert max(map(len, lines)) <= 70


def test_net_may_be_given_several_times():
    result = run("compare", "digits", "--net", "mlp", "--net", "lenet5", "--methods", "map", "--epochs", "1")
    assert [line.split("|")[1].strip() for line in result.stdout.splitlines()[:4]] == ["net", "------", "mlp", "lenet5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "digit"], "error: Unknown data set 'digit': did you mean 'digits'?"),
        (["compare", "digits", "--methods", "map,vy"], "error: Unknown method 'vy': did you mean 'vi'?"),
        (["compare", "digits", "--net", "lenet"], "error: Unknown net 'lenet': did you mean 'lenet5'?"),
        (["compare", "moons", "--net", "lenet5"], "error: "),
        (["compare", "moons", "--methods", "map,vi,map"], "error: Expected each method once, got 'map' twice"),
        (["compare", "moons", "--net", "mlp", "--net", "mlp"], "error: Expected nets of different names, got 'mlp'"),
        (["compare", "digits", "--epochs", "0"], "error: Expected epochs to be an integer >= 1, got 0"),
        (["compare", "moons", "--budget", "seconds"], "error: Expected budget 'epochs', 'gradients' or 'time:SECONDS'"),
        (["compare", "moons", "--shifts"], "error: Expected images (C, H, W) of classes for shifts"),
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


def test_an_out_that_is_a_file_is_refused_before_fitting(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["bayesnn.compare"], "fit", lambda *_, **__: pytest.fail("fitted"))
    file = tmp_path / "results"
    file.write_text("mine")
    result = run(*SHORT, "--out", str(file))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: Expected a folder in out, got {file}")
    assert result.stderr.count("\n") == 1


def test_a_failure_to_write_is_one_line_and_exit_2(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["bayesnn.compare"].Comparison, "save", full)
    result = run(*SHORT, "--out", str(tmp_path / "new"))
    assert result.exit_code == 2
    assert "accuracy" in result.stdout  # the scores are not lost
    assert result.stderr == "error: [Errno 28] No space left on device\n"


def test_warnings_are_one_line_too(monkeypatch):
    module = sys.modules["bayesnn.compare"]

    def diverge(*_, **__):
        raise bnn.DivergedError("lower lr")

    monkeypatch.setattr(module, "fit", diverge)
    result = run("compare", "moons", "--methods", "map", "--no-progress")
    assert result.stderr == "warning: mlp, map, seed 0: lower lr\n"
    assert "failed" in result.stdout


def test_the_installed_command_has_no_traceback_either():
    command = [sys.executable, "-c", "from bayesnn.cli import main; main()", "compare", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Unknown data set 'nothing'")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_prints_what_is_complete_and_says_so_by_its_code(monkeypatch):
    done = []

    def fit(*arguments, **options):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return bnn.fit(*arguments, **options)

    monkeypatch.setitem(bnn.compare.__globals__, "fit", fit)
    result = run(*SHORT)
    assert result.exit_code == 130
    assert [line.split("|")[1].strip() for line in result.stdout.splitlines()[:3]] == ["method", "------", "map"]
    assert "vi" not in result.stdout


def test_where_every_fit_failed_the_code_is_2(monkeypatch):
    def fit(*arguments, **options):
        raise bnn.errors.DivergedError("a loss that became NaN")

    monkeypatch.setitem(bnn.compare.__globals__, "fit", fit)
    result = run(*SHORT)
    assert result.exit_code == 2
    assert result.stdout.count("failed") >= 2
