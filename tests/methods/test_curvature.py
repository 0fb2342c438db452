"""Power iteration with differences of gradients."""

import math

import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn.methods.base import Plan
from bayesnn.methods.curvature import largest_curvature, row_variance
from bayesnn.methods.step_size import LR_MOST, LR_STABILITY, NOISE_MOST, StepSize


def test_it_is_the_largest_eigenvalue_of_a_quadratic_and_puts_the_parameters_back() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    hessian = root @ root.T
    w = nn.Parameter(torch.randn(2, generator=generator, dtype=torch.float64))
    v = nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))
    before = torch.cat((w, v)).detach().clone()
    start = [torch.randn(n, generator=generator, dtype=torch.float64) for n in (2, 3)]

    def loss() -> torch.Tensor:
        both = torch.cat((w, v))
        slopes = torch.tensor([-1.0, 1.0, 3.0], dtype=torch.float64)  # rows that disagree along the first weight
        return both @ hessian @ both / 2 + slopes * both[0]

    value, noise, direction = largest_curvature(loss, [w, v], start, iterations=60)
    eigenvalues, eigenvectors = torch.linalg.eigh(hessian)
    assert value == pytest.approx(float(eigenvalues[-1]), rel=1e-6)
    assert abs(float(torch.cat(direction) @ eigenvectors[:, -1])) == pytest.approx(1, rel=1e-4)
    assert float(noise.var()) == pytest.approx(4 * float(direction[0][0]) ** 2, rel=1e-6)  # Var(slopes) v_0^2
    assert torch.equal(torch.cat((w, v)).detach(), before)


def test_the_variance_of_rows_is_found_from_pieces_without_bias() -> None:
    """Of rows g_i ~ N(m, diag(v)) in pieces of 8, over 400 sets of 4 pieces."""
    generator = torch.Generator().manual_seed(3)
    sd = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    rows = 5.0 + sd * torch.randn(400, 4, 8, 3, generator=generator, dtype=torch.float64)
    found = torch.tensor([row_variance([[p[:1], p[1:]] for p in pieces.mean(1)], 8) for pieces in rows])
    assert abs(float(found.mean()) - float(sd.square().mean())) < 4 * float(found.std()) / 20
    assert row_variance([[torch.ones(2)]] * 3, 8) == 0


def test_an_interrupted_look_puts_the_parameters_back() -> None:
    w = nn.Parameter(torch.ones(3))

    def loss() -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        largest_curvature(loss, [w], [torch.ones(3)])
    assert torch.equal(w.detach(), torch.ones(3))


def test_sgld_sets_its_step_by_the_curvature_and_leaves_it_after_the_burn_in() -> None:
    """A linear model has one curvature everywhere: lambda_max(X'X / (N sigma^2) + I / (N s^2))."""
    generator = torch.Generator().manual_seed(1)
    x, sigma, s = 3 * torch.randn(40, 3, generator=generator, dtype=torch.float64), 0.5, 2.0
    y = x.sum(1)
    net = nn.Linear(3, 1, bias=False)
    model = bnn.BayesianModel(net, bnn.priors.Normal(s), bnn.likelihoods.Normal(scale=sigma)).double()
    posterior = bnn.fit(model, (x, y), bnn.SGLD(), epochs=400, batch_size=None, chains=1, progress=False)
    curvature = float(torch.linalg.eigvalsh(x.T @ x / (40 * sigma**2)).max()) + 1 / (40 * s**2)
    rates = [row["lr"] for row in posterior.history]
    assert LR_STABILITY / curvature < LR_MOST
    assert rates[-1] == pytest.approx(LR_STABILITY / curvature, rel=0.01)
    assert len(set(rates[200:])) == 1
    # 400 steps, and 10 looks of 8 iterations with two gradients each
    assert posterior.info["gradient_evaluations"] == [400 + 10 * 8 * 2]


def test_minibatch_noise_is_measured_bounded_by_default_and_warned_of() -> None:
    """Of linear regression in closed form: c = Var_i(x_i e_i) / sigma^4 at the mode, and the share of lr."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    sigma = 0.5
    y = x.sum(1) + sigma * torch.randn(4000, generator=generator, dtype=torch.float64)
    net = nn.Linear(2, 1, bias=False)
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=sigma)).double()
    options = {"epochs": 20, "batch_size": 400, "chains": 1, "progress": False}
    quiet = bnn.fit(model, (x, y), bnn.SGLD(), **options)
    assert quiet.info["minibatch_noise"][0] == pytest.approx(NOISE_MOST)  # the bound that holds here
    assert quiet.history[-1]["lr"] < 0.5 * LR_STABILITY * sigma**2
    with pytest.warns(UserWarning, match="wider than it should be"):
        loud = bnn.fit(model, (x, y), bnn.SGLD(lr=0.02), **options)
    # At the mode the rows' gradients have variance x^2 / sigma^2 = 1 / sigma^2 on average: lr N c (1 - B / N) / (2 B).
    expected = 0.02 * 4000 / sigma**2 * 0.9 / (2 * 400)
    assert loud.info["minibatch_noise"][0] == pytest.approx(expected, rel=0.35)  # of 5 looks at 4 pieces of 2 weights
    with pytest.raises(ValueError, match="minibatches of one row"):
        bnn.fit(model, (x, y), bnn.SGLD(), **{**options, "batch_size": 1})
    exact = bnn.fit(model, (x, y), bnn.SGLD(lr=0.1), **{**options, "batch_size": None})
    assert exact.info["minibatch_noise"] == [None]


@pytest.mark.parametrize("loss", [0.0, math.inf])
def test_a_look_at_a_flat_place_does_not_blind_those_after_it(loss: float) -> None:
    weight = nn.Parameter(torch.ones(2))
    step_size = StepSize(
        bnn.optim.SGLD([weight], lr=0.1, num_data=9), [weight], True, LR_STABILITY, Plan(9, 9, 9, 1, 1)
    )
    stream = torch.Generator().manual_seed(0)
    step_size.look(lambda: loss * (weight**2).sum().expand(9), 9, stream)
    step_size.look(lambda: 25 * (weight**2).sum().expand(9), 9, stream)
    assert step_size._curvatures[-1] == pytest.approx(50, rel=1e-3)


def test_a_look_that_saw_no_number_leaves_the_step_to_those_before_it() -> None:
    weight = nn.Parameter(torch.ones(2))
    sampler = bnn.optim.SGLD([weight], lr=0.1, num_data=9)
    step_size, stream = StepSize(sampler, [weight], True, 0.25, Plan(9, 9, 9, 1, 1)), torch.Generator().manual_seed(0)
    for loss in (25.0, math.nan):
        step_size.look(lambda loss=loss: loss * (weight**2).sum().expand(9), 9, stream)
        assert sampler.param_groups[0]["lr"] == pytest.approx(0.25 / 50, rel=1e-3)


@pytest.mark.parametrize("decay", [0.5, 40.0])
def test_a_prior_is_stiff_in_the_coordinates_of_the_preconditioner(decay: float) -> None:
    """lambda is the largest eigenvalue of s (H + decay) s: here of diag(4 + decay, 9 decay), in the limit."""
    weight = nn.Parameter(torch.ones(2))
    sampler = bnn.optim.PSGLD([weight], lr=0.1, num_data=9, weight_decay=decay)
    step_size, stream = StepSize(sampler, [weight], True, 0.25, Plan(9, 9, 9, 1, 1)), torch.Generator().manual_seed(0)
    for _ in range(8):
        step_size.look(lambda: 2 * weight[0].square().expand(9), 9, stream, [torch.tensor([1.0, 3.0])])
    expected = max(4 + decay, 9 * decay)
    assert sampler.param_groups[0]["lr"] == pytest.approx(min(LR_MOST, 0.25 / expected), rel=1e-3)


def test_what_an_adapting_preconditioner_looked_like_at_first_is_forgotten() -> None:
    weight = nn.Parameter(torch.ones(2))
    sampler = bnn.optim.PSGLD([weight], lr=0.1, num_data=9)
    step_size, stream = StepSize(sampler, [weight], True, 0.25, Plan(9, 9, 9, 1, 1)), torch.Generator().manual_seed(0)
    for scale in (100.0, 1.0, 1.0, 1.0):
        step_size.look(lambda: 25 * (weight**2).sum().expand(9), 9, stream, [torch.full((2,), scale)])
    assert sampler.param_groups[0]["lr"] == pytest.approx(0.25 / 50, rel=1e-3)


def test_a_weight_of_which_the_data_say_nothing_has_the_prior_s_step() -> None:
    """At its mode its gradients vanish; over the prior their variance is T delta / N, delta = 1 / (N s^2)."""
    N = 50
    x = torch.zeros(N, 2)
    x[:, 0] = torch.randn(N, generator=torch.Generator().manual_seed(0))
    model = bnn.BayesianModel(nn.Linear(2, 1, bias=False), bnn.priors.Normal(2.0), bnn.likelihoods.Normal(scale=1.0))
    nn.init.zeros_(model.net.weight)
    found = []
    start = bnn.methods.psgld.PSGLD.end_burn_in

    def see(self: bnn.PSGLD, sampler: bnn.optim.PSGLD) -> None:
        found.append(sampler.scales()[0].square())
        start(self, sampler)

    method = bnn.PSGLD(lr=1e-9, draws=1, warm_up=0.5, burn_in=0.5, temperature=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bnn.PSGLD, "end_burn_in", see)
        bnn.fit(model, (x, 0.5 * x[:, 0]), method, epochs=10, batch_size=None, chains=1, init="net", progress=False)
    assert float(found[0][0, 1]) == pytest.approx(1 / (method.delta + (0.5 / (4 * N) / N) ** 0.5), rel=0.05)


def test_rows_drawn_with_replacement_are_noisier() -> None:
    """The mean of B of N rows has variance c (N - B) / (N - 1) / B without replacement, and c / B with it."""
    weight = nn.Parameter(torch.zeros(1))
    sampler = bnn.optim.SGLD([weight], lr=0.01, num_data=64)

    def share(batch: int, independent: bool) -> float:
        plan = Plan(64, batch, 1, 64 // batch, 1, independent=independent)
        step_size = StepSize(sampler, [weight], True, 0.25, plan)
        step_size._row_variances = [1.0]
        return step_size.share()

    assert share(64, independent=False) == 0
    assert share(64, independent=True) > 0
    assert share(32, independent=False) == pytest.approx(share(32, independent=True) * 32 / 63)

    X, y = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
    model = bnn.BayesianModel(nn.Linear(2, 2), bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    options = {"epochs": 10, "batch_size": 64, "chains": 1, "progress": False}
    found = {
        order: bnn.fit(model, (X, y), bnn.SGLD(lr=1e-3, draws=2), order=order, **options).info["minibatch_noise"][0]
        for order in ("reshuffle", "iid")
    }
    assert found["reshuffle"] is None  # all rows: exact
    assert found["iid"] > 0  # N rows with replacement are not all of them
