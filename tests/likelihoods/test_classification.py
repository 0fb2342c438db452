import itertools

import numpy as np
import pytest
import torch
from scipy import special, stats
from scipy.special import rel_entr

import bayesnn as bnn
from bayesnn import likelihoods
from bayesnn.likelihoods import Bernoulli, Categorical


def logits(*shape, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def entropy(probs):
    """Entropy over the last axis, nats."""
    return special.entr(probs).sum(-1)


def test_categorical_log_prob_is_the_log_softmax():
    outputs, y = logits(6, 4), torch.tensor([0, 1, 2, 3, 0, 3])
    expected = special.log_softmax(outputs.numpy(), -1)[np.arange(6), y.numpy()]
    np.testing.assert_allclose(Categorical().log_prob(outputs, y), expected, rtol=1e-12)
    params = {"logits": Categorical().params(outputs)["logits"].expand(2, 6, 4)}
    np.testing.assert_allclose(
        Categorical().elementwise_log_prob(params, y), np.stack((expected, expected)), rtol=1e-12
    )


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3)])
def test_bernoulli_log_prob_sums_over_labels(shape):
    outputs = logits(*shape)
    y = (logits(*shape, seed=1) > 0).double()
    expected = stats.bernoulli(special.expit(outputs.numpy())).logpmf(y.numpy()).reshape(5, -1).sum(1)
    likelihood = Bernoulli()
    targets = likelihood.check_targets(y, 1 if len(shape) == 1 else shape[1])
    got = likelihood.log_prob(outputs, targets)
    assert got.shape == (5,)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize("output_shape", [(5,), (5, 1)])
@pytest.mark.parametrize("target_shape", [(5,), (5, 1)])
def test_one_output_never_broadcasts_rows_against_rows(output_shape, target_shape):
    y = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    likelihood, values = Bernoulli(), logits(5)
    got = likelihood.log_prob(values.reshape(output_shape), likelihood.check_targets(y.reshape(target_shape), 1))
    np.testing.assert_allclose(got, stats.bernoulli(special.expit(values.numpy())).logpmf(y.numpy()), rtol=1e-10)


def test_means_are_probabilities():
    values = logits(2, 5, 3)
    np.testing.assert_allclose(Categorical().mean({"logits": values}), special.softmax(values.numpy(), -1), rtol=1e-12)
    np.testing.assert_allclose(Bernoulli().mean({"logits": values}), special.expit(values.numpy()), rtol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categorical_entropies_add_up_and_are_not_negative(scale, dtype):
    values = logits(7, 50, 4, scale=scale).to(dtype)
    aleatoric, epistemic = Categorical().uncertainty({"logits": values})
    probs = special.softmax(values.double().numpy(), -1)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12  # float32's log-softmax comes before the double sum
    np.testing.assert_allclose(aleatoric, entropy(probs).mean(0), rtol=0, atol=tolerance * 4)
    np.testing.assert_allclose(aleatoric + epistemic, entropy(probs.mean(0)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(epistemic, rel_entr(probs, probs.mean(0)).sum(-1).mean(0), rtol=0, atol=1e-6)
    assert bool((epistemic >= 0).all())
    assert bool((aleatoric >= 0).all())


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_bernoulli_entropies_add_up_for_each_label(scale):
    values = logits(7, 50, 3, scale=scale)
    aleatoric, epistemic = Bernoulli().uncertainty({"logits": values})
    p = special.expit(values.numpy())
    both = np.stack((p, special.expit(-values.numpy())), -1)
    assert aleatoric.shape == (50, 3)
    np.testing.assert_allclose(aleatoric, entropy(both).mean(0), rtol=0, atol=1e-10)
    np.testing.assert_allclose(aleatoric + epistemic, entropy(both.mean(0)), rtol=0, atol=1e-10)
    assert bool((epistemic >= 0).all())


@pytest.mark.parametrize("value", [0.0, 1e4, -1e4])
def test_extreme_draws_that_contradict_each_other(value):
    # Two certain draws for different classes: all of log 2 is epistemic. Agreeing draws: none of it.
    opposite = torch.tensor([[[value, 0.0]], [[0.0, value]]])
    aleatoric, epistemic = Categorical().uncertainty({"logits": opposite})
    expected = np.log(2)
    assert float(aleatoric) == pytest.approx(expected if value == 0 else 0.0, abs=1e-7)
    assert float(epistemic) == pytest.approx(0.0 if value == 0 else expected, abs=1e-7)
    same = opposite[:1].expand(9, 1, 2)
    assert 0 <= float(Categorical().uncertainty({"logits": same})[1]) <= 1e-15


def test_identical_draws_have_no_epistemic_part():
    values = logits(1, 40, 5).float().expand(11, 40, 5)
    for likelihood in (Categorical(), Bernoulli()):
        epistemic = likelihood.uncertainty({"logits": values})[1]
        assert bool((epistemic >= 0).all())
        assert float(epistemic.max()) < 1e-14  # rounding of the double mean of 11 equal numbers


def test_categorical_targets():
    likelihood = Categorical()
    assert torch.equal(likelihood.check_targets(torch.tensor([[0], [2]], dtype=torch.uint8), 3), torch.tensor([0, 2]))
    for y, outputs, message in [
        (
            torch.tensor([0.0, 1.0]),
            3,
            "Expected integer class targets for Categorical, got torch.float32: use y.long()",
        ),
        (torch.tensor([0, 3]), 3, r"Expected class targets in \[0, 3\).* got 0 to 3: count classes from 0"),
        (torch.tensor([-1, 2]), 3, r"Expected class targets in \[0, 3\).* got -1 to 2: count classes from 0"),
        (torch.tensor([0, 1]), 1, r"one output a class \(>= 2\), got 1: or use Bernoulli\(\)"),
        (torch.zeros(2, 2, dtype=torch.long), 3, r"got \(2, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            likelihood.check_targets(y, outputs)
        assert "\n" not in str(error.value)


def test_bernoulli_targets():
    likelihood = Bernoulli()
    assert torch.equal(likelihood.check_targets(torch.tensor([True, False]), 1), torch.tensor([1.0, 0.0]))
    assert likelihood.check_targets(torch.zeros(4, 3), 3).shape == (4, 3)
    for y, outputs, message in [
        (torch.tensor([0, 2]), 1, "Expected targets 0 or 1 for Bernoulli, got 0 to 2: recode them"),
        (torch.tensor([0.5, 1.0]), 1, "Expected targets 0 or 1 for Bernoulli, got 0.5 to 1"),
        (torch.zeros(4, 3), 2, r"Expected targets of shape \(batch, 2\).*got \(4, 3\)"),
        (torch.zeros(4), 2, r"Expected targets of shape \(batch, 2\).*got \(4,\)"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            likelihood.check_targets(y, outputs)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_integer_labels_go_with_outputs_of_any_precision(dtype):
    outputs = logits(4).to(dtype)
    y = Bernoulli().check_targets(torch.tensor([0, 1, 1, 0]), 1)
    got = Bernoulli().log_prob(outputs, y)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, stats.bernoulli(special.expit(outputs.numpy())).logpmf([0, 1, 1, 0]), rtol=1e-5)


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()], ids=repr)
def test_config_round_trip(likelihood):
    assert repr(likelihoods.from_config(likelihood.config())) == repr(likelihood)


def test_unknown_kind_asks_for_the_likelihood():
    for kind in ("Mine", "Likelihood", "GammaPrecision", "from_config"):
        with pytest.raises(ValueError, match=f"got {kind}: pass likelihood="):
            likelihoods.from_config({"kind": kind})


def soft(*shape, seed=5):
    """Probabilities of the classes along axis 1."""
    return logits(*shape, seed=seed).softmax(1)


@pytest.mark.parametrize("pixels", [(), (2, 3)])
def test_a_sure_soft_label_is_the_integer(pixels):
    outputs, y = logits(6, 4, *pixels), torch.arange(6).view(6, *(1 for _ in pixels)).expand(6, *pixels) % 4
    one_hot = torch.nn.functional.one_hot(y, 4).double().movedim(-1, 1)
    for likelihood in (Categorical(), Categorical([1.0, 2.0, 3.0, 0.5]), likelihoods.NoisyDirichlet()):
        targets = likelihood.check_targets(one_hot, 4, pixels)
        assert likelihood.takes(outputs, targets)
        torch.testing.assert_close(likelihood.log_prob(outputs, targets), likelihood.log_prob(outputs, y))
        params = {"logits": torch.stack([likelihood.params(outputs + s)["logits"] for s in logits(3, 4, *pixels)])}
        for form in ("elementwise_log_prob", "mixture_log_prob"):
            hard, sure = (getattr(likelihood, form)(params, targets) for targets in (y, one_hot))
            torch.testing.assert_close(sure, hard)


def test_soft_labels_are_minus_the_divergence_and_their_entropy():
    outputs, y = logits(6, 4), soft(6, 4)
    probs = special.softmax(outputs.numpy(), -1)
    expected = -rel_entr(y.numpy(), probs).sum(-1) - entropy(y.numpy())
    np.testing.assert_allclose(Categorical().log_prob(outputs, y), expected, rtol=1e-10)


def test_votes_have_n_times_the_shares_up_to_a_constant():
    """n votes of one row are n rows; their shares are one row, a power of 1/n of it."""
    outputs, votes = logits(1, 3), torch.tensor([2, 0, 1])
    rows = torch.repeat_interleave(torch.arange(3), votes)
    of_votes = Categorical().log_prob(outputs.expand(3, 3), rows).sum()
    of_shares = Categorical().log_prob(outputs, votes[None] / 3).sum()
    torch.testing.assert_close(3 * of_shares, of_votes)


def test_the_mixture_scores_soft_labels_by_a_label_drawn_from_them():
    """The mean over labels of log p(k | x, D); that of the draws' own scores is below it (Jensen)."""
    values, y = logits(5, 7, 4), soft(7, 4)
    found = Categorical().mixture_log_prob({"logits": values}, y)
    mixture = values.softmax(-1).mean(0).log()
    np.testing.assert_allclose(found, (y * mixture).sum(-1), rtol=1e-10)
    of_draws = likelihoods.Likelihood.mixture_log_prob(Categorical(), {"logits": values}, y)
    assert bool((of_draws < found).all())


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.full((5, 4), 0.3), r"sum to 1 over the classes, got 0\.3 and a sum that is off by 0\.2"),
        (torch.tensor([[1.5, -0.5, 0.0, 0.0]]), r">= 0 .* got -0\.5"),
        (torch.full((5, 4), float("nan")), "got nan"),
        (torch.full((5, 3), 1 / 3), r"use y\.long\(\), or give soft labels \(batch, 4\)"),
    ],
)
def test_soft_labels_are_probabilities(y, message):
    with pytest.raises(ValueError, match=message):
        Categorical().check_targets(y, 4)


def test_soft_labels_train_predict_and_validate():
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1, generator=stream)
    truth = torch.stack([x[:, 0], -x[:, 0], torch.zeros(200)], 1).softmax(1)
    model = bnn.BayesianModel(torch.nn.Linear(1, 3), bnn.priors.Normal(10.0), Categorical())
    options = {"epochs": 300, "batch_size": None, "validation": (x[:50], truth[:50]), "progress": False}
    posterior = bnn.fit(model, (x, truth), bnn.MAP(lr=0.05), **options)
    predictive = posterior.predict(x)
    assert float((predictive.mean - truth).abs().max()) < 0.01
    torch.testing.assert_close(predictive.log_prob(truth), (truth * predictive.mean.log()).sum(1), rtol=0, atol=1e-5)
    row = posterior.history[-1]
    assert row["val_nll"] == pytest.approx(float(-predictive.log_prob(truth)[:50].mean()), rel=1e-5)
    assert row["val_accuracy"] == bnn.metrics.accuracy(predictive.mean[:50], truth[:50].argmax(1)) > 0.95
    with pytest.raises(ValueError, match=r"y\.argmax\(1\) of soft labels"):
        bnn.metrics.accuracy(predictive.mean, truth)


def test_soft_labels_per_pixel_train():
    x = torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    y = torch.cat([x, -x], 1).softmax(1)
    model = bnn.BayesianModel(torch.nn.Conv2d(1, 2, 1), bnn.priors.Normal(3.0), Categorical())
    options = {"epochs": 200, "batch_size": None, "validation": (x, y), "progress": False}
    posterior = bnn.fit(model, (x, y), bnn.MAP(lr=0.05), **options)
    predictive = posterior.predict(x)
    assert float((predictive.mean - y.movedim(1, -1)).abs().max()) < 0.02
    assert predictive.log_prob(y).shape == (8,)
    assert posterior.history[-1]["val_accuracy"] > 0.9


WEIGHTS = torch.tensor([0.5, 4.0, 1.0], dtype=torch.float64)


def test_class_weights_multiply_the_rows():
    outputs, y = logits(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    plain = Categorical().log_prob(outputs, y)
    torch.testing.assert_close(Categorical(WEIGHTS).log_prob(outputs, y), WEIGHTS[y] * plain)
    torch.testing.assert_close(Categorical(WEIGHTS).row_weights(y), WEIGHTS[y])
    shares = soft(6, 3)
    expected = (shares * WEIGHTS * outputs.log_softmax(1)).sum(1)
    torch.testing.assert_close(Categorical(WEIGHTS).log_prob(outputs, shares), expected)
    # What is predicted of a label is its probability, whatever it weighed in training.
    params = {"logits": outputs[None]}
    torch.testing.assert_close(Categorical(WEIGHTS).mixture_log_prob(params, y), plain)


def test_the_weighted_loss_of_minibatches_is_that_of_all_rows():
    """Over all minibatches of 2 of 6 rows the log joint has the mean of that of all rows; torch's weighted mean, whose
    denominator is another in each minibatch, does not.
    """
    outputs, y = logits(6, 3), torch.tensor([0, 0, 0, 0, 1, 2])
    model = bnn.BayesianModel(torch.nn.Linear(3, 3).double(), bnn.priors.Normal(1.0), Categorical(WEIGHTS))
    model.load_state({"net.weight": torch.eye(3), "net.bias": torch.tensor([1.0, 0.0, -1.0])})
    whole = model.log_joint(outputs, y).detach()
    pairs = list(itertools.combinations(range(6), 2))
    found = torch.stack([model.log_joint(outputs[list(p)], y[list(p)], num_data=6) for p in pairs]).mean()
    torch.testing.assert_close(found.detach(), whole, rtol=1e-12, atol=0)

    def ratio(rows):
        mean = torch.nn.functional.cross_entropy(model.net(outputs[rows]), y[rows], WEIGHTS)
        return model.log_prior() - WEIGHTS[y].sum() * mean

    torch.testing.assert_close(ratio(list(range(6))).detach(), whole, rtol=1e-12, atol=0)  # right of all rows at once
    biased = torch.stack([ratio(list(pair)) for pair in pairs]).mean().detach()
    assert abs(float(biased / whole) - 1) > 0.1


def test_a_weight_of_two_is_a_row_twice():
    x, y = logits(30, 2), torch.arange(30) % 3
    twice = torch.cat([torch.arange(30), (y == 1).nonzero().flatten()])
    net = torch.nn.Linear(2, 3).double()
    weighted = bnn.BayesianModel(net, bnn.priors.Normal(1.0), Categorical([1.0, 2.0, 1.0]))
    plain = bnn.BayesianModel(net, bnn.priors.Normal(1.0), Categorical())
    torch.testing.assert_close(weighted.log_joint(x, y), plain.log_joint(x[twice], y[twice]))


def test_balanced_weights_are_those_of_the_training_part():
    y = torch.tensor([0] * 12 + [1] * 6 + [3] * 2)
    model = bnn.BayesianModel(torch.nn.Linear(1, 4), bnn.priors.Normal(1.0), Categorical("balanced"))
    with pytest.raises(ValueError, match="'balanced' outside of fit"):
        model.log_joint(torch.zeros(20, 1), y)
    posterior = bnn.fit(model, (torch.zeros(20, 1), y), epochs=1, validation=0.5, progress=False)
    kept = posterior.train[1]
    count = kept.bincount(minlength=4)
    assert count.tolist() == [6, 3, 0, 1]
    weights = posterior.model.likelihood.class_weights
    torch.testing.assert_close(weights, torch.tensor([10 / 18, 10 / 9, 0.0, 10 / 3]))
    assert float(weights[kept].sum()) == pytest.approx(10)
    assert model.likelihood.class_weights is None  # the user's own is as it was
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(20, 1), y), 5)
    with pytest.raises(ValueError, match="in numbers with a loader"):
        bnn.fit(model, loader, progress=False)


def test_balanced_weights_of_soft_labels_count_shares():
    likelihood = Categorical("balanced")
    likelihood.learn(torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]), 2)
    torch.testing.assert_close(likelihood.class_weights, torch.tensor([0.75, 1.5], dtype=torch.float64))


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0, -1.0], "weights >= 0"), ([0.0, 0.0], "weights >= 0"), ([[1.0]], "one a class"), ("even", "balanced")],
)
def test_weights_that_are_none(weights, message):
    with pytest.raises(ValueError, match=message):
        Categorical(weights)


@pytest.mark.parametrize("likelihood", [Categorical, bnn.likelihoods.NoisyCategorical])
def test_weights_in_a_dict_are_told_what_to_be(likelihood):
    with pytest.raises(TypeError, match=r"numbers in the order of the classes, got a dict: give \[weight of class 0"):
        likelihood(class_weights={0: 1.0, 1: 2.0})


def test_a_weight_for_each_output():
    with pytest.raises(ValueError, match="a weight for each of 3 classes, got 2"):
        Categorical([1.0, 2.0]).check_targets(torch.tensor([0, 1]), 3)


def test_weights_are_saved_as_numbers(tmp_path):
    net = torch.nn.Linear(1, 2)
    model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), Categorical("balanced"))
    posterior = bnn.fit(model, (torch.zeros(3, 1), [0, 1, 1]), epochs=1, progress=False)
    posterior.save(tmp_path / "run")
    loaded = bnn.Posterior.load(tmp_path / "run", net).model.likelihood
    torch.testing.assert_close(loaded.class_weights, torch.tensor([1.5, 0.75]), check_dtype=False)
