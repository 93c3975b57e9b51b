"""Assets that know no modality."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from torch import nn

from condense import store
from condense.axes import Asset, Net
from condense.checkpoint import Checkpoints
from condense.fit import Fit
from condense.running import Run


class Trained(Asset):
    """A network trained on the training split. `member` tells apart several that are trained alike."""

    net: Net
    fit: Fit
    member: int = Field(default=0, ge=0)

    def make(self, run: Run, folder: Path) -> None:
        """Train it, saving every 500 steps: an interrupted making goes on where it was."""
        rng = run.rng.fold("trained", self.member)
        module = self.net.make(run.task, rng, run.device)
        training = self.fit.begin(module, rng)
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

    def load(self, folder: Path, run: Run) -> nn.Module:
        module = self.net.make(run.task, run.rng, run.device)
        module.load_state_dict(store.load(folder / "network.safetensors", "network"))
        return module.eval().requires_grad_(False)
