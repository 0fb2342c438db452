import csv
import io

import torch
from torch import nn

import bayesnn as bnn
from bayesnn.history import History

ROWS = [
    {"chain": 0, "epoch": 0, "loss": 0.123456789, "gradient_norm/0": 2.0},
    {"chain": 0, "epoch": 1, "loss": 12345.678, "val_nll": 1.5},
]


def test_the_table_has_a_line_to_each_row_and_a_column_to_each_number():
    lines = str(History(ROWS)).splitlines()
    assert lines[0].split() == ["chain", "epoch", "loss", "val_nll"]
    assert lines[1].split() == ["0", "0", "0.1235"]
    assert lines[2].split() == ["0", "1", "1.235e+04", "1.5"]
    assert lines[3] == "and the gradient norms of 1 layers, gradient_norm/..., in some rows"
    assert len({len(line) for line in lines[:3]}) == 1
    assert str(History()) == "History of no epochs"


def test_a_long_table_shows_its_ends():
    lines = str(History({"chain": 0, "epoch": k} for k in range(1000))).splitlines()
    assert len(lines) == 1 + 20 + 1
    assert [line.split()[-1] for line in (lines[1], lines[11], lines[-1])] == ["0", "...", "999"]


def test_csv_has_all_columns_and_every_digit(tmp_path):
    text = History(ROWS).to_csv(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text() == text
    read = list(csv.DictReader(io.StringIO(text)))
    assert list(read[0]) == ["chain", "epoch", "loss", "gradient_norm/0", "val_nll"]
    assert float(read[0]["loss"]) == 0.123456789
    assert read[1]["gradient_norm/0"] == ""


def test_a_fit_and_a_loaded_one_have_it_and_it_can_be_drawn(tmp_path):
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    model = bnn.BayesianModel(nn.Linear(3, 1), likelihood=bnn.likelihoods.Normal())
    posterior = bnn.fit(model, (x, x.sum(1)), epochs=3, validation=0.2, progress=False)
    assert str(posterior.history).splitlines()[0].split()[:3] == ["chain", "epoch", "loss"]
    assert len(bnn.plots.training_curves(posterior.history).lines) >= 2
    posterior.save(tmp_path)
    again = bnn.Posterior.load(tmp_path, nn.Linear(3, 1))
    assert again.history == posterior.history
    assert again.history.to_csv() == posterior.history.to_csv()
