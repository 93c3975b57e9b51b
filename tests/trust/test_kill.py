"""Killed at any moment, also inside the writing of a checkpoint, a run ends with the bits of an unbroken one."""

from __future__ import annotations

import random
import signal
import time

import pytest

from condense.checkpoint import Checkpoints

from .places import partial
from .processes import Server, alive, same_bits, sleep, stop

KILLS, INSIDE = 20, 5  # altogether, and at least so many inside the writing of a checkpoint
TINY = ("--set", "pool.net.width=4", "--set", "pool.net.depth=1", "--set", "objective.pairing.n=4", "--set")
INNER = ("pool.turns=5", "--set", "pool.inner.epochs=2", "--set", "pool.inner.rule.momentum=0.9", "--set")
METHODS = {
    "dm": ("--steps", "40", *TINY, "augment=none"),
    "dsa": ("--steps", "20", *TINY, *INNER, "pool.inner.batch=7"),  # networks are trained, and carried over
}
SAVING = ("--no-eval", "--checkpoint-every", "3")
ALL = ("--per-class", "2", "--device", "cpu", *SAVING)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("kills"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def unbroken(server):
    """Method -> (the folder of a run that nothing stopped, how long it took)."""
    found = {}
    for method, settings in METHODS.items():
        began = time.monotonic()
        server.run("run", method, *settings, *ALL, "--out", f"whole-{method}")
        found[method] = (server.folder / f"whole-{method}", time.monotonic() - began)
    return found


def await_write(folder, process):
    """Wait until a checkpoint is being written."""
    while not list((folder / ".run").glob(".checkpoint-*.tmp")) and alive(process):
        time.sleep(0.001)


def test_killed_runs_end_with_the_same_bits(server, unbroken):
    """20 SIGKILLs at seeded random moments; every other waits for the writing of a checkpoint."""
    moments = random.Random(10)
    killed, inside, early, finished = 0, 0, 0, 0
    for method, settings in METHODS.items():
        whole, seconds = unbroken[method]
        out, goal = server.folder / f"{method}-{finished}", killed + KILLS // 2
        while True:
            before = Checkpoints(out / ".run").latest() if out.exists() else None
            into_a_write = killed % 2 == 1
            again = ("resume", out, *SAVING) if (out / ".run" / "plan.json").exists() else None
            run = ("run", method, *settings, *ALL, "--out", out)
            began = time.monotonic()
            process = server.start(*(again or run), slow=0.1 if into_a_write and killed < goal else 0)
            if killed < goal:
                if into_a_write:
                    await_write(out, process)
                sleep(moments.uniform(0, 0.02 if into_a_write else 0.6 * seconds), process)
                stop(process)
            code, said = server.end()
            if code == 0 and again is None and not into_a_write:
                seconds = min(seconds, time.monotonic() - began)  # the machine is less busy than it was
            if before is not None and before[0] < int(settings[1]) and code == 0:
                assert f"goes on from step {before[0]} of" in said
            if code == -9:
                killed += 1
                inside += any(path.name.startswith(".checkpoint") for path in partial(out))
                early += not list(out.glob(".run/checkpoint-*"))
                continue
            assert code == 0, said
            assert same_bits(out, whole), f"{method}, after {killed} kills"
            assert partial(out) == []
            finished += 1
            out = server.folder / f"{method}-{finished}"
            if killed >= goal:
                break
    print(
        f"kill -9: {killed} kills, {inside} inside the writing of a checkpoint, {early} before the first;"
        f" {finished} of {finished} runs ended with the same bits, 0 partial files"
    )
    assert killed == KILLS
    assert inside >= INSIDE
    assert early >= 1


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_saves_and_says_how_to_go_on(method, server, unbroken):
    whole, _ = unbroken[method]
    out = server.folder / f"interrupted-{method}"
    process = server.start("run", method, *METHODS[method], *ALL, "--out", out)
    while not list(out.glob(".run/checkpoint-*")) and alive(process):
        time.sleep(0.002)
    stop(process, signal.SIGINT)
    code, said = server.end()
    assert code == 130, said
    assert f"condense resume {out}" in said
    assert "Traceback" not in said
    index = Checkpoints(out / ".run").latest()[0]
    assert f"got '{index} of {METHODS[method][1]} steps'" in said, "it has saved the very step it was in"
    server.run("resume", out, *SAVING)
    assert same_bits(out, whole)


def test_a_run_that_was_killed_before_its_plan_was_written_begins_anew(server, unbroken):
    whole, _ = unbroken["dm"]
    out = server.folder / "unplanned"
    (out / ".run").mkdir(parents=True)
    (out / ".run" / "lock").write_text("process 1, since then\n")
    (out / ".run" / ".plan.json.0123.tmp").write_text("{")
    server.run("run", "dm", *METHODS["dm"], *ALL, "--out", out)
    assert same_bits(out, whole)
    assert partial(out) == []


def test_a_run_that_was_killed_while_its_artifact_was_written_is_finished_by_a_resume(server, unbroken):
    whole, _ = unbroken["dm"]
    out = server.folder / "unwritten"
    process = server.start("run", "dm", *METHODS["dm"], *ALL, "--out", out, slow=0.03)
    while not list(out.glob(".tensors*.tmp")) and alive(process):
        time.sleep(0.001)
    stop(process)
    assert server.end()[0] == -9
    assert partial(out)
    server.run("resume", out, *SAVING)
    assert same_bits(out, whole)
    assert partial(out) == []
