import inspect

import pytest
import torch

import bayesnn as bnn
from bayesnn.compare import compare
from bayesnn.reproduce import command_line, python_call

DEFAULTS = {k: p.default for k, p in inspect.signature(compare).parameters.items() if p.default is not p.empty}


def arguments(data="moons", **given):
    return {"data": data, **DEFAULTS, **given}


def evaluated(call):
    """The arguments of the call that a report shows, by running it."""
    found = {}

    class Library:
        def __getattr__(self, name):
            return getattr(bnn, name)

        @staticmethod
        def compare(data, **given):
            found.update(data=data, **given)

    exec(call.removeprefix("import bayesnn as bnn\n"), {"bnn": Library()})
    return found


def test_what_is_not_said_is_what_is_the_default():
    assert python_call(arguments(methods=list(DEFAULTS["methods"])), DEFAULTS) == (
        "import bayesnn as bnn\n\nbnn.compare('moons')"
    )
    assert command_line(arguments(), DEFAULTS, 2) == "OMP_NUM_THREADS=2 bayesnn compare moons"


@pytest.mark.parametrize(
    "given",
    [
        {"epochs": 3, "batch_size": None, "seeds": (4, 5), "net": ("mlp", "lenet5"), "validation": 0.2},
        {"methods": {"a 'b'": bnn.SGLD(temperature=0.5, cycles=2, lr=0.1), "c": (bnn.MAP(optimizer="sgd"), 3)}},
        {"methods": ("map",), "likelihood": bnn.likelihoods.Categorical(), "prior": bnn.priors.Normal(scale=2.0)},
        {"ood": "notmnist", "shifts": True, "budget": "time:5"},
    ],
)
def test_the_call_makes_the_same_arguments(given):
    found = evaluated(python_call(arguments(**given), DEFAULTS))
    assert found.pop("data") == "moons"
    likelihood = found.pop("likelihood", None)
    assert repr(likelihood) == repr(given.pop("likelihood", None))
    assert found == given


def mine(data):
    return torch.nn.Linear(2, 2)


def test_what_has_no_text_of_its_own_stands_in_angle_brackets():
    data = bnn.data.load("moons")
    call = python_call(arguments(data, net=mine, ood=torch.zeros(3, 2), prior=lambda *_: None), DEFAULTS)
    assert "(<Data('moons', 500 rows" in call
    assert "net=<your mine>" in call
    assert "ood=<your Tensor>" in call
    assert "prior=<your lambda>" in call


@pytest.mark.parametrize(
    "given",
    [
        {"net": mine},
        {"methods": {"a": bnn.MAP()}},
        {"prior": bnn.priors.Normal()},
        {"validation": None},
        {"ood": "notmnist"},
        {"batch_size": None},
        {"data": bnn.data.load("moons")},
    ],
)
def test_there_is_no_command_for_what_has_no_option(given):
    assert command_line(arguments(**given), DEFAULTS, 1) is None


def test_the_command_has_every_option():
    given = {"net": ("mlp", "lenet5"), "methods": ("map", "vi"), "epochs": 3, "batch_size": 32, "budget": "gradients",
             "seeds": (0, 7), "shifts": True}  # fmt: skip
    assert command_line(arguments("digits", **given), DEFAULTS, 1) == (
        "OMP_NUM_THREADS=1 bayesnn compare digits --net mlp --net lenet5 --methods map,vi --epochs 3 --batch-size 32 "
        "--budget gradients --seeds 0 --seeds 7 --shifts"
    )
