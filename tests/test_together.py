"""``fit(..., vectorize=True)``: chains as one are the chains one after another, and the law is that of each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bayesnn as bnn
from bayesnn.methods import Plan
from bayesnn.methods.sampler_run import SamplerRun
from bayesnn.rng import Streams
from bayesnn.together import SideBySide
from tests.posteriors.linear import assert_one, draws_of, problem, second_moment

N, CHAINS = 24, 3
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(3)).double()
Y = X.sum(1) + 0.1 * torch.randn(N, generator=torch.Generator().manual_seed(4)).double()
RULES = {"layers.0.weight": bnn.priors.StudentT(3.0, 0.5), "layers.0.bias": bnn.priors.Normal(0.7, loc=0.3)}
COLD = {"temperature": 0.0, "lr": 0.05}  # without noise, of which chains together share one stream
METHODS: dict[str, bnn.methods.Method] = {
    "MAP": bnn.MAP(),
    "MAP, SGD": bnn.MAP(optimizer="sgd", lr=0.05),
    "SGLD": bnn.SGLD(**COLD),
    "SGHMC": bnn.SGHMC(**COLD, draws=3),
    "SGHMC, SVRG": bnn.SGHMC(**COLD, variance_reduction="svrg"),
    "SGHMC, control variate": bnn.SGHMC(**COLD, variance_reduction="control-variate"),
    "SGHMC, cycles": bnn.SGHMC(**COLD, cycles=2),
    "SGHMC, schedule": bnn.SGHMC(**COLD, schedule="cosine"),
    "PSGLD": bnn.PSGLD(**COLD),
}


def model_of(net: nn.Module | None = None, **options: Any) -> bnn.BayesianModel:
    options = {"prior": bnn.priors.ByName(RULES), "likelihood": bnn.likelihoods.Normal(), **options}
    return bnn.BayesianModel(net or bnn.nets.MLP(2, (4,), 1), **options).double()


def fit(method: bnn.methods.Method, model: bnn.BayesianModel | None = None, **options: Any) -> bnn.Posterior:
    """Eight epochs, of two minibatches of 12 rows."""
    settings = {"epochs": 8, "batch_size": 16, "chains": CHAINS, "progress": False, **options}
    return bnn.fit(model or model_of(), settings.pop("data", (X, Y)), method, **settings)


def assert_alike(one: bnn.Posterior, other: bnn.Posterior, rtol: float = 1e-8, atol: float = 1e-10) -> None:
    assert one.num_draws == other.num_draws
    for states, others in zip(one.states(), other.states(), strict=True):
        for state, second in zip(states, others, strict=True):
            assert state.keys() == second.keys()
            for name in state:
                torch.testing.assert_close(state[name], second[name], rtol=rtol, atol=atol)
    for row, again in zip(one.history, other.history, strict=True):
        assert again.keys() == {name for name in row if not name.startswith("gradient_norm/")}
        for name in again.keys() - {"seconds", "kinetic_temperature"}:
            np.testing.assert_allclose(row[name], again[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_chains_together_are_those_one_after_another(method: bnn.methods.Method) -> None:
    model, state = model_of(), torch.random.get_rng_state()
    alone, together = (fit(method, model, vectorize=vectorize) for vectorize in (False, True))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_alike(alone, together)
    first, second = (chain[-1]["net.layers.0.weight"] for chain in together.states()[:2])
    assert not torch.equal(first, second)
    assert alone.info["gradient_evaluations"] == together.info["gradient_evaluations"]


@pytest.mark.parametrize(
    "options",
    [
        {"order": "iid"},
        {"order": "sequential"},
        {"batch_size": None},
        {"validation": (X, Y)},
        {"init": "net"},
        {"chains": 1},
    ],
    ids=["iid", "sequential", "all rows", "validation", "net", "one chain"],
)
def test_whatever_the_minibatches_and_the_start(options: dict[str, Any]) -> None:
    model = model_of()
    alone, together = (fit(METHODS["SGHMC"], model, vectorize=v, **options) for v in (False, True))
    assert_alike(alone, together)


@pytest.mark.parametrize("name", ["MAP", "SGHMC", "SGHMC, SVRG"])
def test_compiled(name: str) -> None:
    model = model_of()
    assert_alike(fit(METHODS[name], model), fit(METHODS[name], model, vectorize=True, compile=True))


def test_they_go_on_from_a_posterior_each_from_its_own() -> None:
    start = fit(METHODS["MAP"])
    alone, together = (fit(METHODS["SGHMC"], init=start, vectorize=v) for v in (False, True))
    assert_alike(alone, together)
    assert together.info["round"] == 1


class Tied(nn.Module):
    """One layer twice, a frozen part, inputs with two axes, integer targets."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv1d(1, 3, 3, padding=1), nn.Linear(3, 3)
        self.last = nn.Linear(3, 2)
        self.inner.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).mean(2)
        out: Tensor = self.last(self.inner(torch.tanh(self.inner(h))))
        return out


@pytest.mark.parametrize("part", [None, "last-layer", ["first.*", "last.bias"]])
def test_nets_of_any_form(part: Any) -> None:
    prior, likelihood = bnn.priors.Layerwise(gain=1.0), bnn.likelihoods.Categorical()
    net = Tied()
    model = model_of(net, prior=prior, likelihood=likelihood, bayesian=part)
    data = X.unsqueeze(1), (Y > 0).long()
    alone, together = (fit(METHODS["SGHMC"], model, data=data, vectorize=v) for v in (False, True))
    assert_alike(alone, together)
    assert torch.equal(together.net().state_dict()["inner.bias"], net.double().inner.bias)


@pytest.mark.parametrize("kind", [bnn.SGHMC, bnn.SGNHT])
def test_the_law_is_that_of_each_and_they_are_independent(kind: Any) -> None:
    case = problem()
    exact = np.linalg.inv(case.precision)
    full: dict[str, Any] = {"chains": 2, "batch_size": None, "vectorize": True, "progress": False}
    start = bnn.fit(case.model, (case.x, case.y), bnn.MAP(lr=0.05), epochs=1500, **full)
    method = kind(lr=case.h * case.n, burn_in=0.2, thin=2)
    posterior = bnn.fit(case.model, (case.x, case.y), method, epochs=1200, init=start, **full)
    chains = [bnn.Posterior(posterior.model, [source], posterior.num_data) for source in posterior.sources]
    draws = [draws_of(chain) for chain in chains]
    for own in draws:
        assert_one(second_moment(own, case.mean, exact))
    z = [(own - case.mean) / np.sqrt(np.diag(exact)) for own in draws]
    between = (z[0] * z[1]).mean((0, 2))  # of each column: a mean over draws that is 0 for independent chains
    assert abs(between.mean()) < 4 * between.std() / np.sqrt(len(between))


def looked(model: bnn.BayesianModel, rows: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Largest curvature and mean variance of a row's gradient, as a run of SGHMC sees them at its start."""
    run = bnn.SGHMC().start(model, Plan(N, N // 2, 10, 2, 1), Streams(0, 0))
    assert isinstance(run, SamplerRun)
    for _ in range(5):  # the power iteration goes on where it ended
        run._look(*rows)
    return run._step_size._curvatures[-1], float(np.mean(run._step_size._row_variances))


def test_own_step_keeps_to_the_stiffest_chain_and_their_mean_noise() -> None:
    models = [model_of(prior=bnn.priors.Normal(1.0)) for _ in range(CHAINS)]
    with torch.no_grad():
        for number, model in enumerate(models):
            for p in model.net.parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    rows = X[: N // 2], Y[: N // 2]
    alone = [looked(model.copy(), rows) for model in models]
    together = looked(
        SideBySide(models), (rows[0].unsqueeze(1).expand(-1, CHAINS, -1), rows[1].unsqueeze(1).expand(-1, CHAINS))
    )
    curvatures, variances = zip(*alone, strict=True)
    assert max(curvatures) > 1.5 * min(curvatures)
    np.testing.assert_allclose(together[0], max(curvatures), rtol=0.02)
    np.testing.assert_allclose(together[1], np.mean(variances), rtol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_files_hold_them(tmp_path: Path) -> None:
    method = bnn.SGLD(draws=4)
    first = fit(method, vectorize=True)
    assert_alike(first, fit(method, vectorize=True), rtol=0, atol=0)
    assert_alike(first, fit(method, vectorize=True, store=tmp_path / "draws"), rtol=0, atol=0)
    again = bnn.Posterior.load(tmp_path / "draws", bnn.nets.MLP(2, (4,), 1).double())
    assert torch.equal(again.predict(X).mean, first.predict(X).mean)
    assert not torch.equal(first.predict(X).mean, fit(method, vectorize=True, seed=1).predict(X).mean)


def test_bfloat16() -> None:
    data, model = (X.float(), Y.float()), model_of().float()
    full, half = (fit(METHODS["SGHMC"], model, data=data, vectorize=True, precision=p) for p in ("full", "bf16"))
    assert_alike(full, half, rtol=0.1, atol=0.1)
    assert not torch.equal(full.predict(X.float()).mean, half.predict(X.float()).mean)
    assert half.predict(X.float()).mean.dtype == torch.float32


def test_one_that_diverges_ends_all_and_what_was_kept_remains() -> None:
    start = fit(METHODS["MAP"])
    start.sources[1].tensors()["net.layers.0.weight"].mul_(1e200)
    with pytest.raises(bnn.DivergedError, match="in chain 1 at step 1"), pytest.warns(UserWarning, match="others with"):
        fit(bnn.SGLD(lr=0.1), init=start, vectorize=True)

    hot = bnn.SGHMC(lr=1.0, burn_in=0.0, warm_up=0.0, thin=1, momentum=0.0)
    with pytest.warns(UserWarning, match="stopped"):
        posterior = fit(hot, data=(100 * X, Y), vectorize=True, epochs=200)
    assert posterior.info["diverged"]
    assert all(torch.isfinite(value).all() for chain in posterior.states() for value in chain[-1].values())


def test_an_interrupted_run_leaves_the_draws_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = bnn.optim.SGLD.step, iter(range(100))

    def interrupted(self: Any, closure: Any = None) -> Any:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return step(self, closure)

    monkeypatch.setattr(bnn.optim.SGLD, "step", interrupted)
    with pytest.warns(UserWarning, match="Interrupted"):
        posterior = fit(bnn.SGLD(lr=1e-3, warm_up=0.0, burn_in=0.0, thin=1), vectorize=True)
    assert posterior.num_draws == [9] * CHAINS


class Branches(nn.Module):
    """Asks for a number of a weight, which under vmap has as many values as there are nets."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out if float(self.layer.bias.detach()) > -9 else -out


def loader() -> bnn.data.Loader:
    return bnn.data.Loader([(X[:16], Y[:16]), (X[16:], Y[16:])], N)


@pytest.mark.parametrize(
    ("message", "method", "options"),
    [
        ("for MeanFieldVI", bnn.MeanFieldVI(), {}),
        ("for HMC", bnn.HMC(), {}),
        ("for MAP", bnn.MAP(optimizer=torch.optim.Adagrad), {}),
        ("for SGLD", bnn.SGLD(gibbs_noise=True), {}),
        ("with a loader", bnn.MAP(), {"data": loader()}),
        ("with early_stopping", bnn.MAP(), {"validation": 0.2, "early_stopping": 2}),
        ("with a HierarchicalNormal", bnn.SGLD(), {"model": model_of(prior=bnn.priors.HierarchicalNormal())}),
        ("dropout or running", bnn.MAP(), {"model": model_of(bnn.nets.MLP(2, (4,), 1, dropout=0.1))}),
        ("vmap", bnn.MAP(), {"model": model_of(Branches(), prior=bnn.priors.Normal(1.0))}),
    ],
)
def test_what_belongs_to_one_chain_is_refused(message: str, method: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Expected .*{message}") as caught:
        fit(method, vectorize=True, **options)
    assert "vectorize=" in str(caught.value)


def test_a_model_side_by_side_leaves_the_first_alone() -> None:
    models = [model_of() for _ in range(2)]
    before = {name: p.clone() for name, p in models[0].named_parameters()}
    together = SideBySide(models)
    assert {name for name, _ in together.named_parameters()} == before.keys()
    rows = X.unsqueeze(1).expand(-1, 2, -1), Y.unsqueeze(1).expand(-1, 2)
    expected = torch.stack([model.mean_nll(X, Y) for model in models])
    torch.testing.assert_close(together.mean_nll(*rows), expected)
    torch.testing.assert_close(together.log_likelihood(*rows).mean(), -expected.sum())
    with torch.no_grad():
        for p in together.parameters():
            p.add_(1)
    assert all(torch.equal(p, before[name]) for name, p in models[0].named_parameters())
