"""Where fit computes, and that it makes no difference to the numbers how data get there."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import bayesnn as bnn
from bayesnn.data.batches import Batches

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1) + 0.1 * torch.randn(50, generator=torch.Generator().manual_seed(1))
METHODS = [
    bnn.MAP(),
    bnn.MeanFieldVI(),
    bnn.SGHMC(lr=1e-3, draws=5),
    bnn.SGHMC(draws=5),
    bnn.SGHMC(lr=1e-3, draws=5, variance_reduction="svrg"),
    bnn.HMC(draws=5),
    bnn.SWAG(),
    bnn.Laplace(),
]


def fit(method=None, data=(X, Y), **options):
    net = bnn.nets.MLP(3, (5,), 1)
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Normal())
    options = {"epochs": 6, "batch_size": 8, "progress": False, "chains": 1, **options}
    return bnn.fit(model, data, method, **options)


def values(posterior):
    return [state[name] for state in posterior.states(3)[0] for name in sorted(state)]


def assert_same(first, second):
    assert all(torch.equal(a, b) for a, b in zip(values(first), values(second), strict=True))


def test_by_default_where_the_net_is():
    net = bnn.nets.MLP(3, (5,), 1).to("meta")
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Normal())
    with pytest.raises(Exception, match="meta"):  # it was tried there
        bnn.fit(model, (X, Y), epochs=1, progress=False)
    assert values(fit())[0].device.type == "cpu"


def test_auto_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_same(fit(device="auto"), fit(device="cpu"))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_losses_read_late_are_the_same_losses(method, monkeypatch):
    """What a GPU's chain does, on the CPU."""
    at_once = fit(method)
    monkeypatch.setattr("bayesnn.chain._reads_late", lambda device: True)
    late = fit(method)
    assert_same(at_once, late)
    assert [row["loss"] for row in at_once.history] == [row["loss"] for row in late.history]


class Broken(torch.nn.Linear):
    """Trains on all rows but one: of that it says what is no number."""

    def forward(self, x):
        marked = (x == 99).any() and torch.is_grad_enabled()
        return super().forward(x) * (torch.nan if marked else 1.0)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("step", [2, 7])  # of seven an epoch: after the last no other loss comes
def test_divergence_is_told_at_its_step(step, late, monkeypatch):
    monkeypatch.setattr("bayesnn.chain._reads_late", lambda device: late)
    x = X.clone()
    x[8 * step - 7] = 99
    model = bnn.BayesianModel(Broken(3, 1), likelihood=bnn.likelihoods.Normal())
    method = bnn.SGLD(lr=1e-6, warm_up=0.0, burn_in=0.0, draws=14)
    options = {"order": "sequential", "epochs": 2, "batch_size": 8, "chains": 1, "progress": False}
    with pytest.warns(UserWarning, match=f"at step {step};"):
        posterior = bnn.fit(model, (x, Y), method, **options)
    assert posterior.info["diverged"] == [{"chain": 0, "step": step}]
    assert posterior.num_draws == [step - 1]
    assert all(bool(torch.isfinite(value).all()) for value in values(posterior))


def test_batches_on_another_device():
    moved = list(Batches(X, Y, 8, generator=torch.Generator().manual_seed(0), device=torch.device("cpu")))
    stay = list(Batches(X, Y, 8, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(a, b) for pair in zip(moved, stay, strict=True) for a, b in zip(*pair, strict=True))


@on_gpu
def test_batches_on_a_gpu():
    for order in ("reshuffle", "iid", "sequential"):
        streams = [torch.Generator().manual_seed(0) for _ in range(2)]
        moved = Batches(X, Y, 8, order, streams[0], torch.device("cuda"))
        stay = Batches(X, Y, 8, order, streams[1])
        for walk in ("__iter__", "peek", "all_rows"):
            for one, other in zip(getattr(moved, walk)(), getattr(stay, walk)(), strict=True):
                assert all(a.is_cuda and torch.equal(a.cpu(), b) for a, b in zip(one, other, strict=True))


@on_gpu
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_data_that_do_not_fit(method, monkeypatch):
    """Batch by batch from the machine's memory: the same bits as from the card's."""
    resident = fit(method, device="cuda")
    assert resident.train[0].is_cuda
    monkeypatch.setattr("bayesnn.prepare.fits", lambda data, device: False)
    moved = fit(method, device="auto")
    assert not moved.train[0].is_cuda
    assert_same(resident, moved)
    assert moved.predict(X).mean.is_cuda


@on_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_chains_together(compiled):
    options = {"chains": 3, "device": "cuda", "compile": compiled}
    method = bnn.SGHMC(lr=0.05, temperature=0.0)  # without noise, of which chains together share one stream
    alone, together = (fit(method, vectorize=vectorize, **options) for vectorize in (False, True))
    for states, others in zip(alone.states(), together.states(), strict=True):
        for name, value in states[-1].items():
            torch.testing.assert_close(value, others[-1][name], rtol=1e-3, atol=1e-4)


@on_gpu
def test_loaders():
    loader = [DataLoader(TensorDataset(X, Y), batch_size=8, pin_memory=pin) for pin in (True, False)]
    first, second = (fit(bnn.MAP(), data, batch_size=None, device="cuda") for data in loader)
    assert_same(first, second)
    assert_same(first, fit(bnn.MAP(), order="sequential", device="cuda"))


@on_gpu
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_close_to_the_cpu(method):
    """At T = 0 there is nothing random in the steps but the order, which is the CPU's."""
    if method.is_sampler or isinstance(method, bnn.MeanFieldVI):
        pytest.skip("its noise is the device's own")
    here, there = fit(method, init="net"), fit(method, init="net", device="cuda")
    for name, value in here.sources[0].tensors().items():
        if name.startswith("loc/") or type(method) is bnn.MAP:
            torch.testing.assert_close(value, there.sources[0].tensors()[name].cpu(), rtol=1e-3, atol=1e-4)


@on_gpu
@pytest.mark.parametrize("options", [{"compile": True}, {"precision": "bf16"}, {"store": True}])
def test_options(options, tmp_path):
    options = {"store": tmp_path / "draws"} if "store" in options else options
    posterior = fit(bnn.SGHMC(lr=1e-3, draws=5), device="cuda", **options)
    plain = fit(bnn.SGHMC(lr=1e-3, draws=5), device="cuda")
    for one, other in zip(values(posterior), values(plain), strict=True):
        assert one.is_cuda
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


@on_gpu
def test_where_the_net_is_on_a_gpu():
    model = bnn.BayesianModel(bnn.nets.MLP(3, (5,), 1).cuda(), likelihood=bnn.likelihoods.Normal())
    posterior = bnn.fit(model, (X, Y), bnn.MAP(), epochs=1, progress=False)
    assert all(value.is_cuda for value in values(posterior))


@on_gpu
@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("method", [*METHODS, bnn.MCDropout()], ids=repr)
def test_loaded_onto_a_gpu(method, store, tmp_path):
    """The same bits as before they were saved, and all there."""
    nets = [bnn.nets.MLP(3, (5,), 1, dropout=0.1 if isinstance(method, bnn.MCDropout) else 0.0) for _ in range(2)]
    model = bnn.BayesianModel(nets[0], likelihood=bnn.likelihoods.Normal())
    options = {"epochs": 6, "batch_size": 8, "device": "cuda", "chains": 1, "progress": False}
    posterior = bnn.fit(model, (X, Y), method, **options, store=tmp_path / "draws" if store else None)
    if not store:
        posterior.save(tmp_path / "draws")
    loaded = bnn.Posterior.load(tmp_path / "draws", nets[1].cuda())
    assert_same(posterior, loaded)
    assert all(value.is_cuda for value in [*values(loaded), *loaded.model.parameters()])
    assert torch.equal(posterior.predict(X, draws=3).draws, loaded.predict(X, draws=3).draws)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", bnn.methods.METHODS)
def test_every_method(name, dtype):
    """The same seed twice, and torch's own generators as they were."""
    nets = {"GibbsLinear": torch.nn.Linear(3, 1), "MCDropout": bnn.nets.MLP(3, (5,), 1, dropout=0.1)}
    model = bnn.BayesianModel(nets.get(name, bnn.nets.MLP(3, (5,), 1)), likelihood=bnn.likelihoods.Normal()).to(dtype)
    state = torch.cuda.get_rng_state()
    options = {"epochs": 6, "batch_size": 8, "device": "cuda", "chains": 2, "progress": False}
    posterior, again = (bnn.fit(model, (X.to(dtype), Y), name, **options) for _ in range(2))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    draws = posterior.predict(X, draws=3).draws
    assert draws.is_cuda
    assert draws.dtype == dtype
    assert torch.isfinite(draws).all()
    assert torch.equal(draws, again.predict(X, draws=3).draws)


@on_gpu
def test_precisions_and_continual_learning(tmp_path):
    prior = bnn.priors.HierarchicalNormal()
    model = bnn.BayesianModel(bnn.nets.MLP(3, (5,), 1), prior, bnn.likelihoods.Normal())
    options = {"epochs": 6, "batch_size": 8, "device": "cuda", "chains": 1, "progress": False}
    posterior = bnn.fit(model, (X, Y), bnn.SGHMC(lr=1e-3, draws=5, gibbs_noise=True), **options)
    posterior.save(tmp_path / "one")
    loaded = bnn.Posterior.load(tmp_path / "one", bnn.nets.MLP(3, (5,), 1))
    torch.testing.assert_close(posterior.predict(X).mean.cpu(), loaded.predict(X).mean.cpu(), rtol=1e-4, atol=1e-4)
    model = bnn.BayesianModel(bnn.nets.MLP(3, (5,), 1), likelihood=bnn.likelihoods.Normal())
    first = bnn.fit(model, (X, Y), bnn.MeanFieldVI(), **options)
    model = bnn.BayesianModel(bnn.nets.MLP(3, (5,), 1), first.as_prior(), bnn.likelihoods.Normal())
    assert bnn.fit(model, (X, Y), bnn.MeanFieldVI(), **options).predict(X).mean.is_cuda
