import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import bayesnn as bnn
from bayesnn.likelihoods import Categorical, NoisyCategorical, NoisyDirichlet


def logits(*shape, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("pixels", [(), (2, 3)])
def test_noisy_labels_are_a_mixture_with_a_guess_and_sum_to_one(pixels):
    outputs, likelihood = logits(6, 4, *pixels), NoisyCategorical(0.2)
    each = [likelihood.log_prob(outputs, torch.full((6, *pixels), k)) for k in range(4)]
    expected = 0.8 * outputs.softmax(1) + 0.2 / 4
    found = likelihood.mean(likelihood.params(outputs))
    torch.testing.assert_close(found, expected.movedim(1, -1))
    torch.testing.assert_close(torch.stack(each, -1), found.log().flatten(1, -2).sum(1) if pixels else found.log())
    assert pixels or torch.stack(each).exp().sum(0).allclose(torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(likelihood.clean(found), outputs.softmax(1).movedim(1, -1))


def test_a_wrong_label_costs_at_most_a_bound():
    far = torch.tensor([[1000.0, 0.0, 0.0]])
    assert float(NoisyCategorical(0.1).log_prob(far, torch.tensor([1]))) == pytest.approx(np.log(0.1 / 3))
    assert float(Categorical().log_prob(far, torch.tensor([1]))) == -1000


def test_the_drawn_labels_have_the_stated_probabilities():
    model = bnn.BayesianModel(nn.Linear(1, 3), bnn.priors.Normal(3.0), NoisyCategorical(0.3))
    posterior = bnn.fit(model, (torch.zeros(6, 1), torch.arange(6) % 3), epochs=1, progress=False)
    predictive = posterior.predict(torch.zeros(1, 1))
    share = predictive.sample(20_000).flatten().bincount(minlength=3) / 20_000
    error = (predictive.mean[0] * (1 - predictive.mean[0]) / 20_000).sqrt()
    assert bool(((share - predictive.mean[0]).abs() < 4 * error).all())


def test_flipped_labels_bend_it_less():
    """Of two classes, a tenth of the labels flipped far from the boundary: the slope of the clean data comes back."""
    x = torch.linspace(-3, 3, 400)[:, None]
    y = (torch.rand(400, generator=torch.Generator().manual_seed(0)) < torch.sigmoid(4 * x[:, 0])).long()
    flipped = torch.where(torch.arange(400) % 10 == 0, 1 - y, y)

    def slope(likelihood, labels):
        model = bnn.BayesianModel(nn.Linear(1, 2), bnn.priors.Normal(10.0), likelihood)
        posterior = bnn.fit(model, (x, labels), bnn.MAP(lr=0.1), epochs=400, batch_size=None, progress=False)
        weight = posterior.net(chain=0, draw=0).weight.detach()
        return float(weight[1] - weight[0])

    clean, robust, plain = slope(Categorical(), y), slope(NoisyCategorical(0.2), flipped), slope(Categorical(), flipped)
    assert plain < 0.5 * clean
    assert robust == pytest.approx(clean, rel=0.2)


@pytest.mark.parametrize("noise", [0.0, 1.0, -0.1, float("nan")])
def test_noise_is_a_share(noise):
    with pytest.raises(ValueError, match="noise"):
        NoisyCategorical(noise)


@pytest.mark.parametrize("alpha", [0.001, 0.1, 1.0])
def test_the_log_normal_has_the_moments_of_the_gamma(alpha):
    mean, variance = NoisyDirichlet(alpha).moments(torch.tensor([1]), 3)
    for k, concentration in enumerate((alpha, 1 + alpha, alpha)):
        gamma = stats.gamma(concentration)
        log_normal = stats.lognorm(float(variance[0, k]) ** 0.5, scale=float(mean[0, k].exp()))
        np.testing.assert_allclose(log_normal.stats(), gamma.stats(), rtol=1e-4)  # float32


def test_their_shares_have_nearly_the_mean_of_the_dirichlet():
    """(1 + alpha) / (1 + K alpha) of the label; log-normal shares lie below, by 0.024 here."""
    mean, variance = (moment[0] for moment in NoisyDirichlet(0.01).moments(torch.tensor([0]), 10))
    noise = torch.randn(50_000, 10, generator=torch.Generator().manual_seed(0))
    share = (mean + variance.sqrt() * noise).softmax(1)[:, 0]
    assert float(share.mean()) == pytest.approx(1.01 / 1.1, abs=0.03)


def test_the_density_of_the_outputs_integrates_to_one():
    likelihood, y = NoisyDirichlet(0.2), torch.tensor([1])
    mean, variance = (moment[0].double() for moment in likelihood.moments(y, 2))
    axes = [torch.linspace(-8, 8, 401, dtype=torch.float64) * v.sqrt() + m for m, v in zip(mean, variance, strict=True)]
    grid = torch.cartesian_prod(*axes)
    density = likelihood.log_prob(grid, y.expand(len(grid))).exp().view(401, 401)
    total = torch.trapezoid(torch.trapezoid(density, axes[1]), axes[0])
    assert float(total) == pytest.approx(1, abs=1e-6)


def test_a_linear_net_has_the_posterior_of_a_regression():
    """Precision X' diag(1 / s_k^2) X + I and mean of each class's weights, and so the gradient and Hessian of U."""
    x, y = logits(20, 2, scale=1.0), torch.arange(20) % 3
    likelihood = NoisyDirichlet(0.05)
    model = bnn.BayesianModel(nn.Linear(2, 3, bias=False).double(), bnn.priors.Normal(1.0), likelihood)
    mean, variance = likelihood.moments(y, 3)
    precisions = [x.T @ (x / v[:, None]) + torch.eye(2) for v in variance.T.double()]
    modes = [
        torch.linalg.solve(p, x.T @ (m / v)) for p, m, v in zip(precisions, mean.T.double(), variance.T, strict=True)
    ]
    posterior = bnn.fit(
        model, (x, y), bnn.Laplace(curvature="full", lr=0.05), epochs=1500, batch_size=None, progress=False
    )
    source = posterior.sources[0].tensors()
    np.testing.assert_allclose(source["loc/net.weight"], torch.stack(modes), atol=1e-5)
    root = source["root/net.weight"].flatten(0, 1)
    np.testing.assert_allclose(root @ root.T, torch.block_diag(*map(torch.linalg.inv, precisions)), atol=1e-6)


def test_it_leaves_less_aleatoric_uncertainty_than_softmax_and_more_with_alpha():
    """Handwritten digits, whose labels are all right, under a prior for which softmax finds them noisy."""
    train, test = bnn.data.load("digits")
    found = {}
    for likelihood in (Categorical(), NoisyDirichlet(0.001), NoisyDirichlet(0.1)):
        net = nn.Sequential(nn.Flatten(), bnn.nets.MLP(64, (50,), 10))
        model = bnn.BayesianModel(net, bnn.priors.Layerwise(gain=1.0), likelihood)
        posterior = bnn.fit(model, train, bnn.SGHMC(draws=20), epochs=60, chains=1, progress=False)
        predictive = posterior.predict(test.x)
        found[repr(likelihood)] = float(predictive.aleatoric.mean()), -float(predictive.log_prob(test.y).mean())
    (soft, soft_nll), (sure, sure_nll), (unsure, _) = found.values()
    assert sure < 0.4 * soft
    assert sure_nll < 0.5 * soft_nll
    assert unsure > 2 * sure
