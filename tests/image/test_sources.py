"""Sources: small sets made by the tests, damaged variants of each, and the real files where they are at hand."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from condense import downloads, places
from condense.errors import BadData, BadValue
from condense.given import Given, as_data
from condense.rng import Rng
from condense.splits import as_examples, stratified
from condense_image import readers
from condense_image.sources import Cifar10, Cifar100, Digits, FashionMnist, Folder, Mnist, Npz, Svhn, components

RAW = np.random.default_rng(0)
REACHABLE = downloads.reachable


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Folders of its own for every test, and no network."""
    monkeypatch.setenv("CONDENSE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloads, "reachable", lambda url: False)
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.fixture
def real(data_root, monkeypatch):
    monkeypatch.setenv("CONDENSE_DATA", str(data_root))
    return data_root


def pictures(n, *shape, classes=2):
    """n random uint8 images and labels that hold every class, in shuffled order."""
    return RAW.integers(0, 256, (n, *shape), np.uint8), RAW.permutation(np.arange(n) % classes).astype(np.uint8)


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(root, packed=True, name="FashionMNIST", sizes=(40, 20)):
    """The four files of a small set of 10 classes; returns the arrays."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    arrays = []
    for n, stem in zip(sizes, ("train", "t10k"), strict=True):
        x, y = pictures(n, 5, 4, classes=10)
        for kind, array in ((f"{stem}-images-idx3-ubyte", x), (f"{stem}-labels-idx1-ubyte", y)):
            raw = idx_bytes(array)
            (folder / (kind + ".gz" * packed)).write_bytes(gzip.compress(raw) if packed else raw)
            arrays.append(array)
    return arrays


def write_cifar(root, packed=True, rows=10):
    """Six files of `rows` rows, each holding all 10 classes; returns all rows, (6, rows, 3073)."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    table = RAW.integers(0, 256, (6, rows, 3073), np.uint8)
    table[:, :, 0] = np.arange(rows) % 10
    for batch, name in zip(table, [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"], strict=True):
        raw = batch.tobytes()
        (folder / (name + ".xz" * packed)).write_bytes(lzma.compress(raw, preset=0) if packed else raw)
    return table


def listing(root):
    """What would change if anything below `root` were written."""
    paths = [root, *sorted(root.rglob("*"))]
    return [(str(p), p.stat().st_size, p.stat().st_mtime_ns, p.stat().st_mode) for p in paths]


def refused(error, field, value, *texts):
    """The error names the field and the value, and says what to do."""
    assert field in error.value.field
    assert value in repr(error.value.value)
    assert error.value.remedy
    for text in texts:
        assert text in str(error.value)


# -- digits -----------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_levels_by_the_documented_rule():
    from sklearn.datasets import load_digits

    splits = Digits().open()
    x, y = (torch.cat([getattr(s, name) for s in (splits.train, splits.test)]) for name in ("x", "y"))
    levels = (x.double() * 16 / 255).round().flatten(1).to(torch.int64)
    found = sorted((int(c), *row) for c, row in zip(y, levels.tolist(), strict=True))
    bunch = load_digits()
    assert found == sorted((int(c), *map(int, row)) for c, row in zip(bunch.target, bunch.data, strict=True))
    assert [(255 * v + 8) // 16 for v in (0, 1, 8, 16)] == [0, 16, 128, 255]
    assert set(x.unique().tolist()) == {int(255 * v / 16 + 0.5) for v in range(17)}


def test_digits_split_70_30_by_class_and_seed():
    splits = Digits().open()
    totals = [a + b for a, b in zip(splits.train.counts(), splits.test.counts(), strict=True)]
    assert totals == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert splits.test.counts() == [int(0.3 * n + 0.5) for n in totals]
    assert splits.train.x.dtype == torch.uint8
    assert splits.task.shape == (1, 8, 8)
    assert splits.task.classes == tuple("0123456789")
    assert splits.train.fingerprint == Digits().open().train.fingerprint != Digits(seed=1).open().train.fingerprint


def test_digits_constants_are_those_of_the_training_part():
    splits = Digits().open()
    x = splits.train.x.double() / 255
    assert splits.facts.mean == (round(float(x.mean()), 4),)
    assert splits.facts.std == (round(float(x.std(unbiased=False)), 4),)
    assert splits.facts.extra["mirror"] is False
    assert Digits.embedded
    assert not any(part.embedded for part in components() if part is not Digits)


def test_a_source_lives_on_the_device_as_uint8(device):
    splits = Digits(validation=0.1).open(device)
    for source in (splits.train, splits.test, splits.validation):
        assert source.x.device.type == source.y.device.type == device.type
        assert (source.x.dtype, source.y.dtype) == (torch.uint8, torch.int64)


# -- the real files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "labels", "mean", "names"),
    [
        (FashionMnist(), [9, 0, 0, 3, 0, 2, 7, 2], 0.2860, torchvision.datasets.FashionMNIST.classes),
        (Mnist(), [5, 0, 4, 1, 9, 2, 1, 3], 0.1307, [name[0] for name in torchvision.datasets.MNIST.classes]),
    ],
    ids=["fashion-mnist", "mnist"],
)
def test_real_idx_sets_read_where_they_lie(real, source, labels, mean, names):
    before = listing(real)
    splits = source.open()
    assert listing(real) == before
    assert splits.train.y[:8].tolist() == labels
    assert tuple(splits.train.x.shape) == (60_000, 1, 28, 28)
    assert tuple(splits.test.x.shape) == (10_000, 1, 28, 28)
    assert float(splits.train.x.double().mean() / 255) == pytest.approx(mean, abs=1e-4)
    assert splits.facts.mean[0] == pytest.approx(mean, abs=2e-4)
    assert splits.task.classes == tuple(names)


def test_one_real_file_of_cifar10(real):
    path = real / "cifar-10-batches-bin" / "data_batch_1.bin.xz"
    if not path.is_file():
        pytest.skip(f"no {path.name}")
    x, y = readers.cifar(path)
    assert y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]  # frog, truck, truck, deer, ...
    assert x.shape == (10_000, 3, 32, 32)
    assert np.bincount(y).tolist() == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
    assert x[0, :, 0, 0].tolist() == [59, 62, 63]
    table = np.concatenate([y[:, None], x.reshape(10_000, -1)], axis=1)
    assert hashlib.sha1(table.tobytes()).hexdigest() == "aadd24acce27caa71bf4b10992e9e7b2d74c2540"


@pytest.mark.slow
def test_all_of_real_cifar10(real):
    if not (real / "cifar-10-batches-bin").is_dir():
        pytest.skip("no CIFAR-10")
    before = listing(real)
    splits = Cifar10().open()
    x = splits.train.x.double().transpose(0, 1).flatten(1) / 255
    assert x.mean(1).tolist() == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=1e-8)
    assert x.std(1, unbiased=False).tolist() == pytest.approx([0.24703223, 0.24348513, 0.26158784], abs=1e-8)
    assert splits.train.counts() == [5000] * 10
    assert splits.test.y[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]
    assert listing(real) == before


def test_published_constants():
    assert Cifar10.known.mean == (0.4914, 0.4822, 0.4465)
    assert Cifar10.known.std == (0.2023, 0.1994, 0.2010)
    assert (Cifar100.known.mean, Cifar100.known.std) == ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
    assert (Svhn.known.mean, Svhn.known.std) == ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
    assert (Mnist.known.mean, Mnist.known.std) == ((0.1307,), (0.3081,))
    assert (FashionMnist.known.mean, FashionMnist.known.std) == ((0.2861,), (0.3530,))
    mirrored = {cls.name for cls in (Mnist, FashionMnist, Cifar10, Cifar100, Svhn) if cls.known.extra["mirror"]}
    assert mirrored == {"fashion-mnist", "cifar10", "cifar100"}
    assert all(cls.known.citation and cls.known.licence for cls in (Mnist, FashionMnist, Cifar10, Cifar100, Svhn))


# -- idx --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_idx_packed_and_plain(home, packed):
    x, y, x_test, y_test = write_idx(home / "data", packed)
    splits = FashionMnist().open()
    assert torch.equal(splits.train.x, torch.from_numpy(x).unsqueeze(1))
    assert splits.train.y.tolist() == y.tolist()
    assert torch.equal(splits.test.x[:, 0], torch.from_numpy(x_test))
    assert splits.test.y.tolist() == y_test.tolist()


GOOD = idx_bytes(np.arange(60, dtype=np.uint8).reshape(3, 5, 4))
BROKEN_IDX = {
    "empty": b"",
    "no idx": b"\x89PNG" + GOOD,
    "floats": b"\x00\x00\x0d\x03" + GOOD[4:],
    "header cut": GOOD[:9],
    "cut": GOOD[:-1],
    "longer": GOOD + b"\x00",
    "says a terabyte": b"\x00\x00\x08\x03" + struct.pack(">3I", 2**14, 2**13, 2**13),
}


PACKED = gzip.compress(GOOD)
BROKEN_GZ = {
    **{kind: gzip.compress(raw) for kind, raw in BROKEN_IDX.items()},
    "gz cut": PACKED[:-12],
    "gz flipped": PACKED[:-6] + bytes([PACKED[-6] ^ 1]) + PACKED[-5:],  # within the checksum
    "no gz": GOOD,
}


@pytest.mark.parametrize(
    ("ending", "raw"),
    [
        *(pytest.param("", raw, id=kind) for kind, raw in BROKEN_IDX.items()),
        *(pytest.param(".gz", raw, id=f"{kind}.gz") for kind, raw in BROKEN_GZ.items()),
    ],
)
def test_broken_idx_is_refused_by_name(home, ending, raw):
    path = home / f"train-images-idx3-ubyte{ending}"
    path.write_bytes(raw)
    with pytest.raises(BadData) as error:
        readers.idx(path)
    refused(error, str(path), "", "publisher")


def test_images_and_labels_that_differ_in_number_are_refused(home):
    write_idx(home / "data")
    folder = home / "data" / "FashionMNIST" / "raw"
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(39, np.uint8))))
    with pytest.raises(BadData, match="40 examples and 39 labels"):
        FashionMnist().open()
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros((40, 1, 1), np.uint8))))
    with pytest.raises(BadData, match="should have 1 sizes"):
        FashionMnist().open()


# -- CIFAR's binary version, and the cache ----------------------------------------------------------------------------


@pytest.fixture
def small_cifar(monkeypatch):
    monkeypatch.setattr(Cifar10, "rows", 10)


@pytest.mark.parametrize("packed", [True, False])
def test_cifar_packed_and_plain(home, small_cifar, packed):
    table = write_cifar(home / "data", packed)
    splits = Cifar10().open()
    assert splits.train.x.numpy().tolist() == table[:5, :, 1:].reshape(50, 3, 32, 32).tolist()
    assert splits.test.x.numpy().tobytes() == table[5, :, 1:].tobytes()
    assert splits.train.y.tolist() == table[:5, :, 0].flatten().tolist()
    assert splits.task.classes[3] == "cat"


@pytest.mark.parametrize("kind", ["cut", "longer", "no xz", "empty", "flipped"])
def test_broken_cifar_is_refused_by_name(home, small_cifar, kind):
    write_cifar(home / "data")
    path = home / "data" / "cifar-10-batches-bin" / "data_batch_3.bin.xz"
    raw = path.read_bytes()
    middle = len(raw) // 2
    longer = lzma.compress(bytes(3073 * 11), preset=0)
    flipped = raw[:middle] + bytes([raw[middle] ^ 4]) + raw[middle + 1 :]
    path.write_bytes({"cut": raw[:-20], "longer": longer, "no xz": b"x" * 99, "empty": b"", "flipped": flipped}[kind])
    with pytest.raises(BadData) as error:
        Cifar10().open()
    refused(error, str(path), "", "publisher")


def test_a_plain_cifar_file_that_ends_at_a_row_is_refused(home, small_cifar):
    write_cifar(home / "data", packed=False)
    path = home / "data" / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(path.read_bytes()[: 9 * 3073])
    with pytest.raises(BadData, match="should hold 10 rows"):
        Cifar10().open()


def test_cifar_label_beyond_the_classes_is_refused(home, small_cifar):
    table = write_cifar(home / "data", packed=False)
    table[5, 0, 0] = 10
    (home / "data" / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(table[5].tobytes())
    with pytest.raises(BadData, match=r"labels must lie in 0\.\.9"):
        Cifar10().open()


def test_what_xz_unpacks_to_is_kept_outside_the_data(home, small_cifar, monkeypatch):
    write_cifar(home / "data")
    before, first = listing(home / "data"), Cifar10().open()
    assert listing(home / "data") == before
    assert len(list((home / "cache" / "unpacked").iterdir())) == 6
    monkeypatch.setattr(lzma, "open", lambda path: pytest.fail("unpacked again"))
    assert Cifar10().open().train.fingerprint == first.train.fingerprint


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_cache_is_made_again(home, small_cifar, damage):
    write_cifar(home / "data")
    first = Cifar10().open()
    entries = {path: path.read_bytes() for path in (home / "cache" / "unpacked").iterdir()}
    for path, raw in entries.items():
        path.write_bytes({"flip": raw[:-1] + bytes([raw[-1] ^ 1]), "cut": raw[:-3073], "empty": b""}[damage])
    assert Cifar10().open().train.fingerprint == first.train.fingerprint
    assert {path: path.read_bytes() for path in entries} == entries


def test_the_cache_follows_the_content_of_a_file(home, small_cifar):
    table = write_cifar(home / "data")
    first = Cifar10().open()
    path = home / "data" / "cifar-10-batches-bin" / "test_batch.bin.xz"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    table[5, :, 5] ^= 255
    path.write_bytes(lzma.compress(table[5].tobytes(), preset=0))
    os.utime(path, ns=times)
    assert Cifar10().open().test.fingerprint != first.test.fingerprint


def test_a_cache_that_cannot_be_written_stops_nothing(home, small_cifar, monkeypatch):
    table = write_cifar(home / "data")
    (home / "file").write_text("no folder")
    monkeypatch.setenv("CONDENSE_CACHE", str(home / "file"))
    assert Cifar10().open().test.y.tolist() == table[5, :, 0].tolist()
    assert (home / "file").read_text() == "no folder"


def test_a_read_only_root_is_enough(home, small_cifar):
    """The mode stops anybody but root, whom the listing catches."""
    write_idx(home / "data")
    write_cifar(home / "data")
    for path in sorted((home / "data").rglob("*"), reverse=True):
        path.chmod(0o444 if path.is_file() else 0o555)
    (home / "data").chmod(0o555)
    before = listing(home / "data")
    try:
        assert len(FashionMnist().open().train) == 40
        assert len(Cifar10().open().train) == 50
        with pytest.raises(BadData):
            Mnist().open()
        assert listing(home / "data") == before
    finally:
        for path in (home / "data", *(home / "data").rglob("*")):
            path.chmod(0o755)


# -- sets that torchvision reads, after it compared the md5 -----------------------------------------------------------


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_that_is_not_the_published_one_is_never_opened(home):
    folder = home / "data" / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(pickle.dumps(Trap(home / "sprung")))
    with pytest.raises(BadData) as error:
        Cifar100().open()
    refused(error, str(folder), "train", "md5")
    assert not (home / "sprung").exists()


def test_cifar100_by_its_fine_labels_and_published_names(home, monkeypatch):
    folder, cls = home / "data" / "cifar-100-python", torchvision.datasets.CIFAR100
    folder.mkdir()
    x, _ = pictures(6, 3072)
    for name in ("train", "test"):
        rows = {"data": x, "fine_labels": [0, 1, 2, 0, 1, 2], "coarse_labels": [0] * 6}
        (folder / name).write_bytes(pickle.dumps(rows))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear", "bed"]}))
    monkeypatch.setattr(cls, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(cls, "test_list", [["test", md5(folder / "test")]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5(folder / "meta")})
    splits = Cifar100().open()
    assert splits.task.classes == ("apple", "bear", "bed")
    assert splits.train.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(splits.train.x, torch.from_numpy(x.reshape(6, 3, 32, 32)))


@pytest.mark.parametrize("place", ["SVHN", "."])
def test_svhn_has_the_digit_0_as_class_0(home, monkeypatch, place):
    import scipy.io

    folder = home / "data" / place
    folder.mkdir(exist_ok=True)
    x, _ = pictures(10, 32, 32, 3)
    table = {}
    for split in ("train", "test"):
        path = folder / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": x.transpose(1, 2, 3, 0), "y": np.array([[10, 1, 2, 3, 4, 5, 6, 7, 8, 9]]).T})
        table[split] = ["http://nowhere.invalid", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", table)
    splits = Svhn().open()
    assert splits.train.y.tolist() == list(range(10))
    assert torch.equal(splits.train.x, torch.from_numpy(x).permute(0, 3, 1, 2))


# -- what is missing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [Mnist(), FashionMnist(), Cifar10(), Cifar100(), Svhn()], ids=lambda s: s.name)
def test_a_missing_set_names_its_files_and_where_to_put_them(home, source):
    before = listing(home)
    with pytest.raises(BadData) as error:
        source.open()
    wanted = {
        "mnist": ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", ".gz", "MNIST/raw"),
        "fashion-mnist": ("train-images-idx3-ubyte", "FashionMNIST/raw"),
        "cifar10": ("data_batch_1.bin", "test_batch.bin", ".xz", "cifar-10-batches-bin", "cifar-10-batches-py"),
        "cifar100": ("train", "test", "meta", "cifar-100-python"),
        "svhn": ("train_32x32.mat", "test_32x32.mat", "SVHN"),
    }[source.name]
    refused(error, "data", source.name, *wanted, str(home / "data"), str(home / "home"), "CONDENSE_DATA", "no answer")
    assert error.value.exit_code == 3
    assert listing(home) == before


def test_what_is_missing_of_a_set_is_told_from_what_is_there(home):
    write_idx(home / "data")
    (home / "data" / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(BadData, match=r"FashionMNIST/raw lacks t10k-labels-idx1-ubyte;"):
        FashionMnist().open()


def test_a_download_goes_to_the_users_folder_and_is_found_again(home, monkeypatch):
    def bring(folder, download):
        assert download
        write_idx(Path(folder), packed=False)
        (Path(folder) / "FashionMNIST" / "raw" / "beside.txt").write_text("not wanted")

    bring.mirrors = ["http://mirror.invalid"]
    monkeypatch.setattr(downloads, "reachable", lambda url: url == "http://mirror.invalid")
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", bring)
    before = listing(home / "data")
    first = FashionMnist().open()
    assert listing(home / "data") == before
    stored = [p for p in (home / "home" / "condense").rglob("*") if p.is_file()]
    assert len(stored) == 4
    monkeypatch.setattr(downloads, "reachable", lambda url: pytest.fail("asked the network again"))
    assert FashionMnist().open().train.fingerprint == first.train.fingerprint


@pytest.mark.parametrize("failure", [RuntimeError("md5 differs"), OSError("connection reset")])
def test_a_download_that_fails_leaves_nothing_behind(home, monkeypatch, failure):
    def bring(folder, download):
        write_idx(Path(folder), packed=False)
        raise failure

    bring.mirrors = ["http://mirror.invalid"]
    monkeypatch.setattr(downloads, "reachable", lambda url: True)
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", bring)
    with pytest.raises(BadData) as error:
        FashionMnist().open()
    refused(error, "data", "fashion-mnist", str(failure), str(home / "home"))
    assert not [p for p in (home / "home").rglob("*") if p.is_file()]


def test_an_address_that_nobody_serves_is_unreachable(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    assert not REACHABLE("http://127.0.0.1:9/")
    assert not REACHABLE("no address")


def test_places_in_their_order(home, monkeypatch):
    user = home / "home" / "condense"
    assert places.data_folders() == (home / "data", user)
    with places.data_root(home / "other"):
        assert places.data_folders() == (home / "other", user)
        with places.data_root(None):
            assert places.data_folders() == (home / "data", user)
    monkeypatch.delenv("CONDENSE_DATA")
    assert places.data_folders() == (user,)
    monkeypatch.delenv("CONDENSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "caches"))
    assert places.cache_folder() == home / "caches" / "condense"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(home))
    assert places.cache_folder() == home / ".cache" / "condense"
    assert places.user_data_folder() == home / ".local" / "share" / "condense"


# -- npz --------------------------------------------------------------------------------------------------------------


def write_npz(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize(("name", "classes", "channels"), [("breast", 2, 1), ("pneumonia", 2, 1), ("retina", 5, 3)])
def test_npz_of_medmnist(data_root, name, classes, channels):
    """The published archives as they are; the counts are those of the archive itself, read by numpy alone."""
    path = data_root / f"medmnist/{name}mnist.npz"
    if not path.is_file():
        pytest.skip(f"no {path.name}")
    splits = as_data(f"npz:{path}").open()
    with np.load(path) as stored:
        for part, split in ((splits.train, "train"), (splits.validation, "val"), (splits.test, "test")):
            assert part.y.tolist() == stored[f"{split}_labels"][:, 0].tolist()
            assert part.x[3].permute(1, 2, 0).squeeze().tolist() == stored[f"{split}_images"][3].tolist()
    assert (len(splits.task.classes), splits.train.x.shape[1]) == (classes, channels)


def test_npz_with_parts_of_its_own(home):
    x, y = pictures(12, 3, 6, 6, classes=3)
    where = write_npz(home / "own.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6], x_val=x[6:], y_val=y[6:])
    data = as_data(where)
    splits = data.open()
    assert (len(splits.train), len(splits.test), len(splits.validation)) == (12, 6, 6)
    assert torch.equal(splits.train.x, torch.from_numpy(x))
    assert splits.train.y.tolist() == y.tolist()
    assert splits.task.classes == ("0", "1", "2")
    assert data.label == "own"
    assert data.with_(classes=("a", "b", "c"), mirror=False).open().task.classes == ("a", "b", "c")
    assert data.with_(mirror=False).open().facts.extra["mirror"] is False
    with pytest.raises(BadValue, match="validation part already"):
        data.with_(validation=0.2).open()


def test_npz_is_split_by_seed(home):
    x, y = pictures(50, 6, 6, classes=2)
    data = as_data(write_npz(home / "own.npz", compressed=True, x=x, y=y))
    splits = data.with_(validation=0.25).open()
    assert [s.counts() for s in (splits.train, splits.validation, splits.test)] == [[15, 15], [5, 5], [5, 5]]
    rows = [row for s in (splits.train, splits.validation, splits.test) for row in s.x.flatten(1).tolist()]
    assert sorted(rows) == sorted(x.reshape(50, -1).tolist())
    assert data.open().test.fingerprint == splits.test.fingerprint != data.with_(seed=1).open().test.fingerprint


def test_the_path_is_found_from_anywhere(home, monkeypatch):
    x, y = pictures(20, 4, 4)
    write_npz(home / "own.npz", x=x, y=y)
    monkeypatch.chdir(home)
    data = as_data("npz:own.npz")
    monkeypatch.chdir("/")
    assert len(as_data(json.loads(json.dumps(data.dump()))).open().train) == 16


@pytest.mark.parametrize(
    ("given", "shape", "dtype"),
    [
        (np.zeros((4, 5, 6), np.uint8), (4, 1, 5, 6), torch.uint8),
        (np.zeros((4, 5, 6, 3), np.uint8), (4, 3, 5, 6), torch.uint8),
        (np.zeros((4, 5, 6, 1), np.uint8), (4, 1, 5, 6), torch.uint8),
        (np.zeros((4, 5, 8, 8), np.float64), (4, 5, 8, 8), torch.float32),
        (np.zeros((4, 7), np.float16), (4, 7), torch.float32),
        (np.full((4, 5, 6), 255, ">u2"), (4, 1, 5, 6), torch.uint8),
        (np.full((4, 5, 6), 255.0), (4, 1, 5, 6), torch.uint8),
        (np.ones((4, 5, 6), bool), (4, 1, 5, 6), torch.uint8),
        (np.full((4, 5, 6), 0.5), (4, 1, 5, 6), torch.float32),
        (np.full((4, 5, 6), -2.0), (4, 1, 5, 6), torch.float32),
    ],
)
def test_layouts_and_types_of_examples(given, shape, dtype):
    x = as_examples(given, "x")
    assert (tuple(x.shape), x.dtype) == (shape, dtype)
    assert float(x.flatten()[0]) == float(given.flatten()[0])


def test_channels_last_keeps_every_pixel_in_place():
    x, _ = pictures(2, 4, 5, 3)
    assert all(as_examples(x, "x")[n, c, i, j] == x[n, i, j, c] for n, i, j, c in np.ndindex(*x.shape))


X, Y = pictures(12, 4, 4, classes=3)
BAD_ARRAYS = {
    "no rows": ({"x": X[:0], "y": Y[:0]}, "holds no examples"),
    "a label too few": ({"x": X, "y": Y[1:]}, "12 examples and 11 labels"),
    "column of labels": ({"x": X, "y": Y[:, None]}, "one whole number for each"),
    "float labels": ({"x": X, "y": Y / 1.0}, "one whole number for each"),
    "text labels": ({"x": X, "y": np.array(["a", "b", "c"] * 4)}, "cannot become a tensor"),
    "negative label": ({"x": X, "y": Y.astype(int) - 1}, "labels must lie in"),
    "label beyond memory": ({"x": X, "y": Y.astype(int) * 2**60}, "labels must lie in"),
    "an empty class": ({"x": X, "y": Y + 1}, "holds no example of 1 of its 4 classes"),
    "one class": ({"x": X, "y": Y * 0}, "has one class only"),
    "NaN": ({"x": np.where(X.max() == X, np.nan, 0.5), "y": Y}, "NaN or infinity"),
    "infinity": ({"x": np.where(X.max() == X, np.inf, 0.5), "y": Y}, "NaN or infinity"),
    "1e38": ({"x": np.where(X.max() == X, 1e38, 0.5), "y": Y}, "values of no image"),
    "complex": ({"x": X * 1j, "y": Y}, "complex"),
    "12 bits": ({"x": X.astype(np.uint16) * 16, "y": Y}, "outside 0..255"),
    "four channels last": ({"x": np.zeros((12, 4, 4, 4), np.uint8), "y": Y}, "number of channels"),
    "numbers": ({"x": Y, "y": Y}, "no array of examples"),
    "no pixels": ({"x": X[:, :0], "y": Y}, "no array of examples"),
    "no labels": ({"x": X}, "lacks y"),
    "neither": ({"images": X, "labels": Y}, "neither or both"),
    "both": ({"x": X, "y": Y, "x_train": X, "y_train": Y}, "neither or both"),
    "both names": ({"x_train": X, "y_train": Y, "train_images": X}, "holds both train_images and x_train"),
    "several labels": ({"train_images": X, "train_labels": np.stack([Y, Y], 1)}, "labels"),
    "test of another size": ({"x_train": X, "y_train": Y, "x_test": X[:, 1:], "y_test": Y}, "unlike those"),
    "test of another type": ({"x_train": X, "y_train": Y, "x_test": X / 255, "y_test": Y}, "unlike those"),
    "one test row of NaN": ({"x_train": X / 255, "y_train": Y, "x_test": X * np.nan, "y_test": Y}, "NaN or infinity"),
    "a class that only test has": ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1}, "no example of 1"),
    "one example of each": ({"x": X[:3], "y": np.arange(3)}, "too few examples"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_arrays_that_no_method_can_use_are_refused(home, kind):
    arrays, text = BAD_ARRAYS[kind]
    data = as_data(write_npz(home / "bad.npz", **arrays))
    before = listing(home)
    with pytest.raises(BadData) as error:
        data.open()
    refused(error, str(home / "bad.npz"), "", text)
    assert listing(home) == before


def test_one_example_in_a_class_is_enough_to_open(home):
    y = np.array([0, 0, 0, 0, 1])
    splits = as_data(write_npz(home / "own.npz", x=X[:5], y=y)).open()
    assert (splits.train.counts(), splits.test.counts()) == ([3, 1], [1, 0])


def test_arrays_of_objects_are_never_unpickled(home):
    trap = np.array([Trap(home / "sprung")] * 4, dtype=object)
    for arrays in ({"x": trap, "y": Y}, {"x": X, "y": trap}, {"x_train": trap, "y_train": trap}):
        with pytest.raises(BadData) as error:
            as_data(write_npz(home / "hostile.npz", **arrays)).open()
        refused(error, str(home / "hostile.npz"), "object", "unpickling")
    records = np.zeros(4, [("a", "u1"), ("b", "O")])
    with pytest.raises(BadData, match="unpickling"):
        as_data(write_npz(home / "hostile.npz", x=records, y=Y)).open()
    assert not (home / "sprung").exists()


def test_an_archive_that_expands_beyond_reason_is_not_expanded(home):
    path = home / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2**28,)})
        for _ in range(2**8):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2 * 2**20
    tracemalloc.start()
    try:
        with pytest.raises(BadData) as error:
            readers.npz(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    refused(error, str(path), str(path.stat().st_size), "times its own size")


def npy(array, **changes):
    import io

    buffer = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **changes}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + array.tobytes()


def zipped(*entries):
    import io
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, raw in entries:
            archive.writestr(name, raw)
    return buffer.getvalue()


ARCHIVE = zipped(("x.npy", npy(X)), ("y.npy", npy(Y)))
BROKEN_NPZ = {
    "empty": b"",
    "no archive": b"x" * 300,
    "cut": ARCHIVE[:-40],
    "cut in half": ARCHIVE[: len(ARCHIVE) // 2],
    "flipped": ARCHIVE[:200] + bytes([ARCHIVE[200] ^ 8]) + ARCHIVE[201:],
    "header promises more": zipped(("x.npy", npy(X, shape=(10**12, 4, 4))), ("y.npy", npy(Y))),
    "header promises less": zipped(("x.npy", npy(X, shape=(3, 4, 4))), ("y.npy", npy(Y))),
    "no header": zipped(("x.npy", b"nothing"), ("y.npy", npy(Y))),
    "header is code": zipped(("x.npy", npy(X).replace(b"'descr'", b"exit(9)")), ("y.npy", npy(Y))),
    "twice": zipped(("x.npy", npy(X)), ("x.npy", npy(X)), ("y.npy", npy(Y))),
}


@pytest.mark.parametrize("kind", BROKEN_NPZ)
def test_broken_npz_is_refused_by_name(home, kind):
    path = home / "broken.npz"
    path.write_bytes(BROKEN_NPZ[kind])
    with pytest.raises(BadData) as error:
        as_data(f"npz:{path}").open()
    refused(error, str(path), "", "savez")


def test_npz_agrees_with_numpy_on_order_and_byte_order(home):
    arrays = {"f": np.asfortranarray(RAW.random((3, 4, 5))), "big": np.arange(6, dtype=">i4"), "scalar": np.float32(3)}
    np.savez(home / "a.npz", **arrays)
    found = readers.npz(home / "a.npz")
    assert sorted(found) == sorted(arrays)
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)
    assert list(readers.npz(home / "a.npz", ["big", "other"])) == ["big"]


# -- folders ----------------------------------------------------------------------------------------------------------


def write_folder(root, names=("cat", "Zebra", "ant"), n=4, size=(6, 5), mode="RGB"):
    """n pictures of each class; the first pixel tells the class (10 * position) and the picture."""
    for c, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(n):
            shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
            Image.fromarray(np.full(shape, 10 * c + i, np.uint8)).save(root / name / f"{i:02}.png")
    return root


def test_folder_with_parts_sorts_its_classes(home):
    write_folder(home / "set" / "train")
    write_folder(home / "set" / "test", names=("cat", "Zebra"), n=1)
    (home / "set" / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (home / "set" / "train" / "cat" / "notes.txt").write_text("passed over")
    splits = as_data(f"folder:{home / 'set'}").open()
    assert splits.task.classes == ("Zebra", "ant", "cat")
    assert splits.train.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert splits.train.x[:, 0, 0, 0].tolist() == [10, 11, 12, 13, 20, 21, 22, 23, 0, 1, 2, 3]
    assert splits.task.shape == (3, 5, 6)
    assert splits.test.counts() == [1, 0, 1]
    assert splits.validation is None


def test_folder_without_parts_is_split_by_seed(home):
    data = as_data(f"folder:{write_folder(home / 'set', n=10)}")
    splits = data.open()
    assert (splits.train.counts(), splits.test.counts()) == ([8] * 3, [2] * 3)
    assert data.label == "set"


def test_folder_with_a_validation_part(home):
    for part in ("train", "test", "val"):
        write_folder(home / "set" / part, n=2, mode="L")
    splits = Folder(path=str(home / "set")).open()
    assert splits.validation.counts() == [2, 2, 2]
    assert splits.task.shape == (1, 5, 6)


def test_pictures_are_cropped_resized_and_converted(home):
    root = write_folder(home / "set", names=("a", "b"), size=(9, 7))
    Image.new("RGBA", (20, 40), (255, 0, 0, 9)).save(root / "a" / "00.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 0, 255, 0])
    palette.info["transparency"] = b"\x00\x80"
    palette.save(root / "a" / "01.png", transparency=b"\x00\x80")
    Image.new("L", (8, 8), 77).save(root / "a" / "02.png")
    part = Folder(path=str(root), size=4, channels=3).read().train
    assert tuple(part.x.shape) == (8, 3, 4, 4)
    assert part.x[:3, :, 2, 2].tolist() == [[255, 0, 0], [0, 255, 0], [77, 77, 77]]
    assert tuple(Folder(path=str(root), size=4, channels=1).read().train.x.shape) == (8, 1, 4, 4)
    gradient = np.tile(np.arange(0, 160, 8, dtype=np.uint8), (10, 1))  # 20 wide, 10 high: columns 5..14 survive
    Image.fromarray(gradient).save(home / "wide.png")
    assert readers.image(home / "wide.png", size=10)[0, 0].tolist() == gradient[0, 5:15].tolist()


def spoil(root, kind):
    """Spoil the folder; returns what the message must name."""
    path = root / "cat" / "01.png"
    if kind == "another size":
        Image.new("RGB", (7, 7)).save(path)
    elif kind == "grey among colour":
        Image.new("L", (6, 5)).save(path)
    elif kind == "alpha":
        Image.new("RGBA", (6, 5)).save(path)
    elif kind == "16 bits":
        Image.fromarray(np.zeros((5, 6), np.uint16)).save(path)
    elif kind == "no image":
        path.write_text("<html>404</html>")
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "cut":
        Image.fromarray(RAW.integers(0, 256, (99, 99, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "empty class":
        (root / "dog").mkdir()
        return "dog"
    elif kind == "one class":
        for name in ("Zebra", "ant"):
            for file in (root / name).iterdir():
                file.unlink()
            (root / name).rmdir()
    return {"one class": "one class only"}.get(kind, str(path))


@pytest.mark.parametrize(
    "kind",
    [
        "another size",
        "grey among colour",
        "alpha",
        "16 bits",
        "no image",
        "empty file",
        "cut",
        "empty class",
        "one class",
    ],
)
def test_a_folder_that_no_method_can_use_is_refused_by_file(home, kind):
    root = write_folder(home / "set")
    named = spoil(root, kind)
    before = listing(home)
    with pytest.raises(BadData) as error:
        Folder(path=str(root)).open()
    refused(error, str(root), "", named)
    assert listing(home) == before


def test_a_picture_that_expands_beyond_reason_is_refused(home, monkeypatch):
    root = write_folder(home / "set")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(BadData, match=r"DecompressionBomb"):
        Folder(path=str(root)).open()


def test_folders_that_are_none(home):
    with pytest.raises(BadData, match="is no folder"):
        as_data(f"folder:{home / 'nowhere'}").open()
    (home / "set").mkdir()
    with pytest.raises(BadData, match="holds no folders"):
        as_data(f"folder:{home / 'set'}").open()
    (home / "set" / "a").mkdir()
    with pytest.raises(BadData, match="holds no pictures"):
        as_data(f"folder:{home / 'set'}").open()
    write_folder(home / "parts" / "train")
    write_folder(home / "parts" / "test", names=("dog",))
    with pytest.raises(BadData, match="classes that train lacks"):
        as_data(f"folder:{home / 'parts'}").open()


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("folder", "path"),
        ("npz", "path"),
        ({"name": "digits", "test": 1.0}, "test"),
        ({"name": "digits", "validation": -0.1}, "validation"),
        ({"name": "folder", "path": "x", "channels": 2}, "channels"),
        ({"name": "folder", "path": "x", "size": 0}, "size"),
        ({"name": "digits", "tset": 0.1}, "digits"),
        ("digits:7", "digits"),
        ("digit", "digit"),
    ],
)
def test_settings_that_cannot_be(value, field):
    with pytest.raises(BadValue) as error:
        as_data(value)
    assert error.value.field.startswith("data")
    assert field in str(error.value)


# -- live data --------------------------------------------------------------------------------------------------------


class Pairs(Dataset):
    """(image, label) by a function of the position."""

    def __init__(self, n, item, classes=None):
        self.n, self.item = n, item
        if classes:
            self.classes = classes

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.item(i)


def photo(i):
    return Image.fromarray(np.full((4, 4, 3), i, np.uint8)), i % 2


def test_all_spellings_of_live_data():
    x, y = torch.from_numpy(X).unsqueeze(1), torch.from_numpy(Y)
    spelled = [(x, y), [x, y], (X, Y), (x, Y), TensorDataset(x, y), Pairs(12, lambda i: (x[i], int(y[i])))]
    found = [as_data(value) for value in spelled]
    assert len({data.fingerprint for data in found}) == 1
    assert all(isinstance(data, Given) and data.open().task.shape == (1, 4, 4) for data in found)
    assert found[4].origin == "torch.utils.data.dataset.TensorDataset"
    assert found[0].origin == "arrays"
    pair = as_data((spelled[0], spelled[4])).open()
    assert pair.train.fingerprint == pair.test.fingerprint
    assert isinstance(as_data("digits"), Digits)
    assert as_data(Digits(seed=3)).seed == 3


def test_live_data_is_split_and_its_dataset_names_the_classes():
    dataset = Pairs(40, photo, classes=["low", "high"])
    splits = as_data(dataset).open()
    assert splits.task.classes == ("low", "high")
    assert (splits.train.counts(), splits.test.counts()) == ([16, 16], [4, 4])
    assert splits.task.shape == (3, 4, 4)
    assert all(int(x[0, 0, 0]) % 2 == int(y) for x, y in zip(splits.train.x, splits.train.y, strict=True))
    assert as_data(Subset(dataset, range(20))).open().task.classes == ("low", "high")
    assert as_data(dataset).with_(classes=("a", "b"), mirror=False).open().task.classes == ("a", "b")


def test_live_data_is_recorded_by_its_fingerprint():
    data = as_data((X, Y))
    stored = json.loads(json.dumps(data.dump()))
    assert "live" not in stored
    assert stored["fingerprint"] == data.fingerprint
    assert "live" not in repr(data)
    again = as_data(stored)
    assert again == data
    assert hash(again) == hash(data)
    assert again.digest() == data.digest()
    assert "live" not in Given.model_json_schema()["properties"]
    with pytest.raises(BadValue) as error:
        again.open()
    refused(error, "data", data.fingerprint[:8], "Pass it again: data=")
    assert again.attach((X, Y)).open().train.fingerprint == data.open().train.fingerprint
    with pytest.raises(BadValue, match="not the one that is recorded"):
        again.attach((X ^ 1, Y))


def test_a_fingerprint_depends_on_all_that_is_given():
    others = [(X ^ 1, Y), (X, np.roll(Y, 1)), (X[:, :2], Y), ((X, Y), (X, Y)), (X / 255, Y), Pairs(12, photo)]
    assert len({as_data(value).fingerprint for value in [(X, Y), *others]}) == 1 + len(others)


class Stream(IterableDataset):
    def __iter__(self):
        yield from ((torch.zeros(1, 4, 4), 0) for _ in range(4))


noisy = torch.Generator().manual_seed(0)
BAD_LIVE = {
    "a random transform": (
        Pairs(8, lambda i: (torch.rand(1, 4, 4, generator=noisy), i % 2)),
        "one reading to the next",
    ),
    "a stream": (Stream(), "no length"),
    "mixed sizes": (Pairs(8, lambda i: (torch.zeros(1, 4, 4 + i // 5), i % 2)), "not of the size"),
    "no pairs": (Pairs(8, lambda i: {"image": torch.zeros(1, 4, 4), "label": 0}), "no (image, label)"),
    "labels of text": (Pairs(8, lambda i: (torch.zeros(1, 4, 4), "cat")), "no (image, label)"),
    "float labels": (Pairs(8, lambda i: (torch.zeros(1, 4, 4), torch.tensor(0.5))), "no whole number"),
    "no examples": (Pairs(0, photo), "holds no examples"),
    "two sets of names": ((Pairs(8, photo, ["a", "b"]), Pairs(8, photo, ["b", "a"])), "name their classes differently"),
}


@pytest.mark.parametrize("kind", BAD_LIVE)
def test_live_data_that_no_method_can_use_is_refused(kind):
    value, text = BAD_LIVE[kind]
    with pytest.raises(BadData) as error:
        as_data(value)
    assert text in str(error.value)


@pytest.mark.parametrize(
    "value", [None, 7, X, (X,), (X, Y, X), (X, "y"), [photo(0), photo(1)]], ids=lambda v: type(v).__name__
)
def test_what_is_no_data_at_all(value):
    with pytest.raises(BadValue) as error:
        as_data(value)
    refused(error, "data", "", "Dataset, (x, y)")


# -- the split --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 0.99])
def test_stratified_takes_its_share_of_every_class(fraction, rng):
    groups = torch.from_numpy(RAW.permutation(np.repeat([0, 1, 2, 5], [1, 2, 30, 101])))
    kept, taken = stratified(groups, fraction, rng)
    assert sorted(kept.tolist() + taken.tolist()) == list(range(len(groups)))
    assert kept.tolist() == sorted(kept.tolist())
    assert taken.tolist() == sorted(taken.tolist())
    for cls, n in ((0, 1), (1, 2), (2, 30), (5, 101)):
        share = 0 if fraction == 0 or n == 1 else max(1, min(n - 1, int(fraction * n + 0.5)))
        assert sum(int(groups[i]) == cls for i in taken) == share


def test_stratified_is_a_function_of_its_key_and_draws_at_random(rng):
    groups = torch.zeros(60, dtype=torch.int64)
    first, again, other = (stratified(groups, 0.5, r)[1].tolist() for r in (rng, rng, Rng(1)))
    assert first == again != other
    hits = sum(torch.bincount(stratified(groups, 0.5, Rng(s))[1], minlength=60) for s in range(60))
    assert 15 < int(hits.min()) <= int(hits.max()) < 45  # 30 +- 15: 3.9 standard deviations


def test_names_of_the_members():
    names = ["digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "folder", "npz", "given"]
    assert [part.name for part in components()] == names
    assert [part.shorthand for part in (Folder, Npz)] == ["path", "path"]
