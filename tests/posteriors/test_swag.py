"""SWAG against plain SGD step by step, the stationary law of SGD with momentum, and its own formula."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn import likelihoods, priors
from bayesnn.methods import swag
from tests.posteriors.contract import X, Y, assert_contract, assert_works_on_cuda, fit
from tests.posteriors.linear import D, problem

# The moments, against torch's own SGD


def by_hand(model, x, y, method, batch, epochs):
    """(iterates after each update, flat) of SGD over the rows in their order, with weight decay 1 / (N s^2)."""
    net, iterates, step = model.net, [], 0
    decay = 1 / (len(x) * 0.7**2)
    sgd = torch.optim.SGD(net.parameters(), lr=method.lr, momentum=method.momentum, weight_decay=decay)
    steps = epochs * -(-len(x) // batch)
    for _ in range(epochs):
        for xb, yb in zip(x.split(batch), y.split(batch), strict=True):
            sgd.zero_grad()
            (-model.log_likelihood(xb, yb).mean()).backward()
            sgd.step()
            step += 1
            if step in method.updates(steps):
                iterates.append(torch.cat([p.detach().flatten() for p in net.parameters()]).numpy().copy())
    return np.stack(iterates)


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_moments_are_those_of_plain_sgd(diagonal):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    model = bnn.BayesianModel(net, priors.Normal(0.7), likelihoods.Normal(0.5)).double()
    method = bnn.SWAG(lr=0.01, rank=4, warm_up=0.0, burn_in=0.25, collect_every=3, scale=0.8, diagonal=diagonal)
    x, y = X.double(), Y.double()
    posterior = bnn.fit(model, (x, y), method, epochs=10, batch_size=6, order="sequential", init="net", progress=False)
    w = by_hand(model.copy(), x, y, method, 6, 10)
    assert len(w) == 10  # 40 steps, of which 30 are after the burn-in
    source, names = posterior.sources[0], [f"net.{name}" for name, _ in net.named_parameters()]

    def flat(part):
        return torch.cat([part[name].flatten() for name in names]).numpy()

    np.testing.assert_allclose(flat(source.loc), w.mean(0), rtol=1e-10)
    if diagonal:
        np.testing.assert_allclose(2 * flat(source.log_sd), np.log(0.8 * w.var(0)), rtol=1e-8)
        return
    np.testing.assert_allclose(flat(source.sd) ** 2, 0.8 * w.var(0) / 2, rtol=1e-8)
    running = np.cumsum(w, 0) / np.arange(1, 11)[:, None]
    deviations = torch.cat([source.factor[name].flatten(1) for name in names], 1).numpy()
    np.testing.assert_allclose(deviations, np.sqrt(0.8 / (2 * 3)) * (w - running)[-4:], rtol=1e-8)


def test_a_draw_has_the_covariance_of_the_formula():
    """scale (Sigma_diag + D D' / (K - 1)) / 2 over all weights together, the likelihood's own included."""
    posterior = fit(bnn.SWAG(rank=3, scale=2.0), bnn.nets.MLP(2, (2,), 1), dtype=torch.float64, epochs=20)
    source, n = posterior.sources[0], 4000
    names = sorted(source.sd)
    assert "likelihood.log_scale" in names

    def flat(state):
        return torch.cat([state[name].flatten() for name in names]).numpy()

    factor = torch.cat([source.factor[name].reshape(3, -1) for name in names], 1).numpy()
    wanted = np.diag(flat(source.sd) ** 2) + factor.T @ factor
    draws = np.stack([flat(state) for state in posterior.states(n)[0]])
    error = np.sqrt((np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2) / n)
    assert (np.abs(np.cov(draws.T) - wanted) < 4 * error).all()
    assert (np.abs(draws.mean(0) - flat(source.loc)) < 4 * np.sqrt(np.diag(wanted) / n)).all()
    share = np.trace(factor.T @ factor) / np.trace(wanted)
    assert 0.1 < share < 0.9  # both parts are there to be seen


# The stationary law


def transition(case, lr, momentum, batch):
    """SGD with momentum on a linear regression, minibatches of ``batch`` rows drawn with replacement.

    v' = mu v + H_B delta + e_B, delta' = delta - lr v', with the mean loss's H_i = x_i x_i' / sigma^2 + I / (N s^2) and
    e_i = x_i (x_i' m - y_i) / sigma^2 + m / (N s^2) of a row, averaged over the batch. In z = (delta, v) that is
    z' = M_B z + n_B, where

        M_i = [[I - lr H_i, -lr mu I], [H_i, mu I]],      n_i = (-lr e_i, e_i),     E[n_i] = 0 at the mode

    z is independent of the batch and has mean 0 in the stationary law, so V = E[M_B V M_B'] + E[n_B n_B'], with

        E[M_B V M_B'] = M V M' + (E_i[M_i V M_i'] - M V M') / B,      E[n_B n_B'] = E_i[n_i n_i'] / B

    Returns
    -------
    M (2D, 2D) and the stationary covariances V (K, 2D, 2D).
    """
    x, y, n = case.x.numpy(), case.y.numpy(), case.n
    identity = np.eye(D)
    h = x[:, :, None] * x[:, None, :] / case.sigma**2 + identity / (n * case.s**2)
    rows = np.concatenate(
        (
            np.concatenate((identity - lr * h, np.broadcast_to(-lr * momentum * identity, h.shape)), 2),
            np.concatenate((h, np.broadcast_to(momentum * identity, h.shape)), 2),
        ),
        1,
    )
    mean = rows.mean(0)
    square = np.kron(mean, mean)
    square = square + (np.mean([np.kron(m, m) for m in rows], 0) - square) / batch
    covariances = []
    for k, mode in enumerate(case.mean):
        e = x * (x @ mode - y[:, k])[:, None] / case.sigma**2 + mode / (n * case.s**2)
        noise = np.concatenate((-lr * e, e), 1)
        source = noise.T @ noise / n / batch
        solution = np.linalg.solve(np.eye(4 * D * D) - square, source.ravel())
        covariances.append(solution.reshape(2 * D, 2 * D))
    return mean, np.stack(covariances)


def expected_moments(case, lr, momentum, batch, updates, gap):
    """(variance of the average (K, D), expected Sigma_diag (K, D)) of ``updates`` iterates ``gap`` steps apart.

    Iterates k updates apart have the covariance C_k = M^(gap k) V. The average's is sum_st C_|s-t| / T^2, and
    E[sum_t (w_t - average)^2 / T] = V - that.
    """
    mean, V = transition(case, lr, momentum, batch)
    power, far = np.linalg.matrix_power(mean, gap), np.eye(2 * D)
    total = updates * V[:, range(D), range(D)]
    for k in range(1, updates):
        far = power @ far
        total = total + 2 * (updates - k) * np.einsum("ij,kji->ki", far, V)[:, :D]
    average = total / updates**2
    return average, V[:, range(D), range(D)] - average


LR_SHARE, MOMENTUM, BATCH, GAP, UPDATES, CHAINS = 0.2, 0.5, 5, 8, 100, 6


@cache
def stationary():
    """(the problem, lr, means (chain, K, D), Sigma_diag (chain, K, D)) of SWAG that starts at the mode."""
    case = problem()
    lr = LR_SHARE * (1 - MOMENTUM) * case.n / np.linalg.eigvalsh(case.precision).max()
    model = case.model.copy()
    with torch.no_grad():
        model.net.weight.copy_(torch.from_numpy(case.mean))
    method = bnn.SWAG(lr=float(lr), momentum=MOMENTUM, warm_up=0.0, burn_in=0.1, collect_every=GAP, diagonal=True)
    epochs = -(-GAP * UPDATES * 10 // 9 // (case.n // BATCH)) + 1
    posterior = bnn.fit(
        model, (case.x, case.y), method, epochs=epochs, batch_size=BATCH, chains=CHAINS, order="iid", init="net",
        progress=False,
    )  # fmt: skip
    updates = len(method.updates(epochs * case.n // BATCH))
    means = np.stack([source.loc["net.weight"].numpy() for source in posterior.sources])
    diagonal = np.stack([np.exp(2 * source.log_sd["net.weight"].numpy()) for source in posterior.sources])
    return case, float(lr), updates, means, diagonal


def assert_one(ratio):
    """The average (chain,) of a ratio over columns is 1 within 4 standard errors over the independent chains."""
    error = ratio.std(ddof=1) / np.sqrt(len(ratio))
    assert error < 0.04, f"+- {error:.3f} is too little to see a variance that is off by 20 %"
    assert abs(ratio.mean() - 1) < 4 * error, f"{ratio.mean():.4f} +- {error:.4f} instead of 1"


def test_the_moments_are_those_of_the_stationary_law():
    case, lr, updates, _, diagonal = stationary()
    _, wanted = expected_moments(case, lr, MOMENTUM, BATCH, updates, GAP)
    assert_one((diagonal / wanted).mean((1, 2)))
    # The test can tell a learning rate that is off by a fifth, and a spread without momentum.
    for other in ((1.2 * lr, MOMENTUM), (lr, 0.0)):
        _, off = expected_moments(case, *other, BATCH, updates, GAP)
        with pytest.raises(AssertionError, match="instead of 1"):
            assert_one((diagonal / off).mean((1, 2)))


def test_the_mean_is_the_mode_within_its_own_error():
    case, lr, updates, means, _ = stationary()
    variance, _ = expected_moments(case, lr, MOMENTUM, BATCH, updates, GAP)
    ratio = (np.square(means - case.mean) / variance).mean((1, 2))
    error = ratio.std(ddof=1) / np.sqrt(CHAINS)
    assert abs(ratio.mean() - 1) < 4 * error
    assert error < 0.25


def test_a_measured_lr_gives_the_posterior_its_width_along_the_stiffest_direction(monkeypatch):
    """1 / (N lambda) to first order in lr; the closed form of the law tells how far off the measured lr is."""
    case = problem(n=4000)
    monkeypatch.setattr(swag, "LOOK_BATCHES", 80)  # all rows
    model = case.model.copy()
    with torch.no_grad():
        model.net.weight.copy_(torch.from_numpy(case.mean))
    method = bnn.SWAG(momentum=0.5, warm_up=0.0, burn_in=0.2)
    posterior = bnn.fit(
        model, (case.x, case.y), method, epochs=3, batch_size=50, init="net", order="iid", progress=False
    )
    lr = posterior.history[-1]["lr"]
    _, V = transition(case, lr, 0.5, 50)
    values, vectors = np.linalg.eigh(case.precision)
    along = np.einsum("i,kij,j->k", vectors[:, -1], V[:, :D, :D], vectors[:, -1])
    # A slope is a product of two Normals, an input's and a residual's, whose kurtosis is 9.
    assert abs(along.mean() * values[-1] - 1) < 4 * np.sqrt((9 - 1) / case.n) + lr * values[-1] / case.n
    assert lr < 0.5 * swag.LR_STABILITY * case.n / values[-1]  # neither bound is at work


# What is refused, and the contract


@pytest.mark.parametrize("options", [{"rank": 3}, {"diagonal": True}, {"rank": 2, "lr": 1e-3}], ids=repr)
def test_the_contract(options, tmp_path):
    assert_contract(bnn.SWAG(**options), bnn.nets.MLP(2, (4,), 1), tmp_path)


def test_updates_end_at_the_last_step_and_begin_after_the_burn_in():
    assert list(bnn.SWAG(collect_every=3, burn_in=0.5, warm_up=0.0).updates(20)) == [14, 17, 20]
    assert len(bnn.SWAG(rank=5).updates(1000)) == 20
    assert bnn.SWAG(rank=5).updates(1000)[-1] == 1000
    assert bnn.SWAG(burn_in=0.2, warm_up=0.8, collect_every=1).updates(100)[0] == 81


def test_the_climb_is_maps_and_a_posterior_to_go_on_from_needs_none():
    """With a learning rate of nothing the mean stays where the climb, or the posterior, left it."""
    still = {"lr": 1e-12, "rank": 2, "warm_up": 0.5}
    net = bnn.nets.MLP(2, (4,), 1)
    point = fit(bnn.MAP(lr=3e-3), net, epochs=3).sources[0].last()
    climbed = fit(bnn.SWAG(**still), net, epochs=6).sources[0].last()  # three epochs of Adam, its lr falling to 0
    for name, value in point.items():
        torch.testing.assert_close(climbed[name], value, rtol=1e-5, atol=1e-6)
    posterior = fit(bnn.SWAG(**still), net, init=fit(bnn.MAP(lr=3e-3), net, epochs=3))
    torch.testing.assert_close(posterior.sources[0].last()["net.layers.0.weight"], point["net.layers.0.weight"])


def test_early_stopping_goes_back_to_the_moments_of_the_best_epoch():
    posterior = fit(bnn.SWAG(rank=2), bnn.nets.MLP(2, (4,), 1), epochs=40, validation=(X, Y), early_stopping=3)
    assert torch.isfinite(posterior.predict(X).mean).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 1}, "Expected rank to be an integer >= 2, got 1"),
        ({"lr": -1.0}, "Expected lr > 0"),
        ({"momentum": 1.0}, r"Expected momentum in \[0, 1\)"),
        ({"scale": 0.0}, "Expected scale > 0"),
        ({"burn_in": 1.0}, r"Expected burn_in in \[0, 1\)"),
        ({"warm_up": 2}, r"Expected warm_up in \[0, 1\)"),
        ({"warm_up_lr": 0}, "Expected warm_up_lr > 0"),
        ({"collect_every": 0}, "Expected collect_every to be an integer >= 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        bnn.SWAG(**options)


def test_what_swag_cannot_do_is_one_line():
    plain, cases = bnn.nets.MLP(2, (4,), 1), []
    cases.append(
        (
            lambda: fit(bnn.SWAG(), nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))),
            "running statistics",
        )
    )
    cases.append((lambda: fit(bnn.SWAG(), bnn.nets.MLP(2, (4,), 1, dropout=0.5)), "without dropout for SWAG"))
    cases.append((lambda: fit(bnn.SWAG(collect_every=10), plain), "at least two updates of the moments, got 0 from 18"))
    model = bnn.BayesianModel(plain, likelihood=likelihoods.Normal())
    whole = {"epochs": 9, "batch_size": None, "progress": False}
    cases.append((lambda: bnn.fit(model, (X, Y), bnn.SWAG(), **whole), "Expected minibatches for SWAG"))
    free = bnn.BayesianModel(plain, priors.Deterministic(), likelihoods.Normal(0.5))
    cases.append((lambda: bnn.fit(free, (X, Y), bnn.SWAG(), progress=False), "at least one parameter with a prior"))
    for run, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            run()
        assert "\n" not in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda():
    for method in [bnn.SWAG(rank=3)]:
        assert_works_on_cuda(method, bnn.nets.MLP(2, (4,), 1))
