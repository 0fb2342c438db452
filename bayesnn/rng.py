"""Seeded streams of random numbers, one set a chain, and a fence around torch's global generator.

Every random number of the library comes from a :class:`torch.Generator` that somebody can name. What takes no
generator (``reset_parameters``, ``F.dropout``, ``Distribution.sample``, Pyro) runs inside :func:`isolated`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_global_state = threading.RLock()
_PURPOSES = ("noise", "shuffle", "fence", "augment")


def generator(seed: int, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for stream ``key`` of ``seed``; different keys give independent streams (numpy's
    ``SeedSequence``).
    """
    state = np.random.SeedSequence(entropy=seed, spawn_key=key).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(state >> np.uint64(1)))


@contextmanager
def isolated(stream: torch.Generator) -> Iterator[None]:
    """Run with torch's global generator replaced by ``stream``; afterwards both have their own states back.

    It is the generator of the stream's device, the CPU or one GPU. The other kind's is seeded from it as well: with a
    GPU's stream the CPU's anew each time, with a CPU's the GPUs' always alike, by the stream's own seed, because
    whether there is a GPU must not change the stream. The lock keeps two threads from restoring each other's states.
    ``stream`` advances by what was used inside.
    """
    if stream.device.type == "cuda":
        seed = int(torch.randint(2**62, (), generator=stream, device=stream.device))
        with _global_state, torch.random.fork_rng(devices=[stream.device]):
            torch.default_generator.manual_seed(seed)
            torch.cuda.set_rng_state(stream.get_state(), stream.device)
            try:
                yield
            finally:
                stream.set_state(torch.cuda.get_rng_state(stream.device))
        return
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with _global_state, torch.random.fork_rng(devices=gpus):
        torch.random.set_rng_state(stream.get_state())
        if gpus:
            torch.cuda.manual_seed_all(stream.initial_seed())
        try:
            yield
        finally:
            stream.set_state(torch.random.get_rng_state())


class Streams:
    """The random streams of one chain: they depend on ``seed``, the chain's number and the round, and on nothing else.

    ``round`` counts how often a posterior was fitted further: going on must not repeat the noise of what came before.

    Attributes
    ----------
    noise : torch.Generator
        Langevin noise, variational samples; on the chain's device.
    shuffle : torch.Generator
        The order of the data.
    fence : torch.Generator
        What stands in for torch's global generator (:func:`isolated`): initialisation, dropout; on the chain's device.
    augment : torch.Generator
        Transforms of the inputs; on the chain's device.
    """

    def __init__(self, seed: int, chain: int, device: torch.device | str = "cpu", round: int = 0) -> None:
        self.noise = generator(seed, chain, 0, round, device=device)
        self.shuffle = generator(seed, chain, 1, round)
        on_gpu = torch.device(device).type == "cuda"
        self.fence = generator(seed, chain, 2, round, device=device if on_gpu else "cpu")
        self.augment = generator(seed, chain, 3, round, device=device)

    def state_dict(self) -> dict[str, Any]:
        return {purpose: getattr(self, purpose).get_state() for purpose in _PURPOSES}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for purpose in _PURPOSES:
            getattr(self, purpose).set_state(state[purpose])
