"""Artifacts: what is written opens equal; what is changed, cut short, newer or not installed is refused by name."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from condense import artifact as artifacts
from condense import files, manifest, plugins, store
from condense.artifact import load, write_artifact
from condense.errors import BadValue, Damaged
from condense.plugins import DISTRIBUTION, Registry

FILES = ["manifest.json", "plan.json", "provenance.json", "recipe.json", "tensors.safetensors"]


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder):
    return {name: (folder / name).read_bytes() for name in names(folder)}


def forged(folder, change):
    """Rewrite the artifact with right checksums after `change` has edited its files: what a knowing hand can do."""
    data = contents(folder)
    del data["manifest.json"]
    change(data)
    manifest.write(folder, artifacts.FORMAT, data)


def edited(name, change):
    """An edit of one JSON file."""

    def edit(data):
        value = json.loads(data[name])
        data[name] = files.json_bytes(change(value) or value)

    return edit


def retensored(change):
    """An edit of the stored tensors."""

    def edit(data):
        tree = store.unpack(data["tensors.safetensors"], "artifact", Path("x"))
        change(tree)
        data["tensors.safetensors"] = store.pack(tree, "artifact")

    return edit


def test_an_artifact_opens_as_it_was_written(toy_artifact, toy_plan, toy_images):
    assert names(toy_artifact.path) == FILES
    opened = load(str(toy_artifact.path))
    assert opened.plan == toy_plan
    assert opened.plan.digest() == toy_plan.digest()
    assert opened.recipe == toy_plan.recipe
    assert opened.task.classes == ("circle", "T-shirt/top", "star")
    assert opened.preprocessing == {"name": "scaled", "mean": [0.25] * 3, "std": [0.5] * 3}
    assert opened.stored == {"images": 6 * 3 * 6 * 5 * 4, "labels": 6 * 8}
    assert opened.report is None
    assert opened.provenance["machine"] == "toy"
    assert opened.provenance["format"] == 1
    sampler = opened.sampler()
    assert torch.equal(sampler.x, (toy_images - 0.25) / 0.5)
    assert sampler.groups.tolist() == sampler.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert not sampler.x.requires_grad


def test_its_dataset_gives_network_inputs_with_labels(toy_artifact, toy_images):
    dataset = toy_artifact.dataset()
    image, label = dataset[3]
    assert torch.equal(image, (toy_images[3] - 0.25) / 0.5)
    assert image.dtype == torch.float32
    assert (label.shape, label.dtype, label.item()) == ((), torch.int64, 1)
    with pytest.raises(IndexError):
        dataset[6]
    x, y = next(iter(DataLoader(dataset, batch_size=4)))
    assert x.shape == (4, 3, 6, 5)
    assert y.tolist() == [0, 0, 1, 1]


def test_an_update_adds_report_and_pictures(toy_artifact):
    first = toy_artifact.update({"last": [0.5]}, {"report.html": b"<html>", "pictures/grid.png": b"png"})
    assert first.report == {"last": [0.5]}
    assert load(toy_artifact.path).report == {"last": [0.5]}
    second = first.update({"last": [0.75]})
    assert second.report == load(toy_artifact.path).report == {"last": [0.75]}
    assert names(toy_artifact.path) == sorted([*FILES, "report.json", "report.html", "pictures/grid.png"])
    assert "was" not in (toy_artifact.path / "manifest.json").read_text()


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "../out", "/out", "a/b/c", ".run/x", "", "a/../b"])
def test_an_update_refuses_names_that_are_not_its_own(name, toy_artifact):
    before = contents(toy_artifact.path)
    with pytest.raises(BadValue, match="no name for a further file"):
        toy_artifact.update(extra={name: b""})
    assert contents(toy_artifact.path) == before


def test_an_update_that_is_cut_short_anywhere_leaves_a_whole_artifact(toy_artifact, monkeypatch):
    """The process dies before each rename in turn: whatever is on disk opens, each file the old or the new one."""
    folder, real = toy_artifact.path, os.replace
    toy_artifact.update({"n": 0}, {"report.html": b"0"})
    deaths = 0
    for n in range(1, 20):
        left = deaths

        def dying(*args):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            real(*args)

        monkeypatch.setattr(os, "replace", dying)
        try:
            toy_artifact.update({"n": n}, {"report.html": str(n).encode(), f"new{n}.txt": b"new"})
        except KeyboardInterrupt:
            deaths += 1
        else:
            break
        finally:
            monkeypatch.undo()
        opened = load(folder)
        assert opened.report["n"] in (0, *range(1, n + 1))
    assert deaths == 5  # two manifests and three files
    assert load(folder).report == {"n": n}
    assert (folder / "report.html").read_bytes() == str(n).encode()


def test_a_file_that_is_neither_the_old_nor_the_new_one_is_refused_while_files_are_exchanged(toy_artifact, monkeypatch):
    toy_artifact.update({"n": 0})
    real, calls = files.write, []

    def once(path, data):
        if calls:
            raise KeyboardInterrupt
        calls.append(path)
        real(path, data)

    monkeypatch.setattr(files, "write", once)
    with pytest.raises(KeyboardInterrupt):
        toy_artifact.update({"n": 1})
    monkeypatch.undo()
    assert load(toy_artifact.path).report == {"n": 0}
    (toy_artifact.path / "report.json").write_text('{\n "n": 2\n}\n')
    with pytest.raises(Damaged, match=r"report\.json"):
        load(toy_artifact.path)


def test_writing_again_replaces_the_artifact_and_is_none_meanwhile(toy_artifact, toy_plan, monkeypatch):
    def write():
        a = toy_artifact
        return write_artifact(a.path, toy_plan, a.synthetic, a.transform, a.task, {"machine": "other"})

    real = files.write
    monkeypatch.setattr(files, "write", lambda path, data: real(path, data) if path.name == "plan.json" else None)
    with pytest.raises(Damaged, match=r"manifest\.json: is missing"):
        write()
    monkeypatch.undo()
    assert write().provenance["machine"] == "other"
    assert names(toy_artifact.path) == FILES


def test_what_the_manifest_does_not_list_is_never_read(toy_artifact):
    (toy_artifact.path / ".run").mkdir(mode=0o700)
    (toy_artifact.path / ".run" / "plan.json").write_bytes(b"\xff")
    (toy_artifact.path / "notes.txt").write_bytes(b"\xff")
    (toy_artifact.path / "report.json").write_bytes(b"\xff")
    assert load(toy_artifact.path).report is None


def test_folders_that_are_no_artifact_say_what_they_are(tmp_path):
    with pytest.raises(BadValue, match=r"has no manifest\.json"):
        load(tmp_path / "absent")
    (tmp_path / ".run").mkdir()
    with pytest.raises(BadValue, match=f"condense resume {tmp_path}"):
        load(tmp_path)


def test_every_file_that_is_missing_is_named(toy_artifact):
    for name in FILES:
        data = (toy_artifact.path / name).read_bytes()
        (toy_artifact.path / name).unlink()
        with pytest.raises(Damaged, match="is missing") as caught:
            load(toy_artifact.path)
        assert name in str(caught.value)
        (toy_artifact.path / name).write_bytes(data)
    load(toy_artifact.path)


def test_every_flipped_bit_and_every_truncation_is_found(toy_artifact):
    toy_artifact.update({"last": [0.5]}, {"pictures/grid.png": b"png" * 100})
    folder, rnd = toy_artifact.path, random.Random(0)
    whole = contents(folder)
    flips = cuts = 0
    for n in range(360):
        name = rnd.choices(list(whole), [len(data) for data in whole.values()])[0]
        data = bytearray(whole[name])
        if n < 300:
            bit = rnd.randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
        else:
            data = data[: rnd.randrange(len(data))]
        (folder / name).write_bytes(data)
        with pytest.raises(Damaged) as caught:
            load(folder)
        assert name in str(caught.value)
        flips, cuts = flips + (n < 300), cuts + (n >= 300)
        (folder / name).write_bytes(whole[name])
    load(folder)
    print(f"{flips} of 300 bit flips and {cuts} of 60 truncations found, each by the name of its file")


def test_every_byte_of_the_manifest_matters(toy_artifact):
    path, rnd = toy_artifact.path / "manifest.json", random.Random(0)
    whole = path.read_bytes()
    for i in range(len(whole)):
        data = bytearray(whole)
        data[i] ^= 1 << rnd.randrange(8)
        path.write_bytes(data)
        with pytest.raises(Damaged, match=r"manifest\.json"):
            manifest.read(toy_artifact.path)


def shape(task_shape):
    return edited("provenance.json", lambda facts: facts["task"].update(shape=task_shape))


FORGERIES = {
    "a tensor too many": (retensored(lambda tree: tree["set"].update(more=torch.ones(1))), "set.more should be absent"),
    "a tensor too few": (retensored(lambda tree: tree["set"].pop("packed.x")), "should be torch.float32"),
    "another shape": (
        retensored(lambda tree: tree["set"].update({"packed.x": torch.ones(6, 3, 5, 6)})),
        "(6, 3, 6, 5)",
    ),
    "another dtype": (retensored(lambda tree: tree["set"].update(y=torch.zeros(6))), "set.y should be torch.int64"),
    "no tensor": (retensored(lambda tree: tree["set"].update(y=[0] * 6)), "set.y should be torch.int64"),
    "no set": (retensored(lambda tree: tree.pop("set")), "which class each item is about"),
    "no transform": (retensored(lambda tree: tree.pop("transform")), "holds no transform"),
    "a wider transform": (retensored(lambda tree: tree["transform"].update(mean=torch.ones(9))), "transform.mean"),
    "a class too high": (retensored(lambda tree: tree["set"]["item_groups"].fill_(3)), "outside 0..2"),
    "a class below 0": (retensored(lambda tree: tree["set"]["item_groups"].fill_(-1)), "outside 0..2"),
    "a label too high": (retensored(lambda tree: tree["set"]["y"].fill_(3)), "outside 0..2"),
    "NaN": (retensored(lambda tree: tree["set"]["packed.x"].fill_(torch.nan)), "NaN or infinity"),
    "infinite std": (retensored(lambda tree: tree["transform"]["std"].fill_(torch.inf)), "NaN or infinity"),
    "a tree that is a list": (
        lambda data: data.update({"tensors.safetensors": store.pack([1], "artifact")}),
        "holds no transform",
    ),
    "a checkpoint": (lambda data: data.update({"tensors.safetensors": store.pack({}, "checkpoint")}), "of the kind"),
    "a huge shape": (shape([3, 10**6, 10**6]), "should be"),
    "a shape below 0": (shape([3, -6, -5]), "set"),
    "a shape in words": (shape(["three"]), "holds no task"),
    "no task": (edited("provenance.json", lambda facts: facts.pop("task") and None), "holds no task"),
    "facts that are a list": (edited("provenance.json", lambda facts: [1]), "holds no task"),
    "a plan that is a list": (edited("plan.json", lambda plan: [1]), "holds no plan"),
    "a plan with more": (edited("plan.json", lambda plan: plan.update(shell="rm")), "holds no plan"),
    "a plan without seed": (edited("plan.json", lambda plan: plan.update(seed="x")), "holds no plan"),
    "another recipe": (edited("recipe.json", lambda recipe: recipe["outer"].update(steps=7)), "not the recipe"),
    "a key twice": (lambda data: data.update({"plan.json": b'{"seed": 1, "seed": 2}'}), "stands twice"),
    "no recipe": (lambda data: data.pop("recipe.json"), "recipe.json"),
}


@pytest.mark.parametrize("case", FORGERIES)
def test_forgeries_with_right_checksums_are_refused(case, toy_artifact):
    change, text = FORGERIES[case]
    forged(toy_artifact.path, change)
    with pytest.raises(Damaged) as caught:
        load(toy_artifact.path)
    assert text in str(caught.value)
    assert str(toy_artifact.path) in str(caught.value)


def test_the_forger_of_these_tests_forges_well(toy_artifact):
    forged(toy_artifact.path, retensored(lambda tree: tree["set"]["packed.x"].fill_(0.5)))
    assert load(toy_artifact.path).sampler().x.unique().tolist() == [0.5]


def test_links_are_refused_for_files_and_folders(toy_artifact, tmp_path):
    toy_artifact.update(extra={"pictures/grid.png": b"png"})
    for name in (*FILES, "pictures"):
        path, real = toy_artifact.path / name, tmp_path / f"real-{name}"
        path.rename(real)
        path.symlink_to(real)
        with pytest.raises(Damaged, match="a link") as caught:
            load(toy_artifact.path)
        assert str(path) in str(caught.value)
        path.unlink()
        real.rename(path)
    load(toy_artifact.path)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "pictures/../../outside", ".run/key", "a\nb", "a/b/c"])
def test_names_that_lead_elsewhere_are_refused_unread(name, toy_artifact):
    listed = manifest.read(toy_artifact.path)["files"]
    manifest._write(toy_artifact.path, 1, {**listed, name: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(Damaged, match="lists a name that no file of condense has"):
        load(toy_artifact.path)


def test_a_part_that_is_not_installed_is_named_with_what_may_bring_it(toy_artifact, toy_registry):
    broken = plugins.Plugin("graph", "far.away", "condense-far", "1", error="No module named 'far'")
    kept = [
        plugins.Plugin("toy", "toy", "toy", "0", parts=[p for p in toy_registry.plugins[0].parts if p.name != "scaled"])
    ]
    with plugins.using(Registry([*kept, broken], toy_registry.manager)), pytest.raises(BadValue) as caught:
        load(toy_artifact.path)
    text = str(caught.value)
    assert caught.value.field == "plan.recipe.preprocess"
    assert "no preprocess named 'scaled'" in text
    assert "far.away (condense-far) did not load: No module named 'far'" in text


def test_a_newer_artifact_is_refused_by_name(toy_artifact):
    manifest._write(toy_artifact.path, 2, {"anything": "else"})
    with pytest.raises(Damaged) as caught:
        load(toy_artifact.path)
    assert "written by a newer condense (format 2; this reads up to 1)" in str(caught.value)
    assert f"pip install --upgrade {DISTRIBUTION}" in str(caught.value)
