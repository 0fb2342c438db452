"""What every method that starts from a point estimate owes its user, whatever distribution it ends in."""

from pathlib import Path

import torch
from torch import nn

import bayesnn as bnn

X = torch.randn(24, 2, generator=torch.Generator().manual_seed(3))
Y = X.sum(1) + 0.1 * torch.randn(24, generator=torch.Generator().manual_seed(4))


def fit(method, net, *, dtype=torch.float32, likelihood=None, y=Y, epochs=6, **options):
    model = bnn.BayesianModel(net, likelihood=likelihood or bnn.likelihoods.Normal()).to(dtype)
    return bnn.fit(model, (X.to(dtype), y), method, epochs=epochs, batch_size=8, progress=False, **options)


def answers(posterior):
    predictive = posterior.predict(X, draws=5)
    state = posterior.states(3)[-1][-1]
    return [predictive.draws, predictive.mean, predictive.log_prob(Y), *(state[name] for name in sorted(state))]


def assert_same(first, second):
    assert all(torch.equal(a, b) for a, b in zip(answers(first), answers(second), strict=True))


def assert_contract(method, net: nn.Module, folder: Path) -> None:
    """Dtypes, seeds, chains, files, and a net that stays as it was."""
    before, kinds = {k: v.clone() for k, v in net.state_dict().items()}, [type(m) for m in net.modules()]
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    posterior = fit(method, net, chains=2)
    answers(posterior)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert [type(m) for m in net.modules()] == kinds
    assert [type(m) for m in posterior.model.net.modules()] == kinds

    torch.manual_seed(2)  # the global generator has no say
    assert_same(posterior, fit(method, net, chains=2))
    first = posterior.sources[0].tensors()
    alone = fit(method, net).sources[0].tensors()
    assert all(torch.equal(first[name], alone[name]) for name in first)
    assert not torch.equal(first["loc/net.layers.0.weight"], posterior.sources[1].tensors()["loc/net.layers.0.weight"])

    posterior.save(folder)
    again = bnn.Posterior.load(folder, net)
    assert_same(posterior, again)
    for draw in (-1, 2):
        assert torch.equal(posterior.net(1, draw)(X), again.net(1, draw)(X))
    states = posterior.states(3)[0]
    plain = posterior.predict(X, draws=3).draws[0, 2]
    # A draw is a function; many at once are those of one at a time up to rounding.
    torch.testing.assert_close(posterior.net(0, 2)(X).squeeze(1), plain, rtol=1e-5, atol=1e-6)
    assert not torch.equal(plain, posterior.predict(X, draws=3).draws[0, 1])
    assert len(states) == 3

    for dtype in (torch.float32, torch.float64):
        draws = fit(method, net, dtype=dtype).predict(X.to(dtype), draws=2).draws
        assert draws.dtype == dtype
        assert torch.isfinite(draws).all()

    going_on = fit(method, net, init=posterior, chains=2)
    assert going_on.info["round"] == 1
    assert not torch.equal(going_on.sources[0].last()["net.layers.0.weight"], first["loc/net.layers.0.weight"])
    dataset = posterior.to_arviz(weights=True, draws=4)
    assert dataset["posterior"]["net.layers.0.weight"].shape[:2] == (2, 4)


def assert_works_on_cuda(method, net: nn.Module) -> None:
    """Fit, draws and predictions there; the draws are those of the device's own generator."""
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Normal())
    posterior = bnn.fit(model, (X, Y), method, epochs=6, batch_size=8, device="cuda", progress=False)
    draws = posterior.predict(X.cuda(), draws=3).draws
    assert draws.is_cuda
    assert torch.isfinite(draws).all()
    assert torch.equal(draws, posterior.predict(X.cuda(), draws=3).draws)
