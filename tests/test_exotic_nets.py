"""Nets of a user's own, untouched: tied weights, bare parameters, lists, recurrence, attention, graphs."""

import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import bayesnn as bnn

ROWS, STEPS, FEATURES = 8, 5, 3
X = torch.randn(ROWS, STEPS, FEATURES, generator=torch.Generator().manual_seed(0))
Y = X.sum((1, 2))
EDGES = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])  # from, to


class Tied(nn.Module):
    """One matrix as the encoder and, transposed, as the decoder; a scale that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.empty(4, FEATURES))
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(STEPS * FEATURES, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.matrix, std=0.5)
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        code = (x @ self.matrix.T).tanh()
        out: Tensor = self.head((self.scale * code @ self.matrix).flatten(1))
        return out


class Branches(nn.Module):
    """A ModuleList of unequal branches, and a ParameterList of their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Linear(FEATURES, 2), nn.Sequential(nn.Linear(FEATURES, 4), nn.Linear(4, 2))])
        self.shares = nn.ParameterList([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))])

    def forward(self, x: Tensor) -> Tensor:
        parts = [share * branch(x) for share, branch in zip(self.shares, self.branches, strict=True)]
        return torch.stack(parts).sum((0, 2, 3))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.gru(x)[0][:, -1])
        return out


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(FEATURES, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        h = self.norm(h + self.attention(h, h, h, need_weights=False)[0])
        out: Tensor = self.head(h.mean(1))
        return out


class GraphConvolution(nn.Module):
    """Each node gets the sum of its neighbours' messages, written with index_add."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.own = nn.Linear(FEATURES, 4), nn.Linear(FEATURES, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        messages = self.message(x[:, EDGES[0]])
        h = self.own(x).index_add(1, EDGES[1], messages).relu()
        out: Tensor = self.head(h.mean(1))
        return out


NETS = [Tied, Branches, Recurrent, Attention, GraphConvolution]
METHODS = {
    "MAP": bnn.MAP(lr=1e-2),
    "MeanFieldVI": bnn.MeanFieldVI(),
    "SGHMC": bnn.SGHMC(draws=5),
    "MCLMC": bnn.MCLMC(draws=5),
}


def model_of(net):
    return bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Normal())


@pytest.mark.parametrize("net", NETS)
def test_every_weight_has_a_prior_and_the_log_joint_is_that_of_pyros_trace(net):
    model = model_of(net().double())
    assert set(model.log_priors) == {name for name, _ in model.named_parameters()}
    state = dict(model.named_parameters())
    trace = poutine.trace(poutine.condition(model.pyro_model, state)).get_trace(X.double(), Y.double())
    joint = float(model.log_joint(X.double(), Y.double()).detach())
    assert joint == pytest.approx(float(trace.log_prob_sum().detach()), rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_it_is_fitted_predicts_and_comes_back_from_disk(net, method, tmp_path):
    posterior = bnn.fit(model_of(net()), (X, Y), METHODS[method], epochs=20, batch_size=None, chains=2, progress=False)
    predictive = posterior.predict(X, draws=3)
    assert torch.isfinite(predictive.log_prob(Y)).all()
    # A draw is one set of weights for all rows and all steps of a sequence: the net with them gives the same.
    with torch.no_grad():
        own = posterior.net(chain=1, draw=0)(X[:2])
    draws = posterior.predict(X[:2]).draws
    torch.testing.assert_close(draws[1, 0], own.flatten(), atol=1e-6, rtol=1e-5)
    posterior.save(tmp_path / "run")
    again = bnn.Posterior.load(tmp_path / "run", net())
    assert torch.equal(again.predict(X, draws=3).draws, predictive.draws)
