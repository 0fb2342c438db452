"""What goes with what: every net, prior and likelihood under every method works, or is refused in one line.

A covering design: every net, every prior and every likelihood under every method; every pair of net and likelihood,
net and prior, prior and likelihood under one method, the methods in turn. What no table refuses must fit, predict
finite numbers of the right shape and, for a part of it, load to the same bits.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bayesnn as bnn
from bayesnn import likelihoods, nets, priors
from bayesnn.methods import METHODS

ROWS, SIDE, CLASSES = 12, 4, 3
X = torch.randn(ROWS, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
COUNTS = torch.arange(ROWS) % CLASSES


class Shared(nn.Module):
    """Two layers that are one weight."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.inner, self.first, self.second = nn.Linear(SIDE**2, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, outputs)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x.flatten(1)).tanh()
        out: Tensor = self.head(self.second(self.first(hidden).tanh()).tanh())
        return out


class Bare(nn.Module):
    """A parameter that belongs to no layer, in a module that does not reset it."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((SIDE**2, outputs), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


def batch_norm(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, outputs))


def frozen(outputs: int) -> nn.Module:
    net = nets.MLP(SIDE**2, (4,), outputs)
    net.layers[0].requires_grad_(False)
    return net


NETS: dict[str, Callable[[int], nn.Module]] = {
    "MLP": lambda outputs: nets.MLP(SIDE**2, (4,), outputs),
    "LeNet5": lambda outputs: nets.LeNet5((1, SIDE, SIDE), outputs),
    "ConvNet": lambda outputs: nets.ConvNet((1, SIDE, SIDE), outputs, channels=(3,), dense=(4,)),
    "batch norm": batch_norm,
    "dropout": lambda outputs: nets.MLP(SIDE**2, (4,), outputs, dropout=0.5),
    "shared": Shared,
    "bare": Bare,
    "frozen": frozen,
}

PRIORS: dict[str, priors.PriorRule | None] = {
    "default": None,
    "Normal": priors.Normal(0.7),
    "Normal off zero": priors.Normal(0.7, loc=0.3),
    "Layerwise": priors.Layerwise("xavier", gain=2.0),
    "HierarchicalNormal": priors.HierarchicalNormal(),
    "Laplace": priors.Laplace(0.5),
    "StudentT": priors.StudentT(),
    "ScaleMixture": priors.ScaleMixture(),
    "Deterministic": priors.Deterministic(),
    "ByName": priors.ByName({"*bias": None, "*weight": priors.Laplace()}),  # those of BatchNorm too
    "ByType": priors.ByType({nn.Linear: priors.Normal(2.0)}, default=priors.StudentT()),
}

# Likelihood, outputs of the net, targets, shape of the predicted mean.
LIKELIHOODS: dict[str, tuple[Callable[[], likelihoods.Likelihood], int, Tensor, tuple[int, ...]]] = {
    "Categorical": (likelihoods.Categorical, CLASSES, COUNTS, (ROWS, CLASSES)),
    "Categorical, soft and weighted": (
        lambda: likelihoods.Categorical(class_weights=[1.0, 2.0, 0.5]),
        CLASSES,
        X[:, 0, 0, :CLASSES].softmax(1),
        (ROWS, CLASSES),
    ),
    "NoisyCategorical": (likelihoods.NoisyCategorical, CLASSES, COUNTS, (ROWS, CLASSES)),
    "NoisyDirichlet": (likelihoods.NoisyDirichlet, CLASSES, COUNTS, (ROWS, CLASSES)),
    "Bernoulli": (likelihoods.Bernoulli, 1, COUNTS % 2, (ROWS,)),
    "Bernoulli, two labels": (likelihoods.Bernoulli, 2, torch.stack((COUNTS % 2, COUNTS // 2), 1), (ROWS, 2)),
    "Normal": (likelihoods.Normal, 1, COUNTS.float(), (ROWS,)),
    "Normal, fixed": (lambda: likelihoods.Normal(scale=0.5), 1, COUNTS.float()[:, None], (ROWS,)),
    "Normal, two targets": (likelihoods.Normal, 2, X[:, 0, 0, :2], (ROWS, 2)),
    "Normal, log-normal scale": (
        lambda: likelihoods.Normal(prior=likelihoods.LogNormalScale()),
        1,
        COUNTS.float(),
        (ROWS,),
    ),
    "Laplace": (likelihoods.Laplace, 1, COUNTS.float(), (ROWS,)),
    "StudentT": (likelihoods.StudentT, 1, COUNTS.float(), (ROWS,)),
    "LogNormal": (likelihoods.LogNormal, 1, COUNTS + 0.5, (ROWS,)),
    "HeteroscedasticNormal": (likelihoods.HeteroscedasticNormal, 2, COUNTS.float(), (ROWS,)),
    "Poisson": (likelihoods.Poisson, 1, COUNTS, (ROWS,)),
}
WITH_SCALE = {"Normal", "Normal, two targets", "Normal, log-normal scale", "Laplace", "StudentT", "LogNormal"}

SAMPLERS = ("SGLD", "SGHMC", "SGNHT", "PSGLD")
FULL_BATCH = ("HMC", "NUTS", "MCLMC")
VARIATIONAL = ("MeanFieldVI", "FullRankVI", "LowRankVI", "RadialVI", "PyroVI")
OF_WEIGHTS_ALONE = (*VARIATIONAL, "SWAG", "Laplace", "IVON", "SVGD", *FULL_BATCH)

# (net, method), and what the error expects instead. MAP takes everything.
REFUSED_NETS = {
    **{("dropout", method): "without dropout" for method in (*SAMPLERS, *OF_WEIGHTS_ALONE)},
    **{("batch norm", method): "without running statistics" for method in OF_WEIGHTS_ALONE},
    **{(net, "MCDropout"): "with dropout" for net in NETS if net != "dropout"},
    **{(net, "GibbsLinear"): "one nn.Linear" for net in NETS},  # what it does take is in test_gibbs_linear.py
    ("LeNet5", "FullRankVI"): "full Cholesky factor",
}
# (prior, method), whatever the likelihood.
REFUSED_PRIORS = {
    **{("HierarchicalNormal", m): "known precision" for m in METHODS if not METHODS[m].infers_precisions},
    **{(prior, method): "every trainable parameter" for prior in ("Deterministic", "ByName") for method in FULL_BATCH},
    **{(prior, "Laplace"): "Normal priors" for prior in ("Laplace", "StudentT", "ScaleMixture", "ByName")},
}
# (net, prior, method): a rule by type gives Student's t to the layers that are not linear.
REFUSED_PAIRS = {(net, "ByType", "Laplace"): "Normal priors" for net in ("LeNet5", "ConvNet", "bare")}
# (prior, method), where the likelihood has no parameter of its own that has one.
REFUSED_WITHOUT_SCALE = {
    ("Deterministic", method): "at least one parameter with a prior"
    for method in (*VARIATIONAL, "SWAG", "Laplace", "IVON", "SVGD")
}


# The cells that differ from this one in one place at most meet every method, and are saved and loaded.
CENTRE = ("MLP", "default", "Normal, fixed")
CENTRES = {"MCDropout": ("dropout", "default", "Normal, fixed")}  # which takes no other net


def expected_refusals(net: str, prior: str, likelihood: str, method: str) -> list[str]:
    """What the error may say, [] where there must be none; of two reasons either will do."""
    reasons = [REFUSED_NETS.get((net, method)), REFUSED_PRIORS.get((prior, method))]
    reasons += [REFUSED_PAIRS.get((net, prior, method))]
    reasons += [REFUSED_WITHOUT_SCALE.get((prior, method))] if likelihood not in WITH_SCALE else []
    return [reason for reason in reasons if reason is not None]


# Defaults elsewhere; these take hundreds of gradients a step where the warm-up is as short as here.
CHEAP = {"HMC": bnn.HMC(max_steps=8), "NUTS": bnn.NUTS(max_depth=3)}


def outcome(net: str, prior: str, likelihood: str, method: str, folder: Path | None = None) -> str | None:
    """None where it works, the error's line where it is refused."""
    make, outputs, y, shape = LIKELIHOODS[likelihood]
    torch.manual_seed(0)  # of a net's own initial weights; those of the chain are fit's
    model = bnn.BayesianModel(NETS[net](outputs), PRIORS[prior], make())
    try:
        posterior = bnn.fit(model, (X, y), CHEAP.get(method, method), epochs=2, batch_size=6, chains=1, progress=False)
    except ValueError as error:
        return str(error)
    predictive = posterior.predict(X, draws=2)
    assert predictive.mean.shape == shape
    assert torch.isfinite(predictive.mean).all()
    log_prob = predictive.log_prob(y)
    assert log_prob.shape == (ROWS,)
    assert torch.isfinite(log_prob).all()
    if folder is not None:
        posterior.save(folder)
        again = bnn.Posterior.load(folder, NETS[net](outputs)).predict(X, draws=2)
        assert torch.equal(again.mean, predictive.mean)
        assert torch.equal(again.log_prob(y), log_prob)
    return None


def _off_centre(cell: tuple[str, str, str], method: str) -> int:
    """In how many places the cell differs from the method's centre."""
    return sum(a != b for a, b in zip(cell, CENTRES.get(method, CENTRE), strict=True))


def cells_of(method: str) -> list[tuple[str, str, str]]:
    """Cells (net, prior, likelihood) that this method has to meet."""
    turn, cells = list(METHODS).index(method), []
    for (i, net), (j, prior), (k, name) in product(enumerate(NETS), enumerate(PRIORS), enumerate(LIKELIHOODS)):
        cell = (net, prior, name)
        off = _off_centre(cell, method)
        if off <= 1 or (off == 2 and (i + j + k) % len(METHODS) == turn):
            cells.append(cell)
    return cells


def differences(cells: list[tuple[str, str, str]], method: str, folder: Path) -> list[str]:
    """The cells (net, prior, likelihood) whose outcome is not the one of the table, each with what happened."""
    wrong = []
    for number, cell in enumerate(cells):
        reasons = expected_refusals(*cell, method)
        try:
            got = outcome(*cell, method, folder / str(number) if _off_centre(cell, method) <= 1 else None)
        except Exception as error:  # all cells, so that one fault does not hide another
            wrong.append(f"{cell}: {type(error).__name__}: {error}")
            continue
        refused = got is not None and "\n" not in got and any(reason in got for reason in reasons)
        if not (refused if reasons else got is None):
            wrong.append(f"{cell}: expected {reasons or 'a fit'}, got {got or 'a fit'!r}")
    return wrong


@pytest.mark.parametrize("method", METHODS)
def test_what_goes_with_what(method: str, tmp_path: Path) -> None:
    assert differences(cells_of(method), method, tmp_path) == []


def test_the_tables_hold_every_class_there_is() -> None:
    rules = {type(prior) for prior in PRIORS.values()}
    kinds = {type(make()) for make, *_ in LIKELIHOODS.values()}
    known = {cls for cls in vars(priors).values() if isinstance(cls, type) and issubclass(cls, priors.Prior)}
    # Of the latter two each is made for one net: test_posterior.py, test_priors.py.
    assert known - rules == {priors.Prior, priors.Independent, priors.Informative}
    known = {getattr(likelihoods, name) for name in likelihoods.__all__}
    known = {cls for cls in known if isinstance(cls, type) and issubclass(cls, likelihoods.Likelihood)}
    assert known - kinds == {likelihoods.Likelihood}
    assert {method for _, method in (*REFUSED_NETS, *REFUSED_PRIORS, *REFUSED_WITHOUT_SCALE)} <= set(METHODS)
