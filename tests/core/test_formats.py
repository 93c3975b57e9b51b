"""Every format that was ever written still opens: a small file of each is kept under tests/fixtures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

import condense
from condense import artifact, checkpoint, store

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("number", sorted(artifact.READERS))
def test_an_artifact_of_each_format_opens_with_the_values_that_were_stored(number):
    folder = FIXTURES / f"artifact-{number}"
    opened = condense.load(folder)
    with safetensors.safe_open(folder / "tensors.safetensors", framework="np") as file:
        images, labels = file.get_tensor("set/packed.x"), file.get_tensor("set/y")
        mean, std = file.get_tensor("transform/mean"), file.get_tensor("transform/std")
    dataset = opened.dataset()
    assert len(dataset) == len(images) == 10
    for i, (image, label) in enumerate(dataset):
        assert np.array_equal(image.numpy(), images[i])
        assert label.item() == labels[i] == i
    assert opened.plan.method == "dm"
    assert opened.task.classes == tuple("0123456789")
    assert (opened.preprocessing["mean"], opened.preprocessing["std"]) == (
        pytest.approx(mean.flatten().tolist()),
        pytest.approx(std.flatten().tolist()),
    )
    assert opened.report == {"rows": []}


@pytest.mark.parametrize("number", sorted(store.READERS))
def test_a_checkpoint_of_each_format_opens(number):
    saved = store.load(FIXTURES / f"checkpoint-{number}.safetensors", checkpoint.KIND)
    assert saved["index"] == 3
    assert saved["tree"]["set"]["packed.x"].shape == (10, 1, 8, 8)
    assert saved["tree"]["set"]["packed.x"].dtype == torch.float32


def test_formats_are_counted_without_a_hole():
    assert sorted(artifact.READERS) == list(range(1, artifact.FORMAT + 1))
    assert sorted(store.READERS) == list(range(1, store.FORMAT + 1))
