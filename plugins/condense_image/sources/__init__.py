"""Where images come from: the published sets, and one's own as a folder, an archive or live objects."""

from __future__ import annotations

from condense.component import Component
from condense.given import Given

from .own import Folder, Npz
from .published import Cifar10, Cifar100, Digits, FashionMnist, Mnist, Svhn


def components() -> list[type[Component]]:
    return [Digits, Mnist, FashionMnist, Cifar10, Cifar100, Svhn, Folder, Npz, Given]
