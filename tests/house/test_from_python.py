"""What the README shows from Python: data and a network of one's own, without a plugin, up to the judged artifact."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import condense
from condense.errors import BadValue
from condense.running import Paused


@pytest.fixture
def examples() -> tuple[torch.Tensor, torch.Tensor]:
    """60 separable 1x12x12 images of 3 classes, in [0, 1]."""
    y = torch.arange(60) % 3
    x = torch.rand(60, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.5
    x[torch.arange(60), 0, 4 * y] += 0.5
    return x, y


def test_own_data_and_an_own_network_are_condensed_and_judged(examples, tmp_path):
    def net(task):
        return nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, task.outputs))

    asked = {"data": examples, "net": net, "per_class": 4, "steps": 2, "device": "cpu", "out": tmp_path / "run"}
    settings = {"protocol.epochs": 20, "protocol.repeats": 2}
    artifact = condense.run("dm", settings=settings, **asked)
    images = [(tuple(image.shape), int(label)) for image, label in artifact.dataset()]
    assert images == [((1, 12, 12), c) for c in (0, 1, 2) for _ in range(4)]
    judged = condense.judge(artifact, full=False)
    assert [(row["kind"], row["n"]) for row in judged.report["rows"]] == [("condensed", 2), ("random", 2)]
    again = condense.judge(condense.run("dm", settings=settings, **asked), full=False)
    assert accuracies(again) == accuracies(judged), "the same call again finds what is done, and can be judged"
    assert accuracies(condense.load(tmp_path / "run")) == accuracies(judged)


def test_a_run_on_own_data_goes_on_on_another_device(examples, tmp_path):
    asked = {"data": examples, "net": "mlp", "per_class": 4, "steps": 3, "device": "cpu", "out": tmp_path / "run"}
    with pytest.raises(Paused):
        condense.run("dm", minutes=1e-5, **asked)
    stored = tmp_path / "run" / ".run" / "plan.json"
    stored.write_text(stored.read_text().replace('"device": "cpu"', '"device": "cuda:63"'))
    with pytest.raises(BadValue, match="cuda:63"):
        condense.resume(tmp_path / "run", data=examples)
    assert len(condense.resume(tmp_path / "run", data=examples, device="cpu").dataset()) == 12


def test_examples_are_standardised_by_what_is_learned_from_and_by_nothing_of_the_test_part(examples, tmp_path):
    x, y = examples
    dark = (x * 0.1, y)
    made = condense.run("random", data=((x, y), dark), per_class=1, out=tmp_path / "run", device="cpu")
    assert made.preprocessing["mean"] == pytest.approx([float(x.mean())], abs=2e-3)
    assert made.preprocessing["std"] == pytest.approx([float(x.std())], abs=2e-3)


def accuracies(artifact) -> list[list[float]]:
    return [row["accuracies"] for row in artifact.report["rows"]]
