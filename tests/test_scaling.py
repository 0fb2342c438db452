import math

import pytest
import torch
from scipy import optimize

from bayesnn import Temperature, metrics


def problem(sharpness, rows=4000):
    stream = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(rows, 5, generator=stream).double()
    return (sharpness * logits).softmax(1), torch.multinomial(logits.softmax(1), 1, generator=stream)[:, 0]


@pytest.mark.parametrize("sharpness", [0.25, 1.0, 4.0])
def test_it_undoes_what_was_done_to_true_probabilities(sharpness):
    probs, y = problem(sharpness)
    fitted = Temperature.fit(probs, y)
    assert fitted.value == pytest.approx(sharpness, rel=0.1)
    assert metrics.ece(fitted(probs), y) < 0.02
    assert torch.equal(fitted(probs).argmax(1), probs.argmax(1))


def test_it_is_the_minimum_of_the_nll():
    probs, y = problem(2.5, 300)
    found = optimize.minimize_scalar(
        lambda log_t: metrics.nll(Temperature(math.exp(log_t))(probs), y), bounds=(-3, 3), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    assert Temperature.fit(probs, y).value == pytest.approx(math.exp(found.x), rel=1e-4)


def test_one_changes_nothing_and_two_classes_may_come_as_one():
    probs, _ = problem(1.0, 20)
    torch.testing.assert_close(Temperature(1.0)(probs), probs)
    p = torch.tensor([0.2, 0.9])
    both = Temperature(2.0)(p)
    torch.testing.assert_close(both[:, 1], torch.sigmoid(torch.logit(p) / 2))


def test_a_perfect_validation_part_makes_it_extreme_and_not_nan():
    probs, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    assert 0 < Temperature.fit(probs, y).value < 1
    assert torch.isfinite(Temperature.fit(probs, y)(probs)).all()


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_bad_temperatures(value):
    with pytest.raises(ValueError, match="Expected a temperature > 0 and finite"):
        Temperature(value)
