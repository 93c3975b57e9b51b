"""The command `condense-graph`: condense with the words of graphs. What it does, `condense` does too.

`--nodes N` is `--total N`; `--setting inductive` is `--set data.setting=inductive`; left out, the data is `karate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from condense.faces import Face, option

Setting = Annotated[
    Literal["transductive", "inductive"] | None,
    option("--setting", "S", "transductive (test nodes are seen, without labels) or inductive (default: the data's)."),
]
Nodes = Annotated[int | None, option("--nodes", "N", "Nodes in all, of a condensed graph.")]
Share = Annotated[float | None, option("--ratio", "R", "Instead of --nodes: a share of the nodes, in (0, 1].")]
Of = Annotated[
    Literal["train", "all"] | None,
    option("--of", "WHICH", "What --ratio is a share of: train, the labelled nodes (default), or all nodes."),
]
PerClass = Annotated[int | None, option("--per-class", "N", "Graphs of each class, where the data is a set of graphs.")]


def settled(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `condense run` or `show` that those of this program come to."""
    setting = arguments.pop("setting")
    if setting is None:
        return arguments
    return {**arguments, "settings": [f"data.setting={setting}", *(arguments["settings"] or ())]}


FACE = Face(
    program="condense-graph",
    help="Learn a small graph from a large one, or a few graphs from many, so that networks trained on it do nearly as "
    "well.",
    forms=("nodes", "graphs"),
    defaults={"data": "karate"},
    spelt={"total": Nodes, "ratio": Share, "of": Of, "per_class": PerClass},
    own={"setting": Setting},
    settle=settled,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `condense-graph`: never returns."""
    FACE.main(arguments)
