"""Bad input: each cause is refused before anything is computed, in a sentence that names field, value and remedy.

Readers and stored files have tables of their own (tests/image/test_sources.py, tests/core/test_hostile.py); here the
causes come in through the doors that people use, the command line and Python, and nothing may have been written.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import condense
from condense import api
from condense.api import plan
from condense.artifact import load, write_artifact
from condense.checkpoint import Checkpoints
from condense.errors import BadData, BadValue, CondenseError, Damaged, InUse, NoRoom
from condense.foreign import NETWORK_INPUT
from condense.hookspecs import hookimpl
from condense.terminal import error_object

from .places import JUDGED, TINY, call, partial, pictures, snapshot, told, write_npz

X, Y = pictures()
FLOATS = X / 255


def run(*more, method="dm", data="digits", n=2):
    """A tiny run into `out`, made at once if nothing were wrong with it."""
    size = ("--per-class", n, "--device", "cpu", "--out", "out", "--no-eval")
    steps = ("--steps", "1", *TINY) if method in ("dm", "dsa") else ()
    return ("run", method, "--data", data, *size, *steps, *JUDGED, *more)


def of(method="dm", n=2, more=(), **arrays):
    """A run on arrays that are written to an npz file."""
    return lambda: run(*more, method=method, n=n, data=write_npz("own.npz", **arrays))


def bad_pixel(value):
    x = FLOATS.copy()
    x[7, 0, 3, 3] = value
    return x


def unequal(sizes):
    """As many images of each class as `sizes` says, all in a training part."""
    y = np.repeat(np.arange(len(sizes)), sizes)
    return {"x_train": X[: len(y)], "y_train": y, "x_test": X[:6], "y_test": np.arange(6) % len(sizes)}


def folder(*pictures, data="pictures", more=()):
    """A run on a folder of these (class, name, size or bytes)."""

    def made():
        for name, file, size in (*[(c, "0.png", 8) for c in "ab"], *[(c, "1.png", 8) for c in "ab"], *pictures):
            os.makedirs(f"{data}/{name}", exist_ok=True)
            if isinstance(size, bytes):
                Path(data, name, file).write_bytes(size)
            elif size:
                Image.new("L", (size, size)).save(f"{data}/{name}/{file}")
        return run(*more, data=f"folder:{data}")

    return made


def png():
    Image.new("L", (64, 64)).save("whole.png")
    return Path("whole.png").read_bytes()


# -- through the command line -----------------------------------------------------------------------------------------
# cause: (arguments, or what makes them, class of the error, in its field, in its value, in its remedy)

SETTINGS = {
    "unknown method": (run(method="dmm"), BadValue, "recipe", "dmm", "Did you mean dm?"),
    "unknown data": (run(data="cifar"), BadValue, "data", "cifar", "cifar10"),
    "unknown network": (run("--net", "convnet"), BadValue, "net", "convnet", "conv-net"),
    "unknown network of the judge": (run("--nets", "mlp,resnet"), BadValue, "net", "resnet", "resnet18"),
    "unknown protocol": (run("--protocol", "vicoo"), BadValue, "protocol", "vicoo", "vico"),
    "unknown device": (run("--device", "tpu"), BadValue, "device", "tpu", "cpu"),
    "device that computes nothing": (run("--device", "meta"), BadValue, "device", "meta", "cpu"),
    "unknown setting": (run("--set", "outer.stps=3"), BadValue, "recipe.outer", "stps", "steps"),
    "unknown setting of the judge": (run("--set", "protocol.epoch=3"), BadValue, "protocol", "epoch", "epochs"),
    "unknown setting of the device": (run("--set", "execution.threads=3"), BadValue, "execution", "threads", "device"),
    "unknown argument of a method": (run("--with", "iteration=3"), BadValue, "--with", "iteration", "iterations"),
    "setting without a value": (run("--set", "outer.steps"), BadValue, "--set", "outer.steps", "outer.steps=100"),
    "setting below a number": (run("--set", "outer.steps.x=3"), BadValue, "outer.steps", "steps.x", "Set"),
    "position beyond the list": (run("--set", "outer.groups.4.lr=1"), BadValue, "outer.groups.4", "4", "It has 1"),
    "text for a number": (run("--set", "pool.net.depth=deep"), BadValue, "pool.net.depth", "deep", "condense show"),
    "unknown part": (run("--set", "init=nose"), BadValue, "recipe.init", "nose", "noise"),
    "part of another axis": (run("--set", "init=conv-net"), BadValue, "recipe.init", "conv-net", "real"),
    "part set to null": (run("--set", "pool=null"), BadValue, "recipe.pool", "None", "condense show"),
    "brackets without end": (run("--set", f"init={'[' * 100_000}"), BadValue, "recipe.init", "[[[", "condense show"),
    "one network of the judge twice": (
        run("--nets", "conv-net,conv-net"),
        BadValue,
        "protocol.nets",
        "conv-net",
        "condense show",
    ),
    "more networks than can be counted": (
        run("--repeats", 10**12),
        BadValue,
        "protocol.repeats",
        str(10**12),
        "condense show",
    ),
    "more per class than a number holds": (run(n=10**400), BadValue, "per_class", "1000", "--per-class 10"),
    "name of a folder too long": (run("--out", "a" * 300), BadValue, "aaa", "too long", "another"),
    "0 per class": (run(n=0), BadValue, "per_class", "0", "--per-class 10"),
    "negative per class": (run(n=-3), BadValue, "per_class", "-3", "--per-class 10"),
    "more per class than memory": (
        run("--set", "init=noise", n=10**9),
        NoRoom,
        "memory",
        "GiB",
        "a smaller set",
    ),
    "negative seed": (run("--seed", "-1"), BadValue, "seed", "-1", "--seed 0"),
    "negative steps": (run("--steps", "-1"), BadValue, "steps", "-1", "Leave it out"),
    "full data where nothing is judged": (run("--full"), BadValue, "full", "True", "--no-eval"),
    "a report where nothing is judged": (run("--publish-report"), BadValue, "publish_report", "True", "--no-eval"),
    "0 minutes": (run("--minutes", "0"), BadValue, "minutes", "0.0", "--minutes"),
    "negative minutes": (run("--minutes", "-2"), BadValue, "minutes", "-2.0", "--minutes"),
    "minutes that are none": (run("--minutes", "nan"), BadValue, "minutes", "nan", "--minutes"),
    "0 steps between checkpoints": (
        run("--checkpoint-every", "0"),
        BadValue,
        "checkpoint_every",
        "0",
        "--checkpoint-every",
    ),
    "0 repeats": (run("--repeats", "0"), BadValue, "protocol.repeats", "0", "condense show"),
    "negative learning rate": (run("--set", "outer.groups.0.lr=-1"), BadValue, "groups.0.lr", "-1", "condense show"),
    "learning rate NaN": (run("--set", "outer.groups.0.lr=NaN"), BadValue, "groups.0.lr", "nan", "condense show"),
    "infinite learning rate": (
        run("--set", "outer.groups.0.lr=Infinity"),
        BadValue,
        "groups.0.lr",
        "inf",
        "condense show",
    ),
    "negative rate of a schedule": (
        run("--set", 'outer.groups.0.lr={"name": "cosine", "start": -1}'),
        BadValue,
        "groups.0.lr",
        "-1",
        "condense show",
    ),
    "momentum 1": (run("--set", "outer.groups.0.rule.momentum=1"), BadValue, "rule.momentum", "1", "condense show"),
    "judge's rate 0": (run("--set", "protocol.lr=0"), BadValue, "protocol.lr", "0", "condense show"),
    "batch 0": (run("--set", "objective.pairing.n=0"), BadValue, "pairing.n", "0", "condense show"),
    "cosine between mean features": (
        run("--set", "objective.distance=row-cosine"),
        BadValue,
        "objective.distance",
        "row-cosine",
        "squared-error",
    ),
    "no group of parameters": (run("--set", "outer.groups=[]"), BadValue, "outer.groups", "[]", "images"),
    "network too deep": (run("--set", "pool.net.depth=5"), BadValue, "net.depth", "5", "Use depth=3"),
    "judge's network too deep": (run("--set", "protocol.nets.0.depth=5"), BadValue, "net.depth", "5", "Use depth=3"),
    "bfloat16 without compiling": (
        run("--set", "execution.precision=bfloat16", "--set", "execution.compile=false"),
        BadValue,
        "execution.precision",
        "bfloat16",
        "execution.compile=true",
    ),
    "unknown precision": (
        run("--set", "execution.precision=float8"),
        BadValue,
        "execution.precision",
        "float8",
        "condense show",
    ),
    "validation split that is not there": (
        run("--set", "protocol.split=validation"),
        BadValue,
        "protocol.split",
        "validation",
        "judge on test",
    ),
    "network that cannot be imported": (
        run("--net", "custom:nowhere.at:all"),
        BadValue,
        "net.path",
        "nowhere.at:all",
        "PYTHONPATH",
    ),
    "function that makes no network": (
        run("--net", "custom:math:floor"),
        BadValue,
        "net.path",
        "math:floor",
        "must make a module",
    ),
    "unknown model of torchvision": (
        run("--net", "torchvision:resnet19"),
        BadValue,
        "net.model",
        "resnet19",
        "resnet18",
    ),
}

DATA = {
    "NaN": (of(x=bad_pixel(np.nan), y=Y), BadData, "own.npz", "example 7", "repair"),
    "infinity": (of(x=bad_pixel(np.inf), y=Y), BadData, "own.npz", "example 7", "repair"),
    "1e38": (of(x=bad_pixel(1e38), y=Y), BadData, "own.npz", "e+38", "[0, 1]"),
    "NaN in the test part": (
        of(x_train=FLOATS, y_train=Y, x_test=bad_pixel(np.nan), y_test=Y),
        BadData,
        "x_test",
        "example 7",
        "repair",
    ),
    "16 bits": (of(x=X.astype(np.uint16) * 250, y=Y), BadData, "own.npz", "63750", "[0, 1]"),
    "scale that differs": (
        of(x_train=X, y_train=Y, x_test=FLOATS, y_test=Y),
        BadData,
        "x_test",
        "float32",
        "one type",
    ),
    "channels nobody can tell": (
        of(x=np.zeros((18, 8, 8, 8), np.uint8), y=Y),
        BadData,
        "own.npz",
        "(18, 8, 8, 8)",
        "(N, C, H, W)",
    ),
    "sizes that differ": (
        of(x_train=X, y_train=Y, x_test=X[..., :6], y_test=Y),
        BadData,
        "x_test",
        "(1, 8, 6)",
        "one size",
    ),
    "vectors for a network of images": (of(x=X.reshape(18, 64), y=Y), BadValue, "", "64", "mlp"),
    "float labels": (of(x=X, y=Y / 2), BadData, "own.npz", "float64", "integers"),
    "labels in a column": (of(x=X, y=Y[:, None]), BadData, "own.npz", "(18, 1)", "Squeeze"),
    "labels for several classes at once": (of(x=X, y=np.eye(3, dtype=int)[Y]), BadData, "own.npz", "(18, 3)", "(N, 1)"),
    "one label for all": (of(x=X, y=np.int64(3)), BadData, "own.npz", "3", "one label for each"),
    "complex labels": (of(x=X, y=Y + 0j), BadData, "own.npz", "complex", "integers"),
    "negative label": (of(x=X, y=Y - 1), BadData, "own.npz", "-1", "from 0"),
    "label beyond the classes": (of(x=X, y=np.where(Y == 2, 99, Y)), BadData, "own.npz", "99", "from 0"),
    "labels of other examples": (of(x=X, y=Y[1:]), BadData, "own.npz", "(18, 17)", "one label for each"),
    "empty class": (of(x=X, y=Y + (Y == 2)), BadData, "own.npz", "'2'", "leave these classes out"),
    "one class": (of(x=X, y=Y * 0), BadData, "own.npz", "'0'", "two classes"),
    "no examples": (of(x=X[:0], y=Y[:0]), BadData, "own.npz", "0", "at least one"),
    "objects in the archive": (of(x=X.astype(object), y=Y), BadData, "own.npz", "object", "plain arrays"),
    "more per class than the smallest class": (of(n=6, x=X, y=Y), BadValue, "per_class", "6", "at most 5 per class"),
    "two of one image": (of("dsa", n=2, **unequal((6, 1, 6))), BadValue, "per_class", "2", "init=noise"),
    "random with too few": (of("random", n=9, x=X, y=Y), BadValue, "per_class", "9", "at most 5 per class"),
    "herding with too few": (of("herding", n=9, x=X, y=Y), BadValue, "per_class", "9", "at most 5 per class"),
    "no file": (lambda: run(data="npz:gone.npz"), BadData, "data.path", "gone.npz", "Name an .npz"),
    "no folder": (lambda: run(data="folder:gone"), BadData, "data.path", "gone", "one folder of pictures per class"),
    "folder of no folders": (lambda: os.mkdir("none") or run(data="folder:none"), BadData, "none", "[]", "own"),
    "folder of mixed sizes": (folder(("a", "2.png", 9)), BadData, "a/2.png", "(1, 9, 9)", "size"),
    "truncated picture": (lambda: folder(("b", "2.png", png()[:60]))(), BadData, "b/2.png", "", "Repair"),
    "set that is not here": (
        lambda: run("--data-root", "nowhere", data="svhn"),
        BadData,
        "data",
        "svhn",
        "Put train_32x32.mat",
    ),
}

FOLDERS = {
    "out holds something else": (
        lambda: os.mkdir("out") or (write("out/thesis.txt", "mine") and run()),
        InUse,
        "out",
        "out",
        "--out",
    ),
    "out is a file": (lambda: write("out", "mine") and run(), InUse, "out", "out", "--out"),
    "out is below a file": (
        lambda: write("file", "x") and run("--out", "file/out"),
        BadValue,
        "file",
        "directory",
        "folder",
    ),
    "no run to resume": (lambda: ("resume", "nowhere"), BadValue, "path", "nowhere", "--out folder"),
    "no artifact to judge": (lambda: ("eval", "nowhere"), BadValue, "path", "nowhere", "run has made"),
    "no artifact to export": (
        lambda: ("export", "nowhere", "--to", "new"),
        BadValue,
        "path",
        "nowhere",
        "run has made",
    ),
    "set of others without data": (lambda: ("eval", "."), BadValue, "path", ".", "--data"),
}

HELD = {  # about `out`, which holds a finished run
    "out holds another plan": (lambda: run("--seed", "9"), InUse, "out", "out", "--out"),
    "export to another kind of file": (
        lambda: ("export", "out", "--to", "set.zip"),
        BadValue,
        "to",
        "set.zip",
        ".npz",
    ),
    "set of others with brackets without end": (
        lambda: foreign(preprocessing="[" * 100_000),
        Damaged,
        "set.npz",
        "[[[",
        "copy",
    ),
    "set of others whose preprocessing has no name": (
        lambda: foreign(preprocessing="[]"),
        Damaged,
        "set.npz",
        "[]",
        "copy",
    ),
    "set of others with labels beyond float32": (
        lambda: foreign(labels=np.full((3, 3), 1e300)),
        BadData,
        "set.npz",
        "(3, 3)",
        "one class for each image",
    ),
    "export onto a folder": (lambda: ("export", "out", "--to", "out"), InUse, "out", "already", "another name"),
    "truncated tensors": (
        lambda: cut("out/tensors.safetensors") or ("eval", "out"),
        Damaged,
        "tensors",
        "bytes",
        "copy",
    ),
    "tampered tensors": (
        lambda: flip("out/tensors.safetensors") or ("export", "out", "--to", "x"),
        Damaged,
        "tensors",
        "bytes",
        "copy",
    ),
    "manifest of a newer condense": (
        lambda: edit("manifest.json", format=9) or ("eval", "out"),
        Damaged,
        "manifest",
        "",
        "copy",
    ),
    "plan gone": (
        lambda: os.remove("out/plan.json") or ("export", "out", "--to", "x"),
        Damaged,
        "plan",
        "nothing",
        "copy",
    ),
    "judged on other sizes": (
        lambda: ("eval", "out", "--set", "nets.0.depth=5"),
        BadValue,
        "protocol.nets.0.depth",
        "5",
        "Use --set protocol.nets.0.depth=3",
    ),
    "judged by an unknown metric": (
        lambda: ("eval", "out", "--set", 'metrics=["luck"]'),
        BadValue,
        "protocol.metrics",
        "luck",
        "condense show",
    ),
    "set of others with a class too many": (
        lambda: foreign(classes=4),
        BadData,
        "set.npz",
        "3",
        "classes",
    ),
    "set of others of another size": (lambda: foreign(shape=(1, 6, 6)), BadData, "set.npz", "6, 6", ""),
    "set of others with NaN": (lambda: foreign(nan=True), BadData, "set.npz", "example 0", "repair"),
}

BEGUN = {  # about `out`, which holds a run that was paused
    "unknown part in the plan": (
        lambda: edit(".run/plan.json", "recipe", init={"name": "gone"}) or ("resume", "out"),
        BadValue,
        "recipe.init",
        "gone",
        "noise",
    ),
    "plan of a newer condense": (
        lambda: edit(".run/plan.json", format=9) or ("resume", "out"),
        Damaged,
        "plan.json",
        "9",
        "upgrade",
    ),
    "plan with a field that nobody knows": (
        lambda: edit(".run/plan.json", "recipe", colour="red") or ("resume", "out"),
        BadValue,
        "recipe",
        "colour",
        "",
    ),
    "plan of another seed": (
        lambda: edit(".run/plan.json", seed=77) or ("resume", "out"),
        Damaged,
        "plan",
        "",
        "plan.json",
    ),
    "plan of other steps": (
        lambda: edit(".run/plan.json", "recipe", "outer", steps=2) or ("resume", "out"),
        Damaged,
        "plan",
        "",
        "plan.json",
    ),
    "plan of a negative seed": (
        lambda: edit(".run/plan.json", seed=-4) or ("resume", "out"),
        Damaged,
        "plan.json",
        "",
        "greater than or equal to 0",
    ),
    "plan that is no JSON": (
        lambda: write("out/.run/plan.json", "{") and ("resume", "out"),
        Damaged,
        "plan.json",
        "",
        "copy",
    ),
    "plan that is a list": (
        lambda: write("out/.run/plan.json", "[]") and ("resume", "out"),
        Damaged,
        "plan.json",
        "",
        "copy",
    ),
    "truncated checkpoint": (
        lambda: [cut(path) for path in checkpoints()] and ("resume", "out"),
        Damaged,
        "checkpoint",
        "",
        "copy",
    ),
    "tampered checkpoint": (
        lambda: [flip(path) for path in checkpoints()] and ("resume", "out"),
        Damaged,
        "checkpoint",
        "",
        "copy",
    ),
    "judged before it is finished": (lambda: ("eval", "out"), BadValue, "path", "out", "condense resume out"),
    "exported before it is finished": (
        lambda: ("export", "out", "--to", "x"),
        BadValue,
        "path",
        "out",
        "condense resume out",
    ),
    "data gone since": (
        lambda: begun() or os.remove("own.npz") or ("resume", "new"),
        BadData,
        "data.path",
        "own.npz",
        "Name",
    ),
    "data changed since": (
        lambda: begun() or (write_npz("own.npz", x=X[::-1], y=Y) and ("resume", "new")),
        BadData,
        "data",
        "own",
        "start a new run",
    ),
}


def begun():
    """Begin a run on data of this very folder: a plan holds absolute paths."""
    code, said = told(
        *run("--steps", "50", "--minutes", "0.00001", "--out", "new", data=write_npz("own.npz", x=X, y=Y))
    )
    assert code == 75, said


def write(path, text):
    return Path(path).write_text(text)


def checkpoints():
    return [f"out/.run/{name}" for name in os.listdir("out/.run") if name.startswith("checkpoint")]


def cut(path):
    os.truncate(path, os.path.getsize(path) // 2)


def flip(path):
    raw = bytearray(Path(path).read_bytes())
    raw[-5] ^= 4
    Path(path).write_bytes(raw)


def edit(name, *below, **changes):
    """Change a stored JSON file by hand."""
    path = Path("out", name)
    tree = json.loads(path.read_text())
    node = tree
    for key in below:
        node = node[key]
    node.update(changes)
    path.write_text(json.dumps(tree))


def foreign(classes=3, shape=(1, 8, 8), nan=False, labels=None, preprocessing=None):
    """Judge a set that somebody else made on the data of the finished run."""
    x, y = pictures(classes, 1, shape)
    x = x / 255
    x[0, 0, 0, 0] = np.nan if nan else 0
    said = {} if preprocessing is None else {"scale": np.array(NETWORK_INPUT), "preprocessing": np.array(preprocessing)}
    write_npz("set.npz", images=x, labels=y if labels is None else labels, **said)
    return ("eval", "set.npz", "--data", "npz:own.npz", "--repeats", "1", *JUDGED)


# -- from Python ------------------------------------------------------------------------------------------------------


class Pairs(Dataset):
    """A map-style set of `item(i)`."""

    def __init__(self, item, n=12):
        self.item, self.n = item, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.item(i)


def live(data=(X, Y), pairs=None, **changes):
    """A run from Python. pairs: what stands for the settings."""
    settings = small(**changes.pop("settings", {})) if pairs is None else pairs
    asked = {"per_class": 2, "device": "cpu", **changes}
    return lambda: condense.run("dm", data=data, out="out", steps=1, settings=settings, **asked)


def small(**settings):
    """What TINY and JUDGED say, as settings; a network that was given has no width."""
    return {"objective.pairing.n": 4, "protocol.epochs": 1, **settings}


def fails_at_5(i):
    if i == 5:
        raise OSError("the disk is gone")
    return torch.zeros(1, 8, 8), i % 2


def network(width=3, fails=False, of=8):
    """A function that makes a network with `width` outputs."""

    def make():
        if fails:
            raise KeyError("weights")
        return nn.Sequential(nn.Flatten(), nn.Linear(of * of, width))

    return make


def no_module():
    return 3


MADE = nn.Linear(64, 3)


def once():
    return MADE


def two_arguments(task, depth):
    return nn.Linear(64, 3)


class Halves(nn.Module):
    """Features for the first half of the examples only."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 3)

    def features(self, x):
        return x.flatten(1)[: len(x) // 2]

    def forward(self, x):
        return self.head(x.flatten(1))


def shrinks(y=Y):
    """Data that is not what it was when the plan was made."""
    settled = plan("dm", data=(X, y), per_class=2)
    return condense.given.as_data((X[:12], y[:12])), settled


def other_data():
    data, settled = shrinks()
    return settled.data.attach(data)


PYTHON = {
    "images in text": (live((np.array(["a"] * 18), Y)), BadData, "data images", "ndarray", "numbers"),
    "channels last, four of them": (
        live((np.zeros((18, 8, 8, 4), np.uint8), Y)),
        BadData,
        "data images",
        "(18, 8, 8, 4)",
        "(N, C, H, W)",
    ),
    "no data": (live(7), BadValue, "data", "7", "a torch Dataset"),
    "data of three": (live((X, Y, Y)), BadValue, "data", "", "a torch Dataset"),
    "examples that raise": (live(Pairs(fails_at_5)), BadData, "data", "example 5", "Repair"),
    "examples that change": (
        live(Pairs(lambda i: (torch.rand(1, 8, 8), i % 2))),
        BadData,
        "data",
        "example 0",
        "transforms",
    ),
    "examples of mixed sizes": (
        live(Pairs(lambda i: (torch.zeros(1, 8, 8 + i // 9), i % 2))),
        BadData,
        "data",
        "example 9",
        "one size",
    ),
    "examples without labels": (live(Pairs(lambda i: torch.zeros(1, 8, 8))), BadData, "data", "example 0", "pairs"),
    "float labels of a Dataset": (live(Pairs(lambda i: (torch.zeros(1, 8, 8), 0.5))), BadData, "data", "example 0", ""),
    "several labels of an example": (
        live(Pairs(lambda i: (torch.zeros(1, 8, 8), torch.tensor([0, 1])))),
        BadData,
        "data",
        "example 0",
        "int",
    ),
    "train and test of other classes": (
        live(((X, Y), (X, Y + 1))),
        BadData,
        "train",
        "3",
        "without gaps",
    ),
    "data that changed": (other_data, BadValue, "data", "", "the data that the plan was made with"),
    "per_class 2.5": (live(per_class=2.5), BadValue, "per_class", "2.5", "--per-class 10"),
    "per_class of a tensor of floats": (live(per_class=torch.tensor(2.5)), BadValue, "per_class", "2.5", "--per-class"),
    "per_class True": (live(per_class=True), BadValue, "per_class", "True", "--per-class 10"),
    "sparse data": (live((torch.as_tensor(X).float().to_sparse(), Y)), BadData, "data images", "sparse", "to_dense"),
    "data without values": (
        live((torch.empty(18, 1, 8, 8, device="meta"), Y)),
        BadData,
        "data images",
        "meta",
        "dense",
    ),
    "one label for all in Python": (live((X, np.array(3))), BadData, "data labels", "3", "one label for each"),
    "device that is none": (live(device=[]), BadValue, "device", "[]", "cpu"),
    "options of another method": (live(options={"iteration": 3}), BadValue, "options", "iteration", "iterations"),
    "settings in pairs": (live(pairs=[("outer.steps", 1)]), BadValue, "settings", "outer.steps", "value"),
    "options in a list": (live(options=["iterations"]), BadValue, "options", "iterations", "value"),
    "no module": (live(net=no_module), BadValue, "net.path", "no_module", "torch.nn.Module"),
    "network of a wrong width": (live(net=network(width=5)), BadValue, "net.path", "network", "task.outputs"),
    "network for other images": (live(net=network(of=9)), BadValue, "net.path", "network", "task.shape"),
    "network that fails": (live(net=network(fails=True)), BadValue, "net.path", "network", "(1, 8, 8)"),
    "network made once": (live(net=once), BadValue, "net.path", "once", "inside the function"),
    "network that is made already": (live(net=nn.Linear(64, 3)), BadValue, "net", "Linear", "function"),
    "network of two arguments": (live(net=two_arguments), BadValue, "net.path", "two_arguments", "one argument"),
    "features of half the batch": (live(net=Halves), BadValue, "net.path", "Halves", "Flatten"),
    "no method": (lambda: condense.run(7, data=(X, Y), out="out"), BadValue, "method", "7", "condense list"),
    "settings of another kind": (live(settings={"outer.steps": math.nan}), BadValue, "outer.steps", "nan", ""),
    "minutes of text": (live(minutes="soon"), BadValue, "minutes", "soon", "minutes"),
}


# -- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two folders that cases begin from: in one `out` is finished, in the other it is paused."""
    folder = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONDENSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        plan("dm").data.open()  # what is slow the first time is no case's own work
        for name, more in (("held", ()), ("begun", ("--steps", "50", "--minutes", "0.00001"))):
            (folder / name).mkdir()
            patch.chdir(folder / name)
            code, said = told(*run(*more, data=write_npz("own.npz", x=X, y=Y)))
            assert code == (0 if name == "held" else 75), said
        yield folder


@pytest.fixture
def place(tmp_path, monkeypatch, places):
    """A folder to stand in."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def tally():
    """Cause -> seconds of its own work once it is refused as it should be, else None; counted at the end."""
    tried = {}
    yield tried
    refused = [seconds for seconds in tried.values() if seconds is not None]
    print(f"bad input: {len(refused)} of {len(tried)} refused; slowest {max(refused, default=0):.2f} s")


def refused(arguments, case, tally, cause):
    """The command is refused as the case says, in less than a second of its own, and nothing is written."""
    tally[cause] = None
    before, began = snapshot("."), time.process_time()
    code, said = told(*arguments)
    seconds = time.process_time() - began
    check(said["error"], case)
    assert code == case[0].exit_code
    assert snapshot(".") == before
    assert seconds < 1
    tally[cause] = seconds


def check(error, case):
    kind, field, value, remedy = case
    assert error["type"] == kind.__name__, error
    assert error["exit_code"] == kind.exit_code != 0
    assert field in error["field"], error
    assert value in error["value"], error
    assert remedy in error["message"], error
    assert error["remedy"], error
    assert all(error[part] in error["message"] for part in ("field", "problem", "remedy")), error


def all_cases():
    for table in (SETTINGS, DATA, FOLDERS, HELD, BEGUN):
        yield from (
            (cause, case, {id(HELD): "held", id(BEGUN): "begun"}.get(id(table))) for cause, case in table.items()
        )


@pytest.mark.filterwarnings("default:This checkpoint is passed over")
@pytest.mark.parametrize(
    ("cause", "case", "start"), list(all_cases()), ids=lambda value: value if type(value) is str else ""
)
def test_refused_by_the_command_line(cause, case, start, place, places, tally):
    if start:
        shutil.copytree(places / start, place, dirs_exist_ok=True)
    arguments = case[0]() if callable(case[0]) else case[0]
    refused(arguments, case[1:], tally, cause)


@pytest.mark.parametrize("cause", PYTHON)
def test_refused_by_python(cause, place, tally):
    act, kind, *_ = PYTHON[cause]
    tally[cause] = None
    before, began = snapshot(place), time.process_time()
    with pytest.raises(kind) as caught:
        act()
    seconds = time.process_time() - began
    error = caught.value
    assert str(error) == str(CondenseError(error.field, error.value, error.problem, error.remedy))
    check(error_object(error)["error"], PYTHON[cause][1:])
    assert snapshot(place) == before
    assert seconds < 1
    tally[cause] = seconds


# -- what needs a machine in some state -------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("spelling", [("--device", "cuda"), ("--set", "execution.device=cuda:1")])
def test_a_device_that_is_not_there(spelling, place, tally):
    refused(run(*spelling), (BadValue, "device", "cuda", "--device cpu"), tally, str(spelling))


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="no /sys, in which nobody may make a folder")
@pytest.mark.parametrize("arguments", [run("--out", "/sys/out"), ("export", "out", "--to", "/sys/new")])
def test_a_folder_that_is_not_writable(arguments, place, places, tally):
    shutil.copytree(places / "held", place, dirs_exist_ok=True)
    refused(arguments, (BadValue, "/sys", "ermi", "that you may write"), tally, f"not writable: {arguments[0]}")


def test_a_folder_that_another_process_writes(place, places, tally):
    shutil.copytree(places / "begun", place, dirs_exist_ok=True)
    hold = "import fcntl, sys; f = open('out/.run/lock', 'r+'); fcntl.flock(f, 2); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-S", "-c", hold], stdin=-1, stdout=-1) as other:
        assert other.stdout.readline() == b"held\n"
        refused(("resume", "out"), (InUse, "out/.run", "process", "Wait for it"), tally, "in use")
        other.communicate(b"\n")


def test_tensorboard_that_is_not_installed(place, monkeypatch, tally):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    case = (BadValue, "observer", "tensorboard", "pip install 'condense-kit[tensorboard]'")
    refused(run("--tensorboard"), case, tally, "tensorboard")


def test_there_are_as_many_causes_as_was_promised():
    assert len(list(all_cases())) + len(PYTHON) >= 40


def test_bad_input_from_a_shell(place, tally):
    """The exit code, one line on stderr, nothing on stdout: in a process of its own."""
    write_npz("own.npz", x=bad_pixel(np.nan), y=Y)
    before = snapshot(place)
    arguments = [str(a) for a in run(data="npz:own.npz")]
    done = subprocess.run(
        [sys.executable, "-m", "condense.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (BadData.exit_code, "", 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert "example 7" in done.stderr
    assert snapshot(place) == before
    tally["from a shell"] = 0.0


# -- what fails while it runs: the last checkpoint survives, and the run goes on from it -------------------------------


def tensors(folder):
    return load(folder).sampler().x


def small_run(out, **more):
    return condense.run(
        "dm",
        data=(X, Y),
        per_class=2,
        steps=8,
        device="cpu",
        out=out,
        settings=SMALL,
        protocol="vico",
        checkpoint_every=2,
        **more,
    )


SMALL = {
    "pool.net.width": 4,
    "pool.net.depth": 1,
    "objective.pairing.n": 4,
    "protocol.nets.0.depth": 1,
}


@contextmanager
def disk_of(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Fills:
    """An observer that fills the disk before the checkpoint after step 5 is written."""

    def __init__(self):
        self.full = ExitStack()

    @hookimpl
    def condense_stepped(self, run, index, losses):
        if index == 5:
            self.full.enter_context(disk_of(1024))


def test_a_disk_that_is_full_when_a_checkpoint_is_written(place):
    fills = Fills()
    with fills.full, pytest.raises(NoRoom, match="checkpoint-000006") as caught:
        small_run("out", observers=[fills])
    assert caught.value.exit_code == 6
    assert "Free space" in str(caught.value)
    assert partial("out") == []
    assert Checkpoints(Path("out/.run")).latest()[0] == 4
    assert torch.equal(tensors(condense.resume("out", data=(X, Y)).path), tensors(small_run("whole").path))


def test_a_disk_that_is_full_when_the_artifact_is_written(place, monkeypatch):
    def full(*arguments):
        with disk_of(1024):
            return write_artifact(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(api, "write_artifact", full)
        with pytest.raises(NoRoom, match=r"tensors\.safetensors"):
            small_run("out")
    assert partial("out") == []
    assert not Path("out/manifest.json").exists()
    with pytest.raises(BadValue, match="condense resume out"):
        load("out")
    assert torch.equal(tensors(condense.resume("out", data=(X, Y)).path), tensors(small_run("whole").path))


def test_a_full_disk_from_a_shell(place):
    """ulimit counts in KiB: the plan fits, the first checkpoint does not."""
    line = shlex.join([sys.executable, "-m", "condense.cli", *map(str, run("--set", "pool.net.width=64"))])
    done = subprocess.run(["bash", "-c", f"ulimit -f 4; {line}"], capture_output=True, text=True, check=False)
    assert done.returncode == NoRoom.exit_code, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: out/.run/checkpoint-")
    assert partial("out") == []
    assert told(*run("--set", "pool.net.width=64"))[0] == 0


def test_a_loss_that_is_not_finite(place):
    code, said = told(*run("--steps", "20", "--checkpoint-every", "1", "--set", "outer.groups.0.lr=1e25"))
    error = said["error"]
    assert (code, error["type"], error["field"]) == (5, "Diverged", "loss")
    assert "outer.groups.0.lr" in error["remedy"]
    step = int(error["problem"].split()[-1])
    assert 0 < step < 20
    index, tree = Checkpoints(Path("out/.run")).latest()
    assert index == step, "the checkpoint before the bad step"
    assert all(bool(torch.isfinite(value).all()) for value in tree["set"].values() if value.is_floating_point())
    assert told("eval", "out")[0] == BadValue.exit_code, "no artifact was made of it"


# -- what looks odd, and is right ------------------------------------------------------------------------------------


def test_a_finished_run_is_opened_and_nothing_is_made_again(place, places):
    shutil.copytree(places / "held", place, dirs_exist_ok=True)
    before = snapshot(place)
    done = call("resume", "out", "--no-eval")
    assert done.exit_code == 0
    assert "out holds this run, finished" in done.stdout
    assert snapshot(place) == before


def test_one_image_of_a_class_is_enough_for_one_per_class(place):
    for method in ("dm", "dsa"):
        code, said = told(*of(method, n=1, more=("--out", method), **unequal((6, 1, 6)))())
        assert (code, said.get("images")) == (0, 3), said


def test_batch_norm_with_one_image_of_each_class_has_its_statistics_from_real_images(place):
    for method in ("dm", "dsa"):
        code, said = told(*of(method, n=1, more=("--out", method, "--set", "pool.net.norm=batch"), x=X, y=Y)())
        assert code == 0, said
        assert bool(torch.isfinite(tensors(method)).all())


@pytest.mark.parametrize(
    "same",
    [FLOATS, X.transpose(0, 2, 3, 1), X[:, 0], X / 1.0, X.astype(">u2")],
    ids=lambda x: f"{x.dtype}{x.shape[1:]}",
)
def test_other_scales_and_layouts_of_the_same_images_give_the_same_set(same, place):
    """uint8 and floats in [0, 1], channels first and last: recognised, not guessed."""
    for name, x in (("first", X), ("second", same)):
        assert told(*of(more=("--out", name), x=x, y=Y)())[0] == 0
    assert torch.allclose(tensors("first"), tensors("second"), atol=1e-5)
