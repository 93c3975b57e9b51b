"""Checkpoints survive what kills their writer; one folder has one writer."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
import warnings

import pytest
import torch

from condense.checkpoint import Checkpoints, Lock, private_folder
from condense.errors import BadValue, Damaged, InUse, NoRoom


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 8
    path.write_bytes(raw)


def test_the_newest_two_are_kept_and_the_latest_comes_back(tmp_path):
    kept = Checkpoints(tmp_path / ".run")
    assert kept.latest() is None
    for index in (0, 5, 10, 1_000_000):
        kept.save(index, {"w": torch.tensor([index])})
    assert names(tmp_path / ".run") == ["checkpoint-000010.safetensors", "checkpoint-1000000.safetensors"]
    index, tree = kept.latest()
    assert (index, tree["w"].item()) == (1_000_000, 1_000_000)


def test_leftovers_of_a_killed_writer_are_ignored_and_swept(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(1, {})
    (tmp_path / ".checkpoint-000002.safetensors.abc.tmp").write_bytes(b"half")
    (tmp_path / "checkpoint-000003.safetensors.tmp").write_bytes(b"half")
    assert kept.latest() == (1, {})
    kept.save(2, {})
    assert ".checkpoint-000002.safetensors.abc.tmp" not in names(tmp_path)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path):
    kept = Checkpoints(tmp_path)
    for index in (1, 2):
        kept.save(index, {"w": torch.ones(100)})
    flip(tmp_path / "checkpoint-000002.safetensors")
    with pytest.warns(RuntimeWarning, match="checkpoint-000002"):
        assert kept.latest()[0] == 1
    kept.save(2, {"w": torch.ones(100)})
    assert kept.latest()[0] == 2


def test_where_all_are_damaged_the_newest_is_named(tmp_path):
    kept = Checkpoints(tmp_path)
    for index in (1, 2):
        kept.save(index, {"w": torch.ones(100)})
        flip(tmp_path / f"checkpoint-{index:06d}.safetensors")
    with pytest.warns(RuntimeWarning), pytest.raises(Damaged, match="checkpoint-000002"):
        kept.latest()


def test_a_checkpoint_under_another_name_is_refused(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(1, {})
    (tmp_path / "checkpoint-000001.safetensors").rename(tmp_path / "checkpoint-000009.safetensors")
    with pytest.warns(RuntimeWarning), pytest.raises(Damaged, match="the step that its name says"):
        kept.latest()


def test_going_on_from_an_older_checkpoint_drops_the_damaged_newer_one(tmp_path):
    kept = Checkpoints(tmp_path)
    for index in (50, 100):
        kept.save(index, {})
    flip(tmp_path / "checkpoint-000100.safetensors")
    kept.save(60, {})
    assert names(tmp_path) == ["checkpoint-000050.safetensors", "checkpoint-000060.safetensors"]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    import resource

    kept = Checkpoints(tmp_path, keep=1)
    kept.save(1, {"w": torch.ones(4)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(NoRoom, match="checkpoint-000002"):
            kept.save(2, {"w": torch.ones(2**16)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["checkpoint-000001.safetensors"]
    assert kept.latest()[0] == 1


def test_the_private_folder_is_private(tmp_path):
    private = private_folder(tmp_path / "out")
    assert private == tmp_path / "out" / ".run"
    assert private.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(BadValue, match="could not be written"):
        private_folder(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as somebody else")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    os.seteuid(65534)
    try:
        with pytest.raises(BadValue, match="Permission denied"):
            private_folder(tmp_path / "out")
    finally:
        os.seteuid(0)
    assert names(tmp_path) == []


def forked(work):
    """The process id of a child that does `work` and leaves without cleaning up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def dying(call, after):
    """Kill this process inside the `after`-th call of `os.<call>`: of a file being synced, half is still to come."""
    real, calls = getattr(os, call), []

    def die(handle, *args):
        calls.append(handle)
        if len(calls) < after:
            return real(handle, *args)
        if call == "fsync" and stat.S_ISREG(os.fstat(handle).st_mode):
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, call, die)


def test_kill_minus_nine_never_leaves_a_broken_checkpoint(tmp_path):
    """20 writers are killed, 10 at seeded moments and 10 inside a save; each goes on from what the one before left."""
    kept, rnd = Checkpoints(tmp_path), random.Random(0)
    block = torch.arange(2.0**16)

    def write_on(n):
        if n % 2:
            dying(rnd.choice(["fsync", "replace"]), rnd.randint(1, 6))
        found = kept.latest()
        at = found[0] if found else 0
        while True:
            at += 1
            kept.save(at, {"w": block + at})

    seen, torn = 0, 0
    for n in range(20):
        rnd.seed(n)
        child = forked(lambda n=n: write_on(n))
        if n % 2 == 0:
            time.sleep(rnd.uniform(0.01, 0.06))
            os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        torn += any(name.endswith(".tmp") for name in names(tmp_path))
        found = kept.latest()  # a damaged one would warn, and warnings are errors
        if found:
            index, tree = found
            assert index >= seen
            assert torch.equal(tree["w"], block + index)
            seen = index
    print(f"20 of 20 kills survived, {torn} of them inside the writing of a checkpoint; {seen} checkpoints written")
    assert seen > 0
    assert torn >= 5


HOLD = "import sys; from condense.checkpoint import Lock; Lock(sys.argv[1]).__enter__(); print(1, flush=True); input()"


def test_two_runs_cannot_write_one_folder_and_a_killed_one_lets_go(tmp_path):
    code = "from pathlib import Path; " + HOLD.replace("sys.argv[1]", "Path(sys.argv[1])")
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"1\n"
        with pytest.raises(InUse, match=f"process {holder.pid}, since") as caught, Lock(tmp_path):
            pass
        assert str(tmp_path) in str(caught.value)
    finally:
        holder.kill()
        holder.communicate()
    with Lock(tmp_path):
        assert f"process {os.getpid()}," in (tmp_path / "lock").read_text()
        with pytest.raises(InUse), Lock(tmp_path):
            pass
    with Lock(tmp_path):
        pass
