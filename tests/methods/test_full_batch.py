"""What HMC, NUTS and MCLMC owe their user alike, and the potential that they share."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesnn as bnn
from bayesnn.data.batches import Batches
from bayesnn.methods.base import Plan
from bayesnn.methods.full_batch import FullBatchMethod, Potential
from bayesnn.rng import Streams, isolated

N, EPOCHS = 24, 8
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(3))
Y = X.sum(1) + 0.1 * torch.randn(N, generator=torch.Generator().manual_seed(4))
METHODS: dict[str, FullBatchMethod] = {
    "HMC": bnn.HMC(map_steps=3, max_steps=8),
    "NUTS": bnn.NUTS(max_depth=3, warm_up=0.25),
    "MCLMC": bnn.MCLMC(),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def model_of(net=None, prior=None, likelihood=None):
    return bnn.BayesianModel(net or bnn.nets.MLP(2, (4,), 1), prior, likelihood or bnn.likelihoods.Normal())


def fit(method, model=None, data=(X, Y), **options):
    return bnn.fit(model or model_of(), data, method, **{"epochs": EPOCHS, "chains": 1, "progress": False, **options})


def tensors(posterior, chain=0):
    return posterior.sources[chain].tensors()


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("chunk", [4096, 10])
def test_the_potential_is_the_log_joint_and_its_gradient(chunk: int, temperature: float) -> None:
    rules = {"layers.0.weight": bnn.priors.Laplace(0.5), "layers.0.bias": bnn.priors.Normal(0.7, loc=0.3)}
    model = model_of(prior=bnn.priors.ByName(rules)).double()
    x, y = X.double(), Y.double()
    plain, potential = model.copy(), Potential(model, temperature, chunk)
    potential.on(x, y)
    energies, joints = [], []
    for shift in (0.0, 0.1):
        potential.vector.add_(shift)
        plain.load_state(model.state())
        parameters = list(plain.bayesian_parameters().values())
        joint = -plain.log_joint(x, y)
        gradients = torch.autograd.grad(joint, parameters)
        energy, gradient = potential()
        torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in gradients]) / temperature)
        nll = -plain.log_likelihood(x, y).mean()
        torch.testing.assert_close(potential.mean_nll(energy), nll.detach())
        energies.append(energy)
        joints.append(float(joint.detach()))
    np.testing.assert_allclose(energies[1] - energies[0], (joints[1] - joints[0]) / temperature, rtol=1e-9)


@each_method
def test_the_same_seed_gives_the_same_bits_and_nothing_leaks(method: FullBatchMethod) -> None:
    net = bnn.nets.MLP(2, (4,), 1)
    before = copy.deepcopy(net.state_dict())
    pyro.clear_param_store()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = fit(method, model_of(net), chains=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not list(pyro.get_param_store().keys())
    assert_same(before, net.state_dict())
    torch.manual_seed(2)  # the global generator has no say
    second = fit(method, model_of(net), chains=2)
    for chain in (0, 1):
        assert_same(tensors(first, chain), tensors(second, chain))
    assert_same(tensors(first), tensors(fit(method, model_of(net), chains=1)))
    name = "net.layers.0.weight"
    assert not torch.equal(tensors(first, 0)[name], tensors(first, 1)[name])
    assert not torch.equal(tensors(first)[name], tensors(fit(method, model_of(net), seed=1))[name])


@each_method
def test_a_run_goes_on_from_where_another_ended(method: FullBatchMethod) -> None:
    """With new noise, and its first draw is neither the old end nor the initial weights."""
    model = model_of()
    first = fit(method, model)
    more = fit(method, model, init=first, epochs=1)
    name, last = "net.layers.0.weight", tensors(first)["net.layers.0.weight"][-1]
    assert not torch.equal(tensors(more)[name][0], last)
    assert (tensors(more)[name][0] - last).abs().max() < 3  # and yet it is near: a fresh start would be too, at times
    again = fit(method, model, init=first)
    assert not torch.equal(tensors(again)[name][-1], last)
    own = fit(method, model, init="net", epochs=1)
    assert not torch.equal(tensors(own)[name][0], model.net.layers[0].weight)


@each_method
def test_a_chain_goes_back_to_a_saved_state(method: FullBatchMethod) -> None:
    plan = Plan(N, N, EPOCHS, 1, 1)

    def steps(run, count):
        with isolated(run.streams.fence):
            return [float(run.step(X, Y[:, None] if Y.dim() == 2 else Y)) for _ in range(count)], run.model.state()

    for done in (1, 3, 6):  # in the warm-up, in the tuning, after it
        run = method.start(model_of(), plan, Streams(0, 0))
        steps(run, done)
        saved = run.state_dict()
        first = steps(run, 2)
        run.load_state_dict(saved)
        second = steps(run, 2)
        assert first[0] == second[0]
        assert_same(first[1], second[1])


@each_method
def test_save_and_load(method: FullBatchMethod, tmp_path: Path) -> None:
    posterior = fit(method, chains=2)
    posterior.save(tmp_path)
    again = bnn.Posterior.load(tmp_path, bnn.nets.MLP(2, (4,), 1))
    for chain in (0, 1):
        assert_same(tensors(posterior, chain), tensors(again, chain))
    assert torch.equal(posterior.predict(X).mean, again.predict(X).mean)


@each_method
@pytest.mark.parametrize("chunk", [4096, 10])
def test_gradient_evaluations_are_passes_over_all_rows(
    method: FullBatchMethod, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bayesnn.gradients.GradientWatch.look", lambda *_: {})  # it is beside the method's own
    rows = []

    class Counting(nn.Linear):
        def forward(self, x):
            if torch.is_grad_enabled():
                rows.append(len(x))
            return super().forward(x)

    posterior = fit(type(method)(**{**vars(method), "chunk": chunk}), model_of(Counting(2, 1)), seed=1)
    assert posterior.info["gradient_evaluations"] == [sum(rows) / N]


@each_method
def test_draws_are_kept_as_said(method: FullBatchMethod) -> None:
    options = vars(method)

    def numbers(**changed):
        return list(type(method)(**{**options, **changed}).kept_steps(100))

    start = METHODS_UNKEPT[type(method)](method)
    kept = numbers(draws=10)
    assert len(kept) == 10
    assert kept[-1] == 100
    assert kept[0] > start
    assert len(set(np.diff(kept))) == 1
    assert numbers(draws=1000) == list(range(start + 1, 101))
    assert set(np.diff(numbers(thin=7))) == {7}


METHODS_UNKEPT = {
    bnn.HMC: lambda method: int(100 * method.warm_up),
    bnn.NUTS: lambda method: int(100 * method.warm_up),
    bnn.MCLMC: lambda method: int(100 * method.burn_in),
}

REFUSED = {
    "dropout": (lambda m: fit(m, model_of(bnn.nets.MLP(2, (4,), 1, dropout=0.5))), "net without dropout"),
    "batch norm": (
        lambda m: fit(m, model_of(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))),
        "without running statistics .*'1'.*GroupNorm",
    ),
    "a parameter without a prior": (
        lambda m: fit(m, model_of(prior=bnn.priors.ByName({"*bias": None}))),
        "a prior on every trainable parameter .*'net.layers.0.bias': give it one",
    ),
    "no prior at all": (
        lambda m: fit(m, model_of(prior=bnn.priors.Deterministic())),
        "a prior on every trainable parameter",
    ),
    "loader": (lambda m: fit(m, data=DataLoader(TensorDataset(X, Y))), "data in memory .* got a loader"),
    "iid": (lambda m: fit(m, order="iid"), "order='reshuffle' or 'sequential' .* got 'iid'"),
    "early stopping": (lambda m: fit(m, validation=0.2, early_stopping=1), "no early_stopping"),
    "nothing to keep": (lambda m: fit(type(m)(thin=100)), "at least one draw to keep, got thin=100 with 8 steps"),
    "T = 0": (lambda m: type(m)(temperature=0), "temperature > 0 and finite, got 0"),
    "T of nan": (lambda m: type(m)(temperature=float("nan")), "temperature > 0 and finite, got nan"),
    "draws": (lambda m: type(m)(draws=0), "draws to be an integer >= 1, got 0"),
    "thin": (lambda m: type(m)(thin=0.5), "thin to be an integer >= 1, got 0.5"),
    "chunk": (lambda m: type(m)(chunk=0), "chunk to be an integer >= 1, got 0"),
    "warm_up": (lambda m: type(m)(warm_up=1), r"warm_up in \[0, 1\), got 1"),
}


@pytest.mark.parametrize(("name", "mistake"), list(itertools.product(METHODS, REFUSED)))
def test_what_cannot_be_is_refused_in_one_line(name: str, mistake: str) -> None:
    call, message = REFUSED[mistake]
    with pytest.raises(ValueError, match=message) as error:
        call(METHODS[name])
    assert "\n" not in str(error.value)


@each_method
def test_weights_that_give_nan_end_in_a_clear_error(method: FullBatchMethod) -> None:
    class Broken(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return out * float("nan") if torch.is_grad_enabled() else out

    with (
        pytest.warns(UserWarning, match="its loss became NaN"),
        pytest.raises(bnn.DivergedError, match="finite loss"),
    ):
        fit(method, model_of(Broken(2, 1)))


@each_method
def test_every_step_sees_every_row(method: FullBatchMethod) -> None:
    """Whatever batch_size says: the result is the same to the bit."""
    assert_same(tensors(fit(method, batch_size=5)), tensors(fit(method, batch_size=None)))
    assert method.access == "full"
    assert len(Batches(X, Y)) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@each_method
def test_cuda(method: FullBatchMethod) -> None:
    state = torch.cuda.get_rng_state()
    first, second = (fit(method, device="cuda", chains=2) for _ in range(2))
    assert_same(tensors(first), tensors(second))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert tensors(first)["net.layers.0.weight"].device.type == "cuda"
    assert torch.isfinite(first.predict(X.cuda()).mean).all()
