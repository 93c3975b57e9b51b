"""A witness outside of a private run: it writes every release down, right after it is made.

`watch` is called in the process of a run (see tests/trust/server.py). A line is a request and a digest of its answer.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from condense_private import accounting, private

accounting.opacus("accountants.analysis.rdp")  # imported once, before processes are forked
RELEASE = private.PrivateSource._release


def watch(order):
    """Write to the file `order["releases"]`, and rest as long as a synced write takes, so that a kill can be sent.

    Statements by RDP alone, as PRV takes seconds.
    """
    accounting.Prv.__call__ = lambda prv, releases, delta: None
    private.PrivateSource._release = lambda source, *asked: witnessed(order, source, *asked)


def witnessed(order, source, statistic, model, plan, request, *rest):
    found = RELEASE(source, statistic, model, plan, request, *rest)
    h = hashlib.sha256()
    for answer in found:
        for part in sorted(answer):
            h.update(answer[part].numpy().tobytes())
    with open(order["releases"], "ab", buffering=0) as file:
        file.write(f"{request.hex()} {h.hexdigest()}\n".encode())
        os.fdatasync(file.fileno())
    time.sleep(order["slow"])
    return found


def witnesses(path):
    """All releases that were made: (request, digest of the answer), in their order."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return [tuple(line.split()) for line in lines]
