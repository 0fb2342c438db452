"""A module called at other weights than its own, as ``torch.func.functional_call`` does, for many states in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Swap:
    """``Swap(module)(state, *args)`` is ``functional_call(module, state, args)`` with parameters tied as they are.

    Where each tensor has to go is looked up once and not in every call: of a tiny net, that takes longer than a forward
    pass.

    Parameters
    ----------
    module : whose parameters and buffers stay the same objects for as long as this one is used.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        places: dict[int, list[tuple[dict[str, Any], str]]] = {}
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    places.setdefault(id(tensor), []).append((tensors, name))
        named = [*module.named_parameters(), *module.named_buffers()]
        self._places = {name: places[id(tensor)] for name, tensor in named}

    def __call__(self, state: Mapping[str, Tensor], *args: Any) -> Any:
        own = [(tensors, name, tensors[name]) for key in state for tensors, name in self._places[key]]
        try:
            for key, value in state.items():
                for tensors, name in self._places[key]:
                    tensors[name] = value
            return self._module(*args)
        finally:
            for tensors, name, tensor in own:
                tensors[name] = tensor
