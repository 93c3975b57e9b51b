"""Which weights of a network under training are kept: those that say most of the validation split.

The test split has no part in it. A look costs one ordered pass over the validation split and, since a metric is a
number of the host, one wait for the device; weights are copied, on the device, only where the score is the highest yet.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from .axes import Learn
from .data import Sampler
from .protocol import Protocol


class Best:
    """The weights and buffers under which the network scored highest; of equal scores the first counts.

    A score of NaN is lower than any number. A network that was never looked at keeps the weights that it has.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.score = module, -math.inf
        self.weights: dict[str, Tensor] | None = None

    def see(self, score: float) -> None:
        """The network scores so much as it is now."""
        score = -math.inf if math.isnan(score) else score
        if self.weights is None or score > self.score:
            self.score = score
            self.weights = {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def restore(self) -> None:
        """Put them back into the network."""
        if self.weights is not None:
            self.module.load_state_dict(self.weights)


def interval(protocol: Protocol, fit: Learn, data: Sampler) -> int:
    """Training steps between two looks at validation: see `Protocol.look`."""
    return fit.interval(data, protocol.look)
