import os
import re
import runpy
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)

    def run_example(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        scope = runpy.run_path(str(EXAMPLES / name))
        return scope, capsys.readouterr().out

    return run_example


def test_compare_cnn_prints_the_scores_and_draws_two_pictures(run, tmp_path):
    scope, printed = run("compare_cnn.py", "--epochs", "2")
    rows = [re.split(r"\s{2,}", line) for line in printed.splitlines()[2:6]]
    assert [row[0] for row in rows] == list(scope["methods"])
    for name, accuracy, *_, epistemic, aleatoric in rows:
        predictive = scope["predictives"][name]
        right = (predictive.mean.argmax(1) == scope["test"].y).double().mean()
        assert float(accuracy) == pytest.approx(float(right), abs=5e-4)
        assert float(epistemic) + float(aleatoric) == pytest.approx(float(predictive.total.mean()), abs=1.1e-3)
    assert float(rows[0][-2]) == 0.0  # one net does not disagree with itself
    assert float(rows[1][-2]) > 0.0
    for picture in ("accuracy_rejection.png", "certainty.png"):
        assert imread(tmp_path / "results" / "compare_cnn" / picture).shape[0] > 100


def test_gibbs_vs_langevin_prints_both_costs_and_draws_them(run, tmp_path):
    scan = ("--weights", "2", "4", "--rows", "100", "200", "--sweeps", "40")
    _, printed = run("gibbs_vs_langevin.py", *scan, "--out", "here")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:6]]
    assert [row[:2] for row in rows] == [["100", "2"], ["100", "4"], ["100", "4"], ["200", "4"]]
    assert all(float(value) > 0 for row in rows for value in row[2:])
    assert imread(tmp_path / "here" / "gibbs_vs_langevin.png").shape[0] > 100


def test_regression_gap_prints_the_spread_and_draws_the_band(run, tmp_path):
    scope, printed = run("regression_gap.py", "--epochs", "60", "--out", "here")
    rows = {line.split("  ")[0]: [float(v) for v in line.split()[-4:]] for line in printed.splitlines()[1:4]}
    assert list(rows) == ["MAP", "mean-field VI", "SGLD"]
    assert rows["MAP"][:2] == [0.0, 0.0]
    assert rows["SGLD"][0] == pytest.approx(float(scope["in_gap"]), abs=5e-4)
    median, largest = re.search(r"median ([\d.]+), largest ([\d.]+)", printed).groups()
    assert 0.9 < float(median) <= float(largest)
    assert imread(tmp_path / "here" / "band.png").shape[0] > 100


def test_drifting_stream_prints_the_scores_and_draws_them(run, tmp_path):
    short = ("--batches", "2", "--seeds", "2", "--steps", "5", "--rows", "10")
    scope, printed = run("drifting_stream.py", *short, "--out", "here")
    rows = {line[:16].strip(): [float(v) for v in line[16:].split()] for line in printed.splitlines()[2:6]}
    assert list(rows) == [*scope["settings"], "the true law"]
    for (name, row), scores in zip(rows.items(), scope["scores"], strict=False):
        assert row[0] == pytest.approx(scores.mean(), abs=5e-4), name
        assert row[3] == pytest.approx(scores.mean() - scope["scores"][-1].mean(), abs=5e-4), name
    assert rows["the true law"][0] < min(row[0] for row in list(rows.values())[:-1])
    # Each setting has the batch before in its own way: the first prediction is the same, the second is not.
    assert (scope["scores"][:, :, 0] == scope["scores"][0, :, 0]).all()
    assert len(set(scope["scores"][:, 0, 1])) == 3
    assert imread(tmp_path / "here" / "drifting_stream.png").shape[0] > 100


def test_rotated_digit_prints_the_entropies_and_draws_them(run, tmp_path):
    scope, printed = run("rotated_digit.py", "--rows", "200", "--epochs", "2", "--out", "here")
    rows = [re.split(r"\s{2,}", line) for line in printed.splitlines()[1:]]
    assert [row[0] for row in rows] == list(scope["posteriors"])
    for name, accuracy, nll, upright, _ in rows:
        posterior, test = scope["posteriors"][name], scope["test"]
        probs = posterior.predict(test.x, draws=25).mean
        assert float(accuracy) == pytest.approx(float((probs.argmax(1) == test.y).double().mean()), abs=5.1e-4)
        assert float(nll) == pytest.approx(-float(probs[range(len(probs)), test.y].log().mean()), abs=5.1e-4)
        assert float(upright) == pytest.approx(float(posterior.predict(scope["image"][None]).total), abs=5.1e-4)
    entropy = scope["posteriors"]["MAP"].predict(test.x[test.y == 3]).total
    assert float(rows[0][3]) == pytest.approx(float(entropy.min()), abs=5.1e-4)  # the surest of its kind
    assert imread(tmp_path / "here" / "rotation.png").shape[0] > 100


def test_imbalanced_prints_a_row_to_each_way(run):
    scope, printed = run("imbalanced.py", "--seeds", "1", "--epochs", "2")
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in printed.splitlines()[3:]}
    assert list(rows) == list(scope["table"])
    assert len(rows) == 1 + 2 * 5
    for name, cells in rows.items():
        common, rare, balanced, *_ = (float(cell.split("±")[0]) for cell in cells)
        assert balanced == pytest.approx((common + rare) / 2, abs=1.1e-3), name
    assert [cell.split("±")[0].strip() for cell in rows["who does not look"][:3]] == ["0.200", "0.000", "0.100"]


def test_noisy_labels_prints_a_row_to_each_likelihood(run):
    scope, printed = run("noisy_labels.py", "--seeds", "1", "--epochs", "2", "--noise", "0.5")
    lines = printed.splitlines()[1:]
    assert len(lines) == 2 * 2 * len(scope["LIKELIHOODS"])
    for line, name in zip(lines, 4 * list(scope["LIKELIHOODS"]), strict=True):
        accuracy, nll, aleatoric, epistemic = map(float, line.split()[-4:])
        assert name in line
        assert 0 < accuracy < 1 < 1 + nll
        assert 0 < aleatoric + epistemic <= 2.304
    assert (scope["replaced"](0, 0.5).y != scope["train"].y).double().mean() == pytest.approx(0.45, abs=0.04)


@pytest.mark.skipif(not os.environ.get("BAYESNN_DATA"), reason="BAYESNN_DATA names no folder with MNIST")
def test_transfer_prints_the_scores_of_six_ways_to_learn(run):
    scope, printed = run("transfer.py", "--quick", "--cases", "small-similar")
    table = scope["results"]["small-similar"]
    rows = {line[:30].strip(): line[30:].split() for line in printed.splitlines()[4:10]}
    assert list(rows) == list(table)
    for name, cells in rows.items():
        assert [float(cells[k]) for k in (0, 3, 6)] == pytest.approx(list(table[name][0][:3]), abs=5.1e-4), name
    assert rows["informative prior, VI"][-2] == "scale"
    assert float(rows["informative prior, VI"][-1]) in scope["SCALES"]
