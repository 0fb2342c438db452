import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import bayesnn as bnn
from bayesnn import likelihoods
from bayesnn.data import Data, Loader, standardize
from bayesnn.errors import fraction, positive
from bayesnn.prepare import prepare

N = 65
X = torch.linspace(-1, 1, 2 * N).reshape(N, 2)
Y = X.sum(1)


def model():
    return bnn.BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal())


def prepared(data, validation=None, num_data=None):
    return prepare(model(), data, validation, num_data, seed=0)


class Stream(IterableDataset):
    """Rows one by one, without a length."""

    def __iter__(self):
        yield from zip(X, Y, strict=True)


class TestPrecision:
    y = 1e9 + np.arange(N) % 2  # float32 has multiples of 64 here

    @pytest.mark.parametrize("convert", [np.asarray, list, torch.as_tensor], ids=["numpy", "list", "tensor"])
    def test_targets_are_standardised_before_they_are_cast(self, convert):
        (data,) = standardize(Data.of(X, convert(self.y)))
        task = prepared(data)
        assert task.y.dtype == torch.float32
        expected = (self.y - self.y.mean()) / self.y.std()
        np.testing.assert_allclose(task.y, expected, rtol=1e-6)

    def test_and_come_back_in_their_own_units(self):
        (data,) = standardize(Data.of(X, self.y))
        posterior = bnn.fit(model(), data, epochs=20, validation=0.2, progress=False)
        # Noise of about the targets' sd of 0.5: a float32 grid of 64 would cost thousands of nats.
        assert abs(posterior.history[-1]["val_nll"]) < 5
        assert float(posterior.predict(X).log_prob(self.y).mean()) > -5
        assert posterior.to_arviz(weights=False).observed_data["y"].values[:3] == pytest.approx(
            posterior.target.inverse(posterior.train[1].double())[:3].numpy(), rel=1e-15
        )

    def test_without_constants_they_are_cast_to_the_nets_dtype(self):
        task = prepared((X.double(), Y.double()), validation=(X.double(), Y.double()))
        assert {task.x.dtype, task.y.dtype, task.validation.x.dtype, task.validation.y.dtype} == {torch.float32}


class TestShare:
    @pytest.mark.parametrize("share", [0, 1, 0.0, 1.0, -0.5, 20, np.float32(1.5), float("nan")])
    def test_out_of_range_is_refused(self, share):
        with pytest.raises(ValueError, match=r"validation: expected a fraction in \(0, 1\), got .*share") as error:
            prepared((X, Y), share)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("share", [0.2, np.float32(0.2), np.float64(0.2)])
    def test_any_real_number_will_do(self, share):
        task = prepared((X, Y), share)
        assert (task.num_data, len(task.validation)) == (52, 13)

    def test_a_boolean_is_no_share(self):
        with pytest.raises(TypeError, match="got bool"):
            prepared((X, Y), True)


class TestLoaders:
    def test_a_stream_without_a_length_is_planned_by_its_first_minibatch(self):
        task = prepared(DataLoader(Stream(), batch_size=16), num_data=N)
        assert (len(task.loader), task.batch_rows) == (5, 16)
        posterior = bnn.fit(model(), DataLoader(Stream(), batch_size=16), epochs=2, num_data=N, progress=False)
        assert posterior.info["gradient_evaluations"] == [10]

    def test_the_plan_does_not_limit_the_pass(self):
        loader = Loader(DataLoader(Stream(), batch_size=16), num_data=32)
        assert prepared(loader).num_data == 32
        assert prepared(loader, num_data=64).num_data == 64  # what ``fit`` is told counts
        assert len(loader) == 2
        assert [len(y) for _, y in loader] == [16, 16, 16, 16, 1]

    @pytest.mark.parametrize("dataset", [Stream(), TensorDataset(X, Y)], ids=["iterable", "map"])
    def test_a_bare_dataset_must_be_wrapped(self, dataset):
        with pytest.raises(TypeError, match=r"a dataset: wrap it in DataLoader\(dataset, batch_size=64\)") as error:
            prepared(dataset, num_data=N)
        assert "\n" not in str(error.value)

    def test_single_rows_are_no_minibatches(self):
        with pytest.raises(ValueError, match=r"got \(2,\) and \(\): collect single rows with DataLoader") as error:
            prepared(DataLoader(Stream(), batch_size=None), num_data=N)
        assert "\n" not in str(error.value)

    def test_an_empty_loader_is_one_line(self):
        with pytest.raises(ValueError, match="at least one minibatch an epoch, got none"):
            prepared(Loader([], num_data=N))
        with pytest.raises(ValueError, match="got a used-up iterator"):
            prepared(Loader(iter([]), num_data=N, steps_per_epoch=2))

    def test_rows_of_the_first_minibatch(self):
        assert prepared(DataLoader(TensorDataset(X, Y), batch_size=20)).batch_rows == 20
        assert prepared((X, Y)).batch_rows is None

    def test_an_epoch_is_divided_evenly(self):
        """65 rows at most 64 at a time are 33 and 32."""
        sizes = [len(x) for x, _ in prepared((X, Y)).batches(64, "reshuffle", torch.Generator())]
        assert (len(X), sizes) == (65, [33, 32])


class TestNumbers:
    @pytest.mark.parametrize("value", [np.float32(0.5), np.int64(2), 2, 0.5, np.float64(3)])
    def test_positive_takes_any_real_number(self, value):
        assert positive("lr", value) == float(value)
        assert type(positive("lr", value)) is float

    @pytest.mark.parametrize("value", [True, np.True_, "1", None, 1j, float("nan"), float("inf"), 0, np.float32(-1)])
    def test_positive_refuses_the_rest(self, value):
        with pytest.raises(ValueError, match="Expected lr > 0 and finite"):
            positive("lr", value)

    def test_fraction(self):
        assert fraction("burn_in", np.float32(0.25)) == 0.25
        assert fraction("burn_in", 0) == 0.0
        for value in (False, 1, np.float32(1.0), -0.1, float("nan"), "0.1"):
            with pytest.raises(ValueError, match=r"Expected burn_in in \[0, 1\)"):
                fraction("burn_in", value)


@pytest.mark.parametrize("which", ["x", "y"])
def test_what_is_finite_only_in_double_precision_is_refused(which):
    x, y = torch.ones(4, 2, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    (x if which == "x" else y)[1] = 1e300
    name = {"x": "inputs", "y": "targets"}[which]
    with pytest.raises(ValueError, match=f"Expected finite {name}, got NaN or infinity as torch.float32"):
        prepare(bnn.BayesianModel(nn.Linear(2, 1), likelihood=bnn.likelihoods.Normal()), (x, y), None, None, 0)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_numbers_that_are_not_real_or_cannot_be_added_up_are_refused(dtype):
    x, y = torch.ones(4, 2), torch.ones(4)
    model = bnn.BayesianModel(nn.Linear(2, 1), likelihood=bnn.likelihoods.Normal())
    for data, name in (((x.to(dtype), y), "x"), ((x, y.to(dtype)), "y")):
        with pytest.raises(TypeError, match=f"Data: expected real numbers in {name}, got {dtype}"):
            prepare(model, data, None, None, 0)
    with pytest.raises(TypeError, match="Data: expected real numbers in x"):
        bnn.fit(model, (x, y), epochs=1, progress=False).predict(x.to(dtype))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.float16, torch.bfloat16])
def test_weights_that_lose_small_steps_are_refused(dtype):
    net = nn.Linear(2, 1).to(dtype)
    with pytest.raises(
        ValueError, match=f"Expected trainable parameters in float32 or float64, got 'weight' in {dtype}"
    ):
        bnn.BayesianModel(net, likelihood=bnn.likelihoods.Normal())


class TestUnits:
    """Targets far from the units of the prior are fitted to nonsense; standardize mends it."""

    @pytest.mark.parametrize("y", [50_000 + 2_000 * Y, 1e-3 * Y], ids=["large", "small"])
    def test_raw_targets_are_warned_of_and_standardised_ones_are_not(self, y, recwarn):
        with pytest.warns(UserWarning, match=r"mean 0 and standard deviation 1 .* got .*standardize"):
            prepared((X, y))
        recwarn.clear()
        prepared(standardize(Data.of(X, y))[0])
        assert not recwarn.list

    @pytest.mark.parametrize("y", [Y, 20 + 9 * Y, torch.full((N,), 3.0)], ids=["unit", "of some tens", "constant"])
    def test_targets_within_reach_are_not(self, y, recwarn):
        prepared((X, y))
        assert not recwarn.list

    def test_fit_points_at_the_caller(self):
        with pytest.warns(UserWarning, match="standard deviation 1") as caught:
            bnn.fit(model(), (X, 1e4 * Y), epochs=1, progress=False)
        assert caught[0].filename == __file__

    def test_counts_are_in_units_of_their_own(self, recwarn):
        counts = bnn.BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Poisson())
        prepare(counts, (X, torch.full((N,), 1000)), None, None, seed=0)
        assert not recwarn.list
