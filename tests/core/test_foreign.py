"""Sets that somebody else made, and our own written for others: both ways, by class name, refused where it must be."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from condense.errors import BadData, BadValue, InUse, NoRoom
from condense.export import export
from condense.foreign import folder_name, open_foreign


@pytest.fixture
def opened(toy_artifact):
    """open_foreign for the toy's own data set."""
    return lambda path, **more: open_foreign(path, toy_artifact.task, toy_artifact.transform, **more)


@pytest.fixture
def uint8():
    """(6, 3, 6, 5) uint8 images and their labels, classes in an order that is neither sorted nor the file's."""
    x = torch.randint(0, 256, (6, 3, 6, 5), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return x.numpy(), np.array([2, 0, 1, 1, 2, 0])


def encoded(x):
    return (torch.from_numpy(x).float() / 255 - 0.25) / 0.5


def write_folder(root, x, names, suffix=".png"):
    for i, (image, name) in enumerate(zip(x, names, strict=True)):
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(root / name / f"{i}{suffix}")
    return root


NAMES = ["star", "circle", "T-shirt%2Ftop", "T-shirt%2Ftop", "star", "circle"]


def test_a_folder_is_read_with_classes_in_the_order_of_the_data_set(tmp_path, uint8, opened):
    x, y = uint8
    sampler = opened(write_folder(tmp_path / "set", x, NAMES))
    order = np.argsort(y, kind="stable")
    assert torch.equal(sampler.x, encoded(x[order]))
    assert sampler.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert sampler.task.classes == ("circle", "T-shirt/top", "star")
    assert sampler.counts() == [2, 2, 2]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y")])
def test_an_npz_is_read_channels_first_or_last_bytes_or_floats(last, names, tmp_path, uint8, opened):
    x, y = uint8
    stored = x.transpose(0, 2, 3, 1) if last else x
    for i, pixels in enumerate((stored, (stored / 255).astype(np.float64), (stored / 255).astype(np.float32))):
        np.savez_compressed(tmp_path / f"{i}.npz", **dict(zip(names, (pixels, y[:, None] if i else y), strict=True)))
        sampler = opened(tmp_path / f"{i}.npz")
        assert torch.allclose(sampler.x, encoded(x), atol=1e-6)
        assert sampler.x.dtype == torch.float32
        assert sampler.y.tolist() == y.tolist()


def test_named_classes_renumber_labels_and_soft_columns(tmp_path, uint8, opened):
    x, y = uint8
    classes = np.array(["star", "T-shirt/top", "circle"])  # theirs: 0 is our 2, 2 is our 0
    np.savez(tmp_path / "a.npz", x=x, y=y, classes=classes)
    assert opened(tmp_path / "a.npz").y.tolist() == [{0: 2, 1: 1, 2: 0}[label] for label in y.tolist()]
    cyclic = np.array(["star", "circle", "T-shirt/top"])  # a permutation that is not its own inverse
    soft = np.eye(3, dtype=np.float32)[y] * 0.7 + 0.1
    np.savez(tmp_path / "b.npz", x=x, y=soft, classes=cyclic)
    found = opened(tmp_path / "b.npz").y
    for row, theirs in zip(found, soft, strict=True):
        for j, ours in enumerate((2, 0, 1)):
            assert row[ours] == theirs[j]


def test_floats_outside_of_0_to_1_are_refused_unless_they_are_network_inputs(tmp_path, uint8, opened):
    x, y = encoded(uint8[0]).numpy(), uint8[1]
    np.savez(tmp_path / "a.npz", x=x, y=y)
    with pytest.raises(BadData, match=r"outside \[0, 1\].*normalised"):
        opened(tmp_path / "a.npz")
    assert np.array_equal(opened(tmp_path / "a.npz", normalised=True).x.numpy(), x)
    np.savez(tmp_path / "b.npz", x=uint8[0], y=y)
    with pytest.raises(BadData, match="cannot be normalised"):
        opened(tmp_path / "b.npz", normalised=True)


BAD_ARRAYS = {
    "a size": (lambda x, y: {"x": x[..., :4], "y": y}, r"\(N, 3, 6, 5\)"),
    "channels": (lambda x, y: {"x": x[:, :1], "y": y}, r"\(N, 3, 6, 5\)"),
    "no channel axis": (lambda x, y: {"x": x[:, 0], "y": y}, r"\(N, 3, 6, 5\)"),
    "whole numbers": (lambda x, y: {"x": x.astype(np.int64), "y": y}, "uint8 or floats"),
    "NaN": (lambda x, y: {"x": np.where(x > 5, np.nan, 0.5), "y": y}, "NaN or infinity"),
    "no rows": (lambda x, y: {"x": x[:0], "y": y[:0]}, "no examples"),
    "fewer labels": (lambda x, y: {"x": x, "y": y[:5]}, "6 examples and 5 labels"),
    "a label too high": (lambda x, y: {"x": x, "y": y + 1}, r"0\.\.2"),
    "a label below 0": (lambda x, y: {"x": x, "y": y - 1}, r"0\.\.2"),
    "float labels": (lambda x, y: {"x": x, "y": y.astype(float)}, "labels must be"),
    "NaN in soft labels": (lambda x, y: {"x": x, "y": np.eye(3)[y] * np.nan}, "labels must be"),
    "too many columns": (lambda x, y: {"x": x, "y": np.eye(4)[y]}, "labels must be"),
    "an empty class": (lambda x, y: {"x": x[y < 2], "y": y[y < 2]}, "no image of this class.*star"),
    "other classes": (
        lambda x, y: {"x": x, "y": y, "classes": ["circle", "star", "sock"]},
        "lacks T-shirt/top and has sock",
    ),
    "a class twice": (lambda x, y: {"x": x, "y": y, "classes": ["circle", "star", "star"]}, "lacks T-shirt/top"),
    "no labels": (lambda x, y: {"x": x}, "no images with labels"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_refused_with_the_cause(case, tmp_path, uint8, opened):
    make, text = BAD_ARRAYS[case]
    np.savez(tmp_path / "set.npz", **make(*uint8))
    with pytest.raises(BadData, match=text) as caught:
        opened(tmp_path / "set.npz")
    assert str(tmp_path / "set.npz") in str(caught.value)


def test_class_folders_that_are_not_the_data_sets_are_refused_by_name(tmp_path, uint8, opened):
    x, _ = uint8
    write_folder(tmp_path / "a", x, ["star", "circle", "sock", "sock", "star", "circle"])
    with pytest.raises(BadData, match="lacks T-shirt/top and has sock"):
        opened(tmp_path / "a")
    write_folder(tmp_path / "b", x[:2], NAMES[:2])
    with pytest.raises(BadData, match="lacks T-shirt/top"):
        opened(tmp_path / "b")
    (tmp_path / "b" / NAMES[2]).mkdir()
    with pytest.raises(BadData, match=r"T-shirt/top|no image of this class"):
        opened(tmp_path / "b")
    write_folder(tmp_path / "c", x, NAMES)
    Image.fromarray(x[0].transpose(1, 2, 0)).save(tmp_path / "c" / "stray.png")
    with pytest.raises(BadData, match=r"stray\.png: lies outside"):
        opened(tmp_path / "c")


def test_pictures_of_another_size_or_mode_are_refused(tmp_path, uint8, opened):
    x, _ = uint8
    for i, image in enumerate((x[:, :, :5], x[:, 0, :, :, None].repeat(4, -1).transpose(0, 3, 1, 2))):
        write_folder(tmp_path / str(i), image, NAMES)
        with pytest.raises(BadData, match="must be 5 x 6 pixels of mode RGB"):
            opened(tmp_path / str(i))


def test_the_set_is_put_where_the_transform_is(tmp_path, uint8, toy_artifact, device):
    x, y = uint8
    np.savez(tmp_path / "a.npz", x=x, y=y)
    for path in (tmp_path / "a.npz", write_folder(tmp_path / "b", x, NAMES), export(toy_artifact, tmp_path / "c.npz")):
        sampler = open_foreign(path, toy_artifact.task, toy_artifact.transform.to(device), device=device)
        assert sampler.x.device.type == sampler.y.device.type == device.type
        toy_artifact.transform.to("cpu")


def test_a_path_that_is_nothing_is_named(tmp_path, opened):
    with pytest.raises(BadValue, match="neither a folder nor a file"):
        opened(tmp_path / "absent")


# -- export ---------------------------------------------------------------------------------------------------------


def test_an_exported_folder_holds_the_images_to_the_nearest_of_256_levels(toy_artifact, toy_images, tmp_path, opened):
    to = export(toy_artifact, tmp_path / "out")
    assert sorted(p.name for p in to.iterdir()) == ["T-shirt%2Ftop", "circle", "export.json", "star"]
    with Image.open(to / "T-shirt%2Ftop" / "000003.png") as image:
        found = np.asarray(image)
    assert np.array_equal(found, np.round(toy_images[3].numpy().transpose(1, 2, 0) * 255).astype(np.uint8))
    back = opened(to)
    assert (back.x - toy_artifact.sampler().x).abs().max() <= 0.5 / 255 / 0.5 + 1e-6
    assert back.y.tolist() == [0, 0, 1, 1, 2, 2]
    facts = json.loads((to / "export.json").read_text())
    assert facts["classes"] == ["circle", "T-shirt/top", "star"]
    assert facts["made from"] == toy_artifact.plan.digest()


def test_an_exported_npz_holds_the_network_inputs_exactly(toy_artifact, tmp_path, opened):
    to = export(toy_artifact, tmp_path / "deep" / "out.npz")
    with np.load(to, allow_pickle=False) as found:
        assert np.array_equal(found["images"], toy_artifact.sampler().x.numpy())
        assert found["labels"].tolist() == [0, 0, 1, 1, 2, 2]
        assert found["classes"].tolist() == ["circle", "T-shirt/top", "star"]
        assert (found["mean"].tolist(), found["std"].tolist()) == ([0.25] * 3, [0.5] * 3)
    back = opened(to)
    assert torch.equal(back.x, toy_artifact.sampler().x)
    assert torch.equal(back.y, toy_artifact.sampler().y)
    again = export(toy_artifact, tmp_path / "again.npz")
    assert again.read_bytes() == to.read_bytes()


def test_export_touches_nothing_that_is_there(toy_artifact, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file.npz").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file.npz", "link"):
        with pytest.raises(InUse, match="is not empty"):
            export(toy_artifact, tmp_path / name)
    assert (tmp_path / "full" / "mine.txt").read_text() == (tmp_path / "file.npz").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert (export(toy_artifact, tmp_path / "empty") / "star").is_dir()
    with pytest.raises(BadValue, match="Use folder, npz or safetensors"):
        export(toy_artifact, tmp_path / "x", "zip")
    for name in ("set.npy", "set.ZIP", "set.pt"):
        with pytest.raises(BadValue, match=r"Use \.npz or \.safetensors"):
            export(toy_artifact, tmp_path / name)
    assert export(toy_artifact, tmp_path / "set.NPZ").is_file()
    assert (export(toy_artifact, tmp_path / "set.v2") / "star").is_dir()


def test_an_export_that_fails_leaves_nothing(toy_artifact, tmp_path, monkeypatch):
    before = sorted(tmp_path.iterdir())

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(NoRoom, match="Free space"):
        export(toy_artifact, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "...",
        "a/b",
        "/etc",
        "a\\b",
        "C:",
        "a\x00b",
        "100%",
        "%2F",
        " a ",
        "trailing.",
        "\u00e9 \u4e2d",
        "a b",
    ],
)
def test_folder_names_stay_inside_and_lead_back_to_the_class(name):
    from urllib.parse import unquote

    folder = folder_name(name)
    assert (Path("/x") / folder).resolve().parent == Path("/x")
    assert unquote(folder) == name
