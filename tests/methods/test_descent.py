import math

import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn.methods.descent import OPTIMIZERS, Descent

N, SCALE, NOISE = 40, 0.8, 0.5
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X @ torch.tensor([1.0, -2.0, 0.5]).double() + NOISE * torch.randn(
    N, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)
PRECISION = X.T @ X / NOISE**2 + torch.eye(3).double() / SCALE**2
MODE = torch.linalg.solve(PRECISION, X.T @ Y / NOISE**2)
SD = PRECISION.diagonal().rsqrt()  # of the optimum of mean field
LR = {"adam": 0.02, "sgd": 0.01, "rmsprop": 0.01, "adagrad": 0.3, "adadelta": 1.0, "adamax": 0.02, "nadam": 0.02}
FAMILIES = [bnn.MeanFieldVI, bnn.LowRankVI, bnn.FullRankVI, bnn.RadialVI]


def model():
    net = nn.Linear(3, 1, bias=False).double()
    return bnn.BayesianModel(net, bnn.priors.Normal(SCALE), bnn.likelihoods.Normal(NOISE))


def fit(method, epochs, **options):
    return bnn.fit(model(), (X, Y), method, epochs=epochs, batch_size=None, progress=False, **options)


def tensors(posterior):
    return posterior.sources[0].tensors()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_arrives_at_the_optimum_of_mean_field(name):
    """Mean: the posterior's; variance: 1 / diag of its precision. With 4 samples a step, rho's noise is a few percent.

    The prior is a tenth of a precision here and there, the KL's weight N times as much: both would be seen.
    """
    mode = fit(bnn.MAP(lr=0.05), 300)
    method = bnn.MeanFieldVI(lr=LR[name], optimizer=name, mc_samples=4, initial_sd=0.05)
    found = tensors(fit(method, 1000, init=mode))
    mean, sd = found["loc/net.weight"][0], found["log_sd/net.weight"][0].exp()
    assert float(((mean - MODE) / SD).abs().max()) < 0.1
    assert float((sd / SD - 1).abs().max()) < 0.1


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_a_single_particle_goes_to_the_mode(name):
    lr = {**LR, "adagrad": 0.5, "sgd": 0.05}[name]
    found = tensors(fit(bnn.SVGD(particles=1, lr=lr, optimizer=name), 800))["net.weight"][0, 0]
    assert float(((found - MODE) / SD).abs().max()) < 0.01


class Fused(torch.optim.Adam):
    """What variational inference stepped by before there was a choice."""

    def __init__(self, groups, lr):
        super().__init__([p for group in groups for p in group["params"]], lr=lr, fused=True)


@pytest.mark.parametrize("kind", [*FAMILIES, bnn.SVGD])
def test_the_default_is_adam_as_it_was(kind):
    one, other = (tensors(fit(method, 20, seed=3)) for method in (kind(), kind(optimizer=Fused)))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_optimizer_of_ones_own_gets_no_weight_decay(kind):
    plain, decayed = (tensors(fit(kind(optimizer=cls), 20)) for cls in (torch.optim.Adam, torch.optim.AdamW))
    for name, value in plain.items():
        torch.testing.assert_close(value, decayed[name], rtol=1e-9, atol=1e-12)


def test_clipping_scales_the_gradient_to_its_most_and_says_how_often():
    weight = torch.zeros(2, requires_grad=True)
    descent = Descent(bnn.MAP(optimizer="sgd", momentum=0.0, clip_grad_norm=1.0), [{"params": [weight]}], 1.0)
    for gradient in ((3.0, 4.0), (0.3, 0.4)):
        weight.grad = torch.tensor(gradient)
        descent.step()
    torch.testing.assert_close(weight.detach(), -torch.tensor([0.6 + 0.3, 0.8 + 0.4]), rtol=1e-5, atol=0)
    assert descent.end_epoch() == {"clipped": 0.5}
    assert descent.end_epoch() == {}


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_what_is_clipped_is_the_gradient_of_u_over_n_with_the_priors_part(name):
    """Two steps on all rows, by hand: the norm is of the whole gradient, and of the mean over rows."""
    net = nn.Linear(3, 1, bias=False).double()
    start = nn.init.constant_(net.weight, 2.0).detach().clone()
    stated = bnn.BayesianModel(net, bnn.priors.Normal(SCALE), bnn.likelihoods.Normal(NOISE))
    options = {"epochs": 2, "batch_size": None, "init": "net", "progress": False}
    method = bnn.MAP(lr=0.1, optimizer=name, clip_grad_norm=0.5, schedule="constant")
    found = tensors(bnn.fit(stated, (X, Y), method, **options))["net.weight"][0]
    weight = start.clone().requires_grad_()
    optimizer = OPTIMIZERS[name]([weight], lr=0.1, **({"momentum": 0.9} if name == "sgd" else {}))
    for _ in range(2):
        residual = X @ weight[0] - Y
        optimizer.zero_grad()
        (residual.square().mean() / (2 * NOISE**2) + weight.square().sum() / (2 * N * SCALE**2)).backward()
        assert float(weight.grad.norm()) > 0.5
        torch.nn.utils.clip_grad_norm_([weight], 0.5)
        optimizer.step()
    torch.testing.assert_close(found, weight.detach(), rtol=1e-9, atol=1e-12)


def test_full_gradients_that_are_clipped_lead_to_the_same_optimum():
    found = fit(bnn.MAP(lr=0.05, optimizer="sgd", clip_grad_norm=0.1), 800)
    assert float(((tensors(found)["net.weight"][0, 0] - MODE) / SD).abs().max()) < 0.01
    assert found.history[0]["clipped"] == 1.0
    assert found.history[-1]["clipped"] == 0.0


@pytest.mark.parametrize("method", [bnn.MeanFieldVI, bnn.SVGD])
def test_variational_gradients_are_clipped_over_all_that_is_moved(method):
    """SGD without momentum moves by at most lr * C a step, all parameters together."""
    options = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.5, "schedule": "constant"}
    ends = [tensors(fit(method(**options, clip_grad_norm=1e-3), epochs)) for epochs in (1, 2)]
    moved = math.sqrt(sum(float((ends[1][name] - value).square().sum()) for name, value in ends[0].items()))
    assert moved == pytest.approx(0.5e-3, rel=1e-2)


@pytest.mark.parametrize("kind", [bnn.SGLD, bnn.SGHMC, bnn.HMC, bnn.MCLMC])
def test_a_sampler_refuses_to_clip_and_says_why(kind):
    with pytest.raises(ValueError, match=f"Expected no clip_grad_norm for {kind.__name__}, got 1.0.*stationary law"):
        kind(clip_grad_norm=1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bnn.MeanFieldVI(optimizer="adm"), "Unknown optimizer 'adm': did you mean 'adam'"),
        (lambda: bnn.MAP(optimizer=torch.optim.LBFGS), "Expected an optimizer that steps without a closure, got LBFGS"),
        (lambda: bnn.SVGD(momentum=1.0), r"Expected momentum in \[0, 1\), got 1.0"),
        (lambda: bnn.MAP(clip_grad_norm=0.0), "Expected clip_grad_norm > 0 and finite, got 0.0"),
        (lambda: fit(bnn.MAP(clip_grad_norm=1.0), 1, chains=2, vectorize=True), "Expected vectorize=False for MAP"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_closure_that_may_be_left_out_is_none_that_is_needed():
    """Before and after torch has wrapped ``step``, which it does as the first object of a class is made."""

    class Own(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def step(self, closure=None, *args, **kwargs):
            pass

    bnn.MAP(optimizer=Own)
    Own([torch.zeros(1, requires_grad=True)], 0.1)
    bnn.MAP(optimizer=Own)
    torch.optim.LBFGS([torch.zeros(1, requires_grad=True)])
    with pytest.raises(ValueError, match="without a closure"):
        bnn.SVGD(optimizer=torch.optim.LBFGS)
