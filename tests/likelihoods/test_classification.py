import numpy as np
import pytest
import torch
from scipy import special, stats
from scipy.special import rel_entr

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
