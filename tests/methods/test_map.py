import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn.methods.descent import OPTIMIZERS

N, SCALE, NOISE = 40, 0.8, 0.5
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X @ torch.tensor([1.0, -2.0, 0.5]).double() + NOISE * torch.randn(
    N, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)
LR = {"adam": 0.05, "sgd": 0.05, "rmsprop": 0.02, "adagrad": 0.5, "adadelta": 1.0, "adamax": 0.05, "nadam": 0.05}


def ridge():
    """The mode of Bayesian linear regression, in closed form."""
    return torch.linalg.solve(X.T @ X / NOISE**2 + torch.eye(3).double() / SCALE**2, X.T @ Y / NOISE**2)


def fitted(method, **options):
    model = bnn.BayesianModel(
        nn.Linear(3, 1, bias=False).double(), bnn.priors.Normal(SCALE), bnn.likelihoods.Normal(NOISE)
    )
    return bnn.fit(model, (X, Y), method, epochs=2500, batch_size=None, progress=False, **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_arrives_at_the_mode(name):
    found = fitted(bnn.MAP(lr=LR[name], optimizer=name)).sources[0].last()["net.weight"][0]
    sd = torch.linalg.inv(X.T @ X / NOISE**2 + torch.eye(3).double() / SCALE**2).diagonal().sqrt()
    assert float(((found - ridge()) / sd).abs().max()) < 0.01
    without = torch.linalg.lstsq(X, Y[:, None]).solution[:, 0]  # were the prior left out, it would be seen
    assert float(((found - without) / sd).abs().max()) > 0.05


def test_chains_as_one_arrive_there_with_every_optimizer_too():
    for name in ("rmsprop", "adamax"):
        both = fitted(bnn.MAP(lr=LR[name], optimizer=name), chains=2, vectorize=True)
        for source in both.sources:
            torch.testing.assert_close(source.last()["net.weight"][0], ridge(), atol=2e-3, rtol=0)
