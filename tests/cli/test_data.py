import gzip

import pytest

import bayesnn as bnn
from bayesnn.cli.data import FACTS


def test_every_name_is_listed(run):
    lines = run("data", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(bnn.data.names())
    assert run("data").stdout.splitlines() == lines


@pytest.mark.parametrize("name", ["digits", "diabetes", "breast-cancer", "moons", "sine-gap"])
def test_what_is_listed_is_what_load_gives(name):
    train, test = bnn.data.load(name)
    kind = "real target" if train.y.is_floating_point() else f"{train.num_outputs} classes"
    shape = " x ".join(map(str, train.in_shape))
    assert FACTS[name] == (kind, shape, f"{len(train):,} + {len(test):,}")


def test_files_are_found_where_they_are(run, tmp_path, monkeypatch):
    monkeypatch.delenv("BAYESNN_DATA", raising=False)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"labels"))
    by_name = {line.split()[0]: line for line in run("data", "list", "--data-dir", tmp_path).stdout.splitlines()}
    assert by_name["mnist"].endswith(f"in {tmp_path / 'mnist'}")
    assert by_name["fashion-mnist"].endswith("downloaded when it is first used")
    assert "downloaded" in {line.split()[0]: line for line in run("data", "list").stdout.splitlines()}["mnist"]
