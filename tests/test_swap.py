"""A module at other weights: torch's functional_call is the oracle."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import bayesnn as bnn
from bayesnn.swap import Swap


class Tied(nn.Module):
    """One weight in two places, a buffer, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.shift = nn.Parameter(torch.zeros(3))
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x, times=1):
        return times * (self.second(self.first(x)) * self.scale + self.shift)


def shifted(module, seed=0):
    stream = torch.Generator().manual_seed(seed)
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: t.detach() + torch.randn(t.shape, generator=stream) for name, t in tensors if t.is_floating_point()}


@pytest.mark.parametrize(
    "module",
    [Tied(), bnn.nets.MLP(3, (5,), 2), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(3, 1)],
    ids=lambda module: type(module).__name__,
)
def test_as_functional_call(module):
    module.eval()
    x, own = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), dict(module.state_dict())
    kept = {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
    at = Swap(module)
    for seed in range(3):
        state = shifted(module, seed)
        state = state if seed else dict(list(state.items())[:1])  # a part of it: the rest is the module's own
        assert torch.equal(at(state, x), functional_call(module, state, (x,)))
    assert {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)} == kept
    assert all(torch.equal(value, own[name]) for name, value in module.state_dict().items())


def test_an_error_leaves_the_module_as_it_was():
    module = Tied()
    before = dict(module.named_parameters())
    with pytest.raises(RuntimeError, match="shape"):
        Swap(module)(shifted(module), torch.zeros(2, 7))
    with pytest.raises(KeyError, match="unknown"):
        Swap(module)({"unknown": torch.zeros(1)}, torch.zeros(2, 3))
    assert all(before[name] is p for name, p in module.named_parameters())
