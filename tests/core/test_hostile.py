"""Files made to do harm: none runs code, none crashes the reader, every refusal names the file. The tests print counts.

Each case is written by a function of a folder and opened by the door that a user would open it with.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save as plain_safetensors

from condense import files, store
from condense.artifact import load
from condense.errors import BadData, Damaged
from condense.foreign import open_foreign

from .test_store import forged as forged_store

MARK = "code-was-run"


class Evil:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.system, (f"touch {self.folder / MARK}",)


def npy(array) -> bytes:
    raw = io.BytesIO()
    np.lib.format.write_array(raw, array)
    return raw.getvalue()


def npy_header(shape, descr="|u1") -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def zipped(members, compression=zipfile.ZIP_DEFLATED) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return raw.getvalue()


X = npy(np.zeros((3, 3, 6, 5), np.uint8))
Y = npy(np.arange(3))


# -- tensor files: hand-made safetensors ----------------------------------------------------------------------------


def sealed(tensors, **manifest) -> bytes:
    """A file whose seal, kind and format are right, so that only what it says of its tensors is wrong."""
    said = {"format": 1, "kind": "artifact", "tree": {"tensor": "x"}, "sha256": {"x": "0" * 64}, **manifest}
    return forged_store(said, b"\0" * 8, f",{tensors}")


def entry(dtype="F32", shape="[2]", offsets="[0,8]", name="x") -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def headed(header: bytes, length=None, rest=b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + rest


STORES = {
    "nothing": b"",
    "seven bytes": b"1234567",
    "a pickle": lambda folder: pickle.dumps(Evil(folder)),
    "a pickle in a dict": lambda folder: pickle.dumps({"set": {"x": Evil(folder)}}),
    "a file of torch.save": lambda folder: torch_saved(folder),
    "safetensors of somebody else": plain_safetensors({"x": torch.ones(2)}),
    "a header of 2**63 bytes": headed(store.PREFIX + b"0" * 64, 2**63),
    "a header of 2**64 - 1 bytes": headed(store.PREFIX + b"0" * 64, 2**64 - 1),
    "a header longer than the file": headed(store.PREFIX + b"0" * 64, 10**6),
    "a header of 0 bytes": headed(b"", 0, store.PREFIX + b"0" * 200),
    "a header that is no JSON": sealed("]]]"),
    "a header of bad UTF-8": sealed('"\udcff":1'.encode("utf-8", "surrogateescape").decode("latin-1")),
    "bottomless nesting": sealed('"x":' + "[" * 100_000),
    "bottomless nesting that is closed": sealed('"x":' + '{"a":' * 5_000 + "1" + "}" * 5_000),
    "a tensor given twice": sealed(f"{entry()},{entry()}"),
    "a key given twice in an entry": sealed('"x":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}'),
    "metadata given twice": sealed(f'{entry()},"__metadata__":{{}}'),
    "offsets beyond the end": sealed(entry(shape="[2000]", offsets="[0,8000]")),
    "offsets that go backwards": sealed(entry(offsets="[8,0]")),
    "offsets below 0": sealed(entry(offsets="[-8,0]")),
    "a hole at the start": sealed(entry(shape="[1]", offsets="[4,8]")),
    "bytes that belong to nobody": sealed(entry(shape="[1]", offsets="[0,4]")),
    "tensors that overlap": sealed(f"{entry()},{entry(name='y')}", sha256={"x": "", "y": ""}),
    "a shape larger than its bytes": sealed(entry(shape="[1000000000]")),
    "a shape that overflows": sealed(entry(shape="[4294967296,4294967296,4294967296]")),
    "a shape below 0": sealed(entry(shape="[-2]")),
    "a shape in words": sealed(entry(shape='["two"]')),
    "an unknown dtype": sealed(entry(dtype="PICKLE")),
    "a dtype that is not ours": sealed(entry(dtype="C64", shape="[1]")),
    "a tensor that is a number": sealed('"x":1'),
    "no tensors": sealed('"y":1', tree=1, sha256={}),
    "a wrong checksum": sealed(entry()),
    "a checksum that is a list": sealed(entry(), sha256={"x": [1]}),
    "checksums that are a list": sealed(entry(), sha256=[1]),
    "a manifest that is a list": lambda folder: forged_store([1]),
    "a manifest without a tree": lambda folder: forged_store({"format": 1, "kind": "artifact", "sha256": {}}),
    "a node of no kind": lambda folder: plain_tree({"pickle": "x"}),
    "a node of two kinds": lambda folder: plain_tree({"dict": {}, "float": "nan"}),
    "a float in words": lambda folder: plain_tree({"float": "1e999"}),
    "a tensor that is not there": lambda folder: plain_tree({"tensor": "../../etc/passwd"}),
    "a tensor that is named by a list": lambda folder: plain_tree({"tensor": []}),
    "a bottomless tree": lambda folder: deep_tree(10_000),
    "an endless number": lambda folder: forged_store({"format": 1, "kind": "artifact", "tree": 1}).replace(
        b"tree", b"1" * 4
    ),
}


def plain_tree(tree) -> bytes:
    return forged_store({"format": 1, "kind": "artifact", "tree": tree, "sha256": {}})


def deep_tree(depth) -> bytes:
    tree = '{"dict":{"a":' * depth + "1" + "}}" * depth
    return forged_store('{"format":1,"kind":"artifact","sha256":{},"tree":' + tree + "}")


def torch_saved(folder) -> bytes:
    raw = io.BytesIO()
    torch.save({"x": Evil(folder)}, raw)
    return raw.getvalue()


# -- foreign sets ---------------------------------------------------------------------------------------------------


def pickled_member(folder) -> bytes:
    array = np.empty(1, object)
    array[0] = Evil(folder)
    raw = io.BytesIO()
    np.lib.format.write_array(raw, array, allow_pickle=True)
    return raw.getvalue()


def bomb(mebibytes: int) -> bytes:
    """An .npz of about a thousandth of this size; its images are zeros, their shape and names as they should be."""
    rows = mebibytes * 2**20 // 90
    return zipped([("x.npy", npy_header((rows, 3, 6, 5)) + bytes(rows * 90)), ("y.npy", npy(np.zeros(rows, np.uint8)))])


def lying_bomb() -> bytes:
    """The directory and the header say 3 rows; the compressed stream holds 64 MiB."""
    raw = bytearray(zipped([("x.npy", X + bytes(2**26)), ("y.npy", Y)]))
    real, said = struct.pack("<I", len(X) + 2**26), struct.pack("<I", len(X))
    return bytes(raw).replace(real, said)


NPZS = {
    "a pickle": lambda folder: pickle.dumps(Evil(folder)),
    "an object array": lambda folder: zipped([("x.npy", pickled_member(folder)), ("y.npy", Y)]),
    "object labels": lambda folder: zipped([("x.npy", X), ("y.npy", pickled_member(folder))]),
    "object class names": lambda folder: zipped([("x.npy", X), ("y.npy", Y), ("classes.npy", pickled_member(folder))]),
    "a pickle for an array": lambda folder: zipped([("x.npy", pickle.dumps(Evil(folder))), ("y.npy", Y)]),
    "a bomb of 256 MiB": lambda folder: bomb(256),
    "a bomb of 64 MiB": lambda folder: bomb(64),
    "a bomb that lies about its size": lambda folder: lying_bomb(),
    "a header that claims more than there is": zipped([("x.npy", npy_header((10**12, 3, 6, 5))), ("y.npy", Y)]),
    "a header that overflows": zipped([("x.npy", npy_header((2**62, 2**62, 3, 6, 5))), ("y.npy", Y)]),
    "a header with sizes below 0": zipped([("x.npy", npy_header((-1, -3, 6, 5)) + bytes(90)), ("y.npy", Y)]),
    "a header that is code": zipped([("x.npy", npy_header("__import__('os').system('true')")), ("y.npy", Y)]),
    "a header of another version": zipped([("x.npy", b"\x93NUMPY\x09\x00" + X[8:]), ("y.npy", Y)]),
    "a header that is cut short": zipped([("x.npy", X[:50]), ("y.npy", Y)]),
    "a name that is a path": zipped([("x.npy", X), ("y.npy", Y), ("../../evil.npy", Y)]),
    "an absolute name": zipped([("x.npy", X), ("y.npy", Y), ("/etc/evil.npy", Y)]),
    "a name in a folder": zipped([("x.npy", X), ("y.npy", Y), ("a/x.npy", Y)]),
    "a member that is no array": zipped([("x.npy", X), ("y.npy", Y), ("run.sh", b"true")]),
    "strings for images": zipped([("x.npy", npy(np.array(["a", "b", "c"]))), ("y.npy", Y)]),
    "a record array": zipped([("x.npy", npy(np.zeros(3, [("a", "u1")]))), ("y.npy", Y)]),
    "nothing": b"",
    "text": b"hello",
    "half a file": zipped([("x.npy", X), ("y.npy", Y)])[:200],
    "NaN": zipped([("x.npy", npy(np.full((3, 3, 6, 5), np.nan))), ("y.npy", Y)]),
}


def png(width, height, data=b"") -> bytes:
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


PICTURES = {
    "a picture of 60,000 x 60,000": png(60_000, 60_000),
    "a picture of 9,000 x 9,000": png(9_000, 9_000),
    "a picture without pixels": png(5, 6)[:40],
    "a pickle": lambda folder: pickle.dumps(Evil(folder)),
    "a program for a printer": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n(x) run\n",
    "text": b"hello",
    "nothing": b"",
    "a link": None,
    "a folder": False,
}


def made(case, folder):
    return case(folder) if callable(case) else case


def test_hostile_files_run_nothing_crash_nothing_and_are_named(tmp_path, toy_artifact):
    task, transform, refused, slowest = toy_artifact.task, toy_artifact.transform, 0, 0.0

    def refuse(path, door, case):
        nonlocal refused, slowest
        start = time.monotonic()
        with pytest.raises((Damaged, BadData)) as caught:
            door(path)
        slowest = max(slowest, time.monotonic() - start)
        assert str(path) in str(caught.value), case
        assert not (tmp_path / MARK).exists(), case
        refused += 1

    for i, (name, case) in enumerate(STORES.items()):
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(made(case, tmp_path))
        refuse(path, lambda path: store.load(path, "artifact"), name)
    for i, (name, case) in enumerate(NPZS.items()):
        path = tmp_path / f"{i}.npz"
        path.write_bytes(made(case, tmp_path))
        refuse(path, lambda path: open_foreign(path, task, transform), name)
    for i, (name, case) in enumerate(PICTURES.items()):
        folder = tmp_path / f"folder-{i}"
        for cls in ("circle", "star", "T-shirt%2Ftop"):
            (folder / cls).mkdir(parents=True)
        path = folder / "circle" / "0.png"
        if case is None:
            path.symlink_to("/etc/hostname")
        elif case is False:
            path.mkdir()
        else:
            path.write_bytes(made(case, tmp_path))
        refuse(path, lambda path: open_foreign(path.parents[1], task, transform), name)
    total = len(STORES) + len(NPZS) + len(PICTURES)
    print(f"{refused} of {total} hostile files refused by name, 0 ran code; slowest {slowest:.2f} s")
    assert refused == total
    assert slowest < 1


def test_in_an_artifact_they_are_refused_as_well(tmp_path, toy_artifact):
    """The same tensor files inside an artifact whose manifest vouches for them, and JSON of the same kind."""
    from condense import manifest

    folder = toy_artifact.path
    whole = {name: (folder / name).read_bytes() for name in manifest.read(folder)["files"]}
    cases = [("tensors.safetensors", made(case, tmp_path)) for case in STORES.values()]
    texts = ['{"a": 1, "a": 2}', "[NaN]", "[" * 10**5, "", "null", "3", "\x00", "1" * 5000, '{"recipe": {"name": []}}']
    cases += [(name, text.encode()) for name in ("plan.json", "recipe.json", "provenance.json") for text in texts]
    refused = 0
    for name, data in cases:
        manifest.write(folder, 1, {**whole, name: data})
        with pytest.raises(Damaged) as caught:
            load(folder)
        assert str(folder / name) in str(caught.value), data[:80]
        refused += 1
    print(f"{refused} of {len(cases)} hostile files in an artifact refused by name")
    assert not (tmp_path / MARK).exists()


def test_special_files_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "folder", "loop", "/dev/zero"):
        with pytest.raises(Damaged):
            store.load(tmp_path / name, "artifact")
        with pytest.raises(Damaged):
            files.read_json(tmp_path / name)


@pytest.mark.parametrize("mebibytes", [64, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_bomb_is_refused_before_it_expands(mebibytes, tmp_path, toy_artifact):
    path = tmp_path / "bomb.npz"
    path.write_bytes(bomb(mebibytes))
    assert path.stat().st_size < 1.1e3 * mebibytes
    tracemalloc.start()
    try:
        with pytest.raises(Damaged, match="expands to"):
            open_foreign(path, toy_artifact.task, toy_artifact.transform)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_these_files_are_dangerous_to_who_trusts_them(tmp_path):
    """The teeth of this zoo: the same bytes do run code when they are unpickled."""
    for i, case in enumerate((STORES["a pickle"], STORES["a pickle in a dict"])):
        pickle.loads(made(case, tmp_path))
        assert (tmp_path / MARK).exists(), i
        (tmp_path / MARK).unlink()
    torch.load(io.BytesIO(torch_saved(tmp_path)), weights_only=False)
    assert (tmp_path / MARK).exists()
    (tmp_path / MARK).unlink()
    (tmp_path / "x.npz").write_bytes(made(NPZS["an object array"], tmp_path))
    with np.load(tmp_path / "x.npz", allow_pickle=True) as archive:
        archive["x"]
    assert (tmp_path / MARK).exists()


def test_a_hostile_class_name_cannot_leave_the_exported_folder(toy_artifact, tmp_path):
    from condense.artifact import write_artifact
    from condense.export import export

    a = toy_artifact
    task = a.task.model_copy(update={"classes": ("../../evil", "/tmp/evil", "..")})
    bad = write_artifact(tmp_path / "bad", a.plan, a.synthetic, a.transform, task, json.loads("{}"))
    before = sorted(p.name for p in tmp_path.iterdir())
    export(bad, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "out"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "%2E%2E",
        "%2E.%2F..%2Fevil",
        "%2Ftmp%2Fevil",
        "export.json",
    ]
