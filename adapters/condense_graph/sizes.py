"""How many nodes are asked for: what every recipe for nodes takes."""

from __future__ import annotations

from typing import Literal

from condense.axes import Budget
from condense.errors import BadValue
from condense.parts.budgets import Ratio, Total

Of = Literal["train", "all"]


def nodes(total: int | None, ratio: float | None, of: str) -> Budget:
    """`total` nodes, or the share `ratio` `of` the labelled training nodes or of all; half of train if neither is said.

    Divided among the classes by their shares of the training nodes. Raises `BadValue` where both are given.
    """
    if total is not None and ratio is not None:
        raise BadValue("ratio", ratio, f"is given beside total = {total}", "Give one of the two.")
    if total is not None:
        return Total(n=total)
    return Ratio.model_validate({"r": 0.5 if ratio is None else ratio, "of": of})
