"""``fit(precision="bf16")`` against float32: the same run to the rounding of bfloat16, with weights in float32."""

import pytest
import torch
from torch import nn

import bayesnn as bnn

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(64, 1, 8, 8, generator=GENERATOR)
Y = (X.mean((1, 2, 3)) > 0).long()
METHODS = [
    bnn.MAP(),
    bnn.MeanFieldVI(),
    bnn.MeanFieldVI(estimator="local"),
    bnn.MeanFieldVI(estimator="flipout"),
    bnn.LowRankVI(),
    bnn.FullRankVI(),
    bnn.RadialVI(),
    bnn.IVON(lr=1e-3, hess_init=100.0),
    bnn.SVGD(particles=3),
    bnn.SGLD(lr=1e-3, draws=3),
    bnn.SGHMC(lr=1e-3, draws=3),
    bnn.SGHMC(draws=3),
    bnn.SGHMC(lr=1e-3, draws=3, variance_reduction="svrg"),
    bnn.SGNHT(lr=1e-3, draws=3),
    bnn.PSGLD(lr=1e-4, draws=3),
    bnn.SWAG(),
    bnn.Laplace(curvature="full", weights="last-layer"),
    bnn.PyroVI(),
]


def net_of() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))


def fitted(method: bnn.methods.Method, **options: object) -> bnn.Posterior:
    model = bnn.BayesianModel(net_of(), bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    return bnn.fit(model, (X, Y), method, epochs=4, batch_size=16, chains=1, progress=False, **options)


def distance(one: bnn.Posterior, other: bnn.Posterior) -> float:
    """Largest difference of a weight, over draws."""
    pairs = [(a[name], b[name]) for a, b in zip(one.states(3)[0], other.states(3)[0], strict=True) for name in a]
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_run_is_that_of_float32_to_rounding(method: bnn.methods.Method) -> None:
    full, half = fitted(method), fitted(method, precision="bf16")
    apart = distance(full, half)
    assert 0 < apart < 0.05, apart  # another, but the same to some steps' rounding
    assert all(value.dtype == torch.float32 for value in half.states(1)[0][0].values())
    assert half.info["precision"] == "bf16"
    # Predictions are full precision: those of the same weights under a model that was never anything else.
    other = bnn.Posterior(full.model, half.sources, 64)
    assert torch.equal(half.predict(X, draws=3).mean, other.predict(X, draws=3).mean)


@pytest.mark.parametrize("seed", range(5))
def test_gradients_are_those_of_float32_to_two_digits(seed: int) -> None:
    model = bnn.BayesianModel(net_of(), bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    gradients = []
    for autocast in (None, torch.bfloat16):
        model.autocast = autocast
        model.zero_grad()
        model.log_likelihood(X, Y).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.net.parameters()]))
    with model.at_full_precision():
        assert model.outputs(X).dtype == torch.float32
        assert torch.equal(model.outputs(X), model.net(X))
    assert not torch.equal(model.outputs(X), model.net(X))
    assert 0 < float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.02


def test_a_step_size_is_measured_at_full_precision() -> None:
    """Differences of rounded gradients would be a curvature of their own, and lr far too small."""
    start = fitted(bnn.MAP())
    rates = [
        fitted(bnn.SGLD(burn_in=0.1, draws=3), init=start, precision=precision).history[-1]["lr"]
        for precision in ("full", "bf16")
    ]
    assert rates[0] == pytest.approx(rates[1], rel=1e-3)  # one look, at the same weights


def test_compiled_passes_are_rounded_alike() -> None:
    half, both = (
        fitted(bnn.SGLD(lr=1e-3, draws=3), precision="bf16"),
        fitted(bnn.SGLD(lr=1e-3, draws=3), precision="bf16", compile=True),
    )
    assert distance(half, both) < 1e-2


def test_what_rounding_would_spoil_is_refused() -> None:
    with pytest.raises(ValueError, match="for HMC, got 'bf16': its energies need every digit"):
        fitted(bnn.HMC(), precision="bf16")
    with pytest.raises(ValueError, match=r"precision.*'fp16'"):
        fitted(bnn.MAP(), precision="fp16")
    model = bnn.BayesianModel(net_of().double(), likelihood=bnn.likelihoods.Categorical())
    with pytest.raises(ValueError, match="Expected a float32 net"):
        bnn.fit(model, (X, Y), precision="bf16", progress=False)
