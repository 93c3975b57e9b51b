"""Graphs to test on: stochastic block models in milliseconds."""

from __future__ import annotations

import pytest

from condense.data import Splits
from condense_graph.sources.generated import SBM


def sbm(
    classes: int = 3,
    per_class: tuple[int, ...] = (20, 20, 20),
    homophily: float = 0.8,
    degree: float = 5,
    features: int = 16,
    seed: int = 0,
    **more: object,
) -> Splits:
    """Splits of a stochastic block model; `per_class` of another length than `classes` is cut or repeated."""
    sizes = tuple(per_class[i % len(per_class)] for i in range(classes))
    return SBM(sizes=sizes, homophily=homophily, degree=degree, features=features, seed=seed, **more).open()


@pytest.fixture
def block_splits() -> Splits:
    """60 nodes, 3 classes of 20, 16 features: 18 to train on, 18 for validation, 24 to test on."""
    return sbm()
