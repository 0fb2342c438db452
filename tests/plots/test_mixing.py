import numpy as np
import pytest
from scipy import stats

from bayesnn import plots
from tests.plots.pictures import draw, legend, lines


def ar1(rho, chains=2, length=4000, seed=0):
    noise = np.random.default_rng(seed).normal(size=(chains, length))
    values = np.empty_like(noise)
    values[:, 0] = noise[:, 0]
    for t in range(1, length):
        values[:, t] = rho * values[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return values[..., None]


def test_autocorrelation_is_that_of_the_process():
    panels = plots.autocorrelation(ar1(0.7), ["x"], max_lag=5)
    draw(panels)
    for line in lines(panels[0]):
        assert line.get_ydata()[0] == pytest.approx(1)
        # Bartlett's formula bounds the standard error by sqrt((1 + rho^2) / (1 - rho^2) / n).
        error = np.sqrt((1 + 0.49) / (1 - 0.49) / 4000)
        np.testing.assert_allclose(line.get_ydata(), 0.7 ** np.arange(6), atol=4 * error)


def test_autocorrelation_leaves_a_chain_that_does_not_move_out():
    values = np.random.default_rng(0).normal(size=(2, 30, 1))
    values[1] = 0.1  # whose mean over 30 is another number, by rounding
    panels = plots.autocorrelation(values)
    assert len(lines(panels[0])) == 1
    for lag in (0, 30):
        with pytest.raises(ValueError, match=r"max_lag must be in \[1, 30\)"):
            plots.autocorrelation(values, max_lag=lag)


def test_ranks_are_counted_among_the_draws_of_all_chains():
    low, high = np.arange(40.0), np.arange(40.0) + 40
    panels = plots.ranks(np.stack([low, high])[..., None], bins=4)
    draw(panels)
    first, second = (patch.get_data().values for patch in panels[0].patches[1:])
    assert first.tolist() == [20, 20, 0, 0]
    assert second.tolist() == [0, 0, 20, 20]
    band = panels[0].patches[0].get_extents().transformed(panels[0].transData.inverted())
    assert (band.y0, band.y1) == pytest.approx(stats.hypergeom(80, 20, 40).ppf((0.025, 0.975)))


def test_bars_of_independent_draws_lie_in_the_band_of_the_ranks():
    values = np.random.default_rng(0).normal(size=(4, 500, 8))
    inside = []
    for ax in plots.ranks(values, bins=20):
        band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
        counts = np.concatenate([patch.get_data().values for patch in ax.patches[1:]])
        inside.append((band.y0 <= counts) & (counts <= band.y1))
    share = np.mean(inside)
    assert 0.95 - 4 * np.sqrt(0.05 * 0.95 / 640) < share < 0.99  # the law is discrete: 95 % at least


def test_ranks_refuse_what_says_nothing():
    values = np.zeros((1, 10, 1))
    with pytest.raises(ValueError, match="two chains or more"):
        plots.ranks(values)
    with pytest.raises(ValueError, match="bins must be in"):
        plots.ranks(np.zeros((2, 5, 1)), bins=11)


def test_panels_share_one_legend():
    panels = plots.ranks(np.random.default_rng(0).normal(size=(2, 20, 2)))
    (shared,) = panels[0].figure.legends
    assert [text.get_text() for text in shared.get_texts()] == ["95 % of independent draws", "chain 0", "chain 1"]
    figure = panels[0].figure.__class__(layout="constrained")
    mine = figure.subplots(1, 2)
    plots.ranks(np.random.default_rng(0).normal(size=(2, 20, 2)), axes=mine)
    assert legend(mine[0])[0] == "95 % of independent draws"


@pytest.mark.parametrize(("chains", "length", "bins"), [(2, 4, 2), (2, 12, 2), (4, 100, 20), (3, 50, 10), (2, 7, 2)])
def test_by_default_the_bins_of_the_ranks_are_of_equal_size(chains, length, bins):
    (ax,) = plots.ranks(np.random.default_rng(0).normal(size=(chains, length, 1)))
    counts = np.sum([patch.get_data().values for patch in ax.patches[1:]], axis=0)
    assert counts.tolist() == [chains * length / bins] * bins
