"""Kernels of infinite networks: against neural-tangents, against loops over positions, and by finite differences."""

from __future__ import annotations

import json
import math
import weakref
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from condense.axes import Kernel
from condense.component import named
from condense.errors import BadValue
from condense.parts import kernels
from condense.parts.kernels import InfiniteConvNet, InfiniteMLP
from condense.task import Batch
from condense.testing import toy_recipe, toy_splits

GOLDEN = json.loads((Path(__file__).parent / "kernels" / "golden.json").read_text())


def images(*shape, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def batch(x):
    return Batch(x, torch.zeros(len(x), dtype=torch.int64))


def golden_images(case, seed):
    """As tests/reference/kernels/make.py draws them."""
    n, state = (1 if case.get("few") else 3), np.random.RandomState(seed)
    a, b = state.standard_normal((n, *case["shape"])), state.standard_normal((n + 1, *case["shape"]))
    b[0] = a[-1]
    b[1] = 0.9 * a[0] + 0.1 * b[1]
    return batch(torch.from_numpy(a)), batch(torch.from_numpy(b))


def golden_kernel(entry, **settings):
    case = {key: value for key, value in entry["case"].items() if key not in ("shape", "few")}
    front = {"extra": case.pop("extra", False)} if entry["net"] == "infinite-conv-net" else {}
    return named(Kernel, entry["net"], **case, **front, **settings)


def shown(entry):
    return "-".join([entry["net"], *(f"{value}" for value in entry["case"].values())]).replace(" ", "")


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("entry", GOLDEN, ids=shown)
def test_values_are_those_of_neural_tangents(entry, dtype):
    a, b = golden_images(entry["case"], entry["seed"])
    for kind in ("nngp", "ntk"):
        kernel = golden_kernel(entry, kind=kind, dtype=dtype)
        tolerance = 5e-8 if dtype == "float64" else 5e-6
        np.testing.assert_allclose(kernel(None, a, b).numpy(), entry[kind], rtol=tolerance)
        np.testing.assert_allclose(kernel(None, a, a).numpy(), entry[f"self-{kind}"], rtol=tolerance)


def loops(x, y, kernel, pool):
    """NNGP and NTK of two images (C, rows, columns), by one covariance for every pair of positions."""
    w2, b2 = kernel.weight_std**2, kernel.bias_std**2
    rows, columns = x.shape[1:]

    def conv(k):
        out = np.zeros_like(k)
        for i, j, p, q in product(range(rows), range(columns), range(rows), range(columns)):
            for u, v in product((-1, 0, 1), (-1, 0, 1)):
                if min(i + u, j + v, p + u, q + v) >= 0 and max(i + u, p + u) < rows and max(j + v, q + v) < columns:
                    out[i, j, p, q] += k[i + u, j + v, p + u, q + v]
        return b2 + w2 * out / 9, w2 * out / 9

    def relu(k, t, own, others):
        scale = np.sqrt(own[:, :, None, None] * others[None, None])
        angle = np.arccos(np.clip(k / scale, -1, 1))
        arc = math.pi - angle
        return scale * (np.sin(angle) + arc * np.cos(angle)) / (2 * math.pi), t * arc / (2 * math.pi)

    def pooled(k):
        h, w = rows // 2, columns // 2
        return k[: 2 * h, : 2 * w, : 2 * h, : 2 * w].reshape(h, 2, w, 2, h, 2, w, 2).mean(axis=(1, 3, 5, 7))

    pairs = {"xy": (x, y), "xx": (x, x), "yy": (y, y)}
    k = {key: np.einsum("cij,cpq->ijpq", *pair) / len(x) for key, pair in pairs.items()}
    t = {key: np.zeros_like(value) for key, value in k.items()}
    convs = kernel.depth + kernel.extra
    for layer in range(convs):
        for key in k:
            k[key], (_, moved) = conv(k[key])[0], conv(t[key])
            t[key] = k[key] + moved
        own = {key: np.einsum("ijij->ij", k[key]) for key in ("xx", "yy")}
        for key in k:
            k[key], t[key] = relu(k[key], t[key], own[f"{key[0]}" * 2], own[f"{key[1]}" * 2])
        if pool and not (kernel.extra and layer == 0):
            k, t = ({key: pooled(value) for key, value in part.items()} for part in (k, t))
            rows, columns = rows // 2, columns // 2
    k, t = (np.einsum("ijij->ij", part["xy"]).mean() for part in (k, t))
    return b2 + w2 * k, b2 + w2 * k + w2 * t


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((2, 4, 5), {"depth": 2, "extra": False}),
        ((1, 5, 4), {"depth": 2, "extra": True, "bias_std": 0.3}),
        ((3, 3, 4), {"depth": 2, "extra": False, "pool": "none", "weight_std": 1.1}),
        ((5, 4, 4), {"depth": 1, "extra": True, "bias_std": 0.0}),
    ],
    ids=["pooled", "extra", "unpooled", "five channels"],
)
def test_values_are_those_of_loops_over_positions(shape, settings):
    x, y = images(2, *shape), images(1, *shape, seed=1)
    expected = [
        loops(one.numpy(), y[0].numpy(), InfiniteConvNet(**settings), settings.get("pool") != "none") for one in x
    ]
    for place, kind in enumerate(("nngp", "ntk")):
        got = InfiniteConvNet(kind=kind, **settings)(None, batch(x), batch(y))
        np.testing.assert_allclose(got[:, 0].numpy(), [pair[place] for pair in expected], rtol=1e-12)


def test_the_tangent_kernel_is_the_product_of_gradients_of_a_wide_network():
    """By its definition: gradients of an actual network of 5,000 hidden units in NTK parametrisation."""
    width, x = 5_000, images(3, 6, seed=3)
    g = torch.Generator().manual_seed(0)
    draw = [torch.randn(*size, generator=g, dtype=torch.float64) for size in ((width, 6), (width,), (width,), (1,))]

    def network(w1, b1, w2, b2, one):
        hidden = torch.relu(math.sqrt(2 / 6) * w1 @ one + 0.1 * b1)
        return math.sqrt(2 / width) * w2 @ hidden + 0.1 * b2[0]

    def gradient(one):
        return torch.cat([part.flatten() for part in torch.func.grad(network, (0, 1, 2, 3))(*draw, one)])

    rows = torch.stack([gradient(one) for one in x])
    got = InfiniteMLP(depth=1)(None, batch(x), batch(x))
    torch.testing.assert_close(got, rows @ rows.T, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kernel", [InfiniteMLP(depth=2), InfiniteConvNet(depth=2)], ids=["mlp", "conv"])
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_a_kernel_is_symmetric_and_positive_definite(kernel, kind):
    x = batch(images(9, 2, 8, 8))
    gram = kernel.with_(kind=kind)(None, x, x)
    torch.testing.assert_close(gram, gram.T, rtol=0, atol=0)
    assert torch.linalg.eigvalsh(gram).min() > 1e-3 * gram.diagonal().mean()
    copy = kernel.with_(kind=kind)(None, x, batch(x.x.clone()))
    torch.testing.assert_close(gram, copy, rtol=1e-7, atol=0)


def test_black_images_without_biases_have_finite_values_and_gradients():
    x = images(3, 1, 8, 8)
    x[1], x[2, :, 2:] = 0, 0
    x.requires_grad_()
    gram = InfiniteConvNet(bias_std=0.0)(None, batch(x), batch(images(2, 1, 8, 8, seed=1)))
    assert gram.isfinite().all()
    assert gram[1].abs().max() < 1e-12
    assert gram[2].abs().min() > 1e-3
    (gradient,) = torch.autograd.grad(gram.sum(), x)
    assert gradient.isfinite().all()


# -- gradients --------------------------------------------------------------------------------------------------------


def slope(f, x, direction, h=1e-5):
    return float(f(x + h * direction) - f(x - h * direction)) / (2 * h)


@pytest.mark.parametrize("kind", ["nngp", "ntk"])
@pytest.mark.parametrize(
    "kernel",
    [
        InfiniteMLP(depth=1),
        InfiniteMLP(depth=3, bias_std=0.0),
        InfiniteConvNet(depth=2),
        InfiniteConvNet(depth=3, extra=False, bias_std=0.5),
        InfiniteConvNet(depth=2, pool="none"),
    ],
    ids=lambda kernel: f"{kernel.name}-{kernel.depth}",
)
def test_gradients_equal_finite_differences(kernel, kind):
    kernel = kernel.with_(kind=kind)
    x, real = images(3, 2, 8, 9, seed=1), batch(images(2, 2, 8, 9))
    weights = images(3, 5, seed=2)

    def f(x):
        own = batch(x)
        both = torch.cat([kernel(None, own, own), kernel(None, real, own).T], dim=1)
        return (both * weights).sum()

    (gradient,) = torch.autograd.grad(f(x.requires_grad_()), x)
    largest = gradient.abs().flatten().topk(gradient.numel() // 10).indices
    chosen = largest[torch.randperm(len(largest), generator=torch.Generator().manual_seed(7))[:3]]
    for coordinate in chosen.tolist():
        direction = torch.zeros_like(x).flatten().index_fill(0, torch.tensor(coordinate), 1.0).view_as(x)
        expected = slope(f, x.detach(), direction)
        assert float(gradient.flatten()[coordinate]) == pytest.approx(expected, rel=1e-6)
    direction = images(*x.shape, seed=4)
    assert float((gradient * direction).sum()) == pytest.approx(slope(f, x.detach(), direction), rel=1e-6)


def test_both_sides_have_gradients_and_a_set_with_itself_has_their_sum():
    kernel, x = InfiniteConvNet(depth=2), images(3, 1, 8, 8)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = images(3, 3, seed=1)
    sides = torch.autograd.grad((kernel(None, batch(a), batch(b)) * weights).sum(), (a, b))
    own = batch(a)
    (whole,) = torch.autograd.grad((kernel(None, own, own) * weights).sum(), a)
    torch.testing.assert_close(whole, sides[0] + sides[1], rtol=1e-6, atol=1e-9)


def test_gradients_in_float32_are_those_in_float64():
    x, real = images(2, 3, 8, 8), batch(images(3, 3, 8, 8, seed=1))

    def gradient(dtype):
        a = x.clone().requires_grad_()
        kernel = InfiniteConvNet(depth=2, dtype=dtype)
        return torch.autograd.grad(kernel(None, real, batch(a)).sum() + kernel(None, batch(a), batch(a)).sum(), a)[0]

    exact = gradient("float64")
    assert (gradient("float32") - exact).abs().max() < 1e-4 * exact.abs().max()


# -- blocks and memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [InfiniteMLP(depth=2), InfiniteConvNet(depth=2)], ids=["mlp", "conv"])
def test_blocks_change_nothing(kernel, monkeypatch):
    x, y = images(7, 1, 8, 8).requires_grad_(), images(5, 1, 8, 8, seed=1)

    def both():
        own = batch(x)
        cross, gram = kernel(None, batch(y), own), kernel(None, own, own)
        (gradient,) = torch.autograd.grad(cross.sum() + (gram * gram.detach()).sum(), x)
        return cross.detach(), gram.detach(), gradient

    whole = both()
    for pairs in (1, 3, 6, 20):
        monkeypatch.setattr(kernels, "pairs_at_once", lambda *_, pairs=pairs: pairs)
        for ours, expected in zip(both(), whole, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_blocks_are_of_so_many_pairs_and_cover_all():
    for n, m, pairs in product((1, 3, 100, 5000), (1, 10, 2000), (1, 7, 256, 10**6)):
        rows, columns = kernels.blocks_of(n, m, pairs)
        assert 1 <= rows <= n
        assert 1 <= columns <= m
        assert rows * columns <= pairs
        assert rows * columns >= min(n * m, pairs) / 4


class Live(TorchDispatchMode):
    """The most bytes of tensors made within that were alive at one time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.known[key] = weakref.finalize(storage, self._drop, key, size)
        self.now += size
        self.most = max(self.most, self.now)

    def _drop(self, key, size):
        self.known.pop(key, None)
        self.now -= size


@pytest.mark.parametrize(
    ("kernel", "graph", "budget"),
    [
        pytest.param(kernel, graph, int(mib * 2**20), id=f"{name}-{'gradients' if graph else 'values'}")
        for name, kernel, budgets in (
            ("ntk", InfiniteConvNet(), (1, 24)),
            ("nngp", InfiniteConvNet(extra=False, kind="nngp", dtype="float32"), (0.5, 12)),
            ("unpooled", InfiniteConvNet(pool="none"), (0.5, 1)),
        )
        for graph, mib in zip((False, True), budgets, strict=True)
    ],
)
def test_a_block_stays_within_its_memory(kernel, graph, budget, monkeypatch):
    """On a machine without a cache to spare: as many pairs as the budget allows, and fewer than there are."""
    monkeypatch.setattr(kernels, "CELLS", 10**9)
    x, y = (images(16, 1, 8, 8, seed=seed).to(getattr(torch, kernel.dtype)) for seed in (0, 1))
    network = kernel.network(x)
    pairs = kernels.pairs_at_once(network, x.dtype, "cpu", graph, budget)
    assert 4 < pairs < 256, "else nothing is tested"
    x.requires_grad_(graph)
    with Live() as live:
        gram = kernels.gram(network, y, x, budget)
        if graph:
            gram.sum().backward()
    assert live.most < 1.1 * budget
    assert live.most > budget / 8


def test_a_budget_that_holds_no_pair_is_refused_with_what_it_takes():
    kernel, x = InfiniteConvNet(memory=1), batch(images(2, 3, 64, 64))
    with pytest.raises(BadValue, match=r"holds less than one pair of images, which takes \d+ MiB"):
        kernel(None, x, x)
    large = toy_splits().train.task.model_copy(update={"shape": (3, 64, 64)})
    with pytest.raises(BadValue, match=r"holds less than one pair of images.*--set objective\.kernel\.memory"):
        kernel.check(toy_recipe(), large)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_anything_is_computed():
    recipe, task = toy_recipe(), toy_splits().train.task  # images of 1 x 8 x 8
    InfiniteConvNet(depth=3).check(recipe, task)
    with pytest.raises(BadValue, match=r"kernel\.depth: poolings leave nothing of images of 8 x 8 .*at most 3"):
        InfiniteConvNet(depth=4).check(recipe, task)
    flat = task.model_copy(update={"shape": (64,)})
    InfiniteMLP().check(recipe, flat)
    with pytest.raises(BadValue, match="Use infinite-mlp"):
        InfiniteConvNet().check(recipe, flat)
