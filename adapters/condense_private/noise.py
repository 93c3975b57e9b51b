"""Where the randomness of private releases comes from: a secret of the operating system, and nothing of the run.

The run's seed is published, so no bit of a release may depend on it. Every release has streams of its own, keyed by the
secret and by the digest of what was asked: the same question asked again, after a resume, gets the same answer; another
question gets independent noise. Philox is counter-based, with a key of 128 bits.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from condense import files
from condense.errors import Damaged

KEY = "noise.key"
BYTES = 32  # of the secret: 256 bits


class Noise:
    """Keyed streams of random numbers. `secret`: at least 16 bytes that nobody else knows."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("a secret of at least 128 bits is needed")
        self._secret = secret

    def stream(self, request: bytes, purpose: str) -> np.random.Generator:
        """The stream for one purpose (`sample`, `noise`) of one request, given by its digest."""
        text = len(request).to_bytes(4, "big") + request + purpose.encode()
        key = hashlib.blake2b(text, key=self._secret, digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))


def fresh() -> Noise:
    """A source with a new secret from the operating system, which is kept in memory only."""
    return Noise(os.urandom(BYTES))


def kept(folder: Path) -> Noise:
    """The source whose secret lies in the private folder `folder`, made at the first call: what a resume needs.

    The file has mode 600 and is complete on disk before any number is drawn. Raises `Damaged` for half a key.
    """
    path = folder / KEY
    if not path.exists():
        with files.writing(path):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = files.temporary_beside(path)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(os.urandom(BYTES))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            files.sync_folder(folder)
    secret = path.read_bytes()
    if len(secret) != BYTES:
        problem = "is not a whole key: what was released with it cannot be told apart from what comes"
        raise Damaged(str(path), f"{len(secret)} bytes", problem, "Restore it from a copy, or start a new run.")
    return Noise(secret)


def forget(folder: Path) -> None:
    """Remove the key: its run is complete, and nobody is to make its noise again."""
    path = folder / KEY
    if path.exists():
        with files.writing(path):
            with open(path, "r+b") as file:  # what a file system keeps of an unlinked file is no key any more
                file.write(bytes(BYTES))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
            files.sync_folder(folder)


def by_seed(seed: int) -> Noise:
    """A source that everybody can repeat: for debugging only, since what it releases is not private."""
    return Noise(hashlib.blake2b(f"not private {seed}".encode(), digest_size=BYTES).digest())


__all__ = ["KEY", "Noise", "by_seed", "forget", "fresh", "kept"]
