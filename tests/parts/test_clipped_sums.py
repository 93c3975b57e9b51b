"""Clipped sums against a slow loop over micro-batches of one, and the bound that private sources rest on."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import utils as dynamo

from condense import execution
from condense.axes import Statistic
from condense.clipping import LONGEST, clipped_sum, lengths
from condense.errors import BadValue, NotBuilt
from condense.parts.matching import Gradient, MeanFeature
from condense.per_example import convolutions_as_products, gradients
from condense.rng import Rng
from condense.task import Batch, Task
from condense.testing import check_statistic
from condense_image.nets.classic import MLP
from condense_image.nets.conv_net import ConvNet

TASK = Task(classes=("a", "b", "c"), shape=(2, 8, 8))
SMALL = {"depth": 2, "width": 8}
NETS = {
    "instance norm": ConvNet(**SMALL),
    "group norm": ConvNet(**SMALL, norm="group", pooling="max"),
    "layer norm": ConvNet(**SMALL, norm="layer", activation="sigmoid"),
    "no norm": ConvNet(**SMALL, norm="none", pooling="none", activation="swish"),
    "mlp": MLP(),
}
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def some(n=11, seed=0, dtype=torch.float64):
    return Batch(numbers(n, *TASK.shape, seed=seed, dtype=dtype), torch.arange(n) % 3)


def warped(batch):
    """The same examples, mirrored and brighter."""
    return batch.with_x(1.5 * batch.x.flip(3) + 0.1)


def network(net, dtype=torch.float64):
    return net.make(TASK, Rng(1)).to(dtype)


def alone(model, batch, i):
    """The gradient of example i, by autograd of a micro-batch of one."""
    loss = F.cross_entropy(model(batch.x[i : i + 1]), batch.y[i : i + 1])
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def feature_alone(model, batch, i):
    return {"feature": model.features(batch.x[i : i + 1])[0].detach()}


def slowly(model, views, groups, count, bound, row_of=alone):
    """The definition, one example after the other."""
    total = {}
    for i in range(len(groups)):
        seen = [row_of(model, view, i) for view in views]
        row = {part: sum(one[part] for one in seen) / len(seen) for part in seen[0]}
        length = math.sqrt(sum(float(value.double().square().sum()) for value in row.values()))
        for part, value in row.items():
            total.setdefault(part, torch.zeros(count, *value.shape, dtype=torch.float64))
            total[part][groups[i]] += value.double() * min(1.0, bound / length)
    return total


def middle(model, batch):
    """A bound that about half of the examples exceed."""
    return float(lengths(Gradient().rows(model, batch, TASK)).median())


def apart(a, b):
    """The L2 distance of two sums by group, (count,)."""
    return lengths({part: a[part].double() - b[part].double() for part in a})


# -- gradients against the loop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_rows_are_the_gradients_of_micro_batches_of_one(net):
    model, batch = network(net), some()
    rows = Gradient().rows(model, batch, TASK)
    assert list(rows) == [name for name, _ in model.named_parameters()]
    for i in range(len(batch)):
        torch.testing.assert_close({part: row[i] for part, row in rows.items()}, alone(model, batch, i), **EXACT)


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize("several", [False, True], ids=["one view", "two views"])
def test_clipped_sums_are_those_of_the_loop(net, several):
    model, batch = network(net), some()
    views, groups = [batch, warped(batch)][: 1 + several], torch.tensor([0, 2, 1, 1, 0, 2, 2, 0, 1, 2, 0])
    for bound in (1e-3, middle(model, batch), 1e6):
        found = Gradient().clipped_sums(model, views, TASK, groups, 4, bound, chunk=4, dtype=torch.float64)
        torch.testing.assert_close(found, slowly(model, views, groups, 4, bound), **EXACT)
        assert all(not value[3].any() for value in found.values())  # a group without examples


def test_rows_are_averaged_before_they_are_clipped():
    model, batch = network(NETS["mlp"]), some(1)
    views, group = [batch, warped(batch)], torch.zeros(1, dtype=torch.int64)
    bound = 0.1 * middle(model, batch)
    both = Gradient().clipped_sums(model, views, TASK, group, 1, bound, dtype=torch.float64)
    each = [Gradient().clipped_sums(model, [view], TASK, group, 1, bound, dtype=torch.float64) for view in views]
    mean = {part: sum(one[part] for one in each) / 2 for part in both}
    assert float(lengths(both)) == pytest.approx(bound, rel=1e-9)
    assert float(lengths(mean)) < 0.999 * bound


def test_norms_of_whole_gradients_equal_the_loop_in_float32():
    task = Task(classes=tuple("abcdefghij"), shape=(3, 32, 32))
    model = ConvNet(width=32).make(task, Rng(0))
    batch = Batch(numbers(12, 3, 32, 32, dtype=torch.float32), torch.arange(12) % 10)
    each = Gradient().clipped_sums(model, [batch], task, torch.arange(12), 12, math.inf)
    exact = torch.stack([lengths({k: v[None] for k, v in alone(model, batch, i).items()})[0] for i in range(12)])
    torch.testing.assert_close(lengths(each), exact, rtol=1e-6, atol=0)


def test_soft_labels_have_clipped_sums():
    model, groups = network(NETS["mlp"]), torch.zeros(5, dtype=torch.int64)
    soft = Batch(some(5).x, numbers(5, 3, seed=3).softmax(dim=1))
    found = Gradient().clipped_sums(model, [soft], TASK, groups, 1, 0.5, dtype=torch.float64)
    torch.testing.assert_close(found, slowly(model, [soft], groups, 1, 0.5), **EXACT)


@pytest.mark.parametrize("statistic", [Gradient(), MeanFeature()])
def test_the_size_of_chunks_does_not_show(statistic):
    model, batch, groups = network(NETS["instance norm"]), some(), torch.arange(11) % 2
    found = [statistic.clipped_sums(model, [batch], TASK, groups, 2, 0.3, chunk=size) for size in (1, 3, 11, 128)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_no_more_than_a_chunk_of_rows_is_asked_for():
    class Watched(MeanFeature):
        def rows(self, model, batch, task):
            seen.append(len(batch))
            return super().rows(model, batch, task)

    seen = []
    Watched().clipped_sums(network(NETS["mlp"]), [some()], TASK, torch.zeros(11, dtype=torch.int64), 1, 1.0, chunk=4)
    assert seen == [4, 4, 4]  # the last filled up


# -- other statistics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True], ids=["one view", "two views"])
def test_features_are_clipped_as_the_loop_does(several):
    model, batch, groups = network(NETS["group norm"]), some(), torch.arange(11) % 3
    views = [batch, warped(batch)][: 1 + several]
    for bound in (1e-2, float(lengths(MeanFeature().rows(model, batch, TASK)).median()), 1e6):
        found = MeanFeature().clipped_sums(model, views, TASK, groups, 3, bound, chunk=4, dtype=torch.float64)
        torch.testing.assert_close(found, slowly(model, views, groups, 3, bound, feature_alone), **EXACT)


class Both(Statistic):
    """Two parts of very different sizes, one of them a number."""

    def rows(self, model, batch, task):
        return {"bright": 40 * batch.x.flatten(1).mean(dim=1), "picture": batch.x}

    def mean(self, model, batch, task, *, live):
        return {part: row.mean(dim=0) for part, row in self.rows(model, batch, task).items()}


class NoRows(Statistic):
    """The largest pixel of all."""

    def rows(self, model, batch, task):
        raise NotImplementedError

    def mean(self, model, batch, task, *, live):
        return {"most": batch.x.max()}


def test_the_length_is_of_all_parts_together():
    batch, group = some(6), torch.zeros(6, dtype=torch.int64)
    row = Both().rows(None, batch, TASK)

    def row_of(model, view, i):
        return {part: value[i] for part, value in row.items()}

    found = Both().clipped_sums(None, [batch], TASK, group, 1, 5.0, chunk=4, dtype=torch.float64)
    torch.testing.assert_close(found, slowly(None, [batch], group, 1, 5.0, row_of), **EXACT)
    own = Both().clipped_sums(None, [batch], TASK, torch.arange(6), 6, 5.0)
    assert found["bright"].shape == (1,)
    torch.testing.assert_close(lengths(own), torch.full((6,), 5.0, dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_statistic_without_rows_is_refused_by_name():
    for n in (0, 3):
        with pytest.raises(NotBuilt, match="each example alone") as caught:
            NoRows().clipped_sums(None, [some(n)], TASK, torch.zeros(n, dtype=torch.int64), 1, 1.0)
        assert caught.value.value == "no-rows"


@pytest.mark.parametrize("statistic", [Gradient(), MeanFeature(), Both()])
def test_the_test_kit_accepts_sums_that_are_right(statistic):
    check_statistic(statistic, network(NETS["instance norm"]), some(5), TASK, tolerance=1e-9)


class ClipsTheMean(MeanFeature):
    """Clips what is added up, in place of each row: one example moves it by twice the bound."""

    name: ClassVar[str] = "clips-the-mean"

    def clipped_sums(self, model, views, task, groups, count, bound, *, chunk=32, dtype=torch.float32):
        sums = super().clipped_sums(model, views, task, groups, count, math.inf, chunk=chunk, dtype=dtype)
        factor = (bound * len(groups) / count / lengths(sums)).clamp(max=1)
        return {part: (value.T * factor).T for part, value in sums.items()}


class Halves(MeanFeature):
    """Forgets the second half."""

    name: ClassVar[str] = "halves"

    def clipped_sums(self, model, views, task, groups, count, bound, **kwargs):
        half = len(groups) // 2
        views = [Batch(view.x[:half], view.y[:half]) for view in views]
        return super().clipped_sums(model, views, task, groups[:half], count, bound, **kwargs)


class PartByPart(Both):
    """Clips each part by itself."""

    name: ClassVar[str] = "part-by-part"

    def clipped_sums(self, model, views, task, groups, count, bound, **kwargs):
        limit = torch.tensor(bound, dtype=torch.float64)
        member = (groups == torch.arange(count)[:, None]).double()
        rows = self.rows(model, views[0], task)
        return {part: clipped_sum({part: row}, member, limit)[part] for part, row in rows.items()}


@pytest.mark.parametrize("statistic", [ClipsTheMean(), Halves(), PartByPart()])
def test_the_test_kit_finds_sums_that_are_not(statistic):
    with pytest.raises(AssertionError):
        check_statistic(statistic, network(NETS["mlp"]), some(5), TASK, tolerance=1e-9)


# -- the bound ------------------------------------------------------------------------------------------------------


def neighbours(batch):
    """(what, the records without it, the records with it, the group that it is of)."""
    y, n = torch.arange(len(batch)) % 2, len(batch)
    for i in range(10):
        keep = torch.arange(n) != i
        yield f"record {i}", Batch(batch.x[keep], batch.y[keep]), y[keep], batch, y, int(y[i])
    extra = {"blank": torch.zeros_like(batch.x[:1]), "a copy": batch.x[:1], "flat": torch.ones_like(batch.x[:1])}
    extra |= {f"{scale} times a record": scale * batch.x[1:2] for scale in (10.0, -10.0, 1e3, 1e6, 1e-6, 1e18)}
    extra |= {f"noise {seed}": 10 * numbers(1, *TASK.shape, seed=seed, dtype=batch.x.dtype) for seed in (5, 6)}
    for i, (what, x) in enumerate(extra.items()):
        more = Batch(torch.cat([batch.x, x]), torch.cat([batch.y, torch.tensor([i % 3])]))
        yield what, batch, y, more, torch.cat([y, torch.tensor([i % 2])]), i % 2


@pytest.mark.parametrize("statistic", [Gradient(), MeanFeature()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("net", ["instance norm", "no norm"])
def test_a_record_more_or_less_moves_one_group_by_the_bound_at_most(statistic, dtype, net):
    model, batch = network(NETS[net], torch.float32), some(21, dtype=torch.float32)
    bound, moved = 0.5 * float(lengths(statistic.rows(model, batch, TASK)).median()), []
    for what, without, y, more, y_more, group in neighbours(batch):
        both = [
            statistic.clipped_sums(model, [records], TASK, of, 2, bound, chunk=8, dtype=dtype)
            for records, of in ((without, y), (more, y_more))
        ]
        change = apart(*both).tolist()
        assert change[group] <= bound * (1 + 1e-6), what
        assert change[1 - group] <= bound * 1e-6, what
        moved.append(change[group] / bound)
    assert len(moved) > 20
    assert max(moved) > 0.9999
    unclipped = Gradient().rows(model, Batch(10 * batch.x[1:2], batch.y[1:2]), TASK)
    assert float(lengths(unclipped)) > bound


def test_a_row_that_is_not_finite_is_left_out_and_harms_no_other():
    model, batch = network(NETS["instance norm"]), some(9)
    bad = batch.with_x(batch.x.clone())
    bad.x[4, 0, 0, 0], bad.x[7, 1, 3, 3] = math.nan, math.inf
    good = [i for i in range(9) if i not in (4, 7)]
    clean, group = Batch(batch.x[good], batch.y[good]), torch.zeros(9, dtype=torch.int64)
    for statistic in (Gradient(), MeanFeature()):
        found = statistic.clipped_sums(model, [bad], TASK, group, 1, 0.1, dtype=torch.float64)
        wanted = statistic.clipped_sums(model, [clean], TASK, group[good], 1, 0.1, dtype=torch.float64)
        torch.testing.assert_close(found, wanted, **EXACT)


def test_a_row_of_zeros_stays_zero():
    rows = {"a": torch.zeros(3, 4), "b": torch.zeros(3, 2, 2)}
    found = clipped_sum(rows, torch.ones(1, 3, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64))
    assert all(bool((value == 0).all()) for value in found.values())


def test_many_rows_are_added_up_exactly():
    """60,000 equal rows: added up in float32 one after the other, they would err by many times the bound."""
    row = numbers(1, 50, dtype=torch.float32)
    batch, group = Batch(row.expand(60_000, 50), torch.zeros(60_000, dtype=torch.int64)), torch.zeros(60_000).long()

    class Itself(Both):
        def rows(self, model, batch, task):
            return {"x": batch.x}

    found = Itself().clipped_sums(None, [batch], TASK, group, 1, 1.0, dtype=torch.float64)["x"][0]
    exact = 60_000 * row[0].double() / row.double().norm()
    assert float((found - exact).norm()) < 1e-7


@pytest.mark.parametrize("shape", [(3,), (3, LONGEST * 2 + 1), (3, 4, 5, 6), (3, 2, LONGEST + 7), (3, 5, 1), (3, 0, 4)])
def test_lengths_are_exact_for_parts_of_every_shape(shape):
    row = numbers(*shape, dtype=torch.float32)
    exact = row.double().flatten(1).norm(dim=1) if row.dim() > 1 else row.double().abs()
    torch.testing.assert_close(lengths({"part": row}), exact, rtol=1e-7, atol=0)


@pytest.mark.parametrize("shape", [(2, 0, 3, 3), (2, 3)])
def test_parts_of_half_precision_are_measured_in_full(shape):
    row = numbers(*shape).bfloat16()
    torch.testing.assert_close(lengths({"part": row}), row.double().flatten(1).norm(dim=1), rtol=1e-12, atol=0)


# -- nothing, and nonsense ------------------------------------------------------------------------------------------


class Silent(nn.Module):
    """A network that must not be asked."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        raise AssertionError


def test_no_examples_give_zeros_without_asking_the_network():
    nothing = Batch(torch.zeros(0, *TASK.shape), torch.zeros(0, dtype=torch.int64))
    found = Gradient().clipped_sums(Silent(), [nothing, nothing], TASK, nothing.y, 2, 0.1)
    assert {part: (tuple(value.shape), value.dtype) for part, value in found.items()} == {
        "head.weight": ((2, 3, 4), torch.float32),
        "head.bias": ((2, 3), torch.float32),
    }
    assert not any(value.any() for value in found.values())


@pytest.mark.parametrize("statistic", [MeanFeature(), Both(), Gradient()])
def test_no_examples_give_zeros_of_the_shapes_of_some(statistic):
    model = network(NETS["instance norm"])
    shapes = []
    for batch in (some(0), some(2)):
        found = statistic.clipped_sums(model, [batch], TASK, batch.y, 3, 0.1)
        shapes.append({part: (value.shape, value.dtype) for part, value in found.items()})
        assert len(batch) or not any(value.any() for value in found.values())
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"bound": 0.0}, "length above 0"),
        ({"bound": math.nan}, "length above 0"),
        ({"chunk": 0}, "1 or more"),
        ({"views": [some(3), some(2)]}, "every view"),
        ({"views": []}, "every view"),
        ({"groups": torch.tensor([0, 1, 2])}, r"0\.\.1"),
    ],
)
@pytest.mark.parametrize("statistic", [Gradient(), MeanFeature()])
def test_what_cannot_be_summed_is_refused(statistic, change, text):
    asked = {"views": [some(3)], "groups": torch.tensor([0, 1, 1]), "bound": 1.0, "chunk": 2} | change
    with pytest.raises(BadValue, match=text):
        statistic.clipped_sums(
            network(NETS["mlp"]), asked["views"], TASK, asked["groups"], 2, asked["bound"], chunk=asked["chunk"]
        )


# -- networks of strangers ------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """One weight in two places, one made of another, a convolution in every spelling, and a parameter without use."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(numbers(4, 2, 3, 3, seed=1) / 4)
        self.second = nn.Parameter(numbers(4, 4, 3, 2, seed=2) / 4)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2, padding="same").double()
        self.twice = nn.Parameter(numbers(3, 4, seed=3))
        self.unused = nn.Parameter(numbers(2, seed=4))

    def features(self, x):
        weight = self.first - self.first.mean(dim=(1, 2, 3), keepdim=True)
        h = F.conv2d(x, weight, stride=(2, 1), padding=(1, 2), dilation=2).relu()
        h = self.grouped(F.conv2d(h, self.second, None, 1, 1)).tanh()
        h = F.conv2d(h, h.mean(dim=(0, 2, 3)).view(1, 4, 1, 1) * self.second[:, :, :1, :1], padding="valid")
        return h.mean(dim=(2, 3)) @ self.twice.T @ self.twice

    def forward(self, x):
        return self.features(x) @ self.twice.T


class Branching(nn.Module):
    """Does with an example what its brightness says: nothing that `vmap` can follow."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double()

    def forward(self, x):
        return self.layers(x) if float(x.sum()) > 0 else self.layers(x).square()


class BatchNormed(nn.Module):
    """Keeps running statistics, which `vmap` cannot change."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)).double()

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("model", [Odd(), Branching(), BatchNormed()], ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("several", [False, True], ids=["one view", "two views"])
def test_strange_networks_have_the_sums_of_the_loop(model, several):
    model = Used(model)
    batch, groups = some(), torch.arange(11) % 2
    views = [batch, warped(batch)][: 1 + several]
    bound = middle(model, batch)
    found = Gradient().clipped_sums(model, views, TASK, groups, 2, bound, chunk=4, dtype=torch.float64)
    torch.testing.assert_close(found, slowly(model, views, groups, 2, bound, alone_or_zero), **EXACT)


class Used(nn.Module):
    """A network within another."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def alone_or_zero(model, batch, i):
    params = dict(model.named_parameters())
    loss = F.cross_entropy(model(batch.x[i : i + 1]), batch.y[i : i + 1])
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(params, grads, strict=True))


def test_a_mistake_of_the_network_is_raised_as_itself():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Gradient().rows(nn.Sequential(nn.Flatten(), nn.Linear(7, 3)).double(), some(2), TASK)


@pytest.mark.parametrize("model", [Odd(), network(NETS["no norm"])], ids=["odd", "conv net"])
def test_convolutions_as_products_have_the_same_gradients(model):
    batch, params = some(5), {name: p.detach() for name, p in model.named_parameters()}

    def value(params, x, y):
        return F.cross_entropy(torch.func.functional_call(model, params, (x["x"][None],)), y[None])

    def of_pairs(params, x, y):
        pair = {"x": torch.stack([x["x"], 2 * x["x"].flip(2)])}
        return torch.func.vmap(value, in_dims=(None, 0, None))(params, pair, y).sum()

    for of in (value, of_pairs):
        plain = gradients(of)(params, {"x": batch.x}, batch.y)
        with convolutions_as_products():
            found = gradients(of)(params, {"x": batch.x}, batch.y)
        torch.testing.assert_close(found, plain, **EXACT)


# -- compiled -------------------------------------------------------------------------------------------------------


def test_compiled_sums_are_the_eager_ones_in_float32_whatever_the_precision(recwarn):
    """Pieces of 16, a last one that others fill up, and one that is too short for that."""
    model, batch = network(NETS["instance norm"], torch.float32), some(48, dtype=torch.float32)
    bound = middle(model, batch)
    with execution.using(execution.Compiled(half=True)):
        for n in (48, 32 + 11, 16 + 5):
            part = Batch(batch.x[:n], batch.y[:n])
            group = torch.zeros(n, dtype=torch.int64)
            found = Gradient().clipped_sums(model, [part], TASK, group, 1, bound, dtype=torch.float64)
            slow = slowly(model, [part], group, 1, bound)
            assert float(apart(found, slow)) < 1e-6 * float(lengths(slow))
    assert not [w for w in recwarn if "not compiled" in str(w.message)]


def test_compiled_sums_of_several_groups_and_views_are_the_loops(recwarn):
    model, batch = network(NETS["no norm"], torch.float32), some(16, dtype=torch.float32)
    views, groups, bound = [batch, warped(batch)], torch.arange(16) % 3, middle(model, batch)
    with execution.using(execution.Compiled(half=False)):
        found = Gradient().clipped_sums(model, views, TASK, groups, 3, bound, dtype=torch.float64)
    torch.testing.assert_close(found, slowly(model, views, groups, 3, bound), rtol=1e-4, atol=1e-6 * bound)
    assert not [w for w in recwarn if "not compiled" in str(w.message)]


@pytest.mark.parametrize("statistic", [Gradient(), MeanFeature()], ids=["gradient", "mean-feature"])
def test_samples_of_all_sizes_share_one_compiled_pass(statistic):
    """A Poisson sample has another size in every step: a pass compiled anew for each would be slower than none."""
    model, batch = network(NETS["no norm"], torch.float32), some(44, dtype=torch.float32)
    graphs = []
    with execution.using(execution.Compiled(half=False)):
        for n in (16, 32, 37, 42, 44):
            part, group = Batch(batch.x[:n], batch.y[:n]), torch.zeros(n, dtype=torch.int64)
            statistic.clipped_sums(model, [part], TASK, group, 1, 1.0)
            graphs.append(dynamo.counters["stats"]["unique_graphs"])
    assert len(set(graphs)) == 1, graphs
