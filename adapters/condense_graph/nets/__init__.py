"""Networks for graphs, dense or sparse, weighted or not.

They are PyG's on the same graph (equal, tested; parameters bear the same names), written on the operators of `Graph`:
so they are differentiable twice in the features and in a dense adjacency, and need no torch_geometric.
"""

from __future__ import annotations

from condense.axes import Net

from .appnp import APPNP
from .cheb import ChebNet
from .gat import GAT
from .gcn import GCN
from .mlp import NodeMLP
from .sage import GraphSAGE
from .sgc import SGC
from .whole import GIN, GraphGCN


def components() -> list[type[Net]]:
    """The members of the axis Net that this package brings."""
    return [GraphGCN, GIN, SGC, GCN, GAT, GraphSAGE, APPNP, ChebNet, NodeMLP]


__all__ = ["APPNP", "GAT", "GCN", "GIN", "SGC", "ChebNet", "GraphGCN", "GraphSAGE", "NodeMLP", "components"]
