"""The ledger: what was released of private data, written before it is.

One JSON line for each release, appended and synced before the data are touched, so that a run that is killed has never
released more than it billed. A line names the request by its digest; a request that comes again, after a resume, is the
same release and has its line already. Each line holds the digest of the one before: none can be taken out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condense import files
from condense.errors import Damaged

from .accounting import Release

LEDGER = "ledger.jsonl"
FORMAT = 1
REMEDY = "Restore it from a copy. Without it nobody knows what was released."


@dataclass(frozen=True)
class Entry:
    """One release. request: hex digest of what was asked. statistic: its name. bound: the L2 sensitivity of the sums.

    q: the largest rate at which a record is sampled. sigma: the noise's standard deviation, in units of the bound.
    """

    request: str
    statistic: str
    q: float
    sigma: float
    bound: float

    def line(self, before: str) -> bytes:
        facts = {"bound": self.bound, "q": self.q, "request": self.request, "sigma": self.sigma}
        return (json.dumps({**facts, "statistic": self.statistic, "before": before}, sort_keys=True) + "\n").encode()


class Ledger:
    """Releases in their order. path None: in memory only, for runs that store nothing."""

    def __init__(self, path: Path | None, terms: Mapping[str, Any]) -> None:
        """terms: what holds for all entries (records, delta, ...), the first line; a ledger of other terms is refused.

        Raises `Damaged` for a file that was changed; half a line at its end, of a writer that was killed before its
        release, is dropped.
        """
        self.path, self.terms = path, dict(terms)
        self.entries: list[Entry] = []
        self.requests: set[str] = set()
        self._last = ""
        if path is not None and path.exists():
            self._read(path)
        if not self._last:
            head = (json.dumps({"format": FORMAT, "terms": self.terms}, sort_keys=True) + "\n").encode()
            self._append(head)

    def bill(self, entry: Entry) -> bool:
        """Write the entry down, synced, unless its request stands there already. True: it is new."""
        if entry.request in self.requests:
            return False
        self._append(entry.line(self._last))
        self._take(entry)
        return True

    def releases(self) -> list[Release]:
        """What an accountant is told: equal releases together."""
        counted = Counter((entry.sigma, entry.q) for entry in self.entries)
        return [Release(sigma, q, count) for (sigma, q), count in sorted(counted.items())]

    @property
    def digest(self) -> str:
        """SHA-256 of all lines, in a chain."""
        return self._last

    def _take(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.requests.add(entry.request)

    def _append(self, line: bytes) -> None:
        if self.path is not None:
            with files.writing(self.path):
                new = not self.path.exists()
                with open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                if new:
                    files.sync_folder(self.path.parent)
        self._last = hashlib.sha256(line).hexdigest()

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with files.writing(path):
                os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines(keepends=True)):
            try:
                tree = json.loads(line)
                if number == 0:
                    self._head(tree)
                else:
                    if tree.pop("before") != self._last:
                        raise Damaged(str(path), f"line {number + 1}", "does not follow the line before it", REMEDY)
                    self._take(Entry(**tree))
            except (ValueError, TypeError, KeyError):
                raise Damaged(str(path), f"line {number + 1}", "is no line of a ledger", REMEDY) from None
            self._last = hashlib.sha256(line).hexdigest()

    def _head(self, tree: Any) -> None:
        if tree["format"] != FORMAT:
            raise Damaged(str(self.path), tree["format"], f"has a format that is not {FORMAT}", "Update condense.")
        if tree["terms"] != json.loads(json.dumps(self.terms)):
            problem = "was written for other data, or under other terms"
            raise Damaged(str(self.path), tree["terms"], problem, "Start a new run in another folder.")


__all__ = ["LEDGER", "Entry", "Ledger"]
