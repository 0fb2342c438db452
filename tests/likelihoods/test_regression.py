import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from bayesnn import likelihoods
from bayesnn.likelihoods import (
    GammaPrecision,
    HeteroscedasticNormal,
    Laplace,
    LogNormal,
    LogNormalScale,
    Normal,
    Poisson,
    StudentT,
)
from bayesnn.likelihoods.regression import student_cdf

SCALE = 0.6


def real(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softplus(raw):
    return np.logaddexp(0, raw)


# likelihood, frozen scipy distribution of the same params
CASES = {
    "Normal": (Normal(SCALE), lambda p: stats.norm(p["loc"], p["scale"])),
    "Laplace": (Laplace(SCALE), lambda p: stats.laplace(p["loc"], p["scale"])),
    "StudentT": (StudentT(3.5, SCALE), lambda p: stats.t(3.5, p["loc"], p["scale"])),
    "LogNormal": (LogNormal(SCALE), lambda p: stats.lognorm(p["scale"], scale=np.exp(p["loc"]))),
    "HeteroscedasticNormal": (HeteroscedasticNormal(), lambda p: stats.norm(p["loc"], p["scale"])),
    "Poisson": (Poisson(), lambda p: stats.poisson(np.exp(p["log_rate"]))),
}


def case(name, targets=1, draws=()):
    """(likelihood, outputs, y, scipy's distribution at the likelihood's own params)."""
    likelihood, frozen = CASES[name]
    likelihood = likelihood.double()
    outputs = real(*draws, 6, targets * (2 if name == "HeteroscedasticNormal" else 1))
    y = real(6, targets, seed=1)
    y = y.exp() if name == "LogNormal" else (y.abs() * 3).floor() if name == "Poisson" else y
    each = [likelihood.params(one) for one in (outputs if draws else [outputs])]  # of a draw at a time
    params = {key: torch.stack([one[key] for one in each]) for key in each[0]} if draws else each[0]
    return likelihood, outputs, likelihood.check_targets(y, outputs.shape[-1]), params, as_scipy(frozen, params)


def as_scipy(frozen, params):
    return frozen({key: value.detach().numpy() for key, value in params.items()})


def log_density(distribution, y):
    return distribution.logpmf(y) if hasattr(distribution.dist, "logpmf") else distribution.logpdf(y)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("targets", [1, 3])
def test_log_prob_is_scipys_summed_over_the_target(name, targets):
    likelihood, outputs, y, params, expected = case(name, targets)
    got = likelihood.log_prob(outputs, y)
    assert got.shape == (6,)
    by_element = log_density(expected, y.numpy())
    np.testing.assert_allclose(got, by_element.reshape(6, -1).sum(1), rtol=1e-6)  # fixed scales are float32 numbers
    np.testing.assert_allclose(likelihood.elementwise_log_prob(params, y), by_element, rtol=1e-6)


def test_params_are_what_the_docstrings_say():
    outputs = real(5, 4)
    params = HeteroscedasticNormal(floor=0.25).params(outputs)
    np.testing.assert_allclose(params["loc"], outputs[:, :2])
    np.testing.assert_allclose(params["scale"], softplus(outputs[:, 2:].numpy()) + 0.25, rtol=1e-12)
    np.testing.assert_allclose(Poisson().params(outputs)["log_rate"], outputs)
    likelihood = Normal()
    with torch.no_grad():
        likelihood.log_scale.fill_(math.log(0.37))
    scale = likelihood.params(outputs)["scale"]
    assert scale.shape == outputs.shape
    np.testing.assert_allclose(scale.detach(), 0.37, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("output_shape", [(6,), (6, 1)])
@pytest.mark.parametrize("target_shape", [(6,), (6, 1)])
def test_one_target_never_broadcasts_rows_against_rows(name, output_shape, target_shape):
    likelihood, outputs, y, _, expected = case(name)
    if name == "HeteroscedasticNormal":
        output_shape = (6, 2)
    targets = likelihood.check_targets(y.reshape(target_shape), outputs.shape[-1])
    got = likelihood.log_prob(outputs.reshape(output_shape), targets)
    np.testing.assert_allclose(got, log_density(expected, y.numpy()), rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_cdf_is_scipys_for_each_draw(name):
    likelihood, _, y, params, expected = case(name, draws=(4,))
    got = likelihood.cdf(params, y)
    assert got.shape == (4, 6)
    np.testing.assert_allclose(got, expected.cdf(y.numpy()), rtol=1e-5, atol=1e-8)


def test_poisson_cdf_between_and_below_the_counts():
    params = {"log_rate": torch.tensor([[0.3], [4.0]], dtype=torch.float64).log()}
    for y in (-1.0, -0.5, 0.0, 0.7, 3.0, 3.999, 50.0):
        got = Poisson().cdf(params, torch.tensor([y], dtype=torch.float64))
        np.testing.assert_allclose(got, stats.poisson([[0.3], [4.0]]).cdf(y), rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if name != "Poisson"])
def test_median_halves_the_probability(name):
    likelihood, _, _, params, expected = case(name, draws=(4,))
    np.testing.assert_allclose(expected.cdf(likelihood.median(params).numpy()), 0.5, rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_mean_and_variance_add_up_by_the_law_of_total_variance(name):
    likelihood, _, _, params, expected = case(name, targets=2, draws=(9,))
    np.testing.assert_allclose(likelihood.mean(params), expected.mean(), rtol=1e-6)
    aleatoric, epistemic = likelihood.uncertainty(params)
    np.testing.assert_allclose(aleatoric, expected.var().mean(0), rtol=1e-6)
    np.testing.assert_allclose(epistemic, expected.mean().var(0), rtol=1e-6)
    # The mixture's own moments: E[y^2] - E[y]^2 with E[y^2 | w] = Var + mean^2, 1 / S each.
    second = (expected.var() + expected.mean() ** 2).mean(0)
    np.testing.assert_allclose(aleatoric + epistemic, second - expected.mean().mean(0) ** 2, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, (likelihood, _) in CASES.items() if likelihood.location_scale])
def test_to_units_is_the_density_of_the_targets_own_units(name):
    likelihood, _, y, params, expected = case(name, targets=2, draws=(3,))
    mean, std = torch.tensor([10.0, -4.0], dtype=torch.float64), torch.tensor([0.2, 30.0], dtype=torch.float64)
    units = likelihood.to_units(params, mean, std)
    own = mean + std * y
    # Change of variables: log p(own) = log p(standardised) - log std, for each element.
    by_jacobian = expected.logpdf(y.numpy()) - std.log().numpy()
    np.testing.assert_allclose(likelihood.elementwise_log_prob(units, own), by_jacobian, rtol=1e-6)
    moved = as_scipy(CASES[name][1], units)
    np.testing.assert_allclose(units["loc"], mean + std * params["loc"], rtol=1e-12)
    np.testing.assert_allclose(moved.logpdf(own.numpy()), by_jacobian, rtol=1e-6)
    for mine, standardised in zip(likelihood.uncertainty(units), likelihood.uncertainty(params), strict=True):
        np.testing.assert_allclose(mine, standardised * std**2, rtol=1e-10)


def test_poisson_log_prob_keeps_extreme_rates():
    outputs = torch.tensor([-200.0, -200.0, 30.0])
    got = Poisson().log_prob(outputs, torch.tensor([0.0, 2.0, 1e13]))
    assert got[0] == pytest.approx(0.0, abs=1e-30)
    assert got[1] == pytest.approx(-400 - math.log(2), rel=1e-6)
    assert bool(torch.isfinite(got).all())


@pytest.mark.parametrize(("df", "finite_mean"), [(0.8, False), (1.0, False), (1.5, True), (2.0, True)])
def test_student_t_says_which_moments_it_lacks(df, finite_mean):
    likelihood = StudentT(df, 1.0)
    params = likelihood.params(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"Expected a finite variance, got StudentT.*use \.quantile\(\) instead"):
        likelihood.uncertainty(params)
    if finite_mean:
        assert torch.equal(likelihood.mean(params), torch.zeros(3, 4))
    else:
        with pytest.raises(ValueError, match=r"Expected df > 1 for a mean.*\.quantile\(0\.5\)"):
            likelihood.mean(params)


@pytest.mark.parametrize("name", [name for name in CASES if name != "Poisson"])
def test_real_targets_must_be_floating_and_of_the_nets_shape(name):
    likelihood, width = CASES[name][0], 2 if name == "HeteroscedasticNormal" else 1
    assert likelihood.check_targets(torch.ones(4, 1), width).shape == (4,)
    assert likelihood.check_targets(torch.ones(4, 3), 3 * width).shape == (4, 3)
    with pytest.raises(ValueError, match=f"Expected floating-point targets for {name}, got torch.int64: use y.float()"):
        likelihood.check_targets(torch.ones(4, dtype=torch.long), width)
    for y, outputs in ((torch.ones(4, 2), width), (torch.ones(4), 3 * width), (torch.ones(4, 1, 1), width)):
        with pytest.raises(
            ValueError, match=rf"Expected targets of shape \(batch, {outputs // width}\).*{name}"
        ) as error:
            likelihood.check_targets(y, outputs)
        assert str(tuple(y.shape)) in str(error.value)
        assert "\n" not in str(error.value)


def test_other_target_errors():
    with pytest.raises(ValueError, match=r"Expected a net with 2 outputs a target .* got 3: double num_outputs"):
        HeteroscedasticNormal().check_targets(torch.ones(4), 3)
    with pytest.raises(ValueError, match=r"Expected targets > 0 for LogNormal, got a smallest of 0: shift"):
        LogNormal().check_targets(torch.tensor([0.0, 1.0]), 1)
    for bad in ([0.5, 1.0], [-1.0, 2.0]):
        with pytest.raises(ValueError, match=r"Expected counts 0, 1, 2, \.\.\. for Poisson, got values from"):
            Poisson().check_targets(torch.tensor(bad), 1)
    assert torch.equal(Poisson().check_targets(torch.tensor([3, 0]), 1), torch.tensor([3.0, 0.0]))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_scales_must_be_positive(bad):
    for make in (Normal, Laplace, LogNormal, StudentT, lambda v: StudentT(4.0, v), HeteroscedasticNormal):
        with pytest.raises(ValueError, match=r"Expected \w+ > 0 and finite"):
            make(bad)


@pytest.mark.parametrize(
    "likelihood",
    [
        Normal(),
        Normal(0.3),
        Normal(prior=LogNormalScale(0.2, 0.4)),
        Laplace(prior=GammaPrecision(2.0, 0.1)),
        StudentT(7.0, 0.1),
        StudentT(5.0),
        LogNormal(0.3),
        HeteroscedasticNormal(0.05),
        Poisson(),
    ],
    ids=repr,
)
def test_config_round_trip_through_json(likelihood):
    again = likelihoods.from_config(json.loads(json.dumps(likelihood.config())))
    assert again.config() == likelihood.config()
    assert repr(again) == repr(likelihood)
    assert type(again) is type(likelihood)
    assert {name: str(prior) for name, prior in again.priors().items()}.keys() == likelihood.priors().keys()


def test_reset_parameters_starts_the_scale_anew():
    likelihood = Normal()
    with torch.no_grad():
        likelihood.log_scale.fill_(5.0)
    likelihood.reset_parameters()
    assert likelihood.log_scale.item() == pytest.approx(-0.7)
    Normal(0.3).reset_parameters()


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 30, 64])
def test_the_cdf_of_students_t_is_scipys(df):
    """Summed in torch for whole degrees of freedom; elsewhere it is scipy's own."""
    z = torch.linspace(-40.0, 40.0, 2001, dtype=torch.float64)
    torch.testing.assert_close(student_cdf(z, df), torch.as_tensor(stats.t(df).cdf(z)), rtol=0, atol=2e-15)
    ends = torch.tensor([-torch.inf, -1e30, 1e30, torch.inf])
    torch.testing.assert_close(student_cdf(ends, df), torch.tensor([0.0, 0.0, 1.0, 1.0]), rtol=0, atol=1e-7)
    single = student_cdf(z.float(), df)
    torch.testing.assert_close(single.double(), student_cdf(z, df), rtol=0, atol=1e-6)
    assert bool(((single >= 0) & (single <= 1)).all())
    params = {"loc": torch.zeros_like(z), "scale": torch.ones_like(z)}
    torch.testing.assert_close(StudentT(df).cdf(params, z), StudentT(df + 1e-9).cdf(params, z), rtol=0, atol=1e-8)
