import math

import pytest
import torch
from scipy import stats

import bayesnn as bnn
from bayesnn.blind import blind, blind_sentence
from bayesnn.data import Data

X = torch.zeros(8, 1)


def test_of_classes_it_is_the_frequencies():
    train = Data(X, torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]))
    test = Data(X[:4], torch.tensor([0, 1, 1, 2]))
    found = blind(train, test, "classes")
    assert found["accuracy"] == 0.25
    assert found["nll"] == pytest.approx(-(math.log(0.5) + 3 * math.log(0.25)) / 4)
    new = blind(train, Data(X[:1], torch.tensor([3])), "classes")  # no row of it: it counts as one
    assert new["nll"] == pytest.approx(-math.log(1 / 9))
    assert blind_sentence(found) == f"Without a look at the inputs: accuracy 0.250, NLL {found['nll']:.3f}."


def test_of_real_targets_it_is_their_normal():
    y = torch.tensor([1.0, 2.0, 3.0, 6.0])
    found = blind(Data(X[:4], y), Data(X[:2], torch.tensor([0.0, 4.0])), "real")
    assert found["rmse"] == pytest.approx(math.sqrt((9 + 1) / 2))
    assert found["nll"] == pytest.approx(-stats.norm(3, y.double().numpy().std()).logpdf([0.0, 4.0]).mean())


def test_a_comparison_says_it():
    result = bnn.compare("moons", "mlp", ["map"], epochs=1, progress=False)
    assert result.settings["blind"] == blind(result.train, result.test, "classes")
    assert result.note.endswith(blind_sentence(result.settings["blind"]))
    assert blind(result.train, result.test, "count") == {}
    assert blind_sentence({}) == ""
