"""No step waits for the device: every operation of whole runs is watched from the second step on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from condense.axes import Net
from condense.data import Facts
from condense.engine import condense
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.plugins import registry
from condense.rng import Rng
from condense.testing import ToyNet, toy_run, toy_splits

WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2"}


class Watch(TorchDispatchMode):
    """Remembers the operations whose result the host must wait for, with the step they came in."""

    def __init__(self):
        super().__init__()
        self.found, self.step, self.seen, self.asleep = [], 0, 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen += 1
        if not self.asleep and (name in WAITS or by_mask(name, args) or to_host(name, args, kwargs or {})):
            self.found.append((self.step, name))
        return func(*args, **(kwargs or {}))


def by_mask(name, args):
    """x[mask]: how many there are is known on the device only."""
    indices = args[1] if name in ("index", "index_put", "index_put_") else ()
    return any(index is not None and index.dtype == torch.bool for index in indices)


def to_host(name, args, kwargs):
    return name == "_to_copy" and args[0].device.type != "cpu" and kwargs.get("device") == torch.device("cpu")


class Between:
    """Watches from the end of the first step to the end of the last one."""

    def __init__(self, last):
        self.watch, self.last = Watch(), last

    @hookimpl
    def condense_stepped(self, run, index, losses):
        if index == 0:
            self.watch.__enter__()
        if index == self.last:
            self.watch.__exit__(None, None, None)
        self.watch.step = index + 1


@pytest.mark.parametrize("name", ["dc", "dsa", "dm"])
def test_a_step_never_waits_for_the_device(name, device, monkeypatch):
    recipe = registry().recipe(name)(per_class=10)
    recipe = recipe.rewrite(Net, lambda _: ToyNet()).rewrite(Fit, lambda fit: fit.with_(epochs=2, batch=16))
    recipe = recipe.with_(outer=recipe.outer.with_(steps=12))
    between = Between(11)
    choice = Rng.choice

    def on_the_host(self, n):
        between.watch.asleep = True
        try:
            return choice(self, n)
        finally:
            between.watch.asleep = False

    monkeypatch.setattr(Rng, "choice", on_the_host)  # draws on the CPU, so that control flow never waits
    splits = replace(toy_splits(device), facts=Facts(mean=(0.0,), std=(1.0,)))
    condense(toy_run(recipe, splits, observers=[between]))
    assert between.watch.seen > 1000
    assert between.watch.found == []


def test_the_watch_sees_what_waits(device):
    watch = Watch()
    x = torch.ones(3, device=device)
    with watch:
        float(x[0])
        x[x > 0]
        bool((x > 0).all())
    assert [name for _, name in watch.found] == ["_local_scalar_dense", "index", "_local_scalar_dense"]
