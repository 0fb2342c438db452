import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bayesnn import nets


def lenet(outputs=10, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nets.LeNet5((1, 8, 8), outputs)


def same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def write(given, folder, kind):
    if kind == "safetensors":
        save_file(given.state_dict(), folder / "w.safetensors")
        return folder / "w.safetensors"
    contents = {"pt": given.state_dict(), "checkpoint": {"epoch": 3, "state_dict": given.state_dict()}}
    torch.save(contents[kind], folder / "w.pt")
    return str(folder / "w.pt")


@pytest.mark.parametrize("kind", ["safetensors", "pt", "checkpoint"])
def test_weights_come_from_files(kind, tmp_path):
    given, own = lenet(seed=1), lenet(seed=2)
    before = [p.clone() for p in own.parameters()]
    loaded = nets.from_pretrained(own, write(given, tmp_path, kind))
    assert same(loaded, given)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), before, strict=True))  # a copy


def test_weights_come_from_a_net_or_its_state_buffers_with_them():
    given, own = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2))
    given(torch.rand(9, 2))
    for weights in (given, given.state_dict()):
        loaded = nets.from_pretrained(own, weights)
        assert same(loaded, given)
    assert not torch.equal(loaded[1].running_mean, own[1].running_mean)


def test_weights_are_cast_to_the_nets_dtype_and_keep_what_is_frozen():
    own = lenet(seed=2).double()
    own.conv1.weight.requires_grad_(False)
    loaded = nets.from_pretrained(own, lenet(seed=1).half())
    assert loaded.dense3.bias.dtype == torch.float64
    assert torch.equal(loaded.dense3.bias, lenet(seed=1).dense3.bias.half().double())
    assert not loaded.conv1.weight.requires_grad


def test_what_does_not_fit_is_named_in_one_line_and_nothing_is_loaded():
    weights = lenet(7, seed=1).state_dict()
    del weights["conv2.bias"]
    weights["extra"] = torch.zeros(2)
    own = lenet(10, seed=2)
    with pytest.raises(ValueError, match="Expected the weights of this net") as error:
        nets.from_pretrained(own, weights)
    message = str(error.value)
    assert "1 missing (conv2.bias), 1 unexpected (extra), 2 of another shape (dense3.weight (7, 84) for (10, 84), " in (
        message
    )
    assert "strict=False" in message
    assert "\n" not in message
    assert same(own, lenet(10, seed=2))


def test_without_strict_what_fits_is_loaded_and_the_rest_is_told():
    given, own = lenet(7, seed=1), lenet(10, seed=2)
    with pytest.warns(UserWarning, match=r"Loaded 8 of 10 tensors; 2 of another shape \(dense3.weight"):
        loaded = nets.from_pretrained(own, given, strict=False)
    assert torch.equal(loaded.dense2.weight, given.dense2.weight)
    assert torch.equal(loaded.dense3.weight, own.dense3.weight)
    with pytest.raises(ValueError, match=r"10 missing .* give the net that was saved\."):
        nets.from_pretrained(own, nn.Linear(2, 3), strict=False)


def test_a_prefix_is_cut_off_and_proposed():
    given = lenet(seed=1)
    wrapped = {f"module.{name}": value for name, value in given.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape("pass prefix='module.'")):
        nets.from_pretrained(lenet(), wrapped)
    assert same(nets.from_pretrained(lenet(), wrapped, prefix="module."), given)
    with pytest.raises(ValueError, match=r"names begin with 'model\.', got none"):
        nets.from_pretrained(lenet(), wrapped, prefix="model.")


def test_a_weight_under_two_names_may_be_missing_under_one():
    def tied():
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        net[1].weight = net[0].weight
        return net

    given = tied()
    weights = {name: value for name, value in given.state_dict().items() if name != "1.weight"}
    assert same(nets.from_pretrained(tied(), weights), given)
    with pytest.raises(ValueError, match=r"1 missing \(1.weight\)"):
        nets.from_pretrained(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), weights)


class Touch:
    """A pickle that creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"conv1.weight": Touch(str(tmp_path / "ran"))}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"with code in it, which is not run: save net\.state_dict"):
        nets.from_pretrained(lenet(), tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_files_that_hold_no_weights_are_refused_in_one_line(name, tmp_path):
    file = tmp_path / name
    with pytest.raises(FileNotFoundError, match="Expected a file of weights"):
        nets.from_pretrained(lenet(), file)
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="Expected a file") as error:
        nets.from_pretrained(lenet(), file)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="Expected names and tensors, got none in dict"):
        nets.from_pretrained(lenet(), {"a": 1})
