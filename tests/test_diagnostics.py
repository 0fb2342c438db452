import math
import warnings

import numpy as np
import pytest
import torch

from bayesnn import diagnostics
from bayesnn.diagnostics import ess, mcse_mean, rhat

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 when it is imported
    import arviz as az

if int(az.__version__.split(".")[0]) > 0:
    pytest.skip("the oracle is ArviZ 0.x", allow_module_level=True)


def autoregressive(chains, draws, quantities, phi, seed=0):
    """Stationary AR(1) of variance 1: its ESS of the mean is chains * draws * (1 - phi) / (1 + phi)."""
    rng = np.random.default_rng(seed)
    values = np.empty((chains, draws, quantities))
    values[:, 0] = rng.normal(size=(chains, quantities))
    for t in range(1, draws):
        values[:, t] = phi * values[:, t - 1] + math.sqrt(1 - phi**2) * rng.normal(size=(chains, quantities))
    return values


def by_arviz(function, values, **options):
    return np.array([function(values[..., i], **options) for i in range(values.shape[2])])


@pytest.mark.parametrize("phi", [0.0, 0.95, -0.9])
@pytest.mark.parametrize("decimals", [None, 0], ids=["continuous", "ties"])
@pytest.mark.parametrize(
    ("chains", "draws"), [(2, 4), (3, 5), (2, 6), (4, 7), (2, 8), (2, 9), (3, 20), (2, 101), (4, 150)]
)
def test_equal_to_arviz(chains, draws, decimals, phi):
    values = autoregressive(chains, draws, 5, phi, seed=draws)
    values[:, :, 4] += np.arange(chains)[:, None]  # chains that disagree
    if decimals is not None:
        values = values.round(decimals)
    np.testing.assert_allclose(rhat(values), by_arviz(az.rhat, values, method="rank"), rtol=1e-6)
    for kind in ("bulk", "tail", "mean"):
        np.testing.assert_allclose(ess(values, kind), by_arviz(az.ess, values, method=kind), rtol=1e-6, err_msg=kind)
    np.testing.assert_allclose(mcse_mean(values), by_arviz(az.mcse, values, method="mean"), rtol=1e-6)


def test_one_chain_has_ess_as_in_arviz():
    values = autoregressive(1, 90, 4, 0.7)
    for kind in ("bulk", "tail", "mean"):
        np.testing.assert_allclose(ess(values, kind), by_arviz(az.ess, values, method=kind), rtol=1e-6)


def test_ess_is_that_of_an_autoregression():
    values = autoregressive(4, 4000, 50, 0.6)
    expected = 16000 * 0.4 / 1.6
    # Geyer's estimate of one quantity scatters by about 5 % here, the mean of 50 by well under 1 %.
    assert ess(values, "mean").mean() == pytest.approx(expected, rel=0.03)
    errors = values.mean(axis=(0, 1)) / mcse_mean(values)
    assert np.sqrt((errors**2).mean()) == pytest.approx(1, abs=4 / math.sqrt(2 * 50))


def test_rhat_sees_location_and_scale():
    values = autoregressive(4, 200, 3, 0.0)
    values[0, :, 1] += 2
    values[0, :, 2] *= 5
    good, shifted, scaled = rhat(values)
    assert good < 1.02
    assert shifted > 1.2
    assert scaled > 1.05


def test_trailing_dimensions_and_kinds_of_array():
    values = autoregressive(2, 30, 12, 0.3).astype(np.float32)
    folded = values.reshape(2, 30, 3, 4)
    expected = rhat(values.astype(np.float64))
    assert rhat(folded).shape == (3, 4)
    np.testing.assert_array_equal(rhat(folded).ravel(), expected)
    np.testing.assert_array_equal(rhat(torch.from_numpy(values).requires_grad_()), expected)
    assert rhat(values[..., 0]).shape == ()
    assert float(rhat(values[..., 0])) == expected[0]
    assert rhat(values[..., :0]).shape == (0,)
    rounded = torch.from_numpy(values).bfloat16()
    np.testing.assert_array_equal(ess(rounded), ess(rounded.double()))


def test_blocks_do_not_change_the_numbers(monkeypatch):
    values = autoregressive(2, 30, 11, 0.3)
    whole = [rhat(values), ess(values), ess(values, "tail"), mcse_mean(values)]
    monkeypatch.setattr(diagnostics, "_BLOCK", 2 * 30 * 4)  # 4, 4 and 3 quantities
    for one, other in zip(whole, [rhat(values), ess(values), ess(values, "tail"), mcse_mean(values)], strict=True):
        np.testing.assert_array_equal(one, other)


def test_input_is_left_alone():
    values = autoregressive(2, 30, 2, 0.3)
    values[0, 0, 0] = np.nan
    before = values.copy()
    rhat(values), ess(values, "tail"), mcse_mean(values)
    np.testing.assert_array_equal(values, before)


def test_constant_and_broken_quantities_leave_their_neighbours_alone():
    values = autoregressive(2, 50, 4, 0.0)
    alone = rhat(values[..., 3]), ess(values[..., 3]), mcse_mean(values[..., 3])
    values[..., 0] = 0.1
    values[0, 3, 1] = np.nan
    values[1, 4, 2] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r, n, error = rhat(values), ess(values), mcse_mean(values)
    np.testing.assert_array_equal(np.isnan(r), [True, True, True, False])
    np.testing.assert_array_equal(np.isnan(n), [False, True, True, False])
    assert n[0] == 100
    assert error[0] == 0
    assert (r[3], n[3], error[3]) == alone


def test_folding_a_sign_keeps_the_rhat_of_the_bulk():
    values = np.sign(autoregressive(4, 100, 1, 0.0))
    assert rhat(values)[0] == pytest.approx(float(az.rhat(values[..., 0])), rel=1e-6)


def test_chains_stuck_apart_have_no_finite_agreement():
    values = np.broadcast_to(np.array([1.0, 2.0])[:, None], (2, 10))
    assert rhat(values) > 1e6


def test_one_chain_says_so():
    with pytest.warns(UserWarning, match="needs at least 2; got 1") as caught:
        result = rhat(np.zeros((1, 100, 3)))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert result.shape == (3,)
    assert np.isnan(result).all()


@pytest.mark.parametrize("function", [rhat, ess, mcse_mean])
def test_too_few_draws_say_so(function):
    with pytest.warns(UserWarning, match="at least 4 draws to a chain; got 3"):
        result = function(np.zeros((2, 3, 2)))
    assert np.isnan(result).all()


def test_what_is_no_set_of_draws_is_refused():
    with pytest.raises(ValueError, match=r"\(chain, draw, \.\.\.\); got \(5,\)"):
        rhat(np.zeros(5))
    with pytest.raises(ValueError, match="kind must be one of bulk, tail, mean; got 'median'"):
        ess(np.zeros((2, 5)), "median")


def test_a_block_of_nothing_but_nan_is_nan_and_loses_no_other():
    values = np.random.default_rng(0).normal(size=(4, 1000, 600))
    values[:, :, 262:524] = np.nan  # a whole block of 2^20 numbers
    for measure in (rhat, lambda v: ess(v, kind="tail"), lambda v: ess(v, kind="bulk")):
        found = measure(values)
        assert np.isnan(found[262:524]).all()
        assert np.isfinite(np.delete(found, np.s_[262:524])).all()
    assert np.isnan(rhat(np.full((4, 100), np.nan)))
