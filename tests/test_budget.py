import math

import pytest

import bayesnn as bnn
from bayesnn.budget import Budget, epochs_within
from bayesnn.compare import compare


def test_what_a_budget_is_is_read_and_said():
    assert Budget.parse("epochs").sentence(7) == "7 epochs a chain"
    assert Budget.parse("gradients").sentence(7) == "the gradients of 7 epochs a method, all chains together"
    assert Budget.parse("time:90") == Budget("time", 90.0)
    assert Budget.parse("time:2.5").sentence(None) == "about 2.5 s of fitting a method, all chains together"


@pytest.mark.parametrize(
    "text", ["time", "time:", "time:soon", "time:-1", "time:0", "time:nan", "gradient", "epochs:3"]
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ValueError, match=f"Expected budget 'epochs', 'gradients' or 'time:SECONDS', got '{text}'"):
        Budget.parse(text)


@pytest.mark.parametrize("once", [0.0, 3.0, 20.0])
@pytest.mark.parametrize("each", [0.01, 0.7, 5.0])
@pytest.mark.parametrize("budget", [30.0, 1000.0])
def test_a_line_is_met_to_the_epoch(once, each, budget):
    asked = []

    def cost(epochs):
        asked.append(epochs)
        return once + each * epochs

    assert epochs_within(budget, cost) == max(1, math.floor((budget - once) / each + 1e-6))
    assert sum(map(cost, asked[:-1])) < 2 * budget  # all but the last cost less than the budget has room for


def test_costs_stop_at_an_eighth_of_the_budget():
    asked = []
    epochs_within(1600.0, lambda n: asked.append(n) or float(n))
    assert asked == [1, 2, 4, 8, 16, 32, 64, 128, 256]


def test_what_is_done_once_but_bit_by_bit_does_not_pass_for_what_is_done_always():
    # Ten looks at 8 each, of which a short fit has room for one an epoch: as samplers that set their own step size.
    assert epochs_within(1000.0, lambda n: 8.0 * min(n, 10) + n) == 920


def test_a_budget_below_one_epoch_is_one_epoch():
    assert epochs_within(0.5, lambda n: float(n)) == 1


def test_lengths_that_a_method_refuses_are_passed_over():
    def cost(n):
        if n < 8:
            raise ValueError("raise epochs")
        return 10 + n

    assert epochs_within(110.0, cost) == 100
    with pytest.raises(ValueError, match="always"):
        epochs_within(1.0, lambda n: (_ for _ in ()).throw(ValueError("always")))


METHODS = {
    "map": bnn.MAP(),
    "ensemble": (bnn.MAP(), 5),
    "svrg": (bnn.SGLD(variance_reduction="svrg"), 2),  # more than one gradient a step, and looks for its step size
    "vi": bnn.MeanFieldVI(mc_samples=2),
    "particles": bnn.SVGD(particles=4),
    "mclmc": (bnn.MCLMC(), 2),  # gradients of all rows at once
}


def test_gradients_are_equal_whatever_a_step_and_a_chain_cost():
    epochs, steps = 80, math.ceil(450 / 64)  # a tenth of the 500 rows is held out
    result = compare("moons", methods=METHODS, epochs=epochs, budget="gradients", progress=False)
    rows = {row["method"]: row for row in result.rows}
    assert {name: row["epochs"] for name, row in rows.items() if name in ("map", "ensemble", "vi", "particles")} == {
        "map": 80, "ensemble": 16, "vi": 40, "particles": 20,
    }  # fmt: skip
    for name, row in rows.items():
        passes = row["gradient_evaluations"] / (1 if name == "mclmc" else steps)
        if name in ("svrg", "mclmc"):  # in short fits looks for a step size come oftener: what is left is not spent
            assert 0.75 * epochs <= passes <= epochs, name
        else:
            assert passes == epochs, name
    assert result.settings["budget"] == "gradients"


def slow_clock(monkeypatch, once, each):
    """``fit`` takes ``once + each * epochs`` seconds a chain; returns the (epochs, chains) of all fits."""
    fit, calls = compare.__globals__["fit"], []

    def timed(model, data, method, *, epochs, chains, **options):
        calls.append((epochs, chains))
        posterior = fit(model, data, method, epochs=min(epochs, 3), chains=chains, **options)
        posterior.info["seconds"] = [once + each * epochs] * chains
        return posterior

    monkeypatch.setitem(compare.__globals__, "fit", timed)
    return calls


def test_time_is_shared_among_chains_and_measured_with_the_first_seed_alone(monkeypatch):
    calls = slow_clock(monkeypatch, once=0.2, each=0.1)
    methods = {"map": bnn.MAP(), "ensemble": (bnn.MAP(), 5)}
    result = compare("moons", methods=methods, budget="time:10", seeds=(0, 1), progress=False)
    # 10 s are 0.2 + 98 * 0.1 of one chain, and of each of five 0.2 + 18 * 0.1 of its 2 s.
    assert [(row["method"], row["epochs"]) for row in result.rows] == [("map", 98), ("ensemble", 18)] * 2
    assert [row["seconds"] for row in result.rows] == pytest.approx([10.0] * 4)
    # The first costs nothing that counts, the rest go up to an eighth: 1.25 s of 10, 0.25 s of 2.
    assert calls == [
        (1, 1),
        (1, 1),
        (2, 1),
        (4, 1),
        (8, 1),
        (16, 1),
        (98, 1),
        (1, 1),
        (1, 1),
        (2, 1),
        (4, 1),
        (18, 5),
        (98, 1),
        (18, 5),
    ]
    assert result.settings["epochs"] is None
    assert "about 10 s of fitting a method, all chains together" in result.note


def test_time_and_epochs_are_two_budgets():
    with pytest.raises(ValueError, match="Expected epochs or a budget of time, got epochs=3 and 'time:5'"):
        compare("moons", epochs=3, budget="time:5", progress=False)


def test_ctrl_c_while_a_cost_is_measured_ends_the_comparison(monkeypatch):
    fit, calls = compare.__globals__["fit"], []

    def pressed(*arguments, **options):
        calls.append(options["epochs"])
        posterior = fit(*arguments, **options)
        posterior.info["interrupted"] = len(calls) == 6
        return posterior

    monkeypatch.setitem(compare.__globals__, "fit", pressed)
    methods = {"first": bnn.MAP(), "second": bnn.MAP(), "third": bnn.MAP()}
    result = compare("moons", methods=methods, epochs=4, budget="gradients", progress=False)
    assert result.interrupted
    assert [row["method"] for row in result.rows] == ["first"]
    assert calls == [1, 2, 4, 4, 1, 2]
