"""One file of tensors and plain values: exact both ways, every changed bit found, nothing half-written."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import random
import resource
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import pytest
import safetensors
import torch

from condense import files, store
from condense.errors import BadValue, Damaged, NoRoom
from condense.plugins import DISTRIBUTION


def equal(a, b) -> bool:
    """Equal in type, value and bits, by a walk of its own."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return same and a.contiguous().reshape(-1).tolist().__repr__() == b.reshape(-1).tolist().__repr__()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def tree():
    g = torch.Generator().manual_seed(0)
    shared = torch.randn(4, 3, generator=g)
    return {
        "floats": [0.1, -0.0, math.pi, 5e-324, 1.7976931348623157e308, math.nan, math.inf, -math.inf],
        "ints": [0, -1, 2**63, 10**400],
        "plain": [True, False, None, "", "\u00e9\u4e2d\udc80\n\"'\\", {}, []],
        "seal": "0" * 64,
        "a/b": {"a%2Fb": torch.arange(3), "": torch.tensor(7)},
        "dtypes": [torch.ones(3).to(dtype) for dtype in store.DTYPES],
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "none of it": torch.empty(0, 5),
        "transposed": shared.t(),
        "expanded": torch.ones(1).expand(3, 2),
        "twice": [shared, shared, shared[1:]],
        "bits": torch.tensor([math.nan, math.inf, -0.0]),
        "ordered": OrderedDict(z=torch.nn.Parameter(torch.ones(2)), a=1),
    }


def test_a_tree_comes_back_exactly(tmp_path):
    store.save(tmp_path / "a", tree(), "kind")
    assert equal(tree(), store.load(tmp_path / "a", "kind"))
    for alone in (torch.ones(2), 3, None, [], {"x": torch.zeros(())}):
        store.save(tmp_path / "a", alone, "kind")
        assert equal(alone, store.load(tmp_path / "a", "kind"))


def test_equal_trees_give_equal_bytes_and_others_do_not():
    assert store.pack(tree(), "kind") == store.pack(tree(), "kind")
    assert store.pack([torch.zeros(1)], "kind") != store.pack([torch.tensor([-0.0])], "kind")


def test_the_tensors_are_read_by_the_safetensors_library_too(tmp_path):
    store.save(tmp_path / "a", {"net": {"w": torch.arange(6.0).view(2, 3)}, "n": 1}, "kind")
    with safetensors.safe_open(tmp_path / "a", framework="np") as file:
        assert list(file.keys()) == ["net/w"]
        assert np.array_equal(file.get_tensor("net/w"), np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ((1, 2), "a.1"),
        ({1, 2}, "a.1"),
        (np.float64(1), "a.1"),
        (b"raw", "a.1"),
        (print, "a.1"),
        ({3: 1}, "a.1"),
        (torch.ones(2).to_sparse(), "a/1"),
        (torch.ones(2, dtype=torch.complex64), "a/1"),
        (torch.ones(2, device="meta"), "a/1"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_its_place(value, place, tmp_path):
    with pytest.raises(TypeError, match=place.replace(".", r"\.")):
        store.save(tmp_path / "x", {"a": [0, value]}, "kind")
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_safetensors_keeps_for_itself_is_refused():
    with pytest.raises(TypeError, match="__metadata__"):
        store.pack({"__metadata__": torch.ones(1)}, "kind")


def damaged(raw, path) -> bool:
    path.write_bytes(raw)
    with pytest.raises(Damaged) as caught:
        store.load(path, "kind")
    return str(path) in str(caught.value)


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path):
    g = torch.Generator().manual_seed(0)
    raw = store.pack({"set": [torch.randn(300, 1000, generator=g)], "at": 17, "loss": [0.5, math.inf]}, "kind")
    rnd, path = random.Random(0), tmp_path / "file"
    flips = cuts = 0
    for _ in range(300):
        bit = rnd.randrange(8 * len(raw))
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        flips += damaged(bytes(changed), path)
    for _ in range(60):
        cuts += damaged(raw[: rnd.randrange(len(raw))], path)
    print(f"{flips} of 300 bit flips and {cuts} of 60 truncations of {len(raw)} bytes found")
    assert (flips, cuts) == (300, 60)
    assert damaged(raw + b"\0", path)
    assert damaged(raw + raw, path)


def test_every_single_bit_of_a_small_file_matters(tmp_path):
    """All of them, so that no byte of the header (padding, digits of the seal, spelling) is left unwatched."""
    raw = store.pack({"x": torch.tensor([1, 2], dtype=torch.int8), "n": 1}, "kind")
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            store.unpack(bytes(changed), "kind", tmp_path)


def forged(manifest: dict | list | str, tensors: bytes = b"", entries: str = "") -> bytes:
    """A file with a right seal and any content: what somebody who knows the format can make."""
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    header = store.PREFIX + (store.BLANK + json.dumps(text)[1:]).encode() + b"}" + entries.encode() + b"}"
    raw = len(header).to_bytes(8, "little") + header
    start = 8 + len(store.PREFIX)
    return raw[:start] + hashlib.sha256(raw).hexdigest().encode() + raw[start + 64 :] + tensors


def test_a_newer_format_is_refused_by_name(tmp_path):
    (tmp_path / "new").write_bytes(forged({"format": 2, "kind": "kind", "anything": "else"}))
    with pytest.raises(Damaged) as caught:
        store.load(tmp_path / "new", "kind")
    text = str(caught.value)
    assert "written by a newer condense (format 2; this reads up to 1)" in text
    assert f"pip install --upgrade {DISTRIBUTION}" in text
    assert str(tmp_path / "new") in text


@pytest.mark.parametrize("number", [0, -1, "1", None, True, 1.0])
def test_a_format_that_never_was_is_refused(number, tmp_path):
    with pytest.raises(Damaged, match="no format number"):
        store.unpack(forged({"format": number, "kind": "kind", "tree": 1, "sha256": {}}), "kind", tmp_path)


def test_the_forger_of_these_tests_forges_well(tmp_path):
    assert store.unpack(forged({"format": 1, "kind": "kind", "tree": 1, "sha256": {}}), "kind", tmp_path) == 1


def test_a_file_of_another_kind_is_refused(tmp_path):
    store.save(tmp_path / "x", {}, "artifact")
    with pytest.raises(Damaged, match="no file of the kind 'checkpoint'"):
        store.load(tmp_path / "x", "checkpoint")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_pass_unless_finite_is_asked_for(bad, tmp_path):
    store.save(tmp_path / "x", {"w": torch.tensor([1.0, bad])}, "kind")
    assert not torch.isfinite(store.load(tmp_path / "x", "kind")["w"]).all()
    with pytest.raises(Damaged, match="tensor 'w' holds NaN or infinity"):
        store.load(tmp_path / "x", "kind", finite=True)


# -- writing, when it fails -----------------------------------------------------------------------------------------


@contextmanager
def largest_file(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    store.save(path, {"small": torch.ones(3)}, "kind")
    with largest_file(2**20), pytest.raises(NoRoom) as caught:
        store.save(path, {"large": torch.ones(2**20)}, "kind")
    assert caught.value.field == str(path)
    assert "Free space" in caught.value.remedy
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert store.load(path, "kind")["small"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, NoRoom), (errno.EDQUOT, NoRoom), (errno.EACCES, BadValue)]
)
def test_a_failure_at_any_call_leaves_what_was_there(call, number, error, tmp_path, monkeypatch):
    path = tmp_path / "file"
    store.save(path, 1, "kind")

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(error, match=os.strerror(number)):
        store.save(path, 2, "kind")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert store.load(path, "kind") == 1


def test_a_folder_that_is_missing_or_no_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "absent" / "x", tmp_path / "file" / "x"):
        with pytest.raises(BadValue, match="could not be written") as caught:
            store.save(path, 1, "kind")
        assert str(path) in str(caught.value)


def test_json_is_sorted_and_strict(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"b": 1, "a": [0.1, None]})
    assert path.read_text().index('"a"') < path.read_text().index('"b"')
    assert files.read_json(path) == {"a": [0.1, None], "b": 1}
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"a": math.nan})
    assert files.read_json(path) == {"a": [0.1, None], "b": 1}
    for text in ('{"a": 1, "a": 2}', "[NaN]", "[Infinity]", "[" * 100_000, "\xff", "", "1" * 5000):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(Damaged, match=r"a\.json"):
            files.read_json(path)
