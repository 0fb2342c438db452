import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

from bayesnn.data import SHIFTS, shift
from bayesnn.data.shift import blurred, kernel, rotated, translated


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", SHIFTS)
def test_severity_0_is_the_image_and_each_further_one_is_farther_from_it(kind):
    along = torch.arange(28.0) - 13.5
    bar = torch.exp(
        -(along[:, None] / 2).square() - ((along[None] - 3) / 6).square()
    )  # lies across, a bit to the right
    x = bar.expand(4, 1, 28, 28)
    distances = [float((shift(x, kind, severity) - x).square().mean()) for severity in range(6)]
    assert distances[0] == 0
    assert all(near < far for near, far in pairwise(distances))
    assert len(SHIFTS[kind]) == 6


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 9])
def test_a_quarter_turn_is_rot90(turns, size):
    x = images(3, 2, size, size)
    # A pixel's place is found to a few ulp of the size, and its value by that much of its neighbour's.
    torch.testing.assert_close(rotated(x, 90.0 * turns), x.rot90(turns, (2, 3)), atol=1e-5, rtol=0)


def test_an_oblong_is_turned_and_not_sheared():
    x = torch.zeros(1, 1, 9, 15)
    x[..., 4, 7:11] = 1  # a bar of four pixels from the centre to the right
    up = rotated(x, 90)
    expected = torch.zeros_like(x)
    expected[..., 1:5, 7] = 1
    torch.testing.assert_close(up, expected, atol=1e-5, rtol=0)


def test_translation_moves_a_point_by_two_pixels_of_28_a_severity():
    x = torch.full((1, 1, 28, 28), 0.25)
    x[..., 10, 5] = 1.0
    for severity in range(1, 6):
        expected = torch.full_like(x, 0.25)
        expected[..., : 2 * severity] = 0.0  # what comes in
        expected[..., 10, 5 + 2 * severity] = 1.0
        torch.testing.assert_close(shift(x, "translation", severity), expected, atol=1e-5, rtol=0)


def test_half_a_pixel_is_the_mean_of_two():
    x = images(1, 1, 4, 8)
    moved = translated(x, 0.5 / 8)
    torch.testing.assert_close(moved[..., 1:], (x[..., 1:] + x[..., :-1]) / 2, atol=1e-6, rtol=0)


@pytest.mark.parametrize("low_high", [(0.0, 1.0), (-3.0, 5.0)])
def test_noise_has_its_standard_deviation_in_units_of_the_range(low_high):
    low, high = low_high
    x = torch.full((50, 1, 40, 40), (low + high) / 2, dtype=torch.float64)
    noise = (shift(x, "noise", 1, pixel_range=low_high) - x) / (0.1 * (high - low))
    n = noise.numel()  # clipped at 5 standard deviations, which moves the variance by 1e-6
    assert abs(float(noise.mean())) < 4 / math.sqrt(n)
    assert stats.chi2.cdf(float(noise.square().sum()), n) == pytest.approx(0.5, abs=0.4999)
    assert torch.equal(shift(x, "noise", 5, seed=3), shift(x, "noise", 5, seed=3))
    assert not torch.equal(shift(x, "noise", 5, seed=3), shift(x, "noise", 5, seed=4))
    loud = shift(x, "noise", 5, pixel_range=low_high)
    assert (float(loud.min()), float(loud.max())) == low_high


def test_noise_leaves_torchs_own_generator_alone():
    before = torch.random.get_rng_state()
    shift(images(2, 1, 8, 8), "noise", 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_blur_keeps_constants_to_the_border_and_moves_no_mass():
    x = torch.full((2, 3, 10, 12), 0.7, dtype=torch.float64)
    torch.testing.assert_close(shift(x, "blur", 5), x, atol=1e-12, rtol=0)
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1
    spread = blurred(point, 2.5)
    expected = torch.zeros(41, 41, dtype=torch.float64)
    expected[10:31, 10:31] = kernel(2.5).outer(kernel(2.5))
    torch.testing.assert_close(spread[0, 0], expected, atol=1e-15, rtol=0)
    place = torch.arange(41, dtype=torch.float64) - 20
    # The sum over whole numbers, cut at 4 sd, is the integral of a Gaussian's second moment to half a percent.
    assert float((spread.sum((0, 1, 3)) * place.square()).sum()) == pytest.approx(2.5**2, rel=5e-3)


def test_blur_of_white_noise_has_the_variance_of_its_kernel():
    x = torch.randn(40, 1, 60, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inner = blurred(x, 1.0)[..., 5:-5, 5:-5]  # where no pixel of the border is counted twice
    expected = float(kernel(1.0).square().sum()) ** 2  # separable: once for each axis
    blocks = inner.square().mean((1, 2, 3))  # images are independent
    assert float(blocks.mean()) == pytest.approx(expected, abs=4 * float(blocks.std()) / math.sqrt(len(blocks)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "rotaton"}, ValueError, "Unknown shift 'rotaton': did you mean 'rotation'"),
        ({"severity": 6}, ValueError, "Expected a severity from 0 to 5, got 6"),
        ({"severity": -1}, ValueError, "Expected severity to be an integer >= 0, got -1"),
        ({"x": torch.zeros(1, 8, 8)}, ValueError, r"Expected images \(N, C, H, W\), got \(1, 8, 8\)"),
        ({"x": torch.zeros(1, 1, 8, 8, dtype=torch.uint8)}, TypeError, "Expected floating images, got torch.uint8"),
        ({"pixel_range": (1.0, 1.0)}, ValueError, r"Expected pixel_range \(low, high\) with low < high"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        shift(**{"x": images(1, 1, 8, 8), "kind": "noise", "severity": 1, **arguments})
    assert "\n" not in str(caught.value)
