"""Selections: which of the sets that a run passes through is released."""

from __future__ import annotations

from pydantic import Field

from condense.axes import Net, Selection
from condense.data import VALIDATE, Splits
from condense.errors import BadData
from condense.evaluate import answers
from condense.fit import Fit
from condense.metrics import accuracy
from condense.running import Run
from condense.synthetic import Synthetic


class OnValidation(Selection):
    """The set on which networks learn to tell the validation examples apart best, by mean accuracy.

    Looked at are the first set and the last, and `times - 1` in between, evenly. The `repeats` networks start from the
    same weights each time, so sets are compared in pairs. The literature's codes print the accuracy on test along the
    way and report the best (GCond's and others'): this is the same search without the leak.
    """

    net: Net
    fit: Fit
    times: int = Field(default=10, ge=1)
    repeats: int = Field(default=2, ge=1)

    def looks(self, done: int, steps: int) -> bool:
        return done < steps and (done * self.times) % steps < self.times

    def admit(self, splits: Splits) -> None:
        if splits.validation is None:
            remedy = f"{VALIDATE}, or release the last set: --set selection=null --set protocol.keep=last."
            raise BadData("data", None, "has no validation split, by which a set could be selected", remedy)

    def score(self, run: Run, syn: Synthetic) -> float:
        assert run.splits.validation is not None
        data, found = syn.freeze(), []
        for i in range(self.repeats):
            key = run.rng.fold("selection", i)
            training = self.fit.begin(self.net.make(run.task, key.fold("make"), run.device), key.fold("train"))
            training.advance(data, self.fit.length(data))
            scores, y = answers(training, run.splits.validation)
            found.append(accuracy(scores[0], run.task.hard(y)))
        return sum(found) / len(found)
