import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from bayesnn.data import Batches, Loader


def rows(n=10):
    return torch.arange(float(n))[:, None], torch.arange(n)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class TestReshuffle:
    def test_every_row_comes_once_an_epoch_and_x_goes_with_y(self):
        batches = Batches(*rows(), batch_size=4, generator=generator())
        for _ in range(3):
            epoch = list(batches)
            assert [len(x) for x, _ in epoch] == [4, 3, 3]
            assert sorted(torch.cat([y for _, y in epoch]).tolist()) == list(range(10))
            assert all(torch.equal(x[:, 0].long(), y) for x, y in epoch)

    def test_epochs_differ_and_the_seed_decides(self):
        def epochs(seed):
            batches = Batches(*rows(100), batch_size=30, generator=generator(seed))
            return [torch.cat([y for _, y in batches]).tolist() for _ in range(2)]

        first, second = epochs(0)
        assert first != second
        assert epochs(0) == [first, second]
        assert epochs(1)[0] != first

    def test_the_global_random_state_is_left_alone(self):
        before = torch.random.get_rng_state()
        list(Batches(*rows(), batch_size=3, generator=generator()))
        list(Batches(*rows(), batch_size=3, order="iid", generator=generator()))
        assert torch.equal(torch.random.get_rng_state(), before)


class TestIid:
    def test_every_minibatch_is_full(self):
        batches = Batches(*rows(), batch_size=4, order="iid", generator=generator())
        assert [len(y) for _, y in batches] == [4, 4, 4]
        assert len(batches) == 3

    def test_rows_are_drawn_with_replacement_and_evenly(self):
        batches = Batches(*rows(10), batch_size=5, order="iid", generator=generator())
        drawn = torch.stack([y for _ in range(2000) for _, y in batches])  # (4000, 5)
        # 20,000 draws at probability 0.1: binomial sd sqrt(20000 * 0.1 * 0.9) = 42.4.
        assert (torch.bincount(drawn.flatten(), minlength=10) - 2000).abs().max() < 4 * 42.4
        # A minibatch of 5 without a repeat has probability 10 * 9 * 8 * 7 * 6 / 10^5 = 0.3024, sd 0.0073 of the share.
        distinct = sum(len(set(batch)) == 5 for batch in drawn.tolist()) / 4000
        assert abs(distinct - 0.3024) < 4 * 0.0073

    def test_larger_than_the_data_is_still_drawn(self):
        ((x, _),) = Batches(*rows(5), batch_size=8, order="iid", generator=generator())
        assert len(x) == 8


class TestWholeData:
    @pytest.mark.parametrize("batch_size", [None, 10, 11])
    @pytest.mark.parametrize("order", ["reshuffle", "sequential"])
    def test_one_minibatch_is_the_tensors_themselves(self, batch_size, order):
        x, y = rows()
        ((x_b, y_b),) = Batches(x, y, batch_size, order)
        assert x_b is x
        assert y_b is y

    def test_sequential_gives_views_in_order(self):
        x, y = rows()
        epoch = list(Batches(x, y, 4, "sequential"))
        assert [y_b.tolist() for _, y_b in epoch] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
        assert epoch[1][0].data_ptr() == x[4:].data_ptr()


class TestSizes:
    @pytest.mark.parametrize("order", ["reshuffle", "sequential"])
    @pytest.mark.parametrize(
        ("n", "size", "sizes"),
        [(9, 4, [3, 3, 3]), (5, 4, [3, 2]), (13, 3, [3, 3, 3, 2, 2]), (3, 1, [1, 1, 1]), (66, 64, [33, 33])],
    )
    def test_they_differ_by_a_row_at_most(self, order, n, size, sizes):
        batches = Batches(*rows(n), size, order, generator())
        epoch = list(batches)
        assert [len(y) for _, y in epoch] == sizes
        assert len(batches) == len(sizes)
        assert sorted(torch.cat([y for _, y in epoch]).tolist()) == list(range(n))

    def test_iid_has_none(self):
        batches = Batches(*rows(9), 4, "iid", generator())
        assert [len(y) for _, y in batches] == [4] * len(batches) == [4, 4, 4]

    def test_batch_norm_trains_on_what_comes(self):
        net = torch.nn.BatchNorm1d(1).train()
        for x, _ in Batches(*rows(9), 4, generator=generator()):
            net(x)


class TestPeek:
    def test_even_minibatches_the_same_each_time_in_no_order_of_the_rows(self):
        batches = Batches(*rows(103), 10, generator=generator())
        first, again = ([y.tolist() for _, y in batches.peek()] for _ in range(2))
        assert first == again
        assert [len(y) for y in first] == [10] * 4 + [9] * 7
        drawn = [row for batch in first for row in batch]
        assert len(set(drawn)) == 103
        assert drawn != sorted(drawn)
        assert all(torch.equal(x[:, 0].long(), y) for x, y in batches.peek())

    def test_rows_sorted_by_class_come_mixed(self):
        y = torch.arange(400) // 200
        shares = [float(y_b.double().mean()) for _, y_b in Batches(rows(400)[0], y, 50, "sequential").peek()]
        # 50 rows drawn without replacement, half of each class: sd below sqrt(0.25 / 50) = 0.071.
        assert all(abs(share - 0.5) < 4 * 0.071 for share in shares)

    def test_no_random_number_of_training_is_used(self):
        stream = generator()
        before, outside = stream.get_state(), torch.random.get_rng_state()
        list(Batches(*rows(), 4, generator=stream).peek())
        assert torch.equal(stream.get_state(), before)
        assert torch.equal(torch.random.get_rng_state(), outside)

    @pytest.mark.parametrize("size", [None, 10, 20])
    def test_one_minibatch_is_all_rows(self, size):
        [(x, y)] = Batches(*rows(), size, "sequential").peek()
        assert (len(x), len(y)) == (10, 10)


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"batch_size": 0}, "batch_size"),
            ({"batch_size": 2.5}, "batch_size"),
            ({"batch_size": 4, "order": "random"}, "reshuffle, iid, sequential; got 'random'"),
            ({"batch_size": 4}, "pass torch.Generator"),
            ({"order": "iid"}, "pass torch.Generator"),
        ],
    )
    def test_options(self, options, match):
        with pytest.raises(ValueError, match=match):
            Batches(*rows(), **options)

    def test_rows_that_do_not_agree(self):
        with pytest.raises(ValueError, match="one target per input"):
            Batches(torch.zeros(3, 1), torch.zeros(4))


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*rows(6), strict=True)


class TestLoader:
    def test_a_data_loader_tells_its_number_of_rows(self):
        loader = Loader(DataLoader(TensorDataset(*rows()), batch_size=4))
        assert (loader.num_data, len(loader)) == (10, 3)
        for _ in range(2):
            assert [y.tolist() for _, y in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    def test_a_dataset_without_length_needs_num_data(self):
        with pytest.raises(ValueError, match="pass num_data"):
            Loader(DataLoader(Stream(), batch_size=2))
        with pytest.raises(ValueError, match="pass num_data"):
            Loader([rows()])
        loader = Loader(DataLoader(Stream(), batch_size=2), num_data=6)
        assert len(list(loader)) == 3
        assert len(loader) == 3

    def test_a_sampler_over_a_part_of_the_rows_needs_num_data(self):
        data, sampler = TensorDataset(*rows()), SubsetRandomSampler([0, 1, 2, 3])
        in_batches = DataLoader(data, batch_sampler=BatchSampler(sampler, 2, drop_last=False))
        for part in (DataLoader(data, batch_size=2, sampler=sampler), in_batches):
            with pytest.raises(ValueError, match=r"all 10 rows .* visits 4: pass num_data"):
                Loader(part)
            assert Loader(part, num_data=4).num_data == 4

    def test_steps_per_epoch_goes_on_where_the_epoch_before_stopped(self):
        loader = Loader(DataLoader(TensorDataset(*rows()), batch_size=4), steps_per_epoch=2)
        assert len(loader) == 2
        epochs = [[y[0].item() for _, y in loader] for _ in range(3)]
        assert epochs == [[0, 4], [8, 0], [4, 8]]

    def test_an_endless_stream_needs_steps_per_epoch_and_loses_no_minibatch(self):
        def endless():
            step = 0
            while True:
                yield torch.zeros(1, 1), torch.tensor([step])
                step += 1

        with pytest.raises(ValueError, match="generator, which is used up after one"):
            Loader(endless(), num_data=5)
        loader = Loader(endless(), num_data=5, steps_per_epoch=3)
        assert [[y.item() for _, y in loader] for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]

    def test_running_out_is_said(self):
        loader = Loader(iter([rows(2)] * 3), num_data=6, steps_per_epoch=2)
        assert len(list(loader)) == 2
        with pytest.raises(ValueError, match="expected 2 minibatches an epoch, got 1"):
            list(loader)
        with pytest.raises(ValueError, match="got none"):
            list(Loader([], num_data=3))

    def test_a_peek_gives_what_comes_next_and_the_stream_has_it_still(self):
        loader = Loader(((torch.zeros(1, 1), torch.tensor([i])) for i in range(9)), num_data=9, steps_per_epoch=3)
        assert [y.item() for _, (_, y) in zip(range(2), loader.peek(), strict=False)] == [0, 1]
        assert [y.item() for _, y in loader] == [0, 1, 2]
        assert [y.item() for _, (_, y) in zip(range(4), loader.peek(), strict=False)] == [3, 4, 5, 6]
        assert next(loader.peek())[1].item() == 3
        assert [[y.item() for _, y in loader] for _ in range(2)] == [[3, 4, 5], [6, 7, 8]]
        with pytest.raises(ValueError, match="got a used-up iterator: pass an iterable that starts anew") as error:
            next(loader.peek())
        assert "\n" not in str(error.value)

    def test_a_peek_into_a_data_loader_starts_anew_and_leaves_the_epochs_alone(self):
        loader = Loader(DataLoader(TensorDataset(*rows()), batch_size=4), steps_per_epoch=2)
        next(iter(loader))
        assert [y[0].item() for _, y in loader.peek()] == [0, 4, 8]
        assert [y[0].item() for _, y in loader] == [4, 8]

    def test_nothing_to_peek_at_is_said(self):
        with pytest.raises(ValueError, match="expected at least one minibatch an epoch, got none"):
            next(Loader([], num_data=3).peek())

    def test_asking_for_the_length_leaves_the_global_random_state_alone(self):
        loader = Loader(DataLoader(Stream(), batch_size=4), num_data=9)
        before = torch.random.get_rng_state()
        assert (len(loader), loader.batch_rows) == (3, 4)
        assert torch.equal(torch.random.get_rng_state(), before)

    @pytest.mark.parametrize(
        ("item", "got"), [(torch.zeros(2), "Tensor"), ((torch.zeros(2),), "1 items"), ({}, "dict")]
    )
    def test_what_is_no_pair_is_refused(self, item, got):
        with pytest.raises(TypeError, match=rf"two tensors, got {got}"):
            list(Loader([item], num_data=2))

    @pytest.mark.parametrize("options", [{"num_data": 0}, {"num_data": 2, "steps_per_epoch": 0}])
    def test_numbers_below_1_are_refused(self, options):
        with pytest.raises(ValueError, match="got 0"):
            Loader([rows()], **options)
