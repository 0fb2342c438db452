import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesnn as bnn
from bayesnn import likelihoods
from bayesnn.rng import Streams, generator, isolated

X = torch.linspace(-1, 1, 30)[:, None]
Y = (3 * X[:, 0]).sin()
METHODS = {
    "MAP": bnn.MAP(), "MeanFieldVI": bnn.MeanFieldVI(), "SGLD": bnn.SGLD(draws=4), "IVON": bnn.IVON(),
    "SVGD": bnn.SVGD(particles=3),
    "FullRankVI": bnn.FullRankVI(), "LowRankVI": bnn.LowRankVI(rank=2), "RadialVI": bnn.RadialVI(),
    "PyroVI": bnn.PyroVI(draws=4),
}  # fmt: skip
PURPOSES = ("noise", "shuffle", "fence")


def numbers(stream, n=4):
    return torch.rand(n, generator=stream)


def fitted(method, seed=0, chains=2, data=(X, Y), dropout=False):
    net = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Dropout(0.5 * dropout), nn.Linear(5, 1))
    model = bnn.BayesianModel(net, likelihood=likelihoods.Normal())
    return bnn.fit(model, data, method, epochs=4, batch_size=10, chains=chains, seed=seed, progress=False)


def weights(posterior):
    return [{k: v for state in chain for k, v in state.items()} for chain in posterior.states(draws=1)]


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_key_gives_the_same_numbers_and_another_key_others():
    assert torch.equal(numbers(generator(3, 1, 2)), numbers(generator(3, 1, 2)))
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), ()]
    streams = [numbers(generator(seed, *key)) for seed in (0, 1, 2**40) for key in keys]
    assert len({tuple(stream.tolist()) for stream in streams}) == len(streams)


def test_streams_of_a_chain_are_independent():
    n = 4000
    drawn = [numbers(getattr(Streams(0, chain), purpose), n) for chain in range(3) for purpose in PURPOSES]
    correlation = np.corrcoef(torch.stack(drawn).double().numpy()) - np.eye(9)
    assert np.abs(correlation).max() < 4.5 / n**0.5  # 36 pairs, each Normal(0, 1 / n): P(any) < 3e-4


def test_streams_come_back_where_they_were():
    streams = Streams(5, 1)
    numbers(streams.noise), numbers(streams.fence, 7)
    state = streams.state_dict()
    expected = [numbers(getattr(streams, purpose)) for purpose in PURPOSES]
    other = Streams(9, 9)
    other.load_state_dict(state)
    assert all(torch.equal(numbers(getattr(other, p)), e) for p, e in zip(PURPOSES, expected, strict=True))


def test_isolated_gives_the_streams_numbers_and_puts_the_global_state_back():
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    stream = generator(7)
    with isolated(stream):
        inside = torch.rand(6)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(inside, numbers(generator(7), 6))
    assert torch.equal(torch.cat((inside, numbers(stream))), numbers(generator(7), 10))  # the stream moved on


def test_isolated_restores_after_an_error_and_when_nested():
    before = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError), isolated(generator(1)):
        _ = torch.rand(3)[0].item() / 0
    assert torch.equal(torch.random.get_rng_state(), before)
    with isolated(generator(1)):
        first = torch.rand(2)
        with isolated(generator(2)):
            torch.rand(100)
        second = torch.rand(2)
    assert torch.equal(torch.cat((first, second)), numbers(generator(1), 4))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_threads_do_not_mix_their_numbers():
    got = {}

    def draw(seed):
        for _ in range(50):
            with isolated(generator(seed)):
                got.setdefault(seed, []).append(torch.rand(20))

    before = torch.random.get_rng_state()
    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(
        torch.equal(values, numbers(generator(seed), 20)) for seed, all_values in got.items() for values in all_values
    )
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", METHODS)
def test_a_chain_does_not_depend_on_how_many_others_there_are(name):
    alone, many = weights(fitted(METHODS[name], chains=1)), weights(fitted(METHODS[name], chains=3))
    assert same(alone[0], many[0])
    assert not same(many[0], many[1])
    assert not same(many[1], many[2])


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_decides_every_bit(name):
    torch.manual_seed(0)
    net_weights = [weights(fitted(METHODS[name], seed=4)) for _ in range(2)]  # two nets with different initial weights
    assert all(same(a, b) for a, b in zip(*net_weights, strict=True))
    other = weights(fitted(METHODS[name], seed=5))
    assert not any(same(a, b) for a, b in zip(net_weights[0], other, strict=True))


def test_the_seed_decides_dropout():
    first, second, other = (weights(fitted(bnn.MAP(), seed=seed, chains=1, dropout=True))[0] for seed in (1, 1, 2))
    assert same(first, second)
    assert not same(first, other)


def global_states():
    return torch.random.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002


def loader():
    return DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("data", [lambda: (X, Y), loader], ids=["memory", "loader"])
def test_fit_and_predict_leave_the_global_generators_alone(name, data):
    model = bnn.BayesianModel(nn.Linear(1, 1), likelihood=likelihoods.Normal())
    before = global_states()
    posterior = bnn.fit(model, data(), METHODS[name], epochs=4, validation=(X, Y), progress=False)
    predictive = posterior.predict(X)
    predictive.mean, predictive.log_prob(Y), predictive.quantile(0.5), predictive.sample(5)
    posterior.net(), posterior.to_arviz((X, Y))
    assert global_states() == before


def test_batch_norm_statistics_of_a_loader_leave_the_global_generator_alone():
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = bnn.BayesianModel(net, likelihood=likelihoods.Normal())
    before = global_states()
    bnn.fit(model, loader(), bnn.SGLD(draws=3), epochs=4, chains=1, validation=(X, Y), progress=False)
    assert global_states() == before


@pytest.mark.parametrize("name", METHODS)
def test_a_loaders_order_comes_from_the_seed(name):
    first, second, other = (weights(fitted(METHODS[name], seed=seed, data=loader())) for seed in (1, 1, 2))
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert not any(same(a, b) for a, b in zip(first, other, strict=True))


def test_samples_go_by_their_own_seed():
    posterior = fitted(bnn.SGLD(draws=4))
    torch.manual_seed(1)
    first = posterior.predict(X).sample(3, seed=2)
    torch.manual_seed(2)
    assert torch.equal(posterior.predict(X).sample(3, seed=2), first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_fence_on_a_gpu_rules_both_generators() -> None:
    """Initial weights are drawn where the net lies, Pyro's numbers on the CPU: the seed decides both."""
    before = torch.random.get_rng_state(), torch.cuda.get_rng_state()

    def drawn() -> list[list[float]]:
        streams, found = Streams(0, 0, "cuda"), []
        for _ in range(2):
            with isolated(streams.fence):
                found.append([float(torch.randn((), device="cuda")), float(torch.randn(()))])
        return found

    first = drawn()
    assert first == drawn()
    assert first[0] != first[1]
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert torch.equal(before[1], torch.cuda.get_rng_state())
