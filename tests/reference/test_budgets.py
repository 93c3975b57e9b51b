"""How items are divided among classes: by hand, by GCond's rule, and at the edges."""

import pytest
import torch

from condense.data import TensorSource
from condense.errors import BadValue
from condense.parts.budgets import PerClass, Ratio, Total, shares
from condense.recipe import Group
from condense.task import Task


def source(*counts: int) -> TensorSource:
    task = Task(classes=tuple("abcdefgh"[: len(counts)]), shape=(2,))
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return TensorSource(task, torch.zeros(len(y), 2), y)


class Unlabelled(TensorSource):
    population = 1000


def allotted(budget, data) -> list[int]:
    groups = budget.allot(data)
    assert torch.equal(groups, groups.sort().values), "not class-major"
    assert budget.items(data) == len(groups)
    return torch.bincount(groups, minlength=data.task.groups).tolist()


def by_gcond(n: int, counts: list[int]) -> list[int]:
    """max(floor(n_c * n / N), 1) each, the rest to the largest class: slowly, as the card says it."""
    given = [max(int(n * c / sum(counts) + 1e-9), 1) for c in counts]
    given[counts.index(max(counts))] += n - sum(given)
    return given


@pytest.mark.parametrize(
    ("n", "counts"), [(35, [20] * 7), (70, [20] * 7), (60, [20] * 6), (30, [5, 50, 45]), (10, [1, 60, 39])]
)
def test_proportional_is_gconds_rule(n, counts):
    assert allotted(Total(n=n), source(*counts)) == by_gcond(n, counts)


@pytest.mark.parametrize(
    ("n", "counts"),
    [(5, [2, 2, 2]), (6, [2, 2, 2]), (3, [1, 1, 98]), (99, [1, 1, 98]), (7, [3, 4])],
)
def test_no_class_gets_more_than_it_has_nor_less_than_one(n, counts):
    given = allotted(Total(n=n), source(*counts))
    assert sum(given) == n
    assert all(1 <= got <= have for got, have in zip(given, counts, strict=True))


def test_a_class_without_items_gets_none():
    assert shares(4, [4, 0, 4], ("a", "b", "c")) == [2, 0, 2]


def test_equal_parts():
    assert allotted(Total(n=7, split="equal"), source(1, 50, 9)) == [3, 2, 2]


def test_a_ratio_is_of_the_labelled_or_of_all():
    task = Task(classes=("a", "b"), shape=(2,))
    data = Unlabelled(task, torch.zeros(100, 2), torch.arange(100) % 2)
    assert allotted(Ratio(r=0.5), data) == [25, 25]
    assert allotted(Ratio(r=0.05, of="all"), data) == [25, 25]
    assert allotted(PerClass(n=25), data) == [25, 25]


@pytest.mark.parametrize("budget", [Total(n=2), Total(n=2, split="equal"), Ratio(r=0.01)])
def test_fewer_than_one_item_per_class_is_refused(budget):
    with pytest.raises(BadValue, match="less than one for each of"):
        budget.allot(source(10, 20, 10))


def test_more_than_there_is_is_refused():
    with pytest.raises(BadValue, match="more than the 40"):
        Total(n=41).allot(source(10, 20, 10))


def test_groups_move_for_a_span_of_steps_in_turns():
    structure, features = Group(rule="adam", every=5, span=1), Group(rule="adam", every=5, span=4, phase=1)
    assert [i for i in range(12) if structure.moves(i)] == [0, 5, 10]
    assert [i for i in range(12) if features.moves(i)] == [1, 2, 3, 4, 6, 7, 8, 9, 11]
    every_third = Group(rule="adam", every=3, phase=4)
    assert [i for i in range(9) if every_third.moves(i)] == [i for i in range(9) if i % 3 == 4 % 3]
