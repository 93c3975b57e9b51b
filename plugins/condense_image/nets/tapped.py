"""Features for modules that have none: the input of their last linear layer, caught on its way."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn


@final
class Tapped(nn.Module):
    """A module of the same outputs, with `features`: the flattened input of `head`, a layer inside it.

    Only `features` catches anything, so that a plain forward pass keeps no activation alive. The hook is a bound
    method: a deep copy of this module catches for itself.
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.catching = False
        self.caught: Tensor | None = None
        head.register_forward_pre_hook(self._catch)

    def _catch(self, head: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.catching:
            self.caught = inputs[0]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out

    def features(self, x: Tensor) -> Tensor:
        """(N, D)."""
        self.catching = True
        try:
            self.body(x)
        finally:
            caught, self.caught, self.catching = self.caught, None, False
        if caught is None:
            raise RuntimeError("the last linear layer of this module is not used in its forward pass")
        return caught.flatten(1)


def last_layer(module: nn.Module, kind: type[nn.Module]) -> nn.Module | None:
    """The last layer of this kind in the order in which the module registers them."""
    layers = [layer for layer in module.modules() if isinstance(layer, kind)]
    return layers[-1] if layers else None
