"""The variance over draws, which is taken in two passes."""

import pytest
import torch

from bayesnn.likelihoods.base import variance_over_draws


def values(offset, draws=50):
    stream = torch.Generator().manual_seed(0)
    return offset + torch.randn(draws, 4, 3, generator=stream, dtype=torch.float64)


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e6])
@pytest.mark.parametrize("draws", [1, 2, 50])
def test_it_is_the_variance_far_from_zero_as_well(offset, draws):
    given = values(offset, draws)
    expected = given.var(0, correction=0)
    torch.testing.assert_close(variance_over_draws(given), expected, rtol=1e-9, atol=1e-9)
    rounded = given.float()  # at 1e6 to a sixteenth
    torch.testing.assert_close(
        variance_over_draws(rounded).double(), rounded.double().var(0, correction=0), rtol=1e-2, atol=1e-6
    )


def test_in_bfloat16_the_mean_is_no_coarser_than_the_numbers():
    given = values(100.0).bfloat16()
    found = variance_over_draws(given)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), given.double().var(0, correction=0), rtol=1e-2, atol=1e-6)


def test_what_is_not_finite_stays_so():
    given = values(0.0)
    given[3, 1, 2] = float("nan")
    given[3, 0, 0] = float("inf")
    found = variance_over_draws(given)
    assert bool(found[1, 2].isnan())
    assert not bool(found[0, 0].isfinite())
    assert int(found.isfinite().sum()) == 4 * 3 - 2
