"""``fit(..., compile=True)``: the same numbers as without, to rounding, or a clear refusal."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn.methods import compiled as compiled_module
from bayesnn.methods.compiled import aside, check_agreement
from bayesnn.methods.full_batch import Potential

N = 24
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(3)).double()
Y = X.sum(1) + 0.1 * torch.randn(N, generator=torch.Generator().manual_seed(4)).double()
RULES = {"layers.0.weight": bnn.priors.StudentT(3.0, 0.5), "layers.0.bias": bnn.priors.Normal(0.7, loc=0.3)}
METHODS: dict[str, bnn.methods.Method] = {
    "HMC": bnn.HMC(map_steps=3, max_steps=8),
    "NUTS": bnn.NUTS(max_depth=3, warm_up=0.25),
    "MCLMC": bnn.MCLMC(),
    "MAP": bnn.MAP(),
    "SWAG": bnn.SWAG(),
    "SGLD": bnn.SGLD(),
    "PSGLD": bnn.PSGLD(),
    "SGHMC": bnn.SGHMC(),
    "SGHMC, SVRG": bnn.SGHMC(lr=1e-3, variance_reduction="svrg"),
    "SGHMC, layerwise": bnn.SGHMC(layerwise=True),
    "SGNHT": bnn.SGNHT(),
    "MeanFieldVI": bnn.MeanFieldVI(mc_samples=2, kl_warm_up=0.5),
    "LowRankVI": bnn.LowRankVI(rank=2),
    "FullRankVI": bnn.FullRankVI(),
    "RadialVI": bnn.RadialVI(),
    "IVON": bnn.IVON(mc_samples=2),
}
REFUSED: dict[str, bnn.methods.Method] = {
    "MCDropout": bnn.MCDropout(),
    "SVGD": bnn.SVGD(particles=2),
    "PyroVI": bnn.PyroVI(),
    "GibbsLinear": bnn.GibbsLinear(),
    "MeanFieldVI": bnn.MeanFieldVI(estimator="local"),
}


def model_of(net: nn.Module | None = None, prior: bnn.priors.Prior | None = None) -> bnn.BayesianModel:
    net = net or bnn.nets.MLP(2, (4,), 1)
    return bnn.BayesianModel(net, prior or bnn.priors.ByName(RULES), bnn.likelihoods.Normal()).double()


def fit(method: bnn.methods.Method, model: bnn.BayesianModel | None = None, **options: object) -> bnn.Posterior:
    """Eight epochs, of minibatches of 16 and 8 rows."""
    settings = {"epochs": 8, "batch_size": 16, "chains": 1, "progress": False, **options}
    return bnn.fit(model or model_of(), (X, Y), method, **settings)


def test_the_compiled_potential_is_the_plain_one() -> None:
    model = model_of()
    plain, compiled = (Potential(model.copy(), 0.5, N // 2, compile) for compile in (False, True))
    energies = []
    for potential in (plain, compiled):
        potential.on(X, Y)
    for shift in (0.0, 0.1):
        plain.vector.add_(shift)
        compiled.vector.copy_(plain.vector)
        (energy, gradient), (fast, slope) = plain(), compiled()
        torch.testing.assert_close(slope, gradient)
        energies.append((energy, fast))
    (first, fast_first), (second, fast_second) = energies
    np.testing.assert_allclose(fast_second - fast_first, second - first, rtol=1e-9)
    compiled.vector[0] = math.nan
    assert compiled()[0] == math.inf
    assert compiled.evaluations == 3


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_compiled_fits_are_the_plain_ones(method: bnn.methods.Method) -> None:
    model, state = model_of(), torch.random.get_rng_state()
    plain, compiled = (fit(method, model, compile=compile) for compile in (False, True))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.distributions.Distribution._validate_args
    assert plain.info["gradient_evaluations"] == compiled.info["gradient_evaluations"]
    expected, found = plain.sources[0].tensors(), compiled.sources[0].tensors()
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-6, atol=1e-8)
    losses = [[row["loss"] for row in posterior.history] for posterior in (plain, compiled)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


def test_hierarchical_priors_frozen_weights_and_shared_ones() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.fixed = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)
            self.second.weight = self.first.weight
            self.fixed.weight.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fixed(torch.tanh(self.second(torch.tanh(self.first(x)))))

    for method in (bnn.SGHMC(lr=1e-3), bnn.MeanFieldVI()):
        model = model_of(Shared(), bnn.priors.HierarchicalNormal())
        plain, compiled = (fit(method, model, compile=compile) for compile in (False, True))
        for name, values in plain.sources[0].tensors().items():
            torch.testing.assert_close(compiled.sources[0].tensors()[name], values, rtol=1e-6, atol=1e-8)


class Twins(nn.Module):
    """Two weights whose gradients are one expression: compiled code returns one tensor for both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 1)
        self.c, self.d = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x) + (self.c + self.d)))


@pytest.mark.parametrize("name", ["MeanFieldVI", "SGHMC, SVRG"])
def test_gradients_that_are_one_expression(name: str) -> None:
    model = model_of(Twins(), bnn.priors.ByName({"*.weight": bnn.priors.ScaleMixture()}))
    plain, compiled = (fit(METHODS[name], model, compile=compile) for compile in (False, True))
    for key, values in plain.sources[0].tensors().items():
        torch.testing.assert_close(compiled.sources[0].tensors()[key], values, rtol=1e-6, atol=1e-8)


def test_gradients_in_another_layout() -> None:
    """Of a convolution whose inputs are channels last; a fused optimizer goes through memory, not through indices."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=generator).to(memory_format=torch.channels_last)
    y = torch.arange(8) % 3
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical()).double()
    plain, compiled = (
        bnn.fit(model, (x, y), bnn.MAP(), epochs=4, batch_size=None, compile=compile, progress=False)
        for compile in (False, True)
    )
    for key, values in plain.sources[0].tensors().items():
        torch.testing.assert_close(compiled.sources[0].tensors()[key], values, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", [bnn.MCLMC(), bnn.MAP()], ids=["MCLMC", "MAP"])
def test_a_weight_that_is_reached_otherwise_is_refused(method: bnn.methods.Method) -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 1).double())
            self.held = [self.weight]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.held[0]

    net = Listed()
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Normal())
    with pytest.raises(RuntimeError, match=r"^Expected the compiled pass to give the plain one's gradient, [^\n]*$"):
        fit(method, model, compile=True)


@pytest.mark.parametrize("method", [bnn.MCLMC(), bnn.MAP()], ids=["MCLMC", "MAP"])
def test_at_an_exact_mode_there_is_nothing_to_refuse(method: bnn.methods.Method) -> None:
    """Rows in pairs with opposite targets: at weights of 0 their pulls cancel, and the gradient is rounding."""
    stream = torch.Generator().manual_seed(0)
    half, targets = torch.randn(500, 3, generator=stream), torch.randn(500, generator=stream)
    order = torch.randperm(1000, generator=stream)
    x, y = torch.cat([half, half])[order], torch.cat([targets, -targets])[order]
    model = bnn.BayesianModel(nn.Linear(3, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=0.1))
    for p in model.parameters():
        nn.init.zeros_(p)
    bnn.fit(model, (x, y), method, epochs=4, batch_size=None, chains=1, init="net", compile=True, progress=False)


@pytest.mark.parametrize(("plain", "compiled"), [(1.0, 1.01), (0.0, 0.01)])
def test_a_gradient_that_is_off_by_a_hundredth_is_refused(plain: float, compiled: float) -> None:
    with pytest.raises(RuntimeError, match=r"got one 0.01\d* away from one of length [01]: leave compile=True out"):
        check_agreement([torch.tensor([plain])], [torch.tensor([compiled])])


def test_weights_are_put_back_to_the_bit() -> None:
    weights = [torch.randn(5, generator=torch.Generator().manual_seed(0)), torch.zeros(3, dtype=torch.float64)]
    before = [w.clone() for w in weights]
    with aside(weights):
        assert not any(torch.equal(w, b) for w, b in zip(weights, before, strict=True))
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))


def test_passes_that_come_once_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """PSGLD looks at pieces of a full batch: of 4 rows, and of the 7 that are left over where there are 87."""
    sizes, call = set(), compiled_module.call_compiled

    def seen(function: Any, *arguments: Any, **options: Any) -> Any:
        sizes.add(len(arguments[-1]))
        return call(function, *arguments, **options)

    monkeypatch.setattr(compiled_module, "call_compiled", seen)
    x = torch.randn(87, 2, generator=torch.Generator().manual_seed(0))
    model = bnn.BayesianModel(nn.Linear(2, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Normal())
    bnn.fit(model, (x, x[:, 0]), bnn.PSGLD(), epochs=20, batch_size=None, chains=1, compile=True, progress=False)
    assert sizes == {87}


@pytest.mark.parametrize("method", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_compiled_is_refused(method: bnn.methods.Method) -> None:
    dropout = 0.1 if isinstance(method, bnn.MCDropout) else 0.0
    net = nn.Linear(2, 1) if isinstance(method, bnn.GibbsLinear) else bnn.nets.MLP(2, (4,), 1, dropout=dropout)
    with pytest.raises(ValueError, match=rf"^Expected compile=False for {type(method).__name__}, got True: [^\n]*$"):
        fit(method, model_of(net, bnn.priors.Normal(1.0)), compile=True)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(2)], ids=["dropout", "running statistics"])
def test_passes_that_are_not_pure_are_refused(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^Expected compile=False for a net with dropout or running statistics"):
        fit(bnn.MAP(), model_of(nn.Sequential(layer, nn.Linear(2, 1)), bnn.priors.Normal(1.0)), compile=True)


@pytest.mark.parametrize("method", [bnn.MCLMC(), bnn.MAP()], ids=["MCLMC", "MAP"])
def test_what_torch_cannot_capture_is_said_in_one_line(method: bnn.methods.Method) -> None:
    class Branching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if float(self.weight.sum().detach()) > 0 else -x)

    expected = re.escape("Expected a net that torch.compile can capture, got ")
    with pytest.raises(RuntimeError, match=rf"^{expected}[^\n]*$"):
        fit(method, model_of(Branching(2, 1), bnn.priors.Normal(1.0)), compile=True)
