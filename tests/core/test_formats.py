"""Every format that was ever written still opens: a small file of each is kept under tests/fixtures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import safetensors
import torch

import condense
from condense import artifact, checkpoint, html, store
from condense.errors import Damaged
from condense.report import Report

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


@pytest.mark.parametrize("number", get_args(Report.model_fields["format"].annotation))
def test_a_report_of_each_format_opens_with_the_numbers_that_were_stored(number):
    stored = json.loads((FIXTURES / f"report-{number}.json").read_text())
    assert stored["format"] == number
    opened = Report.model_validate(stored)
    assert [row.kind for row in opened.rows] == ["condensed", "random", "full"]
    for row, raw in zip(opened.rows, stored["rows"], strict=True):
        assert (list(row.accuracies), row.n) == (raw["accuracies"], 2)
        assert row.mean == pytest.approx(sum(raw["accuracies"]) / 2)
        assert [[list(point) for point in curve] for curve in row.curves] == raw["curves"]
        assert f"{100 * row.mean:.1f} ± {100 * row.std:.1f}" in page(opened)


def page(report):
    """That of an artifact of the first format, with this report."""
    return html.report_page(condense.load(FIXTURES / "artifact-1"), report)


@pytest.mark.parametrize("number", sorted(store.READERS))
def test_a_checkpoint_of_each_format_opens(number):
    saved = store.load(FIXTURES / f"checkpoint-{number}.safetensors", checkpoint.KIND)
    assert saved["index"] == 3
    assert saved["tree"]["set"]["packed.x"].shape == (10, 1, 8, 8)
    assert saved["tree"]["set"]["packed.x"].dtype == torch.float32


@pytest.fixture(params=sorted(store.READERS))
def begun(request, tmp_path):
    """A folder in which a run of that time stopped after its last step, before its artifact was written."""
    private = tmp_path / "run" / ".run"
    private.mkdir(parents=True, mode=0o700)
    shutil.copy(FIXTURES / "artifact-1" / "plan.json", private)
    shutil.copy(FIXTURES / f"checkpoint-{request.param}.safetensors", private / "checkpoint-000003.safetensors")
    return private.parent


def test_a_run_with_a_checkpoint_of_each_format_goes_on(begun):
    made = condense.resume(begun)
    stored = condense.load(FIXTURES / "artifact-1")
    for (image, label), (own, its) in zip(made.dataset(), stored.dataset(), strict=True):
        assert torch.equal(image, own)
        assert label == its


def test_a_checkpoint_that_lacks_a_part_is_refused_by_its_name(begun):
    (path,) = (begun / ".run").glob("checkpoint-*")
    saved = store.load(path, checkpoint.KIND)
    del saved["tree"]["updates"]
    store.save(path, saved, checkpoint.KIND)
    with pytest.raises(Damaged, match=r"lacks updates.*--out"):
        condense.resume(begun)


def test_formats_are_counted_without_a_hole():
    assert sorted(artifact.READERS) == list(range(1, artifact.FORMAT + 1))
    assert sorted(store.READERS) == list(range(1, store.FORMAT + 1))
