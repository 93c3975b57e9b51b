"""The published sets: their files, the order of their classes, and the constants they are normalised with.

Constants: those of the code of DC, DSA and DM (VICO-UoE/DatasetCondensation), per channel, of pixels in [0, 1].
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from pydantic import Field

from condense.data import Facts
from condense.downloads import Wanted, find_or_download
from condense.errors import BadData
from condense.splits import Part, Parts, as_part

from .. import readers
from .base import Images

TEN = tuple(str(digit) for digit in range(10))
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def facts(title: str, licence: str, citation: str, mean: str, std: str, *, mirror: bool, **extra: Any) -> Facts:
    """`mean` and `std` as numbers in a string, one for each channel."""
    m, s = (tuple(float(number) for number in text.split()) for text in (mean, std))
    return Facts(title, licence, citation, mean=m, std=s, extra={"mirror": mirror, **extra})


@final
class Digits(Images):
    """1,797 handwritten digits, 1 x 8 x 8, that ship with scikit-learn: no files and no network.

    The published 17 grey levels v become uint8 by (255 v + 8) // 16, that is, 255 v / 16 rounded half up: 0 to 0, 16 to
    255, and v = round(16 u / 255) brings them back. There is no published split: `test` of each class are held out by
    `seed`. There are no published constants either: mean and std are those of the default split's training part.
    """

    embedded: ClassVar[bool] = True
    test: float = Field(default=0.3, gt=0, lt=1)

    @property
    def held_out(self) -> float:
        return self.test

    def read(self) -> Parts:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        levels = bunch.images.astype(np.int64)
        x = ((255 * levels + 8) // 16).astype(np.uint8)
        return Parts(as_part(x, bunch.target, "digits"), None, TEN, DIGITS)


DIGITS = facts(
    "Optical recognition of handwritten digits (test part, as in scikit-learn)",
    "CC BY 4.0",
    "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits. UCI Machine Learning Repository, 1998.",
    "0.3055",
    "0.3759",
    mirror=False,
    constants="measured by condense on the training part of the default split",
)


class IdxImages(Images):
    """A set of the MNIST family: four idx files, plain or .gz, in `<torchvision's name>/raw` of a data folder."""

    torchvision: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    known: ClassVar[Facts]

    def read(self) -> Parts:
        import torchvision

        cls = getattr(torchvision.datasets, self.torchvision)
        wanted = Wanted(IDX, (f"{self.torchvision}/raw",), (".gz",))
        _, paths = find_or_download([wanted], self.name, urls(cls), lambda folder: cls(str(folder), download=True))
        return Parts(self._part(*paths[:2]), self._part(*paths[2:]), self.classes, self.known)

    def _part(self, images: Path, labels: Path) -> Part:
        x, y = readers.idx(images), readers.idx(labels)
        if x.ndim != 3 or y.ndim != 1:
            path, array, size = (images, x, 3) if x.ndim != 3 else (labels, y, 1)
            raise BadData(str(path), array.shape, f"should have {size} sizes", readers.AGAIN)
        return as_part(x, y, str(images))


@final
class Mnist(IdxImages):
    """MNIST: 60,000 and 10,000 handwritten digits, 1 x 28 x 28."""

    torchvision: ClassVar[str] = "MNIST"
    classes: ClassVar[tuple[str, ...]] = TEN
    known: ClassVar[Facts] = facts(
        "MNIST",
        "CC BY-SA 3.0, as commonly given",
        "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition. "
        "Proceedings of the IEEE, 1998.",
        "0.1307",
        "0.3081",
        mirror=False,
    )


@final
class FashionMnist(IdxImages):
    """Fashion-MNIST: 60,000 and 10,000 pictures of clothes, 1 x 28 x 28."""

    torchvision: ClassVar[str] = "FashionMNIST"
    classes: ClassVar[tuple[str, ...]] = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    known: ClassVar[Facts] = facts(
        "Fashion-MNIST",
        "MIT",
        "H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST: a novel image dataset for benchmarking machine learning "
        "algorithms. arXiv:1708.07747, 2017.",
        "0.2861",
        "0.3530",
        mirror=True,
    )


class Checked(Images):
    """A set that torchvision reads, after it compared the md5 of every file with the published one.

    That matters where the files are pickles (CIFAR's python version): no other file than the published one is opened.
    """

    torchvision: ClassVar[str]
    wanted: ClassVar[Wanted]
    classes: ClassVar[tuple[str, ...] | None] = None  # None: as torchvision names them
    known: ClassVar[Facts]
    splits: ClassVar[tuple[Mapping[str, Any], Mapping[str, Any]]] = ({"train": True}, {"train": False})

    @property
    def alternatives(self) -> tuple[Wanted, ...]:
        """The files that are looked for: any one of these."""
        return (self.wanted,)

    def read(self) -> Parts:
        import torchvision

        cls = getattr(torchvision.datasets, self.torchvision)
        found, paths = find_or_download(self.alternatives, self.name, urls(cls), lambda folder: self._get(cls, folder))
        return self.parts(found, paths)

    def _get(self, cls: Any, folder: Path) -> None:
        for split in self.splits:
            cls(str(self.root(folder / self.wanted.folders[0])), download=True, **split)

    def root(self, folder: Path) -> Path:
        """What torchvision calls the root, of the folder that holds the files."""
        return folder.parent

    def parts(self, found: Wanted, paths: Sequence[Path]) -> Parts:
        """The set, from the files that were found."""
        import torchvision

        cls, folder = getattr(torchvision.datasets, self.torchvision), paths[0].parent
        try:
            with warnings.catch_warnings():  # numpy on the age of the published pickles
                warnings.simplefilter("ignore")
                sets = [cls(str(self.root(folder)), **split) for split in self.splits]
        except RuntimeError as error:
            problem = f"holds a file that is not the published one, by its md5: {error}"
            raise BadData(str(folder), [path.name for path in paths], problem, readers.AGAIN) from None
        train, test = (
            as_part(s.data, targets(s), f"{folder} {n}") for s, n in zip(sets, ("train", "test"), strict=True)
        )
        return Parts(train, test, self.classes or tuple(sets[0].classes), self.known)


def urls(cls: Any) -> list[str]:
    """Where torchvision would download a set from."""
    if hasattr(cls, "mirrors"):
        return list(cls.mirrors)
    return [cls.url] if hasattr(cls, "url") else [cls.split_list["train"][0]]


def targets(dataset: Any) -> np.ndarray[Any, Any]:
    return np.asarray(dataset.labels if hasattr(dataset, "labels") else dataset.targets)


@final
class Svhn(Checked):
    """SVHN, cropped digits: 73,257 and 26,032 house numbers, 3 x 32 x 32. Class 0 is the digit 0 (10 in the files)."""

    torchvision: ClassVar[str] = "SVHN"
    wanted: ClassVar[Wanted] = Wanted(("train_32x32.mat", "test_32x32.mat"), ("SVHN", "."))
    splits: ClassVar[tuple[Mapping[str, Any], Mapping[str, Any]]] = ({"split": "train"}, {"split": "test"})
    classes: ClassVar[tuple[str, ...]] = TEN
    known: ClassVar[Facts] = facts(
        "Street View House Numbers (cropped digits)",
        "for non-commercial use only",
        "Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu, A. Y. Ng: Reading digits in natural images with "
        "unsupervised feature learning. NIPS workshop on deep learning and unsupervised feature learning, 2011.",
        "0.4377 0.4438 0.4728",
        "0.1980 0.2010 0.1970",
        mirror=False,
    )

    def root(self, folder: Path) -> Path:
        return folder


KRIZHEVSKY = "A. Krizhevsky: Learning multiple layers of features from tiny images. University of Toronto, 2009."
UNSTATED = "none stated by the authors; used for research"


@final
class Cifar10(Checked):
    """CIFAR-10: 50,000 and 10,000 pictures, 3 x 32 x 32.

    From the official binary version (`cifar-10-batches-bin`, plain or .xz) by a reader of our own, else from the python
    version by torchvision. The published std is not the pixels' std (0.2470 0.2435 0.2616) but a mean over batches,
    which DC, DSA, DM, MTT and IDC all use.
    """

    torchvision: ClassVar[str] = "CIFAR10"
    batches: ClassVar[tuple[str, ...]] = tuple(f"data_batch_{i}" for i in range(1, 6))
    rows: ClassVar[int] = 10_000  # in each file of the binary version
    wanted: ClassVar[Wanted] = Wanted((*batches, "test_batch", "batches.meta"), ("cifar-10-batches-py",))
    binary: ClassVar[Wanted] = Wanted(
        tuple(f"{name}.bin" for name in (*batches, "test_batch")), ("cifar-10-batches-bin",), (".xz",)
    )
    classes: ClassVar[tuple[str, ...]] = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    known: ClassVar[Facts] = facts(
        "CIFAR-10",
        UNSTATED,
        KRIZHEVSKY,
        "0.4914 0.4822 0.4465",
        "0.2023 0.1994 0.2010",
        mirror=True,
        constants="VICO's (DC, DSA, DM; also MTT, IDC); the pixels' own std is 0.2470 0.2435 0.2616",
    )

    @property
    def alternatives(self) -> tuple[Wanted, ...]:
        return (self.binary, self.wanted)

    def parts(self, found: Wanted, paths: Sequence[Path]) -> Parts:
        if found is not self.binary:
            return super().parts(found, paths)
        read = [readers.cifar(path, self.rows) for path in paths]
        x, y = (np.concatenate([pair[i] for pair in read[:-1]]) for i in (0, 1))
        test = as_part(read[-1][0], read[-1][1], str(paths[-1]))
        return Parts(as_part(x, y, str(paths[0].parent)), test, self.classes, self.known)


@final
class Cifar100(Checked):
    """CIFAR-100 by its 100 fine classes: 50,000 and 10,000 pictures, 3 x 32 x 32 (python version, by torchvision)."""

    torchvision: ClassVar[str] = "CIFAR100"
    wanted: ClassVar[Wanted] = Wanted(("train", "test", "meta"), ("cifar-100-python",))
    known: ClassVar[Facts] = facts(
        "CIFAR-100", UNSTATED, KRIZHEVSKY, "0.5071 0.4866 0.4409", "0.2673 0.2564 0.2762", mirror=True
    )
