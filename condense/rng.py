"""Keyed randomness: a generator is a function of a seed and a path of keys, never of what was drawn before.

So an observer, a shard or a rank that draws changes no bit of anything else, and a checkpoint holds no generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Key = str | int


@dataclass(frozen=True)
class Rng:
    """A node of the tree of keys. `fold` goes down one or more levels; `generator` makes the stream of this node."""

    root: int
    path: tuple[Key, ...] = ()

    def fold(self, *key: Key) -> Rng:
        return Rng(self.root, self.path + key)

    @property
    def seed(self) -> int:
        """63 bits that depend on the root and on every key of the path (types and borders included)."""
        text = "\x1f".join([str(self.root), *(f"{type(k).__name__}:{k}" for k in self.path)])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        return torch.Generator(device).manual_seed(self.seed)

    def choice(self, n: int) -> int:
        """One of 0..n-1, decided on the host: control flow never waits for a device."""
        return int(torch.randint(n, (), generator=self.generator()))

    def order(self, n: int) -> list[int]:
        """0..n-1 in an order that is decided on the host."""
        return [int(i) for i in self.permutation(n)]

    def permutation(self, n: int, device: torch.device | str = "cpu") -> torch.Tensor:
        return torch.randperm(n, generator=self.generator(device), device=device)


@contextmanager
def seeded(rng: Rng, device: torch.device | str = "cpu") -> Iterator[None]:
    """Fence for code that reads torch's global generator (weight initialisation, dropout): seed it, then restore it.

    The generators themselves: `fork_rng` and `manual_seed` ask every kind of device and take 0.1 ms.
    """
    generators = [torch.default_generator]
    if torch.device(device).type == "cuda":
        index = torch.device(device).index
        generators.append(torch.cuda.default_generators[torch.cuda.current_device() if index is None else index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(rng.seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
