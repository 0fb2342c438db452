"""What every variational family owes: the posterior of linear regression where it holds it, and a run that goes on."""

import copy

import numpy as np
import torch
from torch import nn

import bayesnn as bnn
from bayesnn.methods import Plan
from bayesnn.rng import Streams
from tests.posteriors.contract import X, Y, assert_works_on_cuda
from tests.posteriors.linear import Problem, problem

S_PRIOR, LOUDER, K = 0.2, 1.2, 6


def case_of(name: str) -> Problem:
    """``informed``: nearly all of Lambda is the data's; ``prior``: half of it; ``disguised``: in a form not known."""
    if name == "informed":
        return problem(columns=K)
    prior = bnn.priors.ScaleMixture(pi=0.5, wide=S_PRIOR, narrow=S_PRIOR) if name == "disguised" else None
    return problem(n=10, s=S_PRIOR, columns=K, prior=prior)


def fit(
    case: Problem, method: bnn.methods.Method, steps: int, batch: int | None = None, chains: int = 2
) -> bnn.Posterior:
    """Two chains from the mode: from far away Adam's second moments would remember the way for a thousand steps."""
    data, options = (case.x, case.y), {"progress": False, "batch_size": None}
    mode = bnn.fit(case.model, data, bnn.MAP(lr=0.05), epochs=300, **options)
    epochs, options["batch_size"] = steps if batch is None else steps * batch // case.n, batch
    return bnn.fit(case.model, data, method, epochs=epochs, init=mode, chains=chains, **options)


def moments(source: bnn.source.Source) -> tuple[np.ndarray, np.ndarray]:
    """Means (K, D) and covariances (K, D, D) of each column's weights: as stored, or of the draws."""
    tensors = {key: value.numpy() for key, value in source.tensors().items()}
    if "root/net.weight" in tensors:
        root = tensors["root/net.weight"]
        return tensors["loc/net.weight"], root @ root.transpose(0, 2, 1)
    if "factor/net.weight" in tensors:
        factor, sd = tensors["factor/net.weight"], tensors["sd/net.weight"]
        return tensors["loc/net.weight"], np.einsum("rki,rkj->kij", factor, factor) + sd[:, None] ** 2 * np.eye(3)
    draws = tensors["net.weight"]
    centred = draws - draws.mean(0)
    return draws.mean(0), np.einsum("tki,tkj->kij", centred, centred) / (len(draws) - 1)


def assert_posterior(case: Problem, posterior: bnn.Posterior, of: slice | np.ndarray = slice(None)) -> None:
    """With Lambda = C C', C' Cov C = I: every entry, averaged over columns and chains, within 4 standard errors.

    After whitening all variances have the noise of one law, and all covariances that of another: each is pooled. The
    noise of the optimisation raises a variance by its own square, about. ``of`` masks the covariance.
    """
    means, covariances = zip(*(moments(source) for source in posterior.sources), strict=True)
    root = np.linalg.cholesky(case.precision)
    white = root.T @ (np.concatenate(covariances) * (of if isinstance(of, np.ndarray) else 1)) @ root
    diagonal = np.eye(len(root), dtype=bool)
    spread = white.var(0, ddof=1)
    noise = np.sqrt(np.where(diagonal, spread[diagonal].mean(), spread[~diagonal].mean()))
    error = noise / np.sqrt(len(white))
    assert error.max() < 0.03, f"{error}: too noisy to see a variance that is off by a fifth"
    off = np.abs(white.mean(0) - diagonal)
    assert (off < 4 * error + noise**2).all(), f"{white.mean(0)} +- {error} instead of 1"
    shift = (np.concatenate(means) - np.concatenate([case.mean] * len(means))) @ root
    assert np.sqrt((shift**2).mean()) < 0.15, "in posterior standard deviations"


def gradients(method: bnn.methods.Method) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(mean, standard error) of a step's gradients on one regression, times N, and those of the closed form.

    Of E_q (w - m)' Lambda (w - m) / 2 - H(q) = (tr(Lambda Cov) + (mu - m)' Lambda (mu - m)) / 2 - H(q).
    """
    case = problem(n=10, s=S_PRIOR, columns=1)
    run = method.start(case.model.copy(), Plan(10, 10, 1, 1, 1), Streams(0, 0))
    run.optimizers[0].param_groups[0]["lr"] = 0.0
    tensors, generator = run.optimizers[0].param_groups[0]["params"], torch.Generator().manual_seed(0)
    tensors[0].copy_(torch.tensor([0.3, -0.2, 0.1]))
    for tensor in tensors[1:]:
        tensor.add_(0.5 * torch.randn(tensor.shape, generator=generator))
    if isinstance(method, bnn.FullRankVI):
        tensors[2].tril_(-1)
    steps = []
    for _ in range(8):
        run.step(case.x, case.y[:, 0])
        steps.append(10 * torch.cat([tensor.grad.flatten() for tensor in tensors]))
    mu, rho, *shape = (tensor.clone().requires_grad_() for tensor in tensors)
    covariance, entropy = (2 * rho).exp().diag() / 3, rho.sum()
    if isinstance(method, bnn.FullRankVI):
        factor = rho.exp()[:, None] * (torch.eye(3) + shape[0].tril(-1))
        covariance = factor @ factor.T
    if isinstance(method, bnn.LowRankVI):
        factor = rho.exp() * shape[0]
        covariance = (2 * rho).exp().diag() + factor.T @ factor
        entropy = torch.logdet(covariance) / 2
    precision, delta = torch.tensor(case.precision), mu - torch.tensor(case.mean[0])
    (((precision @ covariance).trace() + delta @ precision @ delta) / 2 - entropy).backward()
    closed = torch.cat([tensor.grad.flatten() for tensor in (mu, rho, *shape)])
    stacked = torch.stack(steps)
    return stacked.mean(0), stacked.std(0) / len(steps) ** 0.5, closed


def assert_gradient_of_the_elbo(kind) -> None:
    """8 x 200 samples; squares in units of standard errors with 7 degrees of freedom, each of mean 7 / 5."""
    mean, error, closed = gradients(kind(initial_sd=0.1, mc_samples=200))
    free = error > 0  # of A, what lies below the diagonal
    assert torch.equal(mean[~free], closed[~free])
    assert float(((mean - closed)[free] / error[free]).square().mean()) < 4
    louder = gradients(kind(initial_sd=0.1, mc_samples=200, kl_weight=LOUDER))[0]
    assert float(((louder - closed)[free] / error[free]).square().mean()) > 8


def assert_closed_kl(method: bnn.methods.Method) -> None:
    """The reported KL against torch's own of multivariate Normals."""
    posterior = fit(case_of("prior"), method, 40, chains=1)
    parts = posterior.sources[0].tensors()
    loc = parts["loc/net.weight"].flatten()
    if "root/net.weight" in parts:
        q = torch.distributions.MultivariateNormal(loc, scale_tril=parts["root/net.weight"].flatten(0, 1))
    else:
        factor, variance = parts["factor/net.weight"].flatten(1).T, parts["sd/net.weight"].flatten() ** 2
        q = torch.distributions.MultivariateNormal(loc, factor @ factor.T + variance.diag())
    p = torch.distributions.MultivariateNormal(torch.zeros_like(loc), S_PRIOR**2 * torch.eye(len(loc)).double())
    expected = float(torch.distributions.kl_divergence(q, p))
    np.testing.assert_allclose(posterior.history[-1]["kl"], expected, rtol=1e-9)


def net() -> nn.Module:
    return bnn.nets.MLP(2, (3,), 1)


def small(method: bnn.methods.Method, model: bnn.BayesianModel | None = None) -> bnn.Posterior:
    model = model or bnn.BayesianModel(net(), likelihood=bnn.likelihoods.Normal())
    return bnn.fit(model, (X, Y), method, epochs=4, batch_size=8, chains=2, progress=False)


def assert_goes_on_from_a_state(method: bnn.methods.Method) -> None:
    """The same run and another one, to the same bits."""
    model = bnn.BayesianModel(net(), likelihood=bnn.likelihoods.Normal())
    runs = [method.start(model.copy(), Plan(24, 24, 8, 1, 1), Streams(seed, 0)) for seed in (0, 1)]
    runs[0].step(X, Y)
    state = runs[0].state_dict()
    after = [float(runs[0].step(X, Y)) for _ in range(4)]
    for run in runs:
        run.load_state_dict(copy.deepcopy(state))
        assert [float(run.step(X, Y)) for _ in range(4)] == after


def assert_deterministic_part_is_optimised(method: bnn.methods.Method) -> None:
    model = bnn.BayesianModel(net(), likelihood=bnn.likelihoods.Normal(0.3), bayesian="last-layer")
    before = model.net.layers[0].weight.detach().clone()
    states = bnn.fit(model, (X, Y), method, epochs=20, init="net", progress=False).states(3)[0]
    assert torch.equal(states[0]["net.layers.0.weight"], states[1]["net.layers.0.weight"])
    assert not torch.equal(states[0]["net.layers.0.weight"], before)
    assert all(not torch.equal(states[0][drawn], states[1][drawn]) for drawn in model.log_priors)


def assert_goes_on_with_its_covariance(method: bnn.methods.Method) -> None:
    first = small(method)
    still = type(method)(**{**vars(method), "lr": 1e-12})
    again = bnn.fit(first.model, (X, Y), still, epochs=1, chains=2, init=first, progress=False)
    for old, new in zip(first.sources, again.sources, strict=True):
        for key, value in old.tensors().items():
            torch.testing.assert_close(new.tensors()[key], value, rtol=1e-5, atol=1e-7)


def assert_same_bits_on_cuda(method: bnn.methods.Method) -> None:
    state = torch.cuda.get_rng_state()
    assert_works_on_cuda(method, net())
    model = bnn.BayesianModel(net(), likelihood=bnn.likelihoods.Normal())
    first, second = (bnn.fit(model, (X, Y), method, epochs=3, device="cuda", progress=False) for _ in range(2))
    assert torch.equal(first.predict(X.cuda(), draws=3).draws, second.predict(X.cuda(), draws=3).draws)
    assert torch.equal(torch.cuda.get_rng_state(), state)
