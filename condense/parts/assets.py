"""Assets that know no modality."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import Field
from torch import nn

from condense import store
from condense.axes import Asset, Net
from condense.checkpoint import Checkpoints
from condense.fit import Fit, Training
from condense.running import Run


class Trained(Asset):
    """A network trained on the training split. `member` tells apart several that are trained alike."""

    net: Net
    fit: Fit
    member: int = Field(default=0, ge=0)

    def make(self, run: Run, folder: Path) -> None:
        """Train it, saving every 500 steps: an interrupted making goes on where it was."""
        module, training = self._begin(run)
        kept = Checkpoints(folder, keep=1)
        if found := kept.latest():
            module.load_state_dict(found[1]["module"])
            training.load_state_dict(found[1]["training"])
        data = run.splits.train
        total = self.fit.length(data)
        while training.at < total:
            training.advance(data, min(500, total - training.at), of=total)
            kept.save(training.at, {"module": dict(module.state_dict()), "training": training.state_dict()})
        store.save(folder / "network.safetensors", dict(module.state_dict()), "network")

    def work(self, run: Run) -> tuple[int, Callable[[int], object]]:
        data = run.splits.train
        _, training = self._begin(run)
        total = self.fit.length(data)
        return total, lambda steps: training.advance(data, steps, of=total)

    def _begin(self, run: Run) -> tuple[nn.Module, Training]:
        rng = run.rng.fold("trained", self.member)
        module = self.net.make(run.task, rng, run.device)
        return module, self.fit.begin(module, rng)

    def load(self, folder: Path, run: Run) -> nn.Module:
        module = self.net.make(run.task, run.rng, run.device)
        module.load_state_dict(store.load(folder / "network.safetensors", "network"))
        return module.eval().requires_grad_(False)
