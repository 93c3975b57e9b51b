"""Real `condense` processes for tests that kill them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from condense.artifact import load


class Server:
    """Commands in processes of their own; see `server.py`. watching: modules that watch them, imported there."""

    def __init__(self, folder, *watching):
        self.folder = folder
        command = [sys.executable, "-m", "tests.trust.server", *watching]
        root = Path(__file__).parents[2]
        path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def start(self, *arguments, slow=0.0, **more):
        """Begin a command; returns its process id. more: for those who watch."""
        self.log = self.folder / "log.txt"
        self.log.write_text("")
        order = {"arguments": [str(a) for a in arguments], "log": str(self.log), "slow": slow, **more}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self):
        """Wait for it; returns its exit code and what it said."""
        return int(self.process.stdout.readline()), self.log.read_text()

    def run(self, *arguments, **more):
        self.start(*arguments, **more)
        code, said = self.end()
        assert code == 0, said

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=20)
        self.process.stdout.close()


def same_bits(one, other):
    first, second = (load(folder).synthetic.state_dict() for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def sleep(seconds, process):
    """For so long, or until the process has ended."""
    until = time.monotonic() + seconds
    while alive(process) and time.monotonic() < until:
        time.sleep(0.002)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def stop(process, number=signal.SIGKILL):
    if alive(process):
        os.kill(process, number)
