"""What the tests of trust share: a command line in this process, small sets of images, and what a folder holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from condense.cli import app

TINY = ("--set", "pool.net.width=4", "--set", "pool.net.depth=1", "--set", "objective.pairing.n=4")
JUDGED = ("--set", "protocol.nets.0.width=4", "--set", "protocol.nets.0.depth=1", "--set", "protocol.epochs=1")


def call(*arguments):
    """The command line in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="condense")


def told(*arguments):
    """(exit code, the one JSON object) of a command."""
    done = call(*arguments, "--json")
    assert "Traceback" not in done.output, done.output
    return done.exit_code, json.loads(done.stdout)


def pictures(classes=3, each=6, shape=(1, 8, 8), seed=0):
    """x (N, *shape) uint8 and y (N,) int64: noise, `each` of every class."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (classes * each, *shape), np.uint8), np.arange(classes * each) % classes


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def snapshot(folder):
    """Every path below `folder`, with what it holds and when it was written; but for locks, which anyone takes."""
    found = [path for path in sorted(Path(folder).rglob("*")) if path.name != "lock"]
    return {str(path.relative_to(folder)): described(path) for path in found}


def described(path):
    facts = path.lstat()
    content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return facts.st_mode, facts.st_mtime_ns if path.is_file() else 0, content


def partial(folder):
    """Files that a writer has left behind half-written."""
    return [path for path in Path(folder).rglob("*") if path.name.endswith(".tmp")]
