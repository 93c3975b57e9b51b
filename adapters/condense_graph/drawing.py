"""Pictures of condensed graphs, as PNG bytes. Equal input gives equal bytes.

Notation: N nodes, D features, E directed edges, G graphs.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from condense.task import Picture

Array = np.ndarray[Any, np.dtype[Any]]

NODES = 300  # nodes of one drawing: of a larger graph those of the largest degree
SMALL = 60  # the same, of one graph among several
EDGES, FEW = 3, 4  # of a graph with more edges than FEW a node, those that are the heaviest of a node
CELLS = 500  # rows of an adjacency picture
COLUMNS, ROWS = 8, 10  # graphs of a class, classes
NAMES = 20  # class names of a legend
PAPER, INK, FAINT = "#ffffff", "#1c1e22", "#9aa0ab"


def of_nodes(x: Tensor, edges: Tensor, weights: Tensor, y: Tensor, classes: Sequence[str]) -> list[Picture]:
    """One graph, features x (N, D), edges (2, E), weights (E,), labels y (N,): its nodes, and its adjacency matrix.

    Without edges, the nodes lie by their features.
    """
    joined = undirected(_numbers(edges), _numbers(weights))
    labels = _numbers(y)
    if not len(joined[0]):
        return [by_features(_numbers(x.float()), labels, classes)]
    return [by_edges(joined, labels, classes), adjacency(joined, labels, classes)]


def _numbers(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()


def undirected(edges: Array, weights: Array) -> tuple[Array, Array]:
    """Each pair of joined nodes once, (E', 2) with the lower number first, and the heavier of its two weights (E',)."""
    pairs = np.sort(edges.T, axis=1)
    order = np.lexsort((-weights, pairs[:, 1], pairs[:, 0]))
    pairs, weights = pairs[order], weights[order]
    new = np.ones(len(pairs), dtype=bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[new], weights[new]


# -- nodes ----------------------------------------------------------------------------------------------------------


def by_edges(joined: tuple[Array, Array], y: Array, classes: Sequence[str]) -> Picture:
    """Nodes by class colour, those that are joined close to each other; edges as wide as they are heavy."""
    pairs, weights = joined
    kept = most_joined(pairs, weights, len(y), NODES)
    pairs, weights = within(pairs, weights, kept)
    drawn = heaviest(pairs, weights, len(kept))
    place = laid_out(len(kept), pairs[drawn], weights[drawn], y[kept])
    figure, axes = _blank(6.4, 5.8)
    _edges(axes, place, pairs[drawn], weights[drawn], wide=1 if len(kept) > 20 else 2)
    _nodes(axes, place, y[kept], classes, size=min(160, max(14, 5000 / len(kept))))
    said = [f"Each point is a node, coloured by its class; {_width(weights)}"]
    if len(kept) < len(y):
        said.append(f"Shown are the {len(kept):,} of {len(y):,} nodes with the heaviest edges.")
    if len(drawn) < len(pairs):
        said.append(
            f"Of {len(pairs):,} edges between them {len(drawn):,} are drawn: the {EDGES} heaviest of each node."
        )
    return Picture("graph", _png(figure), " ".join(said))


def _width(weights: Array) -> str:
    return "all edges weigh the same." if np.ptp(weights) == 0 else "the wider an edge, the heavier it is."


def by_features(x: Array, y: Array, classes: Sequence[str]) -> Picture:
    """Nodes without edges, (N, D): by the two directions in which their features differ most."""
    kept = np.arange(len(x))[:: -(-len(x) // NODES)]
    figure, axes = _blank(6.4, 5.8)
    _nodes(axes, principal(x)[kept], y[kept], classes, size=45)
    said = (
        "Each point is a node, coloured by its class. The set has no edges: nodes lie by the two principal "
        "directions of their features."
    )
    if len(kept) < len(x):
        said += f" Shown are {len(kept):,} of {len(x):,}."
    return Picture("nodes", _png(figure), said)


def principal(x: Array) -> Array:
    """Two principal components, (N, 2) in [-1, 1]; of each, the feature of the largest share counts upwards."""
    centred = x.astype(np.float64) - x.mean(axis=0)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(x), 2))
    for i in range(min(2, len(values))):
        sign = np.sign(right[i, np.abs(right[i]).argmax()]) or 1.0
        found[:, i] = sign * left[:, i] * values[i]
    return np.asarray(found / max(np.abs(found).max(), 1e-12))


def most_joined(pairs: Array, weights: Array, n: int, most: int) -> Array:
    """The nodes with the heaviest edges in all, ascending; all of them where they are no more than `most`."""
    total = np.bincount(pairs.flatten(), np.repeat(weights, 2), minlength=n)
    return np.sort(np.argsort(-total, kind="stable")[:most])


def within(pairs: Array, weights: Array, nodes: Array) -> tuple[Array, Array]:
    """The edges between `nodes` (ascending), renumbered by their places in it."""
    inside = np.isin(pairs, nodes).all(axis=1)
    return np.searchsorted(nodes, pairs[inside]), weights[inside]


def heaviest(pairs: Array, weights: Array, n: int) -> Array:
    """The edges to draw, heaviest first: all, or those among the `EDGES` heaviest of one of their two nodes."""
    if len(pairs) <= FEW * n:
        return np.argsort(-weights, kind="stable")
    seen, kept = np.zeros(n, dtype=np.int64), []
    for edge in np.argsort(-weights, kind="stable"):
        if (seen[pairs[edge]] < EDGES).any():
            kept.append(edge)
        seen[pairs[edge]] += 1
    return np.array(kept, dtype=np.int64)


def laid_out(n: int, pairs: Array, weights: Array, groups: Array) -> Array:
    """Places (n, 2): springs along the edges, and weak ones that keep a group together. Seeded."""
    import networkx

    graph = networkx.Graph()
    graph.add_nodes_from(range(n))
    pull = 0.4 + 0.6 * weights / max(float(weights.max(initial=0)), 1e-12)
    graph.add_weighted_edges_from((int(a), int(b), float(w)) for (a, b), w in zip(pairs, pull, strict=True))
    graph.add_weighted_edges_from((i, f"group {group}", 0.3) for i, group in enumerate(groups))
    angle = 2 * np.pi * groups / max(1, groups.max(initial=0) + 1)
    noise = np.random.default_rng(0).normal(size=(n, 2))
    start: dict[Any, Array] = {
        i: place for i, place in enumerate(np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.2 * noise)
    }
    start |= {f"group {g}": np.array([np.cos(a), np.sin(a)]) for g, a in zip(groups, angle, strict=True)}
    found = networkx.spring_layout(graph, pos=start, iterations=80, k=1.6 / np.sqrt(max(1, n)), seed=0)
    return np.stack([found[i] for i in range(n)]) if n else np.zeros((0, 2))


# -- the adjacency matrix -------------------------------------------------------------------------------------------


def adjacency(joined: tuple[Array, Array], y: Array, classes: Sequence[str]) -> Picture:
    """The weights of all pairs, nodes sorted by class; of many nodes, means over squares of pairs."""
    pairs, weights = joined
    order = np.argsort(y, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(y))
    step = -(-len(y) // CELLS)
    side = -(-len(y) // step)
    cells = np.zeros((side, side))
    for a, b in (pairs.T, pairs.T[::-1]):
        np.add.at(cells, (place[a] // step, place[b] // step), weights)
    edges_at = np.searchsorted(y[order], np.arange(len(classes) + 1)) / step
    figure, axes = _blank(6.0, 5.8)
    axes.set_axis_on()
    axes.imshow(cells / step**2, cmap="Blues", vmin=0, interpolation="nearest", extent=(0, side, side, 0))
    for at in edges_at[1:-1]:
        axes.axhline(at, color=FAINT, linewidth=0.6)
        axes.axvline(at, color=FAINT, linewidth=0.6)
    _name_classes(axes, (edges_at[1:] + edges_at[:-1]) / 2, classes)
    squares = "" if step == 1 else f" Each square is the mean over {step} x {step} pairs."
    return Picture(
        "adjacency",
        _png(figure),
        f"The weight of each pair of nodes, sorted by class: the darker, the heavier.{squares}",
    )


def _name_classes(axes: Any, at: Array, classes: Sequence[str]) -> None:
    shown = classes if len(classes) <= NAMES else ()
    names = [_short(name, 12) for name in shown]
    axes.set_yticks(at[: len(names)], names)
    axes.set_xticks(at[: len(names)], names, rotation=90 if max(map(len, names), default=0) > 3 else 0)
    axes.tick_params(length=0, labelsize=7, colors=INK)


# -- sets of graphs -------------------------------------------------------------------------------------------------


def of_graphs(
    x: Tensor, edges: Tensor, weights: Tensor, sizes: Tensor, y: Tensor, classes: Sequence[str]
) -> list[Picture]:
    """Graphs side by side, sizes (G,) nodes each, labels y (G,): the first of each class, a class in each row."""
    bounds = np.concatenate([[0], np.cumsum(_numbers(sizes))])
    joined, labels, kinds = undirected(_numbers(edges), _numbers(weights)), _numbers(y), _numbers(x.argmax(dim=1))
    rows = [(c, np.flatnonzero(labels == c)) for c in range(len(classes)) if (labels == c).any()]
    across = min(COLUMNS, max(len(found) for _, found in rows))
    figure = _figure(1.2 * across + 1.2, 1.25 * len(rows[:ROWS]) + 0.1)
    table = figure.subplots(len(rows[:ROWS]), across, squeeze=False)
    parts = 0
    for line, (c, found) in zip(table, rows[:ROWS], strict=True):
        for axes, at in zip(line, [*found[:across], *[None] * (across - len(found))], strict=False):
            axes.set_axis_off()
            if at is not None:
                parts += _one_graph(axes, joined, kinds, int(bounds[at]), int(bounds[at + 1]))
        line[0].set_title(_short(classes[c], 18), fontsize=8, loc="left", color=INK)
    return [Picture("graphs", _png(figure), _said_of_graphs(rows, across, parts))]


def _said_of_graphs(rows: Sequence[tuple[int, Array]], across: int, parts: int) -> str:
    said = ["Each row is a class; nodes are coloured by their largest feature."]
    if len(rows) > ROWS or max(len(found) for _, found in rows) > across:
        said.append(f"Shown: at most {across} graphs of each of {min(ROWS, len(rows))} classes.")
    if parts:
        said.append(f"Of graphs with more than {SMALL} nodes or many edges, those of most weight are drawn.")
    return " ".join(said)


def _one_graph(axes: Any, joined: tuple[Array, Array], kinds: Array, first: int, end: int) -> bool:
    """Draw the nodes first..end-1; returns whether some were left out."""
    from matplotlib import colormaps

    nodes = np.arange(first, end)
    pairs, weights = within(*joined, nodes)
    kept = most_joined(pairs, weights, len(nodes), SMALL)
    pairs, weights = within(pairs, weights, kept)
    drawn = heaviest(pairs, weights, len(kept))
    place = laid_out(len(kept), pairs[drawn], weights[drawn], np.zeros(len(kept), dtype=np.int64))
    _edges(axes, place, pairs[drawn], weights[drawn])
    colours = colormaps["tab20"](kinds[nodes[kept]] % 20)
    axes.scatter(*place.T, s=14, c=colours, linewidths=0, zorder=2)
    axes.set_aspect("equal")
    return len(kept) < len(nodes) or len(drawn) < len(pairs)


# -- ink ------------------------------------------------------------------------------------------------------------


def _edges(axes: Any, place: Array, pairs: Array, weights: Array, wide: float = 1.0) -> None:
    from matplotlib.collections import LineCollection

    heaviest = max(float(weights.max(initial=0)), 1e-12)
    widths = wide * (0.25 + 1.1 * weights / heaviest)
    alpha = min(0.8, max(0.3, 160 / max(1, len(pairs))))
    axes.add_collection(LineCollection(list(place[pairs]), linewidths=widths, colors=FAINT, alpha=alpha, zorder=1))


def _nodes(axes: Any, place: Array, y: Array, classes: Sequence[str], size: float) -> None:
    present = [c for c in range(len(classes)) if (y == c).any()]
    for c in present:
        mine = place[y == c]
        name = _short(classes[c], 22) if len(present) <= NAMES else None
        axes.scatter(
            *mine.T, s=size, color=colour(c, len(classes)), edgecolors=PAPER, linewidths=0.5, label=name, zorder=2
        )
    if len(present) <= NAMES:
        how = {
            "loc": "upper center",
            "ncols": min(3 if len(present) > 4 else 4, len(present)),
            "frameon": False,
            "labelcolor": INK,
        }
        axes.legend(bbox_to_anchor=(0.5, 0.0), fontsize=9, handletextpad=0.2, columnspacing=1.2, **how)


def colour(cls: int, of: int) -> Any:
    """The colour of a class among so many."""
    from matplotlib import colormaps

    if of <= 10:
        return colormaps["tab10"](cls)
    return colormaps["tab20"](cls) if of <= 20 else colormaps["turbo"](cls / (of - 1))


def _figure(wide: float, high: float) -> Any:
    """A figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(wide, high), dpi=110, layout="constrained", facecolor=PAPER)


def _blank(wide: float, high: float) -> tuple[Any, Any]:
    figure = _figure(wide, high)
    axes = figure.subplots()
    axes.set_axis_off()
    return figure, axes


def _png(figure: Any) -> bytes:
    raw = io.BytesIO()
    figure.savefig(raw, format="png", metadata={"Software": None})
    return raw.getvalue()


def _short(text: str, most: int) -> str:
    """One line that matplotlib shows as it stands: a dollar begins no formula."""
    line = " ".join(text.split())
    return (line if len(line) <= most else line[: most - 3] + "...").replace("$", r"\$")
