import numpy as np
import pytest
from sklearn import datasets
from typer.testing import CliRunner

from bayesnn.cli import app


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def run():
    return invoke


@pytest.fixture
def refused():
    """Call the command, and hold that it says one line on standard error, nothing else, and exits with 2."""

    def check(*arguments):
        result = invoke(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr

    return check


def fitted(folder, *arguments):
    out = folder / "run"
    result = invoke("fit", *arguments, "--out", out, "--no-progress")
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture(scope="session")
def moons(tmp_path_factory):
    """A sampler of two classes: two chains of ten draws, with a validation part."""
    method = ("--method", "sgld:draws=10", "--chains", "2", "--widths", "5", "--validation", "0.1", "--seed", "3")
    return fitted(tmp_path_factory.mktemp("moons"), "moons", *method, "--epochs", "4", "--batch-size", "100")


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A distribution over the weights of a net of images."""
    return fitted(tmp_path_factory.mktemp("digits"), "digits", "--method", "vi", "--epochs", "2")


@pytest.fixture(scope="session")
def gap(tmp_path_factory):
    """A regression on one input."""
    return fitted(tmp_path_factory.mktemp("gap"), "sine-gap", "--method", "vi", "--epochs", "20")


@pytest.fixture(scope="session")
def houses(tmp_path_factory):
    """A CSV file: a target in large units, a column of numbers that mean nothing, and features of unlike scales."""
    rng = np.random.default_rng(0)
    rows = 60
    area, age = rng.uniform(30, 200, rows), rng.uniform(0, 0.001, rows)
    price = 3e5 + 2e3 * area - 5e7 * age + rng.normal(0, 1e4, rows)
    path = tmp_path_factory.mktemp("csv") / "houses.csv"
    lines = [f"{i},{area[i]:.17g},{age[i]:.17g},{price[i]:.17g}" for i in range(rows)]
    path.write_text("\n".join(["id,area,age,price", *lines]) + "\n")
    return path


@pytest.fixture(scope="session")
def priced(houses, tmp_path_factory):
    method = ("--method", "ensemble", "--lr", "0.02", "--epochs", "60", "--batch-size", "16")
    return fitted(tmp_path_factory.mktemp("priced"), houses, "--target", "price", "--ignore", "id", *method)


@pytest.fixture(scope="session")
def iris(tmp_path_factory):
    """A CSV file with a target of text."""
    bunch = datasets.load_iris()
    path = tmp_path_factory.mktemp("csv") / "iris.csv"
    rows = zip(bunch.data, bunch.target, strict=True)
    lines = [";".join([*map(str, x), str(bunch.target_names[y])]) for x, y in rows]
    path.write_text("\n".join(["a;b;c;d;species", *lines]) + "\n")
    return path
