"""Blocks of draws are the draws that come one by one."""

import pytest
import torch

from bayesnn.source import Draws, NormalSource, in_blocks


def stored(count=7):
    stream = torch.Generator().manual_seed(0)
    return {"a": torch.randn(count, 2, 3, generator=stream), "b": torch.randn(count, generator=stream)}


@pytest.mark.parametrize("source", [Draws(stored()), NormalSource({"a": torch.ones(3)}, {"a": torch.zeros(3)})])
@pytest.mark.parametrize("wanted", [7, 5])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_blocks(source, wanted, size):
    one_by_one = list(source.states(wanted, torch.Generator().manual_seed(1)))
    blocks = list(source.blocks(wanted, torch.Generator().manual_seed(1), size))
    assert [len(block["a"]) for block in blocks] == [min(size, wanted - first) for first in range(0, wanted, size)]
    for name in one_by_one[0]:
        joined = torch.cat([block[name] for block in blocks])
        assert torch.equal(joined, torch.stack([state[name] for state in one_by_one]))


def test_a_block_of_all_stored_draws_is_no_copy():
    source = Draws(stored())
    (block,) = source.blocks(None, torch.Generator(), 7)
    assert block["a"].data_ptr() == source.stacked["a"].data_ptr()


def test_in_blocks_without_a_size_gives_what_it_was_given():
    states = [{"a": torch.zeros(1)}, {"a": torch.ones(1)}]
    assert list(in_blocks(states)) == states
