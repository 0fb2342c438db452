import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn import likelihoods, priors
from bayesnn.data import Compose, Crop, Data, Flip, InUnits, Noise, Rotation, Shift, Standardize, standardize
from bayesnn.data.shift import rotated, translated
from bayesnn.diagnose import configurational_temperature
from bayesnn.rng import isolated

ALL = [Rotation(30), Shift(2), Flip(), Crop(2), Noise(0.1), Compose(Rotation(15), Shift(1.5), Flip())]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=seeded(seed))


def classifier(size=6):
    net = nn.Sequential(nn.Flatten(), nn.Linear(size * size, 3))
    return bnn.BayesianModel(net, priors.Normal(1.0), likelihoods.Categorical())


def digits(rows=24, size=6, seed=0):
    return images(rows, 1, size, size, seed=seed), torch.arange(rows) % 3


def weights(posterior):
    return torch.stack([torch.cat([v.flatten() for v in s.values()]) for chain in posterior.states() for s in chain])


@pytest.mark.parametrize("transform", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_and_dtype_stay_and_the_seed_decides(transform, dtype):
    x = images(6, 2, 8, 10).to(dtype)
    before = torch.random.get_rng_state()
    out = transform(x, seeded())
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert torch.equal(out, transform(x, seeded()))
    assert not torch.equal(out, transform(x, seeded(1)))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_each_row_has_a_draw_of_its_own(transform):
    out = transform(images(1, 1, 8, 8).expand(64, -1, -1, -1), seeded())
    assert len(out.flatten(1).unique(dim=0)) >= (2 if isinstance(transform, Flip) else 10)


def test_a_row_is_turned_by_its_own_angle_and_moved_by_its_own_amount():
    x, angles = images(3, 2, 7, 7), torch.tensor([0.0, 90.0, -30.0])
    for row, angle in enumerate(angles):
        torch.testing.assert_close(rotated(x, angles)[row], rotated(x[row : row + 1], float(angle))[0])
    moved = translated(x, torch.tensor([0.0, 1 / 7, 0.0]), torch.tensor([0.0, 0.0, 2 / 7]))
    torch.testing.assert_close(moved[0], x[0])
    torch.testing.assert_close(moved[1, :, :, 1:], x[1, :, :, :-1])
    torch.testing.assert_close(moved[2, :, 2:], x[2, :, :-2])
    assert moved[1, :, :, 0].abs().max() < 1e-5
    assert moved[2, :, :2].abs().max() < 1e-5


@pytest.mark.parametrize("transform", [Rotation(45, fill=-0.4), Shift(3, fill=-0.4), Crop(3, fill=-0.4)])
def test_an_image_that_is_all_fill_stays_so(transform):
    x = torch.full((8, 1, 9, 9), -0.4)
    torch.testing.assert_close(transform(x, seeded()), x)


def test_standardised_images_are_filled_with_black_in_their_own_units():
    x, inputs = torch.zeros(8, 1, 9, 9), Standardize(torch.full((1, 1, 1), 0.3), torch.full((1, 1, 1), 0.2))
    black = inputs.forward(x)
    torch.testing.assert_close(InUnits(Compose(Rotation(45), Crop(3)), inputs)(black, seeded()), black)
    assert (Rotation(45)(black, seeded()) - black).abs().max() > 1  # zero of the standardised image is grey


def test_noise_has_its_sd_in_pixels_of_the_own_units():
    x, inputs = torch.zeros(50, 1, 20, 20), Standardize(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 0.25))
    noise = InUnits(Noise(0.1), inputs)(x, seeded())
    n = noise.numel()
    assert abs(float(noise.std()) / 0.4 - 1) < 4 / (2 * n) ** 0.5  # 0.1 / 0.25


def test_crops_come_from_all_places_alike_and_flips_half_the_time():
    x = torch.zeros(9000, 1, 5, 5)
    x[:, :, 2, 2] = 1
    at = Crop(1)(x, seeded()).flatten(1).argmax(1)
    counts = torch.bincount(at, minlength=25).view(5, 5)[1:4, 1:4]
    assert counts.sum() == 9000
    assert (counts - 1000).abs().max() < 4 * (9000 * 8 / 81) ** 0.5
    y = torch.zeros(4000, 1, 1, 2)
    y[..., 0] = 1
    assert abs(float(Flip()(y, seeded())[..., 1].mean()) - 0.5) < 4 * 0.5 / 4000**0.5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Rotation(0), ValueError, "Expected degrees > 0"),
        (lambda: Crop(0), ValueError, "Expected padding to be an integer >= 1"),
        (lambda: Flip(1.5), ValueError, r"Expected p in \(0, 1\], got 1.5"),
        (lambda: Shift(1, fill=float("nan")), ValueError, "Expected a finite number for fill"),
        (lambda: Compose(), TypeError, r"Expected transforms \(x, generator\) -> x, got none"),
        (lambda: Compose(Rotation(15), 3), TypeError, "got int"),
        (lambda: Flip()(torch.zeros(3, 4), seeded()), ValueError, "Expected images .* for Flip, got \\(3, 4\\)"),
        (lambda: Flip()(torch.zeros(3, 1, 4, 4).long(), seeded()), TypeError, "Expected floating images"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


# fit(augment=...)


def test_each_minibatch_is_transformed_and_the_validation_part_never(monkeypatch):
    monkeypatch.setattr("bayesnn.gradients.GradientWatch.look", lambda *_: {})  # of the last minibatch, as it was
    seen = []

    def marked(x, generator):
        seen.append(len(x))
        return x * 0 + 7

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.inputs = nn.Linear(36, 3), []

        def forward(self, x):
            found.append((self.training, float(x.max())))
            return self.linear(x.flatten(1))

    found: list[tuple[bool, float]] = []
    model = bnn.BayesianModel(Spy(), priors.Normal(1.0), likelihoods.Categorical())
    bnn.fit(model, digits(), bnn.MAP(), epochs=2, batch_size=8, validation=digits(9, seed=1), augment=marked,
            progress=False)  # fmt: skip
    assert seen == [2] + [8] * 6  # two rows are tried before the run
    assert sum(value == 7 for _, value in found) == 6
    assert all(training for training, value in found if value == 7)
    assert any(not training and value < 1 for training, value in found)


@pytest.mark.parametrize("method", [bnn.MAP(), bnn.SGHMC(draws=4), bnn.MeanFieldVI(), bnn.SWAG(), bnn.IVON()])
def test_the_seed_decides_and_a_chain_does_not_depend_on_how_many_there_are(method):
    def run(chains, seed=0, transform=True):
        augment = Compose(Rotation(20), Shift(1)) if transform else None
        options = {"epochs": 12, "batch_size": 8, "chains": chains, "seed": seed}
        posterior = bnn.fit(classifier(), digits(), method, augment=augment, progress=False, **options)
        draws = posterior.states(4)
        return torch.cat([v.flatten() for v in draws[0][-1].values()])

    one = run(1)
    assert torch.equal(one, run(2))
    assert not torch.equal(one, run(1, seed=1))
    assert not torch.equal(one, run(1, transform=False))


def test_the_likelihood_is_the_mean_over_transforms_and_a_row_counts_once():
    # y ~ Normal(w x, 1), w ~ Normal(0, 1), x plus or minus 0.5 at random: the mean over the two of the log likelihood
    # has precision 1 + sum_i (x_i^2 + 0.25) and the linear term sum_i x_i y_i.
    x = torch.randn(40, 1, generator=seeded(1)).double()
    y = 1.5 * x + torch.randn(40, 1, generator=seeded(2)).double()

    def jitter(x, generator):
        return x + torch.where(torch.rand(x.shape, generator=generator, dtype=x.dtype) < 0.5, -0.5, 0.5)

    net = nn.Linear(1, 1, bias=False).double()
    model = bnn.BayesianModel(net, priors.Normal(1.0), likelihoods.Normal(1.0))
    options = {"epochs": 4000, "batch_size": None, "augment": jitter, "progress": False}
    w = weights(bnn.fit(model, (x, y), bnn.MAP(lr=0.02, schedule="cosine"), **options))
    precision = float(1 + (x.square() + 0.25).sum())
    assert float(w) == pytest.approx(float((x * y).sum()) / precision, abs=0.01)
    plain = float((x * y).sum() / (1 + x.square().sum()))
    assert abs(float(w) - plain) > 0.1  # without the transforms


def _line(n=30):
    x = torch.randn(n, 2, generator=seeded(3)).double()
    return x, x @ torch.tensor([[1.0], [-2.0]]).double() + torch.randn(n, 1, generator=seeded(4)).double()


def _linear():
    net = nn.Linear(2, 1, bias=False).double()
    return bnn.BayesianModel(net, priors.Normal(0.3), likelihoods.Normal(1.0))


@pytest.mark.parametrize("factor", [1, 2])
def test_num_data_of_2n_is_the_posterior_of_each_row_twice(factor):
    x, y = _line()
    precision = factor * x.T @ x + torch.eye(2).double() / 0.3**2
    mean = torch.linalg.solve(precision, factor * x.T @ y).flatten()
    options = {"batch_size": None, "num_data": factor * len(x), "progress": False}
    best = bnn.fit(_linear(), (x, y), bnn.MAP(lr=0.05, schedule="cosine"), epochs=1500, **options)
    torch.testing.assert_close(weights(best)[0], mean, atol=1e-4, rtol=0)
    assert best.num_data == factor * len(x)
    vi = bnn.fit(_linear(), (x, y), bnn.MeanFieldVI(lr=0.05, schedule="cosine"), epochs=1500, **options)
    sd = vi.sources[0].log_sd["net.weight"].exp().flatten()
    torch.testing.assert_close(sd, precision.diag().rsqrt(), atol=0, rtol=0.06)  # 1 and 2 differ by about 1.2


@pytest.mark.parametrize("factor", [1, 2])
def test_num_data_scales_what_a_sampler_draws_from(factor):
    x, y = _line()
    precision = factor * x.T @ x + torch.eye(2).double() / 0.3**2
    method = bnn.SGHMC(lr=0.05, momentum=0.7, draws=1500, burn_in=0.1)
    options = {"batch_size": None, "num_data": factor * len(x), "epochs": 4000, "chains": 1, "progress": False}
    posterior = bnn.fit(_linear(), (x, y), method, **options)
    draws = weights(posterior)
    ratio = draws.var(0) * precision.inverse().diag().reciprocal()
    assert ((ratio - 1).abs() < 0.25).all()  # 1500 draws, correlated; a wrong N is out by a factor of 1.6 or more
    temperature, error = configurational_temperature(posterior)  # of the U that was sampled, rows counted so often
    assert abs(temperature - 1) < max(4 * error, 0.1)


@pytest.mark.parametrize("method", [bnn.HMC(), bnn.Laplace(), bnn.SGLD(variance_reduction="svrg"), bnn.MCLMC()])
@pytest.mark.parametrize("option", [{"augment": Noise(0.1)}, {"num_data": 100}])
def test_methods_that_sum_over_all_rows_refuse(method, option):
    with pytest.raises(
        ValueError, match=r"Expected .* for (HMC|Laplace|SGLD|MCLMC) with these options, got .*: its sums"
    ):
        bnn.fit(classifier(), digits(), method, epochs=2, progress=False, **option)


@pytest.mark.parametrize(
    ("augment", "error", "message"),
    [
        (3, TypeError, r"Expected augment= to be \(x, generator\) -> x, got int"),
        (lambda x, g: x[..., 1:], ValueError, "Expected augment= to give"),
        (lambda x, g: x.double(), ValueError, "Expected augment= to give"),
        (lambda x: x, ValueError, "Expected augment= to take inputs"),
    ],
)
def test_what_is_no_transform_is_refused_before_the_run(augment, error, message):
    with pytest.raises(error, match=message):
        bnn.fit(classifier(), digits(), progress=False, augment=augment)


def test_rows_of_numbers_are_not_images():
    model = bnn.BayesianModel(nn.Linear(2, 3), likelihood=likelihoods.Categorical())
    with pytest.raises(ValueError, match="Expected images"):
        bnn.fit(model, (torch.randn(6, 2), torch.arange(6) % 3), augment=Rotation(15), progress=False)


def test_fit_transforms_standardised_data_in_their_own_units():
    seen = []

    def look(x, generator):
        seen.append(x)
        return x

    x, y = digits()
    (data,) = standardize(Data(x, y))
    posterior = bnn.fit(classifier(), data, epochs=1, batch_size=None, augment=look, progress=False)
    torch.testing.assert_close(seen[-1], x)
    posterior.predict(data.x, augment=look, transforms=1).mean  # noqa: B018
    torch.testing.assert_close(seen[-1], x)


@pytest.mark.parametrize("options", [{"vectorize": True}, {"precision": "bf16"}, {"compile": True}])
def test_chains_side_by_side_bf16_and_compiled(options):
    def run(augment):
        options_ = {"epochs": 4, "batch_size": 8, "chains": 2, "progress": False, "augment": augment, **options}
        return weights(bnn.fit(classifier(), digits(), bnn.SGLD(draws=3), **options_))

    found = run(Rotation(15))
    assert torch.isfinite(found).all()
    assert torch.equal(found, run(Rotation(15)))
    assert not torch.equal(found, run(None))


def test_a_loader_is_transformed_as_well():
    x, y = digits()
    loader = bnn.data.Loader([(x[:12], y[:12]), (x[12:], y[12:])], num_data=24)
    fits = [
        bnn.fit(classifier(), loader, bnn.MAP(), epochs=2, augment=augment, progress=False)
        for augment in (None, Noise(0.5))
    ]
    assert not torch.equal(*(weights(posterior) for posterior in fits))


# predict(augment=...)


def posterior_of(model, targets):
    x, _ = digits()
    return bnn.fit(model, (x, targets), bnn.MAP(lr=0.05), epochs=20, chains=3, progress=False)


def test_probabilities_are_averaged_over_the_transforms_within_each_draw():
    posterior, (x, y) = posterior_of(classifier(), digits()[1]), digits(300, seed=5)
    given = []

    def kept(x, generator):
        given.append(Rotation(60)(x, generator))
        return given[-1]

    found = posterior.predict(x, augment=kept, transforms=3, seed=4)
    draws = found.draws
    rows = torch.cat([torch.cat(given[1 + 2 * t : 3 + 2 * t]) for t in range(3)])  # 256 rows, and then 44, of each
    expected = posterior.predict(rows).draws.unflatten(2, (3, 300)).mean(2)
    torch.testing.assert_close(draws, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.log_prob(y), expected.mean((0, 1)).gather(1, y[:, None])[:, 0].log())
    entropy = -(expected * expected.log()).sum(-1).mean((0, 1))  # of each draw's mean over the transforms
    torch.testing.assert_close(found.aleatoric, entropy, atol=1e-5, rtol=1e-4)


def test_transforms_alone_are_no_epistemic_uncertainty():
    model, (x, y) = classifier(), digits()
    posterior = bnn.fit(model, (x, y), bnn.MAP(lr=0.05), epochs=20, progress=False)  # one draw
    found = posterior.predict(x, augment=Rotation(90))
    assert float(found.epistemic.max()) < 1e-12


def test_the_same_seed_gives_the_same_answer_in_blocks_of_any_size(monkeypatch):
    posterior, (x, _) = posterior_of(classifier(), digits()[1]), digits(600, seed=5)
    whole = posterior.predict(x, augment=Shift(2), transforms=2).mean
    assert torch.equal(whole, posterior.predict(x, augment=Shift(2), transforms=2).mean)
    assert not torch.equal(whole, posterior.predict(x, augment=Shift(2), transforms=2, seed=1).mean)
    monkeypatch.setattr(bnn.predictive, "BLOCK_BYTES", 9 * 8 * 10 * 100)  # 100 rows
    torch.testing.assert_close(whole, posterior.predict(x, augment=Shift(2), transforms=2).mean)


def test_yes_or_no_targets():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    model = bnn.BayesianModel(net, priors.Normal(1.0), likelihoods.Bernoulli())
    posterior, (x, _) = posterior_of(model, (digits()[1] > 0).float()), digits()
    both = posterior.predict(x, augment=lambda x, g: x.flip(-1), transforms=1).mean
    torch.testing.assert_close(both, posterior.predict(x.flip(-1)).mean)


def test_real_targets_are_refused():
    model = bnn.BayesianModel(nn.Sequential(nn.Flatten(), nn.Linear(36, 1)), likelihood=likelihoods.Normal())
    x, y = digits()
    posterior = bnn.fit(model, (x, y.float()), epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"Expected Categorical or Bernoulli targets, .*, got Normal"):
        posterior.predict(x, augment=Flip())


def test_kornia_is_a_transform_too():
    kornia = pytest.importorskip("kornia.augmentation")  # an extra
    turn = kornia.RandomRotation(20.0, p=1.0)

    def turned(x, generator):
        with isolated(generator):
            return turn(x)

    x = images(4, 1, 8, 8)
    assert torch.equal(turned(x, seeded()), turned(x, seeded()))
    bnn.fit(classifier(), digits(), epochs=1, augment=turned, progress=False)


@pytest.mark.parametrize("given", ["minibatches", "all rows", "a loader"])
def test_a_transform_may_write_into_what_it_is_given(given):
    def noise(x, generator):
        return x.add_(torch.randn(x.shape, generator=generator))

    x, y = digits()
    before = x.clone()
    data = bnn.data.Loader([(x, y)], len(x)) if given == "a loader" else (x, y)
    size = 5 if given == "minibatches" else None
    posterior = bnn.fit(classifier(), data, bnn.MAP(), epochs=3, batch_size=size, augment=noise, progress=False)
    assert torch.equal(x, before)
    assert posterior.predict(x, augment=noise, transforms=3).mean.shape == (24, 3)
    assert torch.equal(x, before)
