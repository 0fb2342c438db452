import subprocess
import sys

import pytest
import torch

import bayesnn as bnn

COMMANDS = (["compare"], ["fit"], ["predict"], ["diagnose"], ["plot"], ["data", "list"])
HEAVY = ("arviz", "matplotlib", "pandas", "PIL", "scipy.stats", "sklearn", "torchmetrics")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_examples_exit_codes_and_config(run, command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    examples, codes = result.stdout.split("Examples:\n")[1].split("Exit codes:\n")
    assert all(line.split()[: len(command) + 1] == ["bayesnn", *command] for line in examples.strip().splitlines())
    numbers = [int(line.split()[0]) for line in codes.strip().splitlines()]
    assert numbers == ([0, 1, 2, 130] if command == ["diagnose"] else [0, 2, 130])
    assert "--config" in result.stdout


@pytest.mark.parametrize("command", ["fit", "predict", "diagnose", "plot"])
def test_seed_and_device_are_options(run, command):
    flags = run(command, "--help").stdout
    assert "--seed" in flags
    assert "--device" in flags


def test_version(run):
    assert run("--version").stdout == f"bayesnn {bnn.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "Missing argument 'data'"),
        (["fit", "moons"], "Missing option '--out'"),
        (["fit", "moons", "--out", "x", "--epoch", "3"], "No such option: --epoch"),
        (["fit", "moons", "--out", "x", "--epochs", "few"], "Invalid value for '--epochs'"),
        (["predict", "run", "x.csv", "more"], "unexpected extra argument"),
        (["fitt"], "No such command 'fitt'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(refused, arguments, message):
    assert message.lower() in refused(*arguments).lower()


def test_without_arguments_there_is_help(run):
    result = run()
    assert "predict" in result.output
    assert "error" not in result.output


def test_interruption_is_130(run, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bnn, "fit", interrupted)
    assert run("fit", "moons", "--out", tmp_path / "run").exit_code == 130


def test_a_fault_of_the_library_keeps_its_traceback(run, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise RuntimeError("a fault")

    monkeypatch.setattr(bnn, "fit", broken)
    result = run("fit", "moons", "--out", tmp_path / "run")
    assert isinstance(result.exception, RuntimeError)


def test_nothing_heavy_is_imported_for_help():
    program = (
        "import sys; from bayesnn.cli import app\ntry: app(['fit', '--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_here_is_refused(refused, moons, tmp_path):
    new = ("fit", "moons", "--out", tmp_path / "new")
    for command in (new, ("predict", moons, "x.csv"), ("diagnose", moons)):
        assert "Expected a device that is here, got 'cuda'" in refused(*command, "--device", "cuda")
