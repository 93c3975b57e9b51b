"""Pools: which network is asked now, and how networks are trained meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
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
    each one (10 in PSG, arXiv:2211.04446). `on`: what it is trained on. `calibrate`: the batch norms of a network see
    that many real examples of each class at every turn, once, and then work with their running statistics as they are
    (DC's code: 16). Where the set was made for weights of this network (`Sampler.initial`), it starts from these.
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


class Online(Pool):
    """`size` networks that are trained on the synthetic set while it is learned, one of them lent for each step.

    Which one is drawn anew for each step. After its step it is trained by `inner`, on the set as it is now, for
    `inner.steps` steps, or for a number drawn from inner.steps..most. It is replaced by a fresh one once it is due.
    staggered: the networks start at the ages 0, max_age // size, 2 (max_age // size), ..., counted in training steps
    and not yet trained, so that they are replaced in turns; due is what has been trained for more than `max_age` steps,
    and a network that is due is replaced in place of its training (FRePo, arXiv:2206.00719). Otherwise all start at 0,
    and due is what has been trained for `max_age` steps or more, right after its training (RCIG, arXiv:2302.06755).

    Networks are lent in evaluation mode: batch norm works with the statistics that it gathered in training.
    """

    net: Net
    inner: Fit
    size: int = Field(default=10, ge=1)
    max_age: int = Field(default=100, ge=1)
    most: int | None = Field(default=None, ge=1)
    staggered: bool = True

    @model_validator(mode="after")
    def _counted_in_steps(self) -> Online:
        if not self.inner.steps:
            raise ValueError("networks of an online pool are trained for steps: give inner.steps, 1 or more")
        if self.most is not None and self.most < self.inner.steps:
            raise ValueError(f"most is {self.most}, which is below inner.steps, {self.inner.steps}")
        return self

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def learners(self, run: Run, syn: Synthetic) -> Learners:
        return _Online(self, run, syn)


class _Online(Learners):
    """The networks, each with its training and its age: a slot's life number is the key of all that it draws."""

    def __init__(self, pool: Online, run: Run, syn: Synthetic) -> None:
        self.pool, self.run, self.syn = pool, run, syn
        self.rng = run.rng.fold("online")
        step = pool.max_age // pool.size if pool.staggered else 0
        self.ages = [step * slot for slot in range(pool.size)]
        self.lives = [0] * pool.size
        self.modules = [self._fresh(slot) for slot in range(pool.size)]
        self.trainings = [self._begin(slot) for slot in range(pool.size)]

    def next(self, index: int) -> Learner:
        if index:
            self._train(self._slot(index - 1), index - 1)
        slot = self._slot(index)
        return Learner(self.modules[slot].eval(), age=self.ages[slot])

    def _slot(self, index: int) -> int:
        return self.rng.fold("slot", index).choice(self.pool.size)

    def _train(self, slot: int, index: int) -> None:
        """After outer step `index`: train the network, or replace it."""
        if self.pool.staggered and self.ages[slot] > self.pool.max_age:
            self._replace(slot)
            return
        steps = self.pool.inner.steps or 0
        if self.pool.most is not None:
            steps += self.rng.fold("steps", index).choice(self.pool.most - steps + 1)
        training = self.trainings[slot]
        length = max(self.pool.max_age, training.at) + steps  # a life may go on beyond max_age: no schedule is left
        training.advance(self.syn.freeze(self.rng.fold("freeze", index)), steps, of=length)
        self.ages[slot] += steps
        if not self.pool.staggered and self.ages[slot] >= self.pool.max_age:
            self._replace(slot)

    def _replace(self, slot: int) -> None:
        """A fresh network, in the module that is there: compiled passes are made for its structure once."""
        self.lives[slot], self.ages[slot] = self.lives[slot] + 1, 0
        self.modules[slot].load_state_dict(self._fresh(slot).state_dict())
        self.trainings[slot] = self._begin(slot)

    def _key(self, slot: int) -> Rng:
        return self.rng.fold("network", slot, self.lives[slot])

    def _fresh(self, slot: int) -> nn.Module:
        return self.pool.net.make(self.run.task, self._key(slot), self.run.device)

    def _begin(self, slot: int) -> Training:
        return self.pool.inner.begin(self.modules[slot], self._key(slot).fold("inner"))

    def state_dict(self) -> dict[str, Any]:
        return {
            "ages": list(self.ages),
            "lives": list(self.lives),
            "modules": [dict(module.state_dict()) for module in self.modules],
            "trainings": [training.state_dict() for training in self.trainings],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.ages, self.lives = list(state["ages"]), list(state["lives"])
        for slot, module in enumerate(self.modules):
            module.load_state_dict(state["modules"][slot])
            self.trainings[slot] = self._begin(slot)
            self.trainings[slot].load_state_dict(state["trainings"][slot])


def calibrate(module: nn.Module, run: Run, n: int, rng: Any) -> None:
    """Move the running statistics of batch norm once, by its own momentum, towards those of n real examples of each
    class, and keep them; does nothing without batch norm.

    As DC's code does: with torch's momentum of 0.1 they are then 0.9 of where they start, and 0.1 of the examples.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    with torch.no_grad():
        module(run.splits.train.draw(n, "each", rng).x)
    for norm in norms:
        norm.eval()
