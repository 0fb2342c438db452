import json

import numpy as np
import pytest
import torch

from bayesnn.data import Data, Standardize, standardize


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class TestStandardize:
    @pytest.mark.parametrize(
        ("shape", "constants"), [((50,), ()), ((50, 3), (3,)), ((50, 2, 4, 5), (2, 1, 1)), ((50, 2, 7), (2, 1))]
    )
    def test_fit_gives_mean_0_and_sd_1_along_what_it_averaged(self, shape, constants):
        v = 3.0 * numbers(*shape, dtype=torch.float64) + 7.0
        fitted = Standardize.fit(v)
        z = fitted.forward(v)
        dims = [0, *range(2, v.dim())]
        assert fitted.mean.shape == fitted.std.shape == constants
        assert z.shape == v.shape
        torch.testing.assert_close(z.mean(dims), torch.zeros_like(z.mean(dims)), atol=1e-12, rtol=0)
        torch.testing.assert_close(z.std(dims, correction=0), torch.ones_like(z.mean(dims)))

    def test_divisor_is_the_number_of_rows(self):
        assert Standardize.fit(torch.tensor([1.0, 3.0])).std.item() == 1.0

    def test_not_per_channel_is_per_element(self):
        v = numbers(50, 2, 4, 5)
        fitted = Standardize.fit(v, per_channel=False)
        torch.testing.assert_close(fitted.mean, v.mean(0))
        torch.testing.assert_close(fitted.std, v.std(0, correction=0))

    def test_constant_features_get_sd_1(self):
        v = torch.stack([torch.full((1001,), 0.1), torch.arange(1001.0)], dim=1)
        fitted = Standardize.fit(v)
        assert fitted.std[0] == 1.0
        torch.testing.assert_close(fitted.forward(v)[:, 0], torch.zeros(1001), atol=1e-7, rtol=0)
        assert Standardize.fit(v[:1]).std.tolist() == [1.0, 1.0]

    def test_inverse_undoes_forward_with_leading_axes(self):
        fitted = Standardize(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0]))
        v = numbers(3, 4, 5, 2)
        torch.testing.assert_close(fitted.inverse(fitted.forward(v)), v)
        torch.testing.assert_close(fitted.forward(v)[..., 1], (v[..., 1] + 2.0) / 4.0)

    def test_the_dtype_of_what_comes_is_kept(self):
        fitted = Standardize.fit(numbers(10, 2, dtype=torch.float64))
        assert fitted.forward(numbers(10, 2)).dtype == torch.float32
        assert fitted.inverse(numbers(10, 2)).dtype == torch.float32
        assert fitted.forward(torch.ones(10, 2, dtype=torch.int64)).dtype == torch.float64

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("shape", [(9,), (9, 3), (9, 2, 4, 4)])
    def test_json_round_trip_is_exact(self, dtype, shape):
        fitted = Standardize.fit(numbers(*shape, dtype=dtype) / 3.0)
        back = Standardize.from_dict(json.loads(json.dumps(fitted.to_dict())))
        assert back.mean.dtype == dtype
        assert back.mean.shape == fitted.mean.shape
        assert torch.equal(back.mean, fitted.mean)
        assert torch.equal(back.std, fitted.std)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"std": None}, "got no std"),
            ({"dtype": "int64"}, "got 'int64'"),
            ({"mean": [1.0]}, r"expected 2 numbers in mean for shape \(2,\), got 1"),
        ],
    )
    def test_from_dict_refuses_what_to_dict_did_not_give(self, change, match):
        values = Standardize.fit(numbers(9, 2)).to_dict() | change
        values = {key: value for key, value in values.items() if value is not None}
        with pytest.raises(ValueError, match=match):
            Standardize.from_dict(values)

    def test_bad_constants_are_refused(self):
        with pytest.raises(ValueError, match="above 0"):
            Standardize(torch.zeros(2), torch.tensor([1.0, 0.0]))
        with pytest.raises(ValueError, match="finite"):
            Standardize(torch.tensor([float("nan")]), torch.ones(1))
        with pytest.raises(ValueError, match="one shape"):
            Standardize(torch.zeros(2), torch.ones(3))
        with pytest.raises(TypeError, match="floating"):
            Standardize.fit(torch.arange(4))


class TestStandardizeFunction:
    def test_others_get_the_training_constants_and_y_stays(self):
        train = Data(5.0 + 2.0 * numbers(50, 3), 100.0 * numbers(50))
        test = Data(numbers(20, 3, seed=1), numbers(20, seed=1))
        train_std, test_std = standardize(train, test)
        mean, std = train.x.mean(0), train.x.std(0, correction=0)
        torch.testing.assert_close(test_std.x, (test.x - mean) / std)
        assert torch.equal(train_std.y, train.y)
        assert test_std.target is train_std.target
        torch.testing.assert_close(train_std.target.std, train.y.std(correction=0))
        torch.testing.assert_close(train_std.inputs.inverse(train_std.x), train.x)

    def test_float64_keeps_what_float32_has_not(self):
        v = 1e9 + np.arange(20) % 2
        (data,) = standardize(Data.of(v[:, None], v))
        expected = torch.as_tensor(np.arange(20) % 2 * 2.0 - 1.0)
        torch.testing.assert_close(data.x[:, 0], expected)
        torch.testing.assert_close(data.target.forward(data.y), expected)

    def test_classes_have_no_target_constants(self):
        (train,) = standardize(Data(numbers(4, 2), torch.tensor([0, 1, 0, 1])))
        assert train.target is None

    def test_twice_is_refused(self):
        (train,) = standardize(Data(numbers(4, 2), numbers(4)))
        with pytest.raises(ValueError, match="standardised already"):
            standardize(train)

    def test_other_shapes_are_refused(self):
        with pytest.raises(ValueError, match=r"inputs of shape \(2,\) .* got \(3,\)"):
            standardize(Data(numbers(4, 2), numbers(4)), Data(numbers(4, 3), numbers(4)))
