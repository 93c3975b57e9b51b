"""LiteGNTK against a slow version that propagates every pair of graphs literally, in numpy; what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from condense.component import checked
from condense.errors import BadValue
from condense.recipe import check_recipe
from condense.task import Batch
from condense.testing import toy_recipe, toy_splits
from condense_graph.collections import DenseGraphs, SparseGraphs
from condense_graph.gntk import LiteGNTK, compare, distinct, nodes_of, relu_layer
from condense_graph.graph import Graph

SIZES = (3, 7, 1, 5)


def slow(x1, a1, x2, a2, depth=5, pooling="mean", gather=True, loops=1e-4):
    """One pair of graphs: each propagation is S1 (.) S2^T, on the matrix of all pairs of nodes."""
    s1, s2 = a1 + loops * np.eye(len(a1)), a2 + loops * np.eye(len(a2))

    def step(m, left, right):
        return left @ m @ right.T

    sigma, one, two = (p @ q.T + 1e-4 for p, q in ((x1, x2), (x1, x1), (x2, x2)))
    if gather:
        sigma, one, two = step(sigma, s1, s2), step(one, s1, s1), step(two, s2, s2)
    norms = np.sqrt(np.outer(np.diag(one), np.diag(two)))
    cosine = np.clip(sigma / norms, -1, 1)
    k0 = (np.pi - np.arccos(cosine)) / np.pi
    k1 = (cosine * (np.pi - np.arccos(cosine)) + np.sqrt(1 - cosine**2)) / np.pi
    theta = norms * (cosine * k0 + k1)
    for _ in range(depth - 1):
        theta = step(theta, s1, s2)
    return theta.mean() if pooling == "mean" else theta.sum()


def arrays(seed, sizes=SIZES, features=4):
    """[(features (n, D), symmetric adjacency (n, n))], float64; one graph has a node without neighbours."""
    rng, graphs = np.random.default_rng(seed), []
    for n in sizes:
        upper = np.triu(rng.random((n, n)) < 0.4, 1).astype(float)
        graphs.append((rng.normal(size=(n, features)), upper + upper.T))
    return graphs


def side_by_side(graphs):
    starts = np.cumsum([0, *(len(x) for x, _ in graphs)])
    edges = np.concatenate(
        [np.stack(np.nonzero(a.T)) + start for (_, a), start in zip(graphs, starts, strict=False)], 1
    )
    x = torch.tensor(np.concatenate([x for x, _ in graphs]))
    return SparseGraphs(Graph(x, torch.tensor(edges)), torch.tensor([len(x) for x, _ in graphs]))


def stacked(graphs, dtype=torch.float64):
    x, a = (torch.tensor(np.stack(part), dtype=dtype) for part in zip(*graphs, strict=True))
    return DenseGraphs(x, a)


def as_batch(x):
    return Batch(x, torch.zeros(len(x), dtype=torch.int64))


def table(a, b, **how):
    return np.array([[slow(*one, *two, **how) for two in b] for one in a])


KINDS = [
    {},
    {"depth": 1},
    {"depth": 3, "pooling": "sum"},
    {"depth": 3, "pooling": "sum", "gather": False},
    {"depth": 3, "loops": 1.0},
]


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_the_kernel_equals_literal_propagation(how):
    a, b = arrays(0), arrays(1, sizes=(4, 4))
    kernel = LiteGNTK(**how)
    sparse, dense = as_batch(side_by_side(a)), as_batch(stacked(b))
    np.testing.assert_allclose(kernel(None, sparse, dense).numpy(), table(a, b, **how), rtol=1e-7)
    np.testing.assert_allclose(kernel(None, dense, sparse).numpy(), table(b, a, **how), rtol=1e-7)
    np.testing.assert_allclose(kernel(None, sparse, sparse).numpy(), table(a, a, **how), rtol=1e-7)
    np.testing.assert_allclose(kernel(None, dense, dense).numpy(), table(b, b, **how), rtol=1e-7)


def test_directed_edges_of_a_dense_graph_are_followed_as_they_point():
    rng = np.random.default_rng(3)
    a = [(rng.normal(size=(4, 3)), rng.random((4, 4))) for _ in range(2)]
    batch = as_batch(stacked(a))
    np.testing.assert_allclose(LiteGNTK(depth=3)(None, batch, batch).numpy(), table(a, a, depth=3), rtol=1e-7)


def test_padding_is_no_node():
    a = arrays(0)
    sparse, padded = side_by_side(a), side_by_side(a).dense(9)
    kernel = LiteGNTK()
    torch.testing.assert_close(
        kernel(None, as_batch(padded), as_batch(padded)), kernel(None, as_batch(sparse), as_batch(sparse))
    )


@pytest.mark.parametrize("block", [1, 7, 40, 10**6])
def test_blocks_change_nothing_and_neither_do_their_gradients(block):
    a, b = stacked(arrays(1, sizes=(4, 4, 4))), side_by_side(arrays(2))
    leaves = [a.x.requires_grad_(), a.adj.requires_grad_()]
    results = []
    for size in (block, 10**9):
        total = compare(nodes_of(a, 3, "mean"), nodes_of(b, 3, "mean"), 0.9999, size)
        results.append((total, torch.autograd.grad(total.square().sum(), leaves)))
    torch.testing.assert_close(results[0], results[1])


def test_features_and_edges_have_the_gradient_of_finite_differences():
    set_, others = stacked(arrays(1, sizes=(4, 4))), as_batch(side_by_side(arrays(2)))
    kernel = LiteGNTK(depth=3)

    def value(x, adj):
        return kernel(None, as_batch(DenseGraphs(x, adj)), others).sin().sum()

    leaves = (set_.x.requires_grad_(), set_.adj.requires_grad_())
    assert torch.autograd.gradcheck(value, leaves, atol=1e-6, eps=1e-6)


def test_a_set_with_itself_has_the_gradients_of_both_sides():
    """Where a node meets itself, finite differences see rounding only: one side at a time is the reference."""
    set_, kernel = stacked(arrays(1, sizes=(5, 5))), LiteGNTK(depth=3)
    leaves = (set_.x.requires_grad_(), set_.adj.requires_grad_())
    own = as_batch(set_)
    fixed = as_batch(DenseGraphs(set_.x.detach(), set_.adj.detach()))
    both = torch.autograd.grad(kernel(None, own, own).sum(), leaves)
    one = torch.autograd.grad(kernel(None, own, fixed).sum(), leaves)
    for twice, once in zip(both, one, strict=True):
        torch.testing.assert_close(twice, 2 * once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", ["different", "two kinds"])
def test_the_order_of_nodes_does_not_matter(features):
    graphs, rng = arrays(4), np.random.default_rng(5)
    if features == "two kinds":
        graphs = [(np.eye(2)[rng.integers(0, 2, len(x))], a) for x, a in graphs]
    mixed = []
    for x, a in graphs:
        order = rng.permutation(len(x))
        mixed.append((x[order], a[order][:, order]))
    kernel, plain = LiteGNTK(), as_batch(side_by_side(graphs))
    torch.testing.assert_close(kernel(None, as_batch(side_by_side(mixed)), plain), kernel(None, plain, plain))


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_the_matrix_of_a_sample_is_symmetric_and_positive_semi_definite(how):
    batch = as_batch(side_by_side(arrays(6, sizes=(3, 4, 5, 6, 7, 8) * 4)))
    gram = LiteGNTK(**how)(None, batch, batch)
    torch.testing.assert_close(gram, gram.T)
    assert float(torch.linalg.eigvalsh(gram).min() / gram.diagonal().mean()) > -1e-12
    assert (gram.diagonal() > 0).all()


def test_equal_nodes_of_constant_graphs_are_compared_once():
    x = torch.eye(2, dtype=torch.float64)[torch.tensor([0, 1, 0, 0, 1])]
    rows, place = distinct(x)
    assert rows.shape == (2, 2)
    assert torch.equal(rows[place], x)
    assert len(distinct(x.requires_grad_())[0]) == 5
    ring = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]])
    edges = torch.cat([ring, ring.flip(0), ring + 5, ring.flip(0) + 5], dim=1)
    same = SparseGraphs(Graph(torch.ones(10, 2), edges), torch.tensor([5, 5]))
    assert nodes_of(same, 5, "mean").directions.shape == (1, 3)


def test_a_layer_is_that_of_wide_relu_networks():
    """k0 and k1 are means over Gaussian weights of the products of ReLUs (of their derivatives), times 2."""
    g = torch.Generator().manual_seed(0)
    for s in (-0.8, 0.0, 0.6):
        z = torch.randn(400_000, 2, generator=g, dtype=torch.float64)
        a, b = z[:, 0], s * z[:, 0] + (1 - s * s) ** 0.5 * z[:, 1]
        drawn = 2 * (a.relu() * b.relu()).mean() + s * 2 * ((a > 0) & (b > 0)).double().mean()
        assert float(relu_layer(torch.tensor(s, dtype=torch.float64), 0.9999)) == pytest.approx(float(drawn), abs=0.02)


def test_derivatives_are_exact_below_the_limit_and_stay_beyond_it():
    s = torch.tensor([-0.97, -0.3, 0.0, 0.8, 0.95, 1.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(relu_layer(s, 0.9).sum(), s)
    below = s.detach()[1:4]
    exact = (relu_layer(below + 1e-6, 0.9) - relu_layer(below - 1e-6, 0.9)) / 2e-6
    torch.testing.assert_close(slope[1:4], exact)
    assert float(slope[5]) == pytest.approx((2 + 1 / (np.pi * 0.19**0.5)), rel=1e-9)
    assert slope.isfinite().all()


def test_nodes_that_are_alike_have_finite_gradients():
    x = torch.ones(2, 3, 2).requires_grad_()
    adj = (torch.ones(2, 3, 3) - torch.eye(3)).requires_grad_()
    batch = as_batch(DenseGraphs(x, adj))
    LiteGNTK()(None, batch, batch).sum().backward()
    assert x.grad.isfinite().all()
    assert adj.grad.isfinite().all()


def test_a_node_without_features_or_neighbours_is_no_division_by_zero():
    batch = as_batch(DenseGraphs(torch.zeros(2, 3, 2), torch.zeros(2, 3, 3)))
    assert LiteGNTK()(None, batch, batch).isfinite().all()


def test_it_is_refused_where_there_are_no_graphs():
    recipe = toy_recipe(objective={"name": "kernel-ridge", "kernel": "lite-gntk"})
    with pytest.raises(BadValue, match="compares whole graphs, and these are"):
        check_recipe(recipe, toy_splits().task)
    with pytest.raises(BadValue, match="less than 1"):
        checked(lambda: LiteGNTK(limit=1.0), "kernel")


def test_features_in_float32_give_all_digits_that_a_small_ridge_needs():
    """Graphs whose nodes are of three kinds: many pairs of nodes are alike, and graphs differ little."""
    rng, graphs = np.random.default_rng(8), arrays(7, sizes=(12,) * 16)
    graphs = [(np.eye(3)[rng.integers(0, 3, len(x))], a) for x, a in graphs]
    batch = as_batch(stacked(graphs, torch.float32))
    gram = LiteGNTK(loops=1.0)(None, batch, batch)
    np.testing.assert_allclose(gram.numpy(), table(graphs, graphs, loops=1.0), rtol=1e-6)
    assert float(torch.linalg.eigvalsh(gram).min() / gram.diagonal().mean()) > -1e-12
