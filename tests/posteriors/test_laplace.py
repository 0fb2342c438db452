"""Laplace's curvature, its draws and its predictive against closed forms, autograd's Hessian and brute force."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev

import bayesnn as bnn
from bayesnn import likelihoods, priors
from bayesnn.methods import ggn, kfac, laplace
from bayesnn.methods.ggn import curvature_root, output_curvature
from tests.posteriors.contract import assert_contract, assert_works_on_cuda, fit
from tests.posteriors.linear import D, problem

STILL = {"lr": 1e-12, "optimizer": "sgd"}  # a fit that stays where it starts: the curvature there is what is tested
N_DRAWS = 4000


def at_start(model, data, **options):
    """Laplace at the net's present weights, in float64."""
    return bnn.fit(
        model.double(), data, bnn.Laplace(**STILL, **options), init="net", epochs=1, batch_size=7, progress=False
    )


def covariance(source, *names):
    """Covariance of the weights of ``names``, flattened in their order, as the source's tensors state it."""
    blocks = []
    for name in names:
        if name in source.sd:
            blocks.append(torch.diag(source.sd[name].flatten() ** 2))
        elif name in source.grid:
            left, right, grid = source.left[name], source.right[name], source.grid[name]
            root = torch.einsum("og,ga,ia->oiga", left, grid, right)  # (out, in, g, a)
            flat = root.flatten(0, 1).flatten(1)
            blocks.append(flat @ flat.T)
    if source.root:
        flat = torch.cat([source.root[name].flatten(0, -2) for name in names])
        return flat @ flat.T
    return torch.block_diag(*blocks)


def mlp(outputs=2, widths=(4,), bias=True):
    torch.manual_seed(5)
    layers, width = [], 3
    for w in widths:
        layers += [nn.Linear(width, w, bias=bias), nn.Tanh()]
        width = w
    return nn.Sequential(*layers, nn.Linear(width, outputs, bias=bias)).double()


X = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CLASSES = torch.arange(20) % 3
REAL = torch.sin(X[:, 0])

# Likelihoods whose outputs are natural parameters: the curvature in the outputs does not depend on y.
NATURAL = {
    "Bernoulli": (likelihoods.Bernoulli, 1, CLASSES % 2),
    "two labels": (likelihoods.Bernoulli, 2, torch.stack((CLASSES % 2, CLASSES // 2), 1)),
    "Categorical": (likelihoods.Categorical, 3, CLASSES),
    "Poisson": (likelihoods.Poisson, 1, CLASSES),
    "Normal": (lambda: likelihoods.Normal(0.5), 1, REAL),
    "two targets": (lambda: likelihoods.Normal(0.5), 2, X[:, :2]),
    "LogNormal": (lambda: likelihoods.LogNormal(0.5), 1, REAL.exp()),
}


def negative_log_joint(model, x, y):
    """(-log p(w, D) as a function of a flat vector of weights, that vector now)."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if name in model.log_priors}
    sizes = [p.numel() for p in parameters.values()]

    def value(flat):
        parts = flat.split(sizes)
        weights = {name: part.view(p.shape) for part, (name, p) in zip(parts, parameters.items(), strict=True)}
        prior = sum(model.log_priors[name].log_prob(w) for name, w in weights.items())
        own = {name.removeprefix("net."): w for name, w in weights.items() if name.startswith("net.")}
        noise = {name.removeprefix("likelihood."): w for name, w in weights.items() if name.startswith("likelihood.")}

        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.likelihood = model.likelihood

            def forward(self, outputs):
                return self.likelihood.log_prob(outputs, y).sum()

        outputs = functional_call(model.net, own, (x,))
        return -prior - functional_call(Both(), {f"likelihood.{k}": v for k, v in noise.items()}, (outputs,))

    return value, torch.cat([p.flatten() for p in parameters.values()])


# A linear regression, in which everything is exact


@cache
def linear_case(tight=False):
    prior = priors.Normal(0.2 / 1.2**0.5) if tight else None
    return problem(n=10, s=0.2, sigma=0.5, columns=4, prior=prior)  # 0.5: float32 has it


def exact(case):
    return np.kron(np.eye(4), np.linalg.inv(case.precision))


def test_full_is_the_posterior_of_a_linear_regression():
    case = linear_case()
    method = bnn.Laplace(curvature="full", lr=0.1)
    posterior = bnn.fit(case.model, (case.x, case.y), method, epochs=600, batch_size=None, progress=False)
    source = posterior.sources[0]
    np.testing.assert_allclose(source.loc["net.weight"], case.mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(covariance(source, "net.weight"), exact(case), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("curvature", ["full", "kron", "diag"])
def test_each_curvature_of_a_linear_regression(curvature):
    """Kronecker factors are exact there: sum_i x_i x_i' kron I / sigma^2 is A kron G / N."""
    case = linear_case()
    source = at_start(case.model, (case.x, case.y), curvature=curvature).sources[0]
    wanted = exact(case) if curvature != "diag" else np.diag(1 / np.tile(np.diag(case.precision), 4))
    np.testing.assert_allclose(covariance(source, "net.weight"), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("curvature", ["full", "kron", "diag"])
def test_a_prior_precision_that_is_off_by_a_fifth_is_seen(curvature):
    case = linear_case(tight=True)  # the closed form is that of another prior than the model's
    source = at_start(case.model, (case.x, case.y), curvature=curvature).sources[0]
    wanted = exact(case) if curvature != "diag" else np.diag(1 / np.tile(np.diag(case.precision), 4))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(covariance(source, "net.weight"), wanted, rtol=1e-2, atol=1e-12)


@pytest.mark.parametrize("curvature", ["full", "kron"])
def test_the_evidence_of_a_linear_regression(curvature):
    """log p(y) = sum_k log Normal(y_k; 0, s^2 X X' + sigma^2 I), from the mode as from the weights of a fit."""
    case = linear_case()
    model = case.model.copy()
    with torch.no_grad():
        model.net.weight.copy_(torch.from_numpy(case.mean))
    got = at_start(model, (case.x, case.y), curvature=curvature).sources[0].log_evidence
    marginal = case.s**2 * case.x @ case.x.T + case.sigma**2 * torch.eye(case.n)
    law = torch.distributions.MultivariateNormal(torch.zeros(case.n, dtype=torch.float64), marginal)
    np.testing.assert_allclose(got, float(law.log_prob(case.y.T).sum()), rtol=1e-9)


def test_a_bias_with_a_prior_of_its_own_is_exact_in_kron():
    case = linear_case()
    model = bnn.BayesianModel(nn.Linear(D, 4), priors.Layerwise(gain=0.5, bias_scale=0.3), likelihoods.Normal(0.5))
    source = at_start(model, (case.x, case.y), curvature="kron").sources[0]
    x = np.column_stack((case.x, np.ones(case.n)))
    precision = x.T @ x / 0.5**2 + np.diag([*[D / 0.25] * D, 1 / 0.09])
    wanted = np.kron(np.eye(4), np.linalg.inv(precision))
    np.testing.assert_allclose(covariance(source, "net.weight"), wanted, rtol=1e-9, atol=1e-12)


def test_the_draws_have_the_covariance_that_is_stated():
    case = linear_case()
    for curvature in ("full", "kron", "diag"):
        posterior = at_start(case.model, (case.x, case.y), curvature=curvature)
        draws = torch.stack([state["net.weight"].flatten() for state in posterior.states(N_DRAWS)[0]]).numpy()
        wanted = covariance(posterior.sources[0], "net.weight").numpy()
        variance = np.diag(wanted)
        error = np.sqrt((np.outer(variance, variance) + wanted**2) / N_DRAWS)
        assert (np.abs(np.cov(draws.T) - wanted) < 4 * error).all()
        centre = posterior.sources[0].loc["net.weight"].flatten().numpy()
        assert (np.abs(draws.mean(0) - centre) < 4 * np.sqrt(variance / N_DRAWS)).all()


# The generalised Gauss-Newton matrix


@pytest.mark.parametrize("name", NATURAL)
def test_in_a_linear_net_it_is_the_hessian(name):
    """Full and diagonal curvature equal torch's Hessian of -log p(w, D) where the net is linear in its weights."""
    make, outputs, y = NATURAL[name]
    model = bnn.BayesianModel(mlp(outputs, ()), priors.Layerwise(gain=2.0), make()).double()
    full = at_start(model, (X, y), curvature="full").sources[0]
    diag = at_start(model, (X, y), curvature="diag").sources[0]
    prepared = model.likelihood.check_targets(y, outputs)
    prepared = prepared.double() if prepared.is_floating_point() else prepared
    value, flat = negative_log_joint(model, X, prepared)
    wanted = hessian(value)(flat)
    names = list(model.log_priors)
    np.testing.assert_allclose(torch.linalg.inv(covariance(full, *names)), wanted, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(covariance(diag, *names).diagonal(), 1 / wanted.diagonal(), rtol=1e-9)


def brute_force(model, y):
    """sum_i J_i' Lambda_i J_i + P, row by row, with torch's own Hessian for Lambda."""
    parameters = {name: p.detach() for name, p in model.net.named_parameters()}
    total = 0
    for row, target in zip(X, y, strict=True):
        parts = jacrev(lambda w, row=row: functional_call(model.net, w, (row[None],))[0])(parameters)
        jacobian = torch.cat([part.flatten(1) for part in parts.values()], 1)
        outputs = model.net(row[None])[0].detach()
        curvature = hessian(lambda f, target=target: -model.likelihood.log_prob(f[None], target[None]).sum())(outputs)
        total = total + jacobian.T @ curvature @ jacobian
    scales = [(p.dim() > 1 and 4 / p.shape[1]) or 1.0 for p in parameters.values()]
    prior = torch.cat([torch.full((p.numel(),), 1 / s) for s, p in zip(scales, parameters.values(), strict=True)])
    return total + torch.diag(prior.double())


@pytest.mark.parametrize(
    "likelihood",
    [
        likelihoods.Categorical(),
        likelihoods.Categorical(class_weights=[0.5, 2.0, 1.5]),
        likelihoods.NoisyDirichlet(),
        likelihoods.Bernoulli(),
        likelihoods.Poisson(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("soft", [False, True])
def test_the_root_of_the_curvature_is_its_root(likelihood, soft):
    outputs = 3 * torch.randn(20, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    classes = outputs.flip(0).softmax(1) if soft else CLASSES
    y = classes if isinstance(likelihood, likelihoods.Categorical) else (outputs > 0).double()
    root = curvature_root(likelihood, outputs, y)
    np.testing.assert_allclose(root @ root.mT, output_curvature(likelihood, outputs, y), rtol=1e-9, atol=1e-14)


def test_the_curvature_of_noisy_labels_is_the_fisher_information():
    """E[grad log p grad log p'] over the three labels that there may be; a class weight multiplies it."""
    outputs = 2 * torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    likelihood, weights = likelihoods.NoisyCategorical(0.3), torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
    wanted = torch.zeros(6, 3, 3, dtype=torch.float64)
    for label in range(3):
        given = outputs.clone().requires_grad_()
        log_prob = likelihood.log_prob(given, torch.full((6,), label))
        (slope,) = torch.autograd.grad(log_prob.sum(), given)
        wanted += slope[:, :, None] * slope[:, None] * log_prob.exp().detach()[:, None, None]
    root = curvature_root(likelihood, outputs, CLASSES[:6])
    np.testing.assert_allclose(root @ root.mT, wanted, rtol=1e-9, atol=1e-14)
    weighted = curvature_root(likelihoods.NoisyCategorical(0.3, weights), outputs, CLASSES[:6])
    np.testing.assert_allclose(weighted @ weighted.mT, weights[CLASSES[:6], None, None] * wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["Categorical", "Poisson", "two targets"])
def test_in_a_multilayer_perceptron_it_is_brute_force(name, monkeypatch):
    make, outputs, y = NATURAL[name]
    model = bnn.BayesianModel(mlp(outputs), priors.Layerwise(gain=2.0), make())
    targets = model.likelihood.check_targets(y, outputs)
    wanted, names = brute_force(model.double(), targets), list(model.log_priors)
    whole = at_start(model, (X, y), curvature="full").sources[0]
    np.testing.assert_allclose(torch.linalg.inv(covariance(whole, *names)), wanted, rtol=1e-6, atol=1e-8)
    monkeypatch.setattr(ggn, "JACOBIAN_BYTES", 2 * 2 * outputs * len(wanted) * 8)  # two rows at a time
    pieces = at_start(model, (X, y), curvature="full").sources[0]
    np.testing.assert_allclose(covariance(pieces, *names), covariance(whole, *names), rtol=1e-8, atol=1e-12)
    diag = at_start(model, (X, y), curvature="diag").sources[0]
    np.testing.assert_allclose(covariance(diag, *names).diagonal(), 1 / wanted.diagonal(), rtol=1e-8)


@pytest.mark.parametrize(
    "likelihood",
    [likelihoods.Normal(0.4), likelihoods.Laplace(0.4), likelihoods.StudentT(3.5, 0.4), likelihoods.StudentT(9.0, 2.0)],
    ids=repr,
)
def test_the_curvature_of_real_targets_is_the_fisher_information(likelihood):
    """E[(d log p / d f)^2] by quadrature over y; a Laplace density has it at every y but one."""
    outputs = torch.tensor([0.3, -1.2], dtype=torch.float64)
    got = output_curvature(likelihood.double(), outputs, torch.zeros(2, dtype=torch.float64))[:, 0, 0]
    y = torch.linspace(-400, 400, 800_001, dtype=torch.float64)
    for f, value in zip(outputs, got, strict=True):
        locs = f.expand_as(y).clone().requires_grad_()
        log_prob = likelihood.log_prob(locs, y)
        (slope,) = torch.autograd.grad(log_prob.sum(), locs)
        np.testing.assert_allclose(
            float(torch.trapezoid(slope**2 * log_prob.exp().detach(), y)), float(value), rtol=1e-3
        )


def test_the_curvature_of_an_output_scale_is_the_fisher_information():
    likelihood = likelihoods.HeteroscedasticNormal()
    outputs = torch.tensor([[0.3, -0.8, 0.2, -1.0]], dtype=torch.float64)  # two targets: two locs, two raw scales
    got = output_curvature(likelihood, outputs, torch.zeros(1, 2, dtype=torch.float64))[0]
    wanted = torch.zeros(4, 4, dtype=torch.float64)
    y = torch.linspace(-20, 20, 200_001, dtype=torch.float64)
    for k in range(2):  # targets are independent given the outputs
        pair = outputs[:, [k, k + 2]].expand(len(y), 2).clone().requires_grad_()
        log_prob = likelihood.log_prob(pair, y)
        (slope,) = torch.autograd.grad(log_prob.sum(), pair)
        outer = slope[:, :, None] * slope[:, None] * log_prob.exp().detach()[:, None, None]
        index = torch.tensor([k, k + 2])
        wanted[index[:, None], index] = torch.trapezoid(outer, y, dim=0)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-8)


class Concave(likelihoods.Normal):
    """Not log-concave in the outputs."""

    def log_prob(self, outputs, y):
        return -torch.log1p((y - outputs.squeeze(-1)) ** 2)


def test_a_likelihood_of_ones_own_without_a_curvature_is_refused():
    model = bnn.BayesianModel(mlp(1), priors.Normal(1.0), Concave(0.1))
    with pytest.raises(ValueError, match=r"^Expected a likelihood that is log-concave .* use one of bayesnn.*\.$"):
        at_start(model, (X, 5 + REAL))


# Kronecker factors


def test_kronecker_factors_of_a_multilayer_perceptron():
    """A kron G / N + P of each layer, by loops over rows."""
    make, outputs, y = NATURAL["Categorical"]
    model = bnn.BayesianModel(mlp(outputs), priors.Layerwise(gain=2.0), make()).double()
    source = at_start(model, (X, y), curvature="kron").sources[0]
    net = model.net
    for layer, weight, deeper in ((0, "net.0.weight", net[1:]), (2, "net.2.weight", net[3:])):
        A, G = 0, 0
        for row in X:
            a = net[:layer](row).detach()
            s = net[layer](a).detach()
            f = net(row).detach()
            p = f.softmax(0)
            jacobian = jacrev(deeper)(s) if len(deeper) else torch.eye(3, dtype=torch.float64)
            G = G + jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
            a = torch.cat((a, torch.ones(1, dtype=torch.float64)))
            A = A + torch.outer(a, a)
        prior = torch.tensor([*[net[layer].in_features / 4] * net[layer].in_features, 1.0], dtype=torch.float64)
        precision = torch.kron(G, A) / len(X) + torch.diag(prior.repeat(len(G)))
        np.testing.assert_allclose(
            covariance(source, weight), torch.linalg.inv(precision).detach(), rtol=1e-6, atol=1e-10
        )
    assert not source.sd


def conv_net(padding=1, stride=2, **options):
    torch.manual_seed(8)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride, padding, **options), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3)
    )


IMAGES = torch.randn(20, 2, 5, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def test_kronecker_factors_of_a_convolution():
    """Sums over rows and positions of a a' and g g' (Grosse & Martens 2016), with patches cut out by hand."""
    net = conv_net()
    net(IMAGES[:1].float())
    model = bnn.BayesianModel(net, priors.Normal(0.7), likelihoods.Categorical()).double()
    source = at_start(model, (IMAGES, CLASSES), curvature="kron").sources[0]
    A, G, positions = 0, 0, 9
    for image in IMAGES:
        padded = torch.zeros(2, 7, 7, dtype=torch.float64)
        padded[:, 1:6, 1:6] = image
        s = net[0](image[None]).detach()
        p = net(image[None])[0].detach().softmax(0)
        jacobian = jacrev(lambda s: net[3](s.relu().flatten(1))[0])(s)[:, 0]  # (class, channel, 3, 3)
        for i in range(3):
            for j in range(3):
                a = torch.cat((padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].flatten(), torch.ones(1)))
                g = jacobian[:, :, i, j]
                A = A + torch.outer(a, a)
                G = G + g.T @ (torch.diag(p) - torch.outer(p, p)) @ g
    precision = torch.kron(G, A) / (positions * len(IMAGES)) + torch.eye(len(A) * len(G)) / 0.49
    np.testing.assert_allclose(
        covariance(source, "net.0.weight"), torch.linalg.inv(precision).detach(), rtol=1e-6, atol=1e-10
    )


def test_kronecker_factors_take_positions_for_independent():
    """One weight on T equal pixels whose outputs are summed: f = T w, which full and diag know and kron does not."""
    T, rows, noise = 16, 20, 0.5
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(T, 1, bias=False))
    nn.init.ones_(net[2].weight).requires_grad_(False)
    model = bnn.BayesianModel(net, priors.Normal(1.0), likelihoods.Normal(noise)).double()
    data = torch.ones(rows, 1, 4, 4).double(), torch.zeros(rows).double()
    of_data = rows * T**2 / noise**2
    for curvature, expected in (("full", of_data), ("diag", of_data), ("kron", of_data / T)):
        source = at_start(model, data, curvature=curvature).sources[0]
        assert 1 / float(covariance(source, "net.0.weight")) == pytest.approx(1 + expected, rel=1e-6)


def test_the_diagonal_of_a_convolution_is_that_of_the_whole_matrix(monkeypatch):
    net = conv_net()
    net(IMAGES[:1].float())
    model = bnn.BayesianModel(net, priors.Normal(0.7), likelihoods.Categorical()).double()
    names = list(model.log_priors)
    full = torch.linalg.inv(covariance(at_start(model, (IMAGES, CLASSES), curvature="full").sources[0], *names))
    diag = at_start(model, (IMAGES, CLASSES), curvature="diag").sources[0]
    np.testing.assert_allclose(covariance(diag, *names).diagonal(), 1 / full.diagonal(), rtol=1e-8)
    monkeypatch.setattr(kfac, "PIECE_BYTES", 1)  # a row at a time
    pieces = at_start(model, (IMAGES, CLASSES), curvature="diag").sources[0]
    np.testing.assert_allclose(covariance(pieces, *names), covariance(diag, *names), rtol=1e-10)


class Twice(nn.Module):
    """One layer called twice, one whose weight is used outside of it, one that is plain, and a bare parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.twice, self.outside, self.plain = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.bare = nn.Parameter(torch.ones(3))

    def forward(self, x):
        h = self.twice(self.twice(x).tanh()).tanh()
        h = self.outside(h).tanh() + h @ self.outside.weight
        return self.plain(h * self.bare)


def test_what_kronecker_factors_cannot_serve_has_the_diagonal():
    model = bnn.BayesianModel(Twice(), priors.Normal(1.0), likelihoods.Normal(0.5))
    kron = at_start(model, (X, REAL), curvature="kron").sources[0]
    diag = at_start(model, (X, REAL), curvature="diag").sources[0]
    assert set(kron.grid) == {"net.plain.weight"}
    assert set(kron.sd) == set(diag.sd) - {"net.plain.weight", "net.plain.bias"}
    assert all(torch.equal(kron.sd[name], diag.sd[name]) for name in kron.sd)
    net = conv_net(padding=1, padding_mode="circular")
    net(IMAGES[:1].float())
    model = bnn.BayesianModel(net, priors.Normal(1.0), likelihoods.Categorical())
    assert set(at_start(model, (IMAGES, CLASSES), curvature="kron").sources[0].grid) == {"net.3.weight"}


# The predictive


@pytest.mark.parametrize("curvature", ["full", "kron", "diag"])
def test_the_linearised_predictive_is_the_closed_form(curvature):
    """Draws are f + J (w - w*) to rounding; over draws the mean is f and the variance J Sigma J'."""
    model = bnn.BayesianModel(mlp(1), priors.Normal(0.5), likelihoods.Normal(0.25))
    posterior = at_start(model, (X, REAL), curvature=curvature)
    source, draws = posterior.sources[0], posterior.predict(X[:6], draws=600).draws[0].numpy()
    net, names = model.net, [name for name in source.loc if name.startswith("net.")]
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    parts = jacrev(lambda w: functional_call(net, w, (X[:6],))[:, 0])(parameters)
    mode = net(X[:6])[:, 0].detach()
    for state, draw in zip(posterior.states(3)[0], draws, strict=False):
        change = sum((parts[n] * (state[f"net.{n}"] - p)).flatten(1).sum(1) for n, p in parameters.items())
        np.testing.assert_allclose(draw, mode + change, rtol=1e-9)
    jacobian = torch.cat([parts[name.removeprefix("net.")].flatten(1) for name in names], 1)
    if curvature == "kron":  # the factors' order: a layer's weights row by row, each with its bias behind it
        layers = [torch.cat((parts[f"{k}.weight"], parts[f"{k}.bias"][:, :, None]), 2).flatten(1) for k in (0, 2)]
        jacobian, names = torch.cat(layers, 1), ["net.0.weight", "net.2.weight"]
    variance = (jacobian @ covariance(source, *names) @ jacobian.T).diagonal().numpy()
    assert (np.abs(draws.var(0, ddof=1) / variance - 1) < 4 * math.sqrt(2 / 600)).all()
    assert (np.abs(draws.mean(0) - mode.numpy()) < 4 * np.sqrt(variance / 600)).all()


def test_the_predictive_of_the_weights_is_the_net_at_each_draw():
    model = bnn.BayesianModel(mlp(1), priors.Normal(0.5), likelihoods.Normal(0.25))
    posterior = at_start(model, (X, REAL), curvature="diag", predictive="weights")
    draws = posterior.predict(X, draws=3).draws[0]
    for state, draw in zip(posterior.states(3)[0], draws, strict=True):
        own = {name.removeprefix("net."): value for name, value in state.items()}
        alone = functional_call(model.net, own, (X,))[:, 0]
        torch.testing.assert_close(alone, draw, rtol=1e-5, atol=1e-6)  # many draws at once: up to rounding


def test_the_last_layer_is_exact_given_its_features():
    """(Phi' Phi / sigma^2 + P)^-1 with Phi the features and a 1; all other weights are the same in every draw."""
    model = bnn.BayesianModel(mlp(1), priors.Normal(0.5), likelihoods.Normal(0.25))
    for curvature in ("full", "kron"):
        posterior = at_start(model, (X, REAL), curvature=curvature, weights="last-layer")
        features = torch.cat((model.net[:2](X).detach(), torch.ones(20, 1)), 1)
        wanted = torch.linalg.inv(features.T @ features / 0.0625 + torch.eye(5) / 0.25)
        names = ["net.2.weight", "net.2.bias"] if curvature == "full" else ["net.2.weight"]
        np.testing.assert_allclose(covariance(posterior.sources[0], *names), wanted, rtol=1e-8, atol=1e-12)
        first, second = posterior.states(2)[0]
        assert all(torch.equal(first[name], second[name]) for name in ("net.0.weight", "net.0.bias"))
        assert not torch.equal(first["net.2.weight"], second["net.2.weight"])
    # The net is affine in its last layer's weights: linearising them changes nothing.
    plain = at_start(model, (X, REAL), curvature="full", weights="last-layer", predictive="weights").predict(X)
    linear = at_start(model, (X, REAL), curvature="full", weights="last-layer").predict(X)
    np.testing.assert_allclose(plain.draws, linear.draws, rtol=1e-9, atol=1e-12)


def test_the_last_layer_is_the_last_one_called():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body, self.shift = nn.Linear(4, 1), nn.Linear(3, 4), nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return self.head(self.body(x + self.shift).tanh())

    model = bnn.BayesianModel(Backwards(), priors.Normal(0.5), likelihoods.Normal(0.25))
    assert set(at_start(model, (X, REAL), curvature="diag", weights="last-layer").sources[0].sd) == {
        "net.head.weight", "net.head.bias",
    }  # fmt: skip


@pytest.mark.parametrize("make", [likelihoods.Normal, likelihoods.StudentT, likelihoods.Laplace, likelihoods.LogNormal])
def test_an_inferred_noise_scale_has_its_own_curvature_and_is_drawn(make):
    """-d^2 log p(l, D | w*) / d l^2, by torch's Hessian of the whole log joint."""
    model = bnn.BayesianModel(mlp(1), priors.Normal(0.5), make()).double()
    y = REAL.exp()
    posterior = at_start(model, (X, y), curvature="diag")
    value, flat = negative_log_joint(model, X, y)
    index = list(model.log_priors).index("likelihood.log_scale")
    assert index == len(model.log_priors) - 1  # so it is the last of the vector
    wanted = hessian(value)(flat)[-1, -1]
    np.testing.assert_allclose(posterior.sources[0].sd["likelihood.log_scale"], wanted.rsqrt(), rtol=1e-9)
    scales = torch.stack([state["likelihood.log_scale"] for state in posterior.states(4)[0]])
    assert len(scales.unique()) == 4


def test_at_a_joint_mode_the_noise_and_the_weights_are_nearly_independent():
    """What the block structure leaves out: in a linear regression at its joint mode the correlation is small."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(100, 2, generator=generator, dtype=torch.float64)
    y = x.sum(1) + 0.3 * torch.randn(100, generator=generator, dtype=torch.float64)
    model = bnn.BayesianModel(nn.Linear(2, 1), priors.Normal(1.0), likelihoods.Normal()).double()
    method = bnn.Laplace(curvature="full", lr=0.1)
    posterior = bnn.fit(model, (x, y), method, epochs=600, batch_size=None, progress=False)
    source, fitted = posterior.sources[0], model.copy()
    fitted.load_state(source.last())
    value, flat = negative_log_joint(fitted, x, y)
    assert torch.autograd.functional.jacobian(value, flat).abs().max() < 1e-4  # the mode
    joint = torch.linalg.inv(hessian(value)(flat))
    np.testing.assert_allclose(source.sd["likelihood.log_scale"] ** 2, joint[-1, -1], rtol=0.01)
    weights = covariance(source, "net.weight", "net.bias")
    np.testing.assert_allclose(weights.diagonal(), joint.diagonal()[:-1], rtol=0.01)


# What is refused, and the contract


@pytest.mark.parametrize(
    "options",
    [{}, {"curvature": "full", "predictive": "weights"}, {"curvature": "diag"}, {"weights": "last-layer"}],
    ids=repr,
)
def test_the_contract(options, tmp_path):
    assert_contract(bnn.Laplace(**options), bnn.nets.MLP(2, (4,), 1), tmp_path)


def test_training_is_that_of_map():
    net = bnn.nets.MLP(2, (4,), 1)
    point, mode = fit(bnn.MAP(), net).sources[0].last(), fit(bnn.Laplace(), net).sources[0].last()
    assert all(torch.equal(point[name], mode[name]) for name in point)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "block"}, "Unknown curvature 'block'"),
        ({"weights": "last"}, "Unknown weights 'last': did you mean 'last-layer'"),
        ({"predictive": "glm"}, "Unknown predictive 'glm'"),
        ({"lr": 0.0}, "Expected lr > 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        bnn.Laplace(**options)


@pytest.mark.parametrize("prior", [priors.Laplace(), priors.StudentT(), priors.ScaleMixture()], ids=repr)
def test_a_prior_without_a_positive_curvature_is_refused(prior):
    model = bnn.BayesianModel(mlp(1), prior, likelihoods.Normal(0.5))
    with pytest.raises(ValueError, match=r"^Expected Normal priors for Laplace, got \w+ for 'net.0.weight', .*\.$"):
        at_start(model, (X, REAL))


def test_what_would_not_fit_into_memory_is_refused_with_its_bytes(monkeypatch):
    monkeypatch.setattr(laplace, "CURVATURE_BYTES", 5000)  # the MLP of 21 weights takes 3 * 8 * 21^2 = 10,584
    model = bnn.BayesianModel(mlp(1), priors.Normal(1.0), likelihoods.Normal(0.5))
    with pytest.raises(ValueError, match=r"at most 5,000 bytes, got 10,584 for 21 weights: use curvature='kron'"):
        at_start(model, (X, REAL), curvature="full")
    at_start(model, (X, REAL), curvature="full", weights="last-layer")
    monkeypatch.setattr(laplace, "CURVATURE_BYTES", 500)
    with pytest.raises(ValueError, match=r"Kronecker factors of at most 500 bytes, got [\d,]+: use curvature='diag'"):
        at_start(model, (X, REAL))


def test_nets_that_cannot_be_served_are_refused_before_training():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else -super().forward(x)

    for net, message in (
        (Branching(3, 1), "Expected a net that torch.func can differentiate row by row"),
        (nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 1)), "without dropout for Laplace"),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), "without running statistics for Laplace"),
    ):
        model = bnn.BayesianModel(net, priors.Normal(1.0), likelihoods.Normal(0.5))
        with pytest.raises(ValueError, match=message) as error:
            at_start(model, (X, REAL), curvature="full")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="at least one parameter with a prior"):
        at_start(bnn.BayesianModel(mlp(1), priors.Deterministic(), likelihoods.Normal(0.5)), (X, REAL))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, REAL), batch_size=5)
    with pytest.raises(ValueError, match="Expected data in memory for Laplace"):
        at_start(bnn.BayesianModel(mlp(1), priors.Normal(1.0), likelihoods.Normal(0.5)), loader)


def test_weights_without_a_prior_stay_fixed():
    rule = priors.ByName({"0.*": None}, default=priors.Normal(1.0))
    posterior = at_start(bnn.BayesianModel(mlp(1), rule, likelihoods.Normal(0.5)), (X, REAL))
    first, second = posterior.states(2)[0]
    assert torch.equal(first["net.0.weight"], second["net.0.weight"])
    assert not torch.equal(first["net.2.weight"], second["net.2.weight"])
    assert kfac.bias_of("net.2.weight") == "net.2.bias"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda():
    for method in [bnn.Laplace(), bnn.Laplace(curvature="full"), bnn.Laplace(curvature="diag")]:
        assert_works_on_cuda(method, bnn.nets.MLP(2, (4,), 1))
