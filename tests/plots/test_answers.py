"""The pictures of detection, of real targets' calibration, of the plane and of turned images."""

import numpy as np
import pytest
import torch
from scipy import stats

import bayesnn as bnn
from bayesnn import plots
from bayesnn.data.shift import rotated
from bayesnn.source import Draws
from tests.plots.pictures import draw, legend, lines


def posterior(net, likelihood=None, draws=4, seed=0):
    model = bnn.BayesianModel(net, likelihood=likelihood or bnn.likelihoods.Categorical())
    stream = torch.Generator().manual_seed(seed)
    stacked = {n: torch.randn(draws, *p.shape, generator=stream) for n, p in model.named_parameters()}
    return bnn.Posterior(model, [Draws(stacked)], 10)


def test_detection_roc_is_the_curve_of_its_area():
    stream = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(300, generator=stream), torch.randn(200, generator=stream) + 1
    ax = plots.detection_roc({"entropy": (inside, outside), "useless": (inside, inside)})
    draw(ax)
    _, curve, _ = lines(ax)
    area = np.trapezoid(curve.get_ydata(), curve.get_xdata())
    assert area == pytest.approx(bnn.metrics.auroc(inside, outside), abs=1e-6)
    assert legend(ax) == ["tells nothing", f"entropy: area {area:.3f}", "useless: area 0.500"]


def test_pit_histogram_has_unit_area_and_a_binomial_band():
    pit = (torch.arange(2000) + 0.5) / 2000
    ax = plots.pit_histogram(pit, bins=8)
    draw(ax)
    heights = [patch.get_height() for patch in ax.patches if patch.get_width() == pytest.approx(1 / 8)]
    assert len(heights) == 8
    assert sum(heights) / 8 == pytest.approx(1)
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert band.y0 == pytest.approx(stats.binom.ppf(0.025, 2000, 1 / 8) * 8 / 2000)
    assert all(band.y0 <= height <= band.y1 for height in heights)
    with pytest.raises(ValueError, match=r"Expected probabilities in \[0, 1\] of predictive.pit\(y\), got values from"):
        plots.pit_histogram(2 * pit)


def test_coverage_curve_is_the_share_inside():
    pit = torch.tensor([0.5, 0.4, 0.9, 0.05])  # in the central intervals from levels 0, 0.2, 0.8 and 0.9 on
    ax = plots.coverage_curve({"a": pit, "b": pit**2})
    draw(ax)
    curve = lines(ax)[1]
    at = {0.1: 0.25, 0.3: 0.5, 0.7: 0.5, 0.85: 0.75, 1.0: 1.0}
    assert {level: np.interp(level, curve.get_xdata(), curve.get_ydata()) for level in at} == pytest.approx(at)
    assert legend(ax)[1:] == ["a", "b"]
    with pytest.raises(ValueError, match="at least one method"):
        plots.coverage_curve({})


@pytest.mark.parametrize(
    ("outputs", "likelihood"), [(2, bnn.likelihoods.Categorical()), (1, bnn.likelihoods.Bernoulli())]
)
def test_decision_boundary_is_where_the_mixture_is_undecided(outputs, likelihood):
    given = posterior(bnn.nets.MLP(2, (5,), outputs), likelihood)
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    ax = plots.decision_boundary(given, (x, (x[:, 0] > 0).long()), boundaries=2)
    draw(ax)
    thick = max(ax.collections, key=lambda c: max(np.atleast_1d(c.get_linewidth())))
    points = np.concatenate([path.vertices for path in thick.get_paths()])
    mean = given.predict(torch.as_tensor(points, dtype=torch.float32)).mean
    p = mean[:, 1] if mean.dim() == 2 else mean
    assert float((p - 0.5).abs().max()) < 0.05
    assert legend(ax) == ["class 0", "class 1", "boundary of the mixture", "of single draws"]


def test_decision_boundary_refuses_what_is_no_plane():
    three = posterior(bnn.nets.MLP(2, (5,), 3))
    with pytest.raises(ValueError, match="Expected two classes, got 3"):
        plots.decision_boundary(three, (torch.randn(5, 2), torch.zeros(5)))
    with pytest.raises(ValueError, match="Expected two inputs"):
        plots.decision_boundary(three, (torch.randn(5, 3), torch.zeros(5)))


def test_images_turn_counter_clockwise():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 8] = 1  # on the right
    assert rotated(image, 90)[0, 0, 0, 4] == pytest.approx(1, abs=1e-5)  # at the top
    assert rotated(image, 180)[0, 0, 4, 0] == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(rotated(image, 0), image)


def test_rotation_shows_what_the_posterior_says_of_the_turned_image():
    given = posterior(bnn.nets.LeNet5((1, 8, 8), 3))
    image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    panels = plots.rotation({"a": given, "b": given}, image, label=1, angles=(0, 90, 180))
    draw(panels)
    turned = torch.cat([rotated(image[None] - image.min(), angle) for angle in (0, 90, 180)]) + image.min()
    predictive = given.predict(turned)
    np.testing.assert_allclose(panels[0].get_lines()[0].get_ydata(), predictive.mean[:, 1], rtol=1e-6)
    np.testing.assert_allclose(panels[1].get_lines()[1].get_ydata(), predictive.total, rtol=1e-6)
    assert panels[0].get_ylabel() == "probability of class 1"
    with pytest.raises(ValueError, match="Expected one image"):
        plots.rotation({"a": given}, image[None])
    with pytest.raises(ValueError, match="at least one method"):
        plots.rotation({}, image)
