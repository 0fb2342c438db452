import numpy as np
import pytest
import torch

import bayesnn as bnn
from bayesnn import plots
from bayesnn.source import Draws
from tests.plots.pictures import draw


def posterior(shrink, draws=40, chains=2, hidden=(6,)):
    """Chains whose draws are those of the prior, N(0, 1), shrunk."""
    model = bnn.BayesianModel(bnn.nets.MLP(20, hidden, 5), bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    stream = torch.Generator().manual_seed(0)
    stacked = [
        {n: shrink * torch.randn(draws, *p.shape, generator=stream) for n, p in model.named_parameters()}
        for _ in range(chains)
    ]
    return bnn.Posterior(model, [Draws(one) for one in stacked], 10)


def ratio(ax):
    return float(ax.get_title().split("spread: ")[1].split()[0])


@pytest.mark.parametrize("shrink", [1.0, 0.25])
def test_densities_have_unit_area_and_the_title_says_what_was_learned(shrink):
    panels = plots.weights_against_prior(posterior(shrink))
    draw(panels)
    assert [ax.get_title().split("\n")[0] for ax in panels] == ["layers.0.weight", "layers.2.weight"]
    for ax in panels:
        heights, edges, _ = ax.patches[0].get_data()
        assert (heights * np.diff(edges)).sum() == pytest.approx(1, abs=0.003)  # 0.1 % is left out at each end
        before, edges, _ = ax.patches[1].get_data()
        middle = (edges[1:] + edges[:-1]) / 2
        np.testing.assert_allclose(before, np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi), atol=0.08)
        # The quartiles' distance of 40 draws has a standard error of 18 %; the median is over 30 weights or more.
        assert ratio(ax) == pytest.approx(shrink, rel=0.1)


def test_one_draw_has_no_spread_and_chains_may_be_of_unequal_length():
    (ax,) = plots.weights_against_prior(posterior(1.0, draws=1), ["layers.0.bias"])
    assert ax.get_title() == "layers.0.bias"
    both = posterior(1.0, draws=4)
    longer = posterior(1.0, draws=9)
    uneven = bnn.Posterior(both.model, [both.sources[0], longer.sources[0]], 10)
    draw(plots.weights_against_prior(uneven))


def test_of_many_layers_eight_are_drawn_and_a_wrong_name_is_refused():
    deep = posterior(1.0, draws=2, hidden=(3,) * 9)
    assert len(plots.weights_against_prior(deep)) == 8
    with pytest.raises(ValueError, match=r"with a prior, layers.0.weight, .*; got 'dense'"):
        plots.weights_against_prior(deep, ["dense"])
    with pytest.raises(ValueError, match="1 to 8 parameters; got 0"):
        plots.weights_against_prior(deep, [])


@pytest.mark.parametrize(
    "prior", [bnn.priors.StudentT(df=2), bnn.priors.HierarchicalNormal(), bnn.priors.Laplace(0.3)], ids=repr
)
def test_of_draws_from_the_prior_nothing_was_learned_whatever_its_tails(prior):
    model = bnn.BayesianModel(torch.nn.Linear(6, 40), prior, bnn.likelihoods.Normal(1.0))
    given = bnn.Posterior(model, [Draws.stack(list(model.prior_states(400, seed=5)))], 10)
    (ax,) = plots.weights_against_prior(given)
    assert ratio(ax) == pytest.approx(1, abs=0.06)
