"""What is stored of condensed sets of graphs: dense graphs of one size with drawn edges, or real graphs as they are.

Edges are Bernoulli variables with free logits, relaxed (see `drawn`) while the set is learned, as in DosCond
(arXiv:2206.07746, section 3.2); what is released is the graph of the edges that are more likely than not.

Notation: G synthetic graphs, n nodes of each, D features, N nodes of all.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar, final

import torch
from pydantic import Field
from torch import Tensor, nn

from condense.axes import Labels, Objective, Parameterization, Term
from condense.component import Component
from condense.errors import BadValue
from condense.parts.inits import RealExamples
from condense.recipe import Reads, Recipe
from condense.rng import Rng
from condense.running import Run, Step
from condense.synthetic import Synthetic
from condense.task import Batch, Task

from .collections import DenseGraphs, Graphs, GraphSet, SparseGraphs
from .drawn import concrete, symmetric_uniform, temperature, without_loops
from .graph import Graph
from .parameterizations import bytes_of

SURE = 5.0  # logits of the edges that a set starts with; those that it starts without have -SURE


# -- dense graphs of one size ---------------------------------------------------------------------------------------


class DenseStorage(Parameterization):
    """Abstract: graphs of n nodes each, with free features; members say how the edges are stored.

    nodes: n; None: `share` times the mean of the training graphs, rounded up. Real graphs that the set starts from are
    padded, and larger ones cut to their first n nodes. masked: what was padded stays padding, which no pooling counts;
    else it is nodes like the others, without features and edges at first (as in the code of DosCond and KIDD).
    """

    nodes: int | None = Field(default=None, ge=1)
    share: float = Field(default=1.0, gt=0)
    masked: bool = False

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def check(self, recipe: Recipe, task: Task) -> None:
        if not isinstance(task.form, Graphs):
            problem = f"stores sets of graphs, and these are {task.form.noun}"
            raise BadValue("parameterization", self.name, problem, "Use data of graphs, or `pixels`.")

    def room(self, task: Task) -> int:
        """n on this task."""
        return self.nodes or max(1, math.ceil(self.share * task.shape[0]))


class DenseSet(Synthetic):
    """Abstract: features (G, n, D) and labels; subclasses store the edges."""

    mask: Tensor | None

    def __init__(self, how: DenseStorage, task: Task, groups: Tensor, labels: Labels) -> None:
        super().__init__(task, groups, labels.blank(groups, task), labels.loss())
        shape = (len(groups), how.room(task), task.shape[1])
        self.features = nn.Parameter(torch.zeros(shape))
        self.register_buffer("mask", torch.ones(shape[:2], dtype=torch.bool) if how.masked else None)

    @abstractmethod
    def keep(self, adj: Tensor) -> None:
        """Store the edges so that they decode to `adj`, (G, n, n) of 0 and 1, symmetric."""

    @abstractmethod
    def edges(self, index: Tensor | slice, rng: Rng | None) -> tuple[Tensor, Tensor | None]:
        """Adjacencies of the graphs at `index`, (g, n, n), and each edge's probability where they are drawn."""

    @torch.no_grad()
    def fill(self, batch: Batch, rng: Rng = Rng(0)) -> None:  # noqa: B008
        graphs: GraphSet = batch.x
        dense = graphs.sparse().dense(self.features.shape[1])
        self.features.copy_(dense.x)
        self.keep(((dense.adj + dense.adj.mT) > 0).to(dense.adj.dtype))
        if self.mask is not None and dense.mask is not None:
            self.mask.copy_(dense.mask)
        self.y.copy_(batch.y)

    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        at = slice(None) if index is None else index
        x, (adj, chance), y = self.features[at], self.edges(at, rng), self.y[at]
        if self.mask is None:
            return Batch(DenseGraphs(x, adj, None, chance), y, index)
        mask = self.mask[at]
        pairs = mask.unsqueeze(1) & mask.unsqueeze(2)
        drawn = None if chance is None else chance * pairs
        return Batch(DenseGraphs(x * mask.unsqueeze(-1), adj * pairs, mask, drawn), y, index)

    def structure(self) -> list[nn.Parameter]:
        """The parameters that edges are stored in."""
        others = {id(self.features), id(self.y)}
        return [p for p in self.parameters() if id(p) not in others]

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        labels = {"labels": [self.y]} if isinstance(self.y, nn.Parameter) else {}
        return {"features": [self.features], "structure": self.structure(), **labels}

    def stored(self) -> dict[str, int]:
        """Bytes by kind, as released: features, edges (two int64 ends and a weight, both directions), labels."""
        with torch.no_grad():
            return bytes_of(self.decode(None, None).x.sparse().graph, self.y)


@final
class ConcreteGraphs(DenseStorage):
    """Graphs of n nodes with free features, and a free logit for every pair of nodes.

    While it is learned, an edge is sigmoid((log u - log(1 - u) + logit) / t) with u uniform in (0, 1), the same for
    (i, j) and (j, i), and logits averaged over the two; no node has an edge to itself. The temperature t falls
    geometrically from `hot` to `cold` over the first `over` outer steps, then stays. Released: logit > 0.
    """

    hot: float = Field(default=1.0, gt=0)
    cold: float = Field(default=0.01, gt=0)
    over: int = Field(default=200, ge=1)

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Concrete(self, task, groups, labels)

    def heat(self, index: int) -> float:
        """t of outer step `index`."""
        return temperature(self.hot, self.cold, self.over, index)


class _Concrete(DenseSet):
    heat: Tensor

    def __init__(self, how: ConcreteGraphs, task: Task, groups: Tensor, labels: Labels) -> None:
        super().__init__(how, task, groups, labels)
        self.how = how
        count, n = self.features.shape[:2]
        self.logits = nn.Parameter(torch.zeros(count, n, n))
        self.register_buffer("heat", torch.tensor(how.heat(0)))

    def keep(self, adj: Tensor) -> None:
        self.logits.copy_((2 * adj - 1) * SURE)

    def edges(self, index: Tensor | slice, rng: Rng | None) -> tuple[Tensor, Tensor | None]:
        logits = self.logits[index]
        logits = (logits + logits.mT) / 2
        if rng is None:
            return without_loops((logits > 0).to(logits.dtype)), None
        noise = symmetric_uniform(len(logits), logits.shape[-1], rng, logits.device)
        return without_loops(concrete(logits, noise, self.heat)), without_loops(logits.sigmoid())

    def project(self, index: int) -> None:
        self.heat.fill_(self.how.heat(index + 1))


@final
class Sparsity(Objective):
    """relu(mean probability of an edge - share of edges at the start): drawn graphs should not grow denser.

    Means are over all G n^2 pairs, as in the code released with DosCond (arXiv:2206.07746), which adds it with a weight
    of 0.1: see `sum`.
    """

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def check(self, recipe: Recipe, task: Task) -> None:
        if not isinstance(recipe.parameterization, ConcreteGraphs):
            problem = f"{recipe.parameterization.name} draws no edges, which is what sparsity is about"
            raise BadValue("objective", self.name, problem, "Use the parameterization `concrete-graphs`.")

    def state(self, run: Run) -> nn.Module:
        return _Density().to(run.device)

    def __call__(self, step: Step) -> Iterable[Term]:
        chance = step.syn.x.chance
        memory = step.state(self)
        assert isinstance(memory, _Density)
        yield Term({"sparsity": (chance.mean() - memory.first(chance.detach())).relu()})


class _Density(nn.Module):
    """The share of edges of the first set that was seen."""

    share: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.full((), torch.nan))

    def first(self, chance: Tensor) -> Tensor:
        now = (chance > 0.5).to(chance.dtype).mean()
        self.share.copy_(torch.where(self.share.isnan(), now, self.share))
        return self.share.clone()


# -- real graphs ----------------------------------------------------------------------------------------------------


@final
class Fitting(RealExamples):
    """Random real graphs that fit into dense storage: at most n nodes (DosCond's `real`). Where a class has too few of
    these, the smallest of the others, which are cut."""

    def choose(self, run: Run, cls: int, n: int, rng: Rng) -> Tensor:
        storage, source = run.recipe.parameterization, run.splits.train
        ids = source.ids(cls)
        ids = ids[rng.permutation(len(ids), ids.device)]
        if not isinstance(storage, DenseStorage):
            return ids[:n]
        sizes = source.take(ids).x.sizes
        beyond = (sizes - storage.room(run.task)).clamp_min(0)
        return ids[torch.argsort(beyond, stable=True)[:n]]


@final
class StoredGraphs(Parameterization):
    """Real graphs as they are, of any size: what coresets store. Nothing is learned."""

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Stored(task, groups, labels)


class _Stored(Synthetic):
    """How many nodes and edges there are, only what is stored knows."""

    free: ClassVar[frozenset[str]] = frozenset({"x", "edges", "weights"})
    x: Tensor
    edges: Tensor
    weights: Tensor
    sizes: Tensor

    def __init__(self, task: Task, groups: Tensor, labels: Labels) -> None:
        super().__init__(task, groups, labels.blank(groups, task), labels.loss())
        self.register_buffer("x", torch.zeros(0, task.shape[1]))
        self.register_buffer("edges", torch.zeros(2, 0, dtype=torch.int64))
        self.register_buffer("weights", torch.zeros(0))
        self.register_buffer("sizes", torch.zeros_like(groups))

    @torch.no_grad()
    def fill(self, batch: Batch, rng: Rng = Rng(0)) -> None:  # noqa: B008
        graphs = batch.x.sparse()
        self.x = graphs.x.detach().clone()
        self.edges, self.weights = (tensor.detach().clone() for tensor in graphs.graph.listed())
        self.sizes.copy_(graphs.sizes)
        self.y.copy_(batch.y)

    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        graphs = SparseGraphs(Graph(self.x, self.edges, self.weights), self.sizes)
        if index is None:
            return Batch(graphs, self.y)
        return Batch(graphs.take(index), self.y[index], index)

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        return {"labels": [self.y]} if isinstance(self.y, nn.Parameter) else {}

    def stored(self) -> dict[str, int]:
        return bytes_of(Graph(self.x, self.edges, self.weights), self.y)

    def problem(self) -> str | None:
        if self.x.dim() != 2 or self.x.shape[1] != self.task.shape[1]:
            return f"nodes have features of the shape {tuple(self.x.shape)}, not (N, {self.task.shape[1]})"
        if tuple(self.edges.shape) != (2, *self.weights.shape):
            return f"{tuple(self.edges.shape)} ends belong to {tuple(self.weights.shape)} weights"
        try:
            SparseGraphs(Graph(self.x, self.edges, self.weights), self.sizes).checked("set")
        except ValueError as error:
            return str(error)
        return None


def components() -> list[type[Component]]:
    return [ConcreteGraphs, Sparsity, Fitting, StoredGraphs]
