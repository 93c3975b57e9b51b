"""Bi-level optimisation by unrolling: a network that was trained on the set should be right about real examples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from condense.axes import Loss, Objective, TaskLoss, Term
from condense.fit import Fit
from condense.running import Step
from condense.task import Batch


class Bilevel(Objective):
    """The loss on real examples of a network after training by `fit` on the set, differentiated through its steps.

    n: real examples of a step, as the chunks of one permutation per epoch (None: all). They are augmented by the
    recipe's augmentation, each on its own; the training by the fit's. target_loss: of what the network says of them.
    window: how many training steps are differentiated, which are the last ones (None, or more than `fit` has: all).
    The window then begins after a random number of steps: at least `least` come before it, and at most as many as leave
    room for it in the length of `fit`, with equal probability. redraw: a new number for every outer step, or for every
    epoch of real examples. segment: how many steps are recorded at a time (see `unrolling.unroll`).
    It reads real examples: a private source refuses it.
    Sources: Wang et al. (arXiv:1811.10959), algorithm 1; RaT-BPTT (Feng et al., ICLR 2024, arXiv:2311.07025).
    """

    fit: Fit
    n: int | None = Field(default=1024, ge=1)
    window: int | None = Field(default=None, ge=1)
    least: int = Field(default=0, ge=0)
    redraw: Literal["step", "epoch"] = "step"
    segment: int | None = Field(default=None, ge=1)
    target_loss: Loss = TaskLoss()

    def held(self, items: int) -> int:
        windows = [steps for steps in (self.window, self.segment) if steps is not None]
        return self.fit.unrolled(items, min(windows, default=None)) + (self.n or 0)

    def __call__(self, step: Step) -> list[Term]:
        run, module = step.run, step.model
        before, window = self.place(step)
        student = self.fit.unroll(
            module, None, step.syn, step.rng.fold("student"), before + window, graph_from=before, segment=self.segment
        )
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}

        def say(x: Any) -> Tensor:
            logits: Tensor = functional_call(module, {**buffers, **student}, (x,))
            return logits

        real = step.real.draw(self.n, None, run.rng.fold("bilevel"), at=step.index)
        real = Batch(real.x, run.recipe.labels.encode(real.y, step.syn.task), real.index)
        real = run.recipe.augment.sample(step.rng.fold("warp"), len(real), step.progress)(real)
        losses = self.target_loss(say, real, step.syn.task, step.rng.fold("loss"))
        return [Term({"real": losses.mean()})]

    def place(self, step: Step) -> tuple[int, int]:
        """How many training steps come before the window of this outer step, and how many the window has."""
        total = self.fit.length(step.syn)
        if self.window is None or self.window >= total:
            return 0, total
        least = min(self.least, total - self.window)
        at = step.index // step.real.chunks(self.n) if self.redraw == "epoch" else step.index
        return least + step.run.rng.fold("window", at).choice(total - self.window - least + 1), self.window
