import numpy as np
import pandas as pd
import pytest
import torch

from bayesnn.data import Data, Standardize, split
from bayesnn.data.dataset import all_finite


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class TestData:
    def test_shapes_and_outputs(self):
        x = numbers(6, 1, 4, 4)
        assert Data(x, numbers(6)).num_outputs == 1
        assert Data(x, numbers(6, 3)).num_outputs == 3
        labels = torch.tensor([0, 1, 2, 2, 1, 0])
        assert Data(x, labels).num_outputs == 3
        assert Data(x, labels, classes=("a", "b", "c", "d")).num_outputs == 4
        assert Data(x, labels).in_shape == (1, 4, 4)
        assert len(Data(x, labels)) == 6

    def test_negative_classes_have_no_number_of_outputs(self):
        with pytest.raises(ValueError, match="got -1"):
            _ = Data(numbers(2, 1), torch.tensor([-1, 1])).num_outputs

    def test_subset_keeps_the_order_asked_for_and_all_the_rest(self):
        inputs = Standardize(torch.zeros(2), torch.ones(2))
        data = Data(torch.arange(8.0).reshape(4, 2), torch.arange(4), "name", ("a", "b", "c", "d"), inputs)
        part = data.subset([2, 0])
        assert part.x.tolist() == [[4.0, 5.0], [0.0, 1.0]]
        assert part.y.tolist() == [2, 0]
        assert (part.name, part.num_outputs, part.inputs) == ("name", 4, inputs)
        assert data.subset(torch.tensor([False, True, False, True])).y.tolist() == [1, 3]

    @pytest.mark.parametrize("indices", [[], torch.zeros(4, dtype=torch.bool), torch.tensor(1)])
    def test_subset_refuses_what_is_no_list_of_rows(self, indices):
        with pytest.raises(ValueError, match="at least one row"):
            Data(numbers(4, 2), numbers(4)).subset(indices)

    def test_rows_must_agree_and_exist(self):
        with pytest.raises(ValueError, match=r"as many rows in y as in x \(4\), got 3"):
            Data(numbers(4, 2), numbers(3))
        with pytest.raises(ValueError, match="at least one row"):
            Data(torch.zeros(0, 2), torch.zeros(0))
        with pytest.raises(ValueError, match="single number"):
            Data(torch.tensor(1.0), torch.tensor(1.0))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_not_finite_is_counted_and_located(self, bad):
        x, y = numbers(6, 2), numbers(6)
        x[4, 1] = x[3, 0] = x[4, 0] = bad
        with pytest.raises(ValueError, match="in x, got 3 NaN or infinite, the first in row 3"):
            Data(x, y)
        y[5] = bad
        with pytest.raises(ValueError, match="in y, got 1 NaN or infinite, the first in row 5"):
            Data(numbers(6, 2), y)

    def test_classes_and_target_must_go_with_y(self):
        with pytest.raises(ValueError, match=r"from 0 to 1, .* got 0 to 2"):
            Data(numbers(3, 1), torch.tensor([0, 1, 2]), classes=("a", "b"))
        with pytest.raises(ValueError, match="integer y with classes"):
            Data(numbers(3, 1), numbers(3), classes=("a", "b"))
        with pytest.raises(ValueError, match="floating y with target"):
            Data(numbers(2, 1), torch.tensor([0, 1]), target=Standardize(torch.zeros(()), torch.ones(())))

    @pytest.mark.parametrize(
        ("y", "dtype"),
        [
            (np.array([0, 1], dtype=np.uint8), torch.int64),
            (np.array([True, False]), torch.int64),
            ([0, 1], torch.int64),
            (torch.tensor([True, False]), torch.int64),
            (torch.tensor([0, 1], dtype=torch.int32), torch.int64),
            (np.array([0.5, 1.5]), torch.float64),
            (np.array([0.5, 1.5], dtype=np.float32), torch.float32),
            (np.array([0.5, 1.5], dtype=">f4"), torch.float32),
            (np.array([0.5, 1.5], dtype=np.longdouble), torch.float64),
            (np.array([1.5, 0.5])[::-1], torch.float64),
            (pd.Series([0.5, 1.5]), torch.float64),
            (pd.Series([0, 1], index=["a", "b"]), torch.int64),
            ([0.5, 1.5], torch.float64),
            ([1e9, 1e9 + 1], torch.float64),
            (torch.tensor([0.5, 1.5], dtype=torch.float64), torch.float64),
        ],
    )
    def test_of_converts_targets(self, y, dtype):
        data = Data.of([[1.0], [2.0]], y)
        assert data.y.dtype == dtype
        assert data.y.tolist() == [float(v) for v in y]

    def test_of_converts_inputs(self):
        y = [0, 1]
        assert Data.of(np.ones((2, 3)), y).x.dtype == torch.float64
        assert Data.of(pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4]}), y).x.tolist() == [[1.0, 3.0], [2.0, 4.0]]
        assert Data.of(torch.ones(2, 3, dtype=torch.float64), y).x.dtype == torch.float64
        assert Data.of(np.ones((2, 3), dtype=np.int32), y).x.dtype == torch.int32
        assert Data.of(np.ones((2, 3), dtype=bool), y).x.dtype == torch.float32

    def test_of_does_not_share_memory_with_the_array(self):
        array = np.ones((2, 3), dtype=np.float32)
        data = Data.of(array, [0, 1])
        array[:] = 5.0
        assert data.x.max() == 1.0

    def test_of_refuses_strings(self):
        with pytest.raises(TypeError, match=r"expected numbers in y, .* numpy.unique"):
            Data.of(np.ones((2, 3)), ["cat", "dog"])

    def test_of_refuses_ragged_rows_in_one_line(self):
        with pytest.raises(ValueError, match="expected rows of one shape in x, got a ragged list: pad or cut") as error:
            Data.of([[1.0, 2.0], [3.0]], [0, 1])
        assert "\n" not in str(error.value)


class TestSplit:
    def test_every_row_comes_once_in_its_order(self):
        data = Data(torch.arange(101.0)[:, None], torch.arange(101.0))
        rest, part = split(data, 0.25, seed=3)
        assert (len(rest), len(part)) == (76, 25)
        assert torch.equal(torch.cat([rest.y, part.y]).sort().values, data.y)
        assert torch.equal(rest.y, rest.y.sort().values)
        assert torch.equal(part.x[:, 0], part.y)

    def test_the_seed_decides_and_the_global_state_is_left_alone(self):
        data = Data(torch.arange(100.0)[:, None], torch.arange(100.0))
        before = torch.random.get_rng_state()
        first, again, other = (split(data, 0.3, seed=seed)[1].y for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_stratified_gives_every_class_its_share_to_one_row(self):
        y = torch.tensor([0] * 503 + [1] * 52 + [2] * 7)
        data = Data(torch.arange(562.0)[:, None], y)
        _, part = split(data, 0.2, seed=0)
        share = torch.bincount(y) * (len(part) / len(data))
        assert len(part) == round(0.2 * 562)
        assert (torch.bincount(part.y, minlength=3) - share).abs().max() < 1.0

    def test_rows_within_a_class_are_drawn_evenly(self):
        data = Data(torch.arange(20.0)[:, None], torch.tensor([0] * 10 + [1] * 10))
        count = torch.zeros(20)
        for seed in range(400):
            count[split(data, 0.3, seed=seed)[1].x[:, 0].long()] += 1
        # Each row is drawn with probability 0.3: binomial sd sqrt(400 * 0.3 * 0.7) = 9.2.
        assert (count - 120).abs().max() < 4 * 9.2

    def test_no_class_is_missing_from_the_rest(self):
        data = Data(torch.arange(40.0)[:, None], torch.tensor([0] * 30 + [1] * 5 + [2, 3, 4, 5, 6]))
        for seed in range(20):
            rest, _ = split(data, 0.3, seed=seed)
            assert set(rest.y.tolist()) == set(range(7))

    def test_no_side_is_empty(self):
        data = Data(torch.arange(3.0)[:, None], torch.arange(3))
        assert [len(side) for side in split(data, 0.01)] == [2, 1]
        assert [len(side) for side in split(data, 0.99)] == [1, 2]

    def test_unstratified_on_request(self):
        data = Data(torch.arange(40.0)[:, None], torch.tensor([0] * 20 + [1] * 20))
        sizes = {int(split(data, 0.5, seed=seed, stratify=False)[1].y.sum()) for seed in range(20)}
        assert len(sizes) > 1
        assert {int(split(data, 0.5, seed=seed)[1].y.sum()) for seed in range(20)} == {10}

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
    def test_fraction_out_of_range_is_refused(self, fraction):
        with pytest.raises(ValueError, match=r"fraction in \(0, 1\)"):
            split(Data(numbers(4, 1), numbers(4)), fraction)

    def test_what_cannot_be_split_is_refused(self):
        with pytest.raises(ValueError, match="at least 2 rows"):
            split(Data(numbers(1, 1), numbers(1)), 0.5)
        with pytest.raises(ValueError, match="stratify=False"):
            split(Data(numbers(4, 1), numbers(4)), 0.5, stratify=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_finite_is_what_looking_at_each_number_says(dtype):
    large = torch.full((5,), torch.finfo(dtype).max, dtype=dtype)  # their sum is infinite
    good = [torch.ones(3, dtype=dtype), large, -large, torch.zeros(0, dtype=dtype), torch.tensor([1, 2])]
    bad = [torch.tensor(row, dtype=dtype) for row in ([1, torch.inf], [torch.inf, -torch.inf], [torch.nan, 1.0])]
    assert all(all_finite(v) for v in good)
    assert not any(all_finite(v) for v in bad)
