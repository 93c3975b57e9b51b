"""What all image sources share: they are read as parts, checked, divided, and held on a device as they are stored."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import Field

from condense.data import Data, Splits
from condense.splits import Parts, make_splits


class Images(Data):
    """Images of one size. x is (N, C, H, W) uint8 in the source (float32 where the files hold floats), y int64.

    validation: the share of the training part that becomes the validation part, stratified, by `seed`; 0: none.
    `facts.extra["mirror"]` says whether a mirrored image keeps its meaning.
    """

    validation: float = Field(default=0.0, ge=0, lt=1)
    seed: int = 0

    @abstractmethod
    def read(self) -> Parts:
        """The set as it lies on disk. Raises `BadData`."""

    @property
    def held_out(self) -> float:
        """The share of train that becomes the test part, where the set has none."""
        return 0.0

    def open(self, device: torch.device | str = "cpu") -> Splits:
        parts = self.read()
        return make_splits(parts, test=self.held_out, validation=self.validation, seed=self.seed, device=device)
