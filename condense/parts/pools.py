"""Pools: which network is asked now, and how networks are trained meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from condense.axes import Learner, Learners, Net, Pool
from condense.data import Sampler
from condense.fit import Fit, Training
from condense.recipe import Reads, Recipe
from condense.rng import Rng
from condense.running import Run
from condense.synthetic import Synthetic


class NoModel(Pool):
    """No network: for sets that are chosen or solved, and for kernels."""

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def learners(self, run: Run, syn: Synthetic) -> Learners:
        return _Nobody()


class _Nobody(Learners):
    def next(self, index: int) -> Learner:
        return Learner(None)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return


class Fresh(Pool):
    """A freshly initialised network every `turns` outer steps, trained by `inner` between its turns.

    turns=1 is DM's random network; turns=10 with 50 epochs on the synthetic set is DC's double loop at 10 images per
    class (the network is not trained after its last turn). `every`: it is trained after each so many turns, not after
    each one (10 in PSG, arXiv:2211.04446). `on`: what it is trained on. `calibrate`: networks with batch norm get their
    statistics from that many real examples of each class at every turn, then keep them (DC's code: 16). Where the set
    was made for weights of this network (`Sampler.initial`), it starts from these.
    """

    net: Net
    turns: int = Field(default=1, ge=1)
    every: int = Field(default=1, ge=1)
    inner: Fit | None = None
    on: Literal["synthetic", "real"] = "synthetic"
    calibrate: int = Field(default=16, ge=1)

    def reads(self, recipe: Recipe) -> Reads:
        return Reads(examples=self.on == "real")

    def learners(self, run: Run, syn: Synthetic) -> Learners:
        return _Turns(self, run, syn)


class _Turns(Learners):
    """One module, re-initialised in place: compiled passes are made for its structure once."""

    def __init__(self, pool: Fresh, run: Run, syn: Synthetic) -> None:
        self.pool, self.run, self.syn = pool, run, syn
        self.module = pool.net.make(run.task, run.rng.fold("pool", 0), run.device)
        self.training: Training | None = None
        self.life = 0

    def next(self, index: int) -> Learner:
        self.life, turn = divmod(index, self.pool.turns)
        rng = self.run.rng.fold("pool", self.life)
        if turn == 0:
            fresh = self.pool.net.make(self.run.task, rng, self.run.device)
            self.module.load_state_dict(fresh.state_dict())
            if self.syn.initial is not None:
                self.syn.initial.put(self.pool.net, self.module)
            self.training = self._begin()
        elif self.training is not None and turn % self.pool.every == 0:
            data = self._data(rng.fold("freeze", turn))
            self.training.advance(data, self.training.fit.length(data))
        self.module.train()
        calibrate(self.module, self.run, self.pool.calibrate, rng.fold("calibrate", turn))
        return Learner(self.module, age=turn)

    def _begin(self) -> Training | None:
        rng = self.run.rng.fold("pool", self.life, "inner")
        return self.pool.inner.begin(self.module, rng) if self.pool.inner else None

    def _data(self, rng: Rng) -> Sampler:
        return self.run.splits.train if self.pool.on == "real" else self.syn.freeze(rng)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"life": self.life, "module": dict(self.module.state_dict())}
        if self.training is not None:
            state["training"] = self.training.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.life = state["life"]
        self.module.load_state_dict(state["module"])
        self.training = self._begin()
        if self.training is not None:
            self.training.load_state_dict(state["training"])


def calibrate(module: nn.Module, run: Run, n: int, rng: Any) -> None:
    """Fix batch-norm statistics to those of n real examples of each class; does nothing without batch norm."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    with torch.no_grad():
        module(run.splits.train.draw(n, "each", rng).x)
    for norm in norms:
        norm.eval()
