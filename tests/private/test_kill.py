"""Killed at any moment, a private run has never released more than it billed, and ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from condense.artifact import load
from condense_private.noise import KEY
from tests.trust.places import partial
from tests.trust.processes import Server, alive, same_bits, sleep, stop

from .releases import witnesses

SLOW = 0.05  # seconds for which a synced write lasts where a kill is to hit it
NET = ("--set", "pool.net.width=4", "--set", "pool.net.depth=1", "--set", "pool.inner.epochs=1")
DATA = ("--data", "private:digits", "--set", "data.noise_multiplier=2", "--per-class", "1", "--device", "cpu")
SAVING = ("--no-eval", "--checkpoint-every", "4")
METHODS = {
    "psg": ("--steps", "60", "--set", "objective.pairing.n=40", "--set", "pool.turns=15", "--set", "pool.every=5"),
    "dc": ("--steps", "24", "--set", "objective.pairing.n=4", "--set", "pool.turns=6"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("kills"), "tests.private.releases")
    yield made
    made.close()


def billed(folder):
    """The requests in a run's ledger, in their order; half a line was never released."""
    path = folder / ".run" / "ledger.jsonl"
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [json.loads(line)["request"] for line in whole.splitlines()[1:]]


def await_key(out, process):
    """Until the key is being written."""
    while alive(process) and not list(out.glob(f".run/.{KEY}*.tmp")):
        time.sleep(0.001)


def await_line(path, process):
    """Until a line is being written to a file that grows by lines."""
    before = path.stat().st_size if path.exists() else 0
    while alive(process) and not (path.exists() and path.stat().st_size > before):
        time.sleep(0.001)


class Killed:
    """One run that is killed again and again, and what is seen of it."""

    def __init__(self, server, method, number):
        self.server, self.method = server, method
        self.out = server.folder / f"{method}-{number}"
        self.unbroken = server.folder / f"{method}-{number}-unbroken"
        self.ledger, self.witness = self.out / ".run" / "ledger.jsonl", Path(f"{self.out}.releases")

    def start(self, slow):
        run = ("run", self.method, *METHODS[self.method], *NET, *DATA, "--out", self.out, *SAVING)
        begun = (self.out / ".run" / "plan.json").exists()
        arguments = ("resume", self.out, *SAVING) if begun else run
        return self.server.start(*arguments, slow=slow, releases=str(self.witness))

    def look(self):
        """After a kill: what was released stands in the ledger, and one request has had one answer."""
        seen, entries = witnesses(self.witness), billed(self.out)
        assert len(set(entries)) == len(entries)
        assert {request for request, _ in seen} <= set(entries)
        assert len({request for request, _ in seen}) == len(set(seen)), "one request, two answers"
        if entries and not self.unbroken.exists():  # with the key as it is now
            shutil.copytree(self.out, self.unbroken)
        return len(entries) - len({request for request, _ in seen})

    def end(self):
        """The run is complete: its ledger is that of a run which went on unbroken from the first kill on."""
        self.look()
        seen, entries = witnesses(self.witness), billed(self.out)
        assert {request for request, _ in seen} == set(entries)
        assert len(entries) == load(self.out).provenance["privacy"]["draws"] == int(METHODS[self.method][1])
        assert not (self.out / ".run" / KEY).exists()
        assert partial(self.out) == []
        if self.unbroken.exists():
            self.server.run("resume", self.unbroken, *SAVING, releases=f"{self.unbroken}.releases")
            ledgers = [(folder / ".run" / "ledger.jsonl").read_bytes() for folder in (self.out, self.unbroken)]
            assert ledgers[0] == ledgers[1]
            assert same_bits(self.out, self.unbroken)
        return {"billed": len(entries), "distinct": len({request for request, _ in seen}), "made": len(seen)}


def killed_runs(server, kills, seed):
    """So many SIGKILLs at seeded random moments: of three, one waits for a line of the ledger or the key, and one for
    a release to be made."""
    moments, counts = (
        random.Random(seed),
        {"kills": 0, "inside": 0, "keys": 0, "runs": 0, "billed": 0, "distinct": 0, "made": 0},
    )
    for method in METHODS:
        goal, run, seconds = counts["kills"] + kills // len(METHODS), Killed(server, method, 0), 2.0
        while True:
            killing, kind = counts["kills"] < goal, counts["kills"] % 3
            began = time.monotonic()
            process = run.start(SLOW if killing and kind else 0)
            if killing and kind:
                if kind == 1 and not billed(run.out):
                    await_key(run.out, process)
                else:
                    await_line(run.ledger if kind == 1 else run.witness, process)
                sleep(moments.uniform(0, SLOW), process)
            elif killing:
                sleep(moments.uniform(0, 0.7 * seconds), process)
            if killing:
                stop(process)
            code, said = server.end()
            if code == -9:
                counts["kills"] += 1
                counts["keys"] += not (run.out / ".run" / KEY).exists()
                counts["inside"] += run.look() > 0
                continue
            assert code == 0, said
            seconds = min(seconds, time.monotonic() - began)
            counts["runs"] += 1
            for name, found in run.end().items():
                counts[name] += found
            if counts["kills"] >= goal:
                break
            run = Killed(server, method, counts["runs"])
    print(
        f"kill -9 of private runs: {counts['kills']} kills, {counts['inside']} between a bill and its release,"
        f" {counts['keys']} before there was a key; {counts['runs']} runs, {counts['distinct']} distinct requests"
        f" released, {counts['billed']} entries billed, {counts['made']} releases with those made again"
    )
    return counts


def test_killed_private_runs_never_bill_less_than_they_drew(server):
    """20 kills; what a resume makes again is the same release, and is billed once."""
    counts = killed_runs(server, 20, seed=20)
    assert counts["kills"] == 20
    assert counts["inside"] >= 4
    assert counts["made"] > counts["distinct"] == counts["billed"]
