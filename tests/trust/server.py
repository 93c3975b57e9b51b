"""A process that has torch loaded, and forks a child for every line of arguments: each is a real `condense` process.

Read from stdin: {"arguments": [...], "log": FILE, "slow": SECONDS}. Written to stdout: its process id, and once it has
ended its exit code (-9: killed). slow: how long each fsync takes, so that a kill can be sent into a write. Arguments of
its own are modules whose `watch(order)` is called in each child.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout, suppress

import torch

from condense.cli import main

torch.set_num_threads(1)
FSYNC = os.fsync


def child(order: dict) -> int:
    """The exit code of one command."""
    out = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.fsync = lambda handle: (time.sleep(order["slow"]), FSYNC(handle))[1]
    for module in sys.argv[1:]:
        importlib.import_module(module).watch(order)
    try:
        main(order["arguments"])
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    return 1


def warm() -> None:
    """Whatever the first command imports late is imported here; a set of random images needs no backward pass."""
    importlib.import_module("torch._dynamo")  # which a group norm without data asks for
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr), suppress(SystemExit):
        main(["run", "random", "--per-class", "1", "--device", "cpu", "--no-eval", "--out", f"{folder}/out"])


if __name__ == "__main__":
    warm()
    for name in sys.argv[1:]:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        if (process := os.fork()) == 0:
            os._exit(child(json.loads(line)))
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
