import math
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize, special, stats
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import bayesnn as bnn
from bayesnn import likelihoods, predictive
from bayesnn.data import Standardize
from bayesnn.posterior import Posterior
from bayesnn.rng import generator
from bayesnn.source import Draws

ROWS, FEATURES = 7, 2
TARGET = Standardize(torch.tensor(3.0, dtype=torch.float64), torch.tensor(2.5, dtype=torch.float64))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = normal(ROWS, FEATURES, seed=5)


class Known:
    """A linear net with draws that are known: everything the predictive says can be recomputed by numpy."""

    def __init__(self, likelihood, outputs=1, counts=(5, 5), target=None, x=X):
        model = bnn.BayesianModel(nn.Linear(FEATURES, outputs), likelihood=likelihood).double()
        chains, self.outputs, self.scales = [], [], []
        for chain, count in enumerate(counts):
            stacked = {
                "net.weight": normal(count, outputs, FEATURES, seed=chain),
                "net.bias": normal(count, outputs, seed=chain + 50),
            }
            if "log_scale" in dict(likelihood.named_parameters()):
                stacked["likelihood.log_scale"] = 0.3 * normal(count, seed=chain + 90) - 0.5
                self.scales.append(stacked["likelihood.log_scale"].exp())
            chains.append(Draws(stacked))
            self.outputs.append(x @ stacked["net.weight"].mT + stacked["net.bias"][:, None])
        self.outputs = torch.cat(self.outputs).numpy()  # (draw, batch, output)
        self.scale = torch.cat(self.scales).numpy()[:, None] if self.scales else None
        self.posterior = Posterior(model, chains, num_data=10, target=target)
        self.predictive = self.posterior.predict(x)


def known_normal(**options):
    """(Known, scipy's Normal of each draw in the targets' own units)."""
    known = Known(likelihoods.Normal(), **options)
    target = options.get("target")
    mean, std = (0.0, 1.0) if target is None else (target.mean.item(), target.std.item())
    return known, stats.norm(mean + std * known.outputs[..., 0], std * known.scale)


def targets(seed=7):
    return normal(ROWS, seed=seed)


TARGETS = pytest.mark.parametrize("target", [None, TARGET], ids=["own", "standardised"])


class TestRealTargets:
    @TARGETS
    def test_mixture_moments_and_their_parts(self, target):
        known, draws = known_normal(target=target)
        predictive = known.predictive
        np.testing.assert_allclose(predictive.mean, draws.mean().mean(0), rtol=1e-12)
        np.testing.assert_allclose(predictive.aleatoric, (draws.std() ** 2).mean(0) * np.ones(ROWS), rtol=1e-12)
        np.testing.assert_allclose(predictive.epistemic, draws.mean().var(0), rtol=1e-12)
        second_moment = (draws.std() ** 2 + draws.mean() ** 2).mean(0)
        np.testing.assert_allclose(predictive.total, second_moment - draws.mean().mean(0) ** 2, rtol=1e-10)
        np.testing.assert_allclose(predictive.std**2, predictive.total, rtol=1e-12)

    @TARGETS
    def test_log_prob_is_the_logarithm_of_the_mean_density(self, target):
        known, draws = known_normal(target=target)
        y = targets()
        np.testing.assert_allclose(known.predictive.log_likelihood(y), draws.logpdf(y.numpy()), rtol=1e-10)
        np.testing.assert_allclose(known.predictive.log_prob(y), np.log(draws.pdf(y.numpy()).mean(0)), rtol=1e-10)
        far = y + 1e4  # every density underflows to zero
        expected = special.logsumexp(draws.logpdf(far.numpy()), axis=0) - math.log(10)
        np.testing.assert_allclose(known.predictive.log_prob(far), expected, rtol=1e-10)

    @TARGETS
    def test_density_integrates_to_one_in_the_targets_own_units(self, target):
        known, draws = known_normal(target=target, x=X[:1])
        low, high = draws.mean().min() - 12 * draws.std().max(), draws.mean().max() + 12 * draws.std().max()
        grid = np.linspace(low, high, 20_001)
        repeated = known.posterior.predict(X[:1].expand(len(grid), FEATURES))
        assert np.trapezoid(repeated.log_prob(torch.as_tensor(grid)).exp(), grid) == pytest.approx(1.0, abs=1e-9)

    @TARGETS
    @pytest.mark.parametrize("level", [0.001, 0.025, 0.5, 0.9, 0.9999])
    def test_quantile_inverts_the_mixtures_cdf(self, target, level):
        known, draws = known_normal(target=target)
        got = known.predictive.quantile(level)
        assert got.shape == (ROWS,)
        np.testing.assert_allclose(draws.cdf(got.numpy()).mean(0), level, rtol=1e-9)

    def test_quantiles_without_noise_are_those_of_the_conditional_means(self):
        known, draws = known_normal(target=TARGET)
        levels = [0.1, 0.5, 0.8]
        got = known.predictive.quantile(levels, noise=False)
        assert got.shape == (3, ROWS)
        np.testing.assert_allclose(got, np.quantile(draws.mean(), levels, axis=0), rtol=1e-12)
        np.testing.assert_array_equal(known.predictive.quantile(0.5, noise=False), got[1])

    @TARGETS
    def test_samples_have_the_mixtures_moments(self, target):
        known, draws = known_normal(target=target)
        n = 20_000
        samples = known.predictive.sample(n, seed=3)
        assert samples.shape == (n, ROWS)
        mean = draws.mean().mean(0)
        central = [
            (stats.norm(draws.mean() - mean, draws.std() * np.ones_like(draws.mean())).moment(k)).mean(0)
            for k in (2, 4)
        ]
        error = np.sqrt(central[0] / n)
        np.testing.assert_array_less(np.abs(samples.mean(0).numpy() - mean), 4 * error)
        squares = ((samples.numpy() - mean) ** 2).mean(0)
        np.testing.assert_array_less(np.abs(squares - central[0]), 4 * np.sqrt((central[1] - central[0] ** 2) / n))
        assert torch.equal(samples, known.predictive.sample(n, seed=3))
        assert not torch.equal(samples, known.predictive.sample(n, seed=4))

    def test_one_sample_is_one_draw_at_all_inputs(self):
        known = Known(likelihoods.Normal(scale=1e-9), counts=(3, 4))
        samples = known.predictive.sample(200).numpy()
        distance = np.abs(samples[:, None] - known.outputs[None, ..., 0]).max(-1)  # (sample, draw): over all inputs
        assert (distance.min(1) < 1e-7).all()  # 100 standard deviations of the noise
        counts = np.bincount(distance.argmin(1), minlength=7)
        assert stats.chisquare(counts).pvalue > 1e-4  # each draw as often as the others

    def test_several_targets(self):
        known = Known(likelihoods.Normal(scale=0.5), outputs=3)
        y = normal(ROWS, 3)
        by_draw = stats.norm(known.outputs, 0.5).logpdf(y.numpy()).sum(-1)
        np.testing.assert_allclose(
            known.predictive.log_prob(y), special.logsumexp(by_draw, 0) - math.log(10), rtol=1e-10
        )
        assert known.predictive.quantile([0.2, 0.7]).shape == (2, ROWS, 3)
        assert known.predictive.sample(4).shape == (4, ROWS, 3)
        assert known.predictive.draws.shape == (2, 5, ROWS, 3)

    @pytest.mark.parametrize(
        ("likelihood", "distribution"),
        [
            (likelihoods.Laplace(0.5), lambda z: stats.laplace(z, 0.5)),
            (likelihoods.StudentT(3.0, 0.5), lambda z: stats.t(3.0, z, 0.5)),
            (likelihoods.LogNormal(0.5), lambda z: stats.lognorm(0.5, scale=np.exp(z))),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_quantiles_of_other_likelihoods(self, likelihood, distribution):
        known = Known(likelihood)
        mixture = distribution(known.outputs[..., 0])
        for level in (0.01, 0.5, 0.95):
            reached = mixture.cdf(known.predictive.quantile(level).numpy()).mean(0)
            np.testing.assert_allclose(reached, level, rtol=1e-7)

    @pytest.mark.parametrize("df", [1.5, 2.0])
    def test_an_infinite_variance_is_an_error_and_leaves_the_rest(self, df):
        known = Known(likelihoods.StudentT(df, 0.5))
        for quantity in ("aleatoric", "epistemic", "total", "std"):
            with pytest.raises(ValueError, match=r"Expected a finite variance, got StudentT.*use \.quantile\(\)"):
                getattr(known.predictive, quantity)
        np.testing.assert_allclose(known.predictive.mean, known.outputs[..., 0].mean(0), rtol=1e-12)
        mixture = stats.t(df, known.outputs[..., 0], 0.5)
        np.testing.assert_allclose(mixture.cdf(known.predictive.quantile(0.9).numpy()).mean(0), 0.9, rtol=1e-7)


def test_quantiles_take_few_evaluations_of_the_cdf(monkeypatch):
    known, calls = Known(likelihoods.StudentT(4.0, 0.5)), []
    cdf = likelihoods.StudentT.cdf
    monkeypatch.setattr(likelihoods.StudentT, "cdf", lambda *args: calls.append(1) or cdf(*args))
    known.predictive.quantile(0.05)
    # Bisection from a bracket of a few scales to 1e-12 of one needs log2(1e13) = 43 of them.
    assert len(calls) < 30


@pytest.mark.parametrize("level", [0.001, 0.3, 0.99])
def test_quantiles_in_float32(level):
    known = Known(likelihoods.Normal(0.5))
    single = Posterior(known.posterior.model.float(), [
        Draws({name: tensor.float() for name, tensor in source.stacked.items()}) for source in known.posterior.sources
    ], num_data=10).predict(X)  # fmt: skip
    mixture = stats.norm(known.outputs[..., 0], 0.5)
    # A rounding error of the cdf is 2^-24 to some units, of the argument 1e-7 of a few: density below 0.8.
    np.testing.assert_allclose(mixture.cdf(single.quantile(level).numpy()).mean(0), level, atol=2e-6)


def test_samples_have_a_stream_of_their_own(monkeypatch):
    keys = []
    monkeypatch.setattr(predictive, "generator", lambda *key: keys.append(key) or generator(*key))
    known_normal()[0].predictive.sample(3, seed=7)
    [(seed, *key)] = keys
    chains_and_fits = [(7, 0), (7, 0, 0), (7, 0, 1), (7, 0, 2)]  # samples of weights, and what Streams takes
    first = torch.rand(4, generator=generator(seed, *key))
    assert seed == 7
    assert all(not torch.equal(first, torch.rand(4, generator=generator(*other))) for other in chains_and_fits)


class TestCounts:
    def test_quantile_is_the_least_integer_whose_cdf_reaches_the_level(self):
        known = Known(likelihoods.Poisson())
        rates = np.exp(known.outputs[..., 0])
        counts = np.arange(400)
        cdf = stats.poisson(rates[..., None]).cdf(counts).mean(0)  # (batch, count)
        for level in (1e-6, 0.05, 0.5, 0.9, 0.9999):
            got = known.predictive.quantile(level).numpy()
            np.testing.assert_array_equal(got, (cdf >= level).argmax(-1))

    def test_moments_and_log_prob(self):
        known = Known(likelihoods.Poisson())
        rates = np.exp(known.outputs[..., 0])
        np.testing.assert_allclose(known.predictive.mean, rates.mean(0), rtol=1e-12)
        np.testing.assert_allclose(known.predictive.total, rates.mean(0) + rates.var(0), rtol=1e-12)
        y = torch.arange(ROWS)
        expected = np.log(stats.poisson(rates).pmf(y.numpy()).mean(0))
        np.testing.assert_allclose(known.predictive.log_prob(y), expected, rtol=1e-9)


class TestClasses:
    def test_mixture_and_its_entropies(self):
        known = Known(likelihoods.Categorical(), outputs=4, counts=(3, 6))
        probs = special.softmax(known.outputs, -1)
        y = torch.tensor([0, 1, 2, 3, 0, 1, 2])
        predictive = known.predictive
        np.testing.assert_allclose(predictive.mean, probs.mean(0), rtol=1e-12)
        np.testing.assert_allclose(predictive.total, special.entr(probs.mean(0)).sum(-1), rtol=1e-10)
        np.testing.assert_allclose(predictive.aleatoric, special.entr(probs).sum(-1).mean(0), rtol=1e-10)
        np.testing.assert_allclose(predictive.log_prob(y), np.log(probs.mean(0)[np.arange(ROWS), y]), rtol=1e-10)
        np.testing.assert_allclose(predictive.quantile(0.3), np.quantile(probs, 0.3, axis=0), rtol=1e-10)
        with pytest.raises(ValueError, match=r"Expected a real target for \.std, got classes"):
            predictive.std  # noqa: B018

    def test_samples_have_the_mixtures_frequencies(self):
        known = Known(likelihoods.Categorical(), outputs=3)
        n = 20_000
        share = np.stack([(known.predictive.sample(n) == k).double().mean(0) for k in range(3)], -1)
        expected = special.softmax(known.outputs, -1).mean(0)
        np.testing.assert_array_less(np.abs(share - expected), 4 * np.sqrt(expected * (1 - expected) / n))

    def test_binary(self):
        known = Known(likelihoods.Bernoulli())
        p = special.expit(known.outputs[..., 0]).mean(0)
        y = torch.tensor([[0], [1], [1], [0], [1], [0], [1]])
        np.testing.assert_allclose(known.predictive.mean, p, rtol=1e-12)
        np.testing.assert_allclose(known.predictive.log_prob(y), stats.bernoulli(p).logpmf(y[:, 0].numpy()), rtol=1e-10)
        np.testing.assert_allclose(known.predictive.total, stats.bernoulli(p).entropy(), rtol=1e-10)


class TestChains:
    def test_draws_come_in_chains_in_the_targets_units(self):
        known, draws = known_normal(target=TARGET)
        assert known.predictive.draws.shape == (2, 5, ROWS)
        np.testing.assert_allclose(known.predictive.draws.reshape(10, ROWS), draws.mean(), rtol=1e-12)

    def test_of_unequal_chains_every_draw_weighs_the_same_and_draws_are_cut(self):
        known, draws = known_normal(counts=(2, 6))
        assert known.predictive.num_draws == 8
        np.testing.assert_allclose(known.predictive.mean, draws.mean().mean(0), rtol=1e-12)
        got = known.predictive.draws
        assert got.shape == (2, 2, ROWS)
        np.testing.assert_allclose(got[0], draws.mean()[:2], rtol=1e-12)
        np.testing.assert_allclose(got[1], draws.mean()[6:], rtol=1e-12)  # cut from the front: the last two stay


def every_quantity(predictive, y):
    names = ("mean", "aleatoric", "epistemic", "total", "draws")
    return {
        **{name: getattr(predictive, name) for name in names},
        "log_prob": predictive.log_prob(y),
        "log_likelihood": predictive.log_likelihood(y),
        "quantile": predictive.quantile([0.1, 0.9]),
        "quantile without noise": predictive.quantile([0.1, 0.9], noise=False),
    }


@pytest.mark.parametrize("block_rows", [1, 3, 7])
@pytest.mark.parametrize("kind", ["stored", "distribution"])
def test_blocks_do_not_change_the_answer(monkeypatch, block_rows, kind):
    if kind == "stored":
        posterior = Known(likelihoods.Normal(), target=TARGET).posterior
    else:
        model = bnn.BayesianModel(nn.Linear(FEATURES, 1), likelihood=likelihoods.Normal()).double()
        posterior = bnn.fit(model, (X, targets()), bnn.MeanFieldVI(initial_sd=0.3), epochs=2, progress=False)
    y = targets()
    whole = every_quantity(posterior.predict(X, draws=5), y)
    params, per_number = 2, 8  # loc and scale, float64
    draws = 5 * posterior.num_chains
    monkeypatch.setattr(predictive, "BLOCK_BYTES", block_rows * params * per_number * draws * predictive.COPIES)
    blocked = posterior.predict(X, draws=5)
    assert blocked._block_rows() == block_rows
    for name, value in every_quantity(blocked, y).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-12, atol=1e-14, err_msg=name)
    samples = blocked.sample(4000)
    error = (blocked.total / 4000).sqrt()
    assert bool(((samples.mean(0) - blocked.mean).abs() < 4 * error).all())


def test_samples_of_many_blocks_stay_coherent(monkeypatch):
    known = Known(likelihoods.Normal(scale=1e-9))
    monkeypatch.setattr(predictive, "BLOCK_BYTES", 1)
    distance = np.abs(known.posterior.predict(X).sample(50).numpy()[:, None] - known.outputs[None, ..., 0]).max(-1)
    assert (distance.min(1) < 1e-7).all()


class Live(TorchDispatchMode):
    """The most bytes that tensors made by operations hold at a time."""

    def __init__(self):
        super().__init__()
        self.storages, self.now, self.peak = {}, 0, 0

    def freed(self, key):
        self.storages[key][0] -= 1
        if not self.storages[key][0]:
            self.now -= self.storages.pop(key)[1]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.storages:
                    self.storages[storage._cdata] = [0, storage.nbytes()]
                    self.now += storage.nbytes()
                self.storages[storage._cdata][0] += 1
                weakref.finalize(tensor, self.freed, storage._cdata)
        self.peak = max(self.peak, self.now)
        return out


QUANTITIES = {
    "mean and uncertainty": lambda asked, y: asked.mean,
    "log_prob": lambda asked, y: asked.log_prob(y),
    "quantile": lambda asked, y: asked.quantile(0.5),
    "quantile without noise": lambda asked, y: asked.quantile(0.5, noise=False),
}


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(
    ("likelihood", "outputs", "target"),
    [
        (likelihoods.Categorical(), 5, None),
        (likelihoods.Bernoulli(), 1, None),
        (likelihoods.Normal(), 1, TARGET),
        (likelihoods.StudentT(), 1, TARGET),
        (likelihoods.HeteroscedasticNormal(), 2, TARGET),
        (likelihoods.LogNormal(), 1, None),
        (likelihoods.Poisson(), 1, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_memory_does_not_grow_with_inputs_times_draws(monkeypatch, quantity, likelihood, outputs, target):
    draws, rows, block_rows = 100, 600, 20
    known = Known(likelihood, outputs=outputs, counts=(draws,), target=target)
    asked = known.posterior.predict(normal(rows, FEATURES))
    numbers, _ = asked._numbers()
    block = block_rows * numbers * 8 * predictive.COPIES
    monkeypatch.setattr(predictive, "BLOCK_BYTES", block)
    monkeypatch.setattr(asked, "_keeps", lambda: False)
    y = torch.ones(rows, dtype=torch.long if likelihood.kind == "classes" else torch.float64)
    with Live() as live:
        QUANTITIES[quantity](asked, y)
    assert live.peak <= 2 * block + 20 * rows * outputs * 8  # what the answers and the inputs take
    assert not asked._kept


def test_a_block_counts_float64_and_temporaries():
    asked = Known(likelihoods.Categorical(), outputs=10, counts=(100,)).posterior.predict(X)
    assert predictive.BLOCK_BYTES == 32 * 2**20
    assert asked._block_rows() == 32 * 2**20 // (100 * 10 * 8 * predictive.COPIES)


@pytest.mark.parametrize("fits", [True, False])
def test_outputs_that_fit_are_computed_once(monkeypatch, fits):
    calls = []
    known = Known(likelihoods.Categorical(), outputs=3)
    known.posterior.model.net.register_forward_hook(lambda net, inputs, output: calls.append(len(output)))
    asked = known.posterior.predict(X)
    stored = ROWS * known.predictive.num_draws * 3 * 8
    monkeypatch.setattr(predictive, "BLOCK_BYTES", stored if fits else stored - 1)
    assert asked._block_rows() == 1  # kept in many blocks as well as in one
    assert len(asked.mean) == len(asked.epistemic) == asked.draws.shape[2] == ROWS
    rows = sum(calls) / known.predictive.num_draws
    assert rows == pytest.approx(ROWS if fits else 2 * ROWS, abs=1)  # and some to learn the sizes


class Stateful(nn.Module):
    """A net whose forward pass changes it in training mode."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.body(x))


def bytes_of(net):
    return {name: tensor.numpy().tobytes() for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
def test_fit_and_predict_leave_the_users_net_alone(training):
    net = Stateful().train(training)
    before = bytes_of(net)
    model = bnn.BayesianModel(net, likelihood=likelihoods.Normal())
    posterior = bnn.fit(model, (X.float(), targets().float()), bnn.MAP(), epochs=3, progress=False)
    inside = bytes_of(posterior.model)
    first, second = (posterior.predict(X.float()) for _ in range(2))
    assert torch.equal(first.mean, second.mean)  # no dropout, no batch statistics
    one = posterior.predict(X[:1].float())
    np.testing.assert_allclose(one.mean, first.mean[:1], rtol=1e-5)  # a row's answer does not depend on the others
    first.log_prob(targets()), first.quantile(0.5), first.sample(2)
    assert bytes_of(net) == before
    assert bytes_of(posterior.model) == inside
    assert net.training is training
    assert all(module.training is training for module in net.modules())


def test_predictions_use_the_batch_norm_statistics_of_the_fit():
    model = bnn.BayesianModel(Stateful(), likelihood=likelihoods.Normal(0.5))
    x, y = 3 + 2 * normal(40, FEATURES).float(), normal(40).float()
    posterior = bnn.fit(model, (x, y), bnn.MAP(), epochs=3, progress=False)
    state = posterior.states()[0][0]
    mine = Stateful().eval()
    mine.load_state_dict({name.removeprefix("net."): value for name, value in state.items()})
    assert not torch.equal(state["net.body.1.running_mean"], torch.zeros(8))
    assert torch.equal(posterior.predict(x).mean, mine(x).squeeze(1).detach())


def test_standardised_targets_end_to_end():
    x = normal(80, FEATURES).float()
    y = 1000 + 50 * (x[:, 0] + 0.1 * normal(80, seed=3).float())
    data = bnn.data.Data(x, y, target=Standardize.fit(y))
    model = bnn.BayesianModel(nn.Linear(FEATURES, 1), likelihood=likelihoods.Normal())
    method = bnn.MAP(lr=0.05)
    asked = bnn.fit(model, data, method, epochs=150, progress=False).predict(x)
    a = np.column_stack((np.ones(80), x.numpy()))
    fitted = a @ np.linalg.lstsq(a, y.numpy(), rcond=None)[0]
    residual = np.sqrt(np.mean((fitted - y.numpy()) ** 2))
    # The prior pulls by less than 1 % of a weight (80 rows, noise a tenth of the signal); the rest is the optimiser's.
    assert float((asked.mean - torch.as_tensor(fitted)).abs().max()) < residual
    assert float(asked.std[0]) == pytest.approx(math.sqrt(residual**2 + 2 * 0.01 * 50**2 / 80), rel=0.1)


def test_bad_arguments():
    known, _ = known_normal()
    asked = known.predictive
    for call, message in [
        (lambda: asked.quantile(0.0), r"Expected quantile levels in \(0, 1\), got 0.0"),
        (lambda: asked.quantile([0.5, 1.0]), r"Expected quantile levels in \(0, 1\)"),
        (lambda: asked.sample(0), "Expected n to be an integer >= 1, got 0"),
        (lambda: asked.log_prob(torch.zeros(3)), "Expected targets for 7 inputs, got 3: give each its target"),
        (lambda: asked.log_prob(torch.zeros(7, 2)), r"Expected targets of shape \(batch, 1\).*got \(7, 2\)"),
        (lambda: known.posterior.predict(X, draws=0), "Expected draws to be an integer >= 1, got 0"),
        (lambda: known.posterior.predict(X, batch_size=0), "Expected batch_size to be an integer >= 1, got 0"),
        (lambda: known.posterior.predict(X[:0]), r"Expected at least one input, .*got shape \(0, 2\): give rows"),
        (lambda: known.posterior.predict(X * math.nan), "Expected finite inputs, got NaN or infinity"),
        (lambda: known.posterior.predict(X[:, :1]), r"Expected inputs .* got .*\(7, 1\)"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            call().mean  # noqa: B018
        assert "\n" not in str(error.value)


class TestWhatFitTakes:
    @pytest.mark.parametrize(
        "convert", [torch.Tensor.tolist, torch.Tensor.numpy, lambda v: pd.DataFrame(v.numpy(), index=range(5, 12))]
    )
    def test_inputs(self, convert):
        known, _ = known_normal()
        assert torch.equal(known.posterior.predict(convert(X)).mean, known.predictive.mean)

    @pytest.mark.parametrize(
        "convert", [torch.Tensor.tolist, torch.Tensor.numpy, lambda v: pd.Series(v.numpy(), index=range(5, 12))]
    )
    @TARGETS
    def test_targets(self, convert, target):
        known, _ = known_normal(target=target)
        y = targets()
        assert torch.equal(known.predictive.log_prob(convert(y)), known.predictive.log_prob(y))

    def test_classes(self):
        predictive = Known(likelihoods.Categorical(), outputs=4).predictive
        y = np.arange(ROWS, dtype=np.uint8) % 4
        expected = predictive.log_prob(torch.as_tensor(y).long())
        for given in (y, y.tolist(), pd.Series(y)):
            assert torch.equal(predictive.log_prob(given), expected)

    def test_targets_beyond_float32_keep_their_units_where_they_were_standardised(self):
        target = Standardize(torch.tensor(1e9, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))
        posterior = Known(likelihoods.Normal(1.0), target=target).posterior
        single = Posterior(posterior.model.float(), [
            Draws({name: tensor.float() for name, tensor in source.stacked.items()}) for source in posterior.sources
        ], num_data=10, target=target)  # fmt: skip
        y = 1e9 + targets().numpy()
        expected = Known(likelihoods.Normal(1.0), target=target).predictive.log_prob(y)
        np.testing.assert_allclose(single.predict(X).log_prob(y), expected, rtol=1e-4)

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda p: p.predict([["a", "b"]]), TypeError, "expected numbers in x, got an array of <U1"),
            (lambda p: p.predict([[1.0, 2.0], [3.0]]), ValueError, "expected rows of one shape in x, got a ragged"),
            (lambda p: p.predict(X).log_prob(["a"] * ROWS), TypeError, "expected numbers in y, got an array of <U1"),
            (lambda p: p.predict(X).log_prob([[1.0, 2.0], [3.0]]), ValueError, "expected rows of one shape in y"),
            (lambda p: p.predict(X).log_prob(3.0), ValueError, "Expected targets for 7 inputs, got the single number"),
            (lambda p: p.predict(3.0), ValueError, r"Expected at least one input, .*got shape \(\)"),
        ],
    )
    def test_the_rest_is_one_line(self, call, error, message):
        known, _ = known_normal()
        with pytest.raises(error, match=message) as caught:
            call(known.posterior)
        assert "\n" not in str(caught.value)


def test_quantile_levels_and_inputs_may_be_numpy():
    known, draws = known_normal()
    asked = known.posterior.predict(X.numpy())
    root = optimize.brentq(lambda v: draws.cdf(v)[:, 0].mean() - 0.3, -50, 50)
    for level in (np.float64(0.3), np.float32(0.3)):
        assert float(asked.quantile(level)[0]) == pytest.approx(root, abs=1e-6)
    assert asked.quantile(np.array([0.3, 0.5])).shape == (2, ROWS)


def test_targets_that_are_no_numbers_are_refused():
    known = Known(likelihoods.Normal())
    y = targets()
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite numbers in y, got 1") as error:
            known.predictive.log_prob(y.index_fill(0, torch.tensor([2]), bad))
        assert "\n" not in str(error.value)
    masked = np.ma.masked_array(y.numpy(), mask=np.arange(ROWS) == 3)
    with pytest.raises(ValueError, match="got 1 masked"):
        known.predictive.log_prob(masked)
    with pytest.raises(ValueError, match="got 1 masked"):
        bnn.data.Data.of(X, masked)
    assert len(bnn.data.Data.of(X, np.ma.masked_array(y.numpy()))) == ROWS  # a mask that hides nothing


def test_quantiles_in_low_precision():
    known = Known(likelihoods.Normal(scale=1.0), counts=(1,))
    for level in (1e-8, 1e-4, 0.5):
        expected = known.predictive.quantile(level)
        single = (
            Posterior(
                known.posterior.model.copy().float(),
                [Draws({name: value.float() for name, value in known.posterior.sources[0].stacked.items()})],
                num_data=10,
            )
            .predict(X.float())
            .quantile(level)
        )
        assert single.dtype == torch.float32
        np.testing.assert_allclose(single, expected, atol=1e-5)
    half = Posterior(
        known.posterior.model.copy().bfloat16(),
        [Draws({name: value.bfloat16() for name, value in known.posterior.sources[0].stacked.items()})],
        num_data=10,
    ).predict(X.bfloat16())
    for noise in (True, False):
        got, expected = half.quantile(0.3, noise=noise), known.predictive.quantile(0.3, noise=noise)
        assert got.dtype == torch.bfloat16
        np.testing.assert_allclose(got.float(), expected, atol=0.05)


class ByOtherWays(nn.Module):
    """A weight known under two names, one reached through a list, and an output that is a view of a weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)
        self.second.weight = self.first.weight
        self.level = nn.Parameter(torch.zeros(1, 1))
        self.listed = [self.first.bias]

    def forward(self, x):
        if self.training:
            return self.second(self.first(x)) + self.level
        return torch.cat([x * self.first.weight * self.second.weight + self.listed[0], self.level.expand(len(x), 1)], 1)


def test_each_draw_is_seen_whichever_way_the_net_reaches_its_weights():
    net, draws = ByOtherWays(), torch.arange(1.0, 4.0)
    model = bnn.BayesianModel(net, likelihood=likelihoods.Normal(scale=1.0))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    stacked = {name: draws.view(-1, *[1] * len(shape)).expand(3, *shape).clone() for name, shape in shapes.items()}
    posterior = bnn.Posterior(model, [Draws(stacked)], 10)
    x = torch.tensor([[0.0], [2.0]])
    expected = torch.stack([torch.cat([x * w**2 + w, w.expand(2, 1)], 1) for w in draws])
    assert torch.equal(posterior.predict(x).draws[0], expected)
    assert float(posterior.model.net.level.detach()) == 0.0  # the posterior's own net is not written into


def test_a_view_of_a_weight_as_the_whole_output_is_not_overwritten():
    class Level(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Parameter(torch.zeros(1, 1))

        def forward(self, x):
            return self.level.expand(len(x), 1)

    model = bnn.BayesianModel(Level(), likelihood=likelihoods.Normal(scale=1.0))
    posterior = bnn.Posterior(model, [Draws({"net.level": torch.arange(3.0).view(3, 1, 1)})], 10)
    assert posterior.predict(torch.zeros(2, 1)).draws[0].tolist() == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]


def test_threads_may_predict_at_once():
    model = bnn.BayesianModel(bnn.nets.MLP(4, (64,), 1), likelihood=likelihoods.Normal())
    stream = torch.Generator().manual_seed(0)
    stacked = {n: torch.randn(200, *p.shape, generator=stream) for n, p in model.named_parameters()}
    posterior = bnn.Posterior(model, [Draws(stacked)], 10)
    x = torch.randn(50, 4, generator=stream)
    alone = posterior.predict(x).draws
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: posterior.predict(x).draws, range(12)):
            assert torch.equal(found, alone)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_where_a_draw_lies_in_memory_does_not_change_a_bit(offset):
    """Views at any byte, as of a file, against draws that torch has allocated."""
    model = bnn.BayesianModel(bnn.nets.MLP(13, (50,), 1), likelihood=likelihoods.Normal(scale=1.0))
    stacked = {n: p.detach().expand(3, *p.shape).clone() for n, p in model.named_parameters()}
    views = {n: torch.cat([torch.zeros(offset), v.flatten()])[offset:].view(v.shape) for n, v in stacked.items()}
    x = torch.randn(20, 13, generator=torch.Generator().manual_seed(0))
    answers = [bnn.Posterior(model, [Draws(each)], 10).predict(x).draws for each in (stacked, views)]
    assert torch.equal(*answers)


def classes_of(probs):
    """A predictive whose class probabilities are these, for one draw."""
    model = bnn.BayesianModel(nn.Linear(1, probs.shape[1]), likelihood=likelihoods.Categorical()).double()
    stacked = {"net.weight": torch.zeros(1, probs.shape[1], 1).double(), "net.bias": probs.log()[:1].double()}
    return Posterior(model, [Draws(stacked)], 10).predict(torch.zeros(3, 1))


def test_decisions_are_those_of_greatest_expected_utility():
    predictive = classes_of(torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64))
    action, value = predictive.decide(torch.eye(3))
    assert action.tolist() == [0, 0, 0]
    torch.testing.assert_close(value, torch.full((3,), 0.6).double())
    # To treat (1) costs a little; not to treat (0) a patient of class 2 costs much: 0.1 * -10 < -0.5.
    action, value = predictive.decide(torch.tensor([[0.0, 0.0, -10.0], [-0.5, -0.5, -0.5]]))
    assert action.tolist() == [1, 1, 1]
    torch.testing.assert_close(value, torch.full((3,), -0.5).double())
    assert predictive.decide(torch.eye(3), abstain=0.61)[0].tolist() == [-1, -1, -1]
    assert predictive.decide(torch.eye(3), abstain=0.61)[1].tolist() == [0.61] * 3
    assert predictive.decide(torch.eye(3), abstain=0.59)[0].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"Expected utilities \(actions, 3\), a column for each class, got \(3, 2\)"):
        predictive.decide(torch.ones(3, 2))


@pytest.mark.parametrize("likelihood", [likelihoods.Categorical(), likelihoods.Bernoulli()])
def test_the_variances_of_each_class_add_up_to_the_mixtures(likelihood):
    model = bnn.BayesianModel(nn.Linear(1, 3), likelihood=likelihood).double()
    bias = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    posterior = Posterior(model, [Draws({"net.weight": torch.zeros(5, 3, 1).double(), "net.bias": bias})], 10)
    predictive = posterior.predict(torch.zeros(2, 1))
    probs = (bias.softmax(1) if isinstance(likelihood, likelihoods.Categorical) else bias.sigmoid()).numpy()
    aleatoric, epistemic = predictive.class_variances()
    np.testing.assert_allclose(aleatoric, np.tile((probs * (1 - probs)).mean(0), (2, 1)))
    np.testing.assert_allclose(epistemic, np.tile(probs.var(0), (2, 1)))
    torch.testing.assert_close(aleatoric + epistemic, predictive.mean * (1 - predictive.mean))
    with pytest.raises(ValueError, match=r"Expected classes for .class_variances\(\), got a real target"):
        Known(likelihoods.Normal(scale=0.5)).posterior.predict(X).class_variances()


def test_decisions_on_real_targets_are_those_of_the_newsvendor():
    """Of a stock b the profit is 3 min(b, y) - b: best is the 2/3 quantile of y, whose profit has a closed form."""
    model = bnn.BayesianModel(nn.Linear(1, 1), likelihood=likelihoods.Normal(scale=0.5))
    posterior = Posterior(model, [Draws({"net.weight": torch.ones(1, 1, 1), "net.bias": torch.zeros(1, 1)})], 10)
    centre = np.array([0.0, 1.0, 2.0])
    predictive = posterior.predict(torch.as_tensor(centre, dtype=torch.float32)[:, None])
    stock = torch.linspace(-1, 4, 101)[:, None, None]
    n = 20_000
    action, value = predictive.decide(lambda y: 3 * torch.minimum(stock, y) - stock, samples=n)
    b = stock.flatten()[action].numpy()
    np.testing.assert_allclose(b, centre + 0.5 * stats.norm.ppf(2 / 3), atol=0.08)
    z = (b - centre) / 0.5
    lowest = centre * stats.norm.cdf(z) + b * stats.norm.sf(z) - 0.5 * stats.norm.pdf(z)
    np.testing.assert_allclose(value, 3 * lowest - b, atol=4 * 3 * 0.5 / n**0.5)
    assert predictive.decide(lambda y: y[None], abstain=1.5)[0].tolist() == [-1, -1, 0]
    with pytest.raises(ValueError, match=r"Expected utilities \(actions, 1000, 3\) .* got \(1000, 3\)"):
        predictive.decide(lambda y: y)


@pytest.mark.parametrize(("level", "held"), [(0.5, [0]), (0.6, [0]), (0.61, [0, 1]), (0.95, [0, 1, 2])])
def test_credible_sets_are_the_fewest_classes_that_reach_the_level(level, held):
    sets = classes_of(torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)).credible_set(level)
    assert sets[0].nonzero().flatten().tolist() == held


def test_intervals_are_the_quantiles_and_classes_have_none():
    known = Known(likelihoods.Normal(scale=0.5))
    predictive = known.posterior.predict(X)
    assert torch.equal(predictive.interval(0.8), predictive.quantile([(1 - 0.8) / 2, (1 + 0.8) / 2]))
    for call in (lambda: predictive.credible_set(), lambda: predictive.decide(torch.eye(2))):
        with pytest.raises(ValueError, match="Expected classes for"):
            call()
    with pytest.raises(ValueError, match=r"Expected a real target for \.interval"):
        classes_of(torch.tensor([[0.6, 0.4]])).interval()
    for bad in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"Expected level in \(0, 1\)"):
            predictive.interval(bad)


@pytest.mark.parametrize(
    "likelihood", [likelihoods.Categorical(), likelihoods.Bernoulli(), likelihoods.NoisyCategorical()]
)
@pytest.mark.parametrize("averaged", [False, True])
def test_the_energy_is_of_the_nets_own_outputs_and_left_out_where_those_are_not_kept(likelihood, averaged):
    known = Known(likelihood, outputs=1 if isinstance(likelihood, likelihoods.Bernoulli) else 3)
    options = {"augment": lambda x, generator: x, "transforms": 2} if averaged else {}
    scores = known.posterior.predict(X, **options).scores()
    assert set(scores) - {"energy"} == {
        "max probability", "entropy", "expected entropy", "mutual information", "variation ratio"
    }  # fmt: skip
    assert ("energy" in scores) is not (averaged or isinstance(likelihood, likelihoods.NoisyCategorical))
    if "energy" in scores:
        logits = known.outputs if known.outputs.shape[-1] == 3 else np.insert(known.outputs, 0, 0.0, axis=-1)
        np.testing.assert_allclose(scores["energy"], -special.logsumexp(logits, -1).mean(0), rtol=1e-6)
