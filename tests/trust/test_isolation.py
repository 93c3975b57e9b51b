"""Twelve ways in which a plugin goes wrong: it is named, the others work, and what is done is kept.

Each plugin is a module of its own with a method `evil`: distribution matching, but for its misdeed. It does not
misbehave once it is repaired; then the broken run goes on, and ends with the bits of one that was never broken.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import signal
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import condense
from condense.artifact import load
from condense.checkpoint import Checkpoints
from condense.errors import BrokenPlugin, Damaged, Diverged
from condense.hookspecs import hookimpl
from condense.plugins import GROUP, using
from condense.plugins import load as load_plugins

from .places import call, partial, pictures, snapshot, told, write_npz

TINY = ("--set", "pool.net.width=4", "--set", "pool.net.depth=1", "--set", "protocol.nets.0.depth=1")
RUN = ("--per-class", "2", "--steps", "6", "--checkpoint-every", "2", "--device", "cpu", "--no-eval", *TINY)
GOOD = """
    import os, random, sys, time
    import numpy, torch
    from condense.axes import Init, Objective, Term
    from condense.hookspecs import hookimpl
    from condense.parts.distances import SquaredError
    from condense.parts.inits import Real
    from condense.parts.matching import ClassWise, Matching, MeanFeature
    from condense.task import Batch
    from condense_image.dm import dm

    class Evil(Objective):
        "Distribution matching, and worse."

        def __call__(self, step):
            step.worse = step.index == 3
            before(step)
            for term in Matching(statistic=MeanFeature(), distance=SquaredError(), pairing=ClassWise(n=4))(step):
                yield changed(term, step)

    class Start(Init):
        "Real images, or worse."

        def __call__(self, run, groups):
            return started(Real()(run, groups))

    def before(step): ...
    def changed(term, step): return term
    def started(batch): return batch
    def components(): return [Evil, Start]
    def recipes(): return {"evil": evil}

    def evil(*, per_class=1):
        return dm.make(per_class=per_class).with_(objective=Evil(), init=Start())

    @hookimpl
    def condense_components(): return components()

    @hookimpl
    def condense_recipes(): return recipes()
"""


@dataclass(frozen=True)
class Dist:
    name: str
    version: str = "6.6.6"


@dataclass(frozen=True)
class Entry:
    """An entry point of a stranger's distribution."""

    value: str
    name: str = "evil"
    dist: Dist = Dist("evil-dist")

    def load(self):
        return importlib.import_module(self.value)


class House:
    """A folder to run in, a finished run in it, and a plugin that can be replaced."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0
        self.data = write_npz(folder / "own.npz", **dict(zip("xy", pictures(), strict=True)))

    @contextmanager
    def plugin(self, source=""):
        """The registry with a plugin whose module is GOOD, with `source` put behind it."""
        self.count += 1
        name = f"evil_{os.getpid()}_{id(self)}_{self.count}"
        (self.folder / f"{name}.py").write_text(textwrap.dedent(GOOD) + textwrap.dedent(source))
        installed = [e for e in importlib.metadata.entry_points(group=GROUP) if e.dist.name == "condense-kit"]
        sys.path.insert(0, str(self.folder))
        try:
            with using(load_plugins([*installed, Entry(name)])) as registry:
                yield registry
        finally:
            sys.path.remove(str(self.folder))
            sys.modules.pop(name, None)

    def run(self, method="evil", out="out", *more):
        return told("run", method, "--data", self.data, *RUN, *more, "--out", out)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What the runs of a plugin that does nothing wrong give: `evil`, and `done`, a run of ours."""
    house = House(tmp_path_factory.mktemp("house"))
    with pytest.MonkeyPatch.context() as patch, house.plugin():
        patch.chdir(house.folder)
        code, said = house.run()
        assert code == 0, said
        house.good = tensors("out")
        assert house.run("dm", "done", "--set", "objective.pairing.n=4")[0] == 0
    return house


@pytest.fixture
def house(home, tmp_path, monkeypatch):
    """The same data, in a folder of its own."""
    made = House(tmp_path)
    made.data = home.data
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture(scope="module")
def tally():
    survived = []
    yield survived
    print(f"plugin isolation: {len(set(survived))} of {len(KINDS)} kinds survived, in {len(survived)} cases")


KINDS = {
    "import", "registration", "exception", "NaN", "shape", "dtype", "exit", "random generators", "default dtype",
    "hooks on the network", "writes elsewhere", "hangs",
}  # fmt: skip


def tensors(folder):
    return load(folder).synthetic.state_dict()


def same_bits(folder, home):
    """Does the run of `evil` end as it does where nothing goes wrong?"""
    return alike(tensors(folder), home.good)


def alike(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def others_work(house, home):
    """Whatever the plugin in force does: ours are listed, run to the same bits, and finished results are there."""
    before = snapshot(home.folder / "done")
    code, said = told("list")
    assert code == 0
    assert {"dm", "dc", "dsa", "random"} <= {row["name"] for row in said["methods"]}
    assert house.run("dm", "other", "--set", "objective.pairing.n=4")[0] == 0
    assert alike(tensors("other"), tensors(home.folder / "done"))
    assert snapshot(home.folder / "done") == before
    assert torch.get_default_dtype() is torch.float32


def goes_on_once_repaired(house, home, at=2):
    """The last good checkpoint is kept; with a plugin that does what it should, the run ends as if nothing had been."""
    assert Checkpoints(Path("out/.run")).latest()[0] == at
    assert not Path("out/manifest.json").exists()
    with house.plugin():
        assert told("resume", "out", "--no-eval")[0] == 0
        assert same_bits("out", home)
    assert partial("out") == []


# -- while it is loaded -----------------------------------------------------------------------------------------------

LOADED = {
    "a missing import": ("import", "import nowhere_at_all", "No module named 'nowhere_at_all'"),
    "a mistake in the module": ("import", "1 / 0", "ZeroDivisionError"),
    "exit while it is imported": ("exit", "sys.exit(0)", "SystemExit"),
    "a hook of another signature": (
        "registration", "@hookimpl\ndef condense_stepped(run, index, loss): ...", "loss",
    ),
    "a misspelt hook": ("registration", "@hookimpl\ndef condense_steped(run): ...", "condense_stepped"),
    "a name that is taken": ("registration", "def recipes(): return {'dm': evil}", "condense-kit"),
    "a part under a name that is taken": (
        "registration",
        "class Real(Init):\n  __call__ = Start.__call__\ndef components(): return [Real]",
        "condense-kit",
    ),
    "a method that is not asked for a size": ("registration", "def evil(): ...", "per_class"),
    "another default dtype at import": ("default dtype", "torch.set_default_dtype(torch.float64)", "default dtype"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOADED)
def test_a_plugin_that_goes_wrong_while_it_is_loaded(case, house, home, tally):
    kind, source, reason = LOADED[case]
    with house.plugin(source):
        found = [row for row in told("plugins")[1]["plugins"] if row["error"]]
        assert [row["distribution"] for row in found] == ["evil-dist"]
        assert reason in found[0]["error"]
        code, said = house.run()
        assert code != 0
        assert "evil-dist" in said["error"]["message"], "an unknown name says which plugin might have brought it"
        assert not Path("out").exists()
        others_work(house, home)
    tally.append(kind)


# -- while it runs: refused, and named --------------------------------------------------------------------------------

AT_3 = "def before(step):\n  if step.worse: "
RUNNING = {
    "an exception in the loop": ("exception", AT_3 + "raise KeyError('no such thing')", BrokenPlugin, "KeyError"),
    "an exception of torch": ("exception", AT_3 + "torch.zeros(2) @ torch.zeros(3)", BrokenPlugin, "RuntimeError"),
    "exit in the loop": ("exit", AT_3 + "sys.exit(0)", BrokenPlugin, "SystemExit"),
    "a loss that is NaN": (
        "NaN",
        "def changed(term, step):\n  bad = {key: value / 0 * 0 for key, value in term.losses.items()}\n"
        "  return Term(bad) if step.worse else term",
        Diverged, "outer step 3",
    ),
    "a gradient that is NaN": (
        "NaN",
        "def changed(term, step):\n  x = step.syn.x\n  bad = torch.full_like(x, float('nan'))\n"
        "  return Term(term.losses, cotangents=[(x, bad)]) if step.worse else term",
        Diverged, "is not finite",
    ),
    "a gradient of another shape": (
        "shape",
        "def changed(term, step):\n  x = step.syn.x\n"
        "  return Term(term.losses, cotangents=[(x, x.detach()[:1])]) if step.worse else term",
        BrokenPlugin, "cotangent",
    ),
    "a loss for each example": (
        "shape", "def changed(term, step): return Term({'each': step.syn.x.mean(1)}) if step.worse else term",
        BrokenPlugin, "0-d",
    ),
    "a loss of whole numbers": (
        "dtype", "def changed(term, step): return Term({'count': torch.tensor(3)}) if step.worse else term",
        BrokenPlugin, "int64",
    ),
    "a gradient of another dtype": (
        "dtype",
        "def changed(term, step):\n  x = step.syn.x\n"
        "  return Term(term.losses, cotangents=[(x, x.detach().double())]) if step.worse else term",
        BrokenPlugin, "float64",
    ),
    "no term at all": ("dtype", "def changed(term, step): return 3.0 if step.worse else term", BrokenPlugin, "no Term"),
    "another default dtype in the loop": (
        "default dtype", AT_3 + "torch.set_default_dtype(torch.float64)", BrokenPlugin, "float64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RUNNING)
def test_a_plugin_that_goes_wrong_in_the_loop(case, house, home, tally):
    kind, source, error, reason = RUNNING[case]
    with house.plugin(source):
        code, said = house.run()
        assert (code, said["error"]["type"]) == (error.exit_code, error.__name__), said
        assert reason in said["error"]["message"]
        if error is BrokenPlugin:
            assert "evil-dist 6.6.6" in said["error"]["message"]
        assert "Traceback" not in call("resume", "out").output
        others_work(house, home)
    goes_on_once_repaired(house, home)
    tally.append(kind)


def test_a_method_that_cannot_be_made(house, home, tally):
    with house.plugin("def evil(*, per_class): raise KeyError('published')"):
        code, said = house.run()
        assert (code, said["error"]["type"]) == (BrokenPlugin.exit_code, "BrokenPlugin")
        assert "evil-dist 6.6.6" in said["error"]["message"]
        assert not Path("out").exists()
        others_work(house, home)
    tally.append("exception")


@pytest.mark.parametrize(("outputs", "features"), [(7, "x.flatten(1)"), (3, "x"), (3, None)])
def test_a_network_of_another_shape(outputs, features, house, home, tally):
    method = f"def features(self, x): return {features}" if features else ""
    source = f"""
        from condense.axes import Net

        class Wide(Net):
            "Has more outputs than there are classes."

            def build(self, task):
                return Module()

        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.head = torch.nn.Linear(64, {outputs})
            def forward(self, x): return self.head(x.flatten(1))
            {method}

        def components(): return [Evil, Start, Wide]
    """
    with house.plugin(source):
        before = snapshot(".")
        code, said = told("run", "evil", "--data", house.data, "--net", "wide", "--device", "cpu", "--out", "out")
        assert (code, said["error"]["field"]) == (BrokenPlugin.exit_code, "net wide"), said
        assert "evil-dist 6.6.6" in said["error"]["remedy"]
        assert snapshot(".") == before
        others_work(house, home)
    tally.append("shape")


def test_a_network_that_fails_while_it_judges_leaves_the_artifact(house, home, tally):
    source = """
        from condense.axes import Net

        class Weak(Net):
            "Fails in training."

            def build(self, task):
                return Failing(task.outputs)

        class Failing(torch.nn.Linear):
            def __init__(self, outputs): super().__init__(64, outputs)
            def features(self, x): return x.flatten(1)
            def forward(self, x): raise TypeError("no strength left")

        def components(): return [Evil, Start, Weak]
    """
    with house.plugin(source):
        assert house.run()[0] == 0
        before = snapshot("out")
        code, said = told("eval", "out", "--nets", "weak", "--repeats", "1")
        assert (code, said["error"]["type"]) == (BrokenPlugin.exit_code, "BrokenPlugin")
        assert "evil-dist 6.6.6" in said["error"]["message"]
        assert "no strength left" in said["error"]["message"]
        assert {key: value for key, value in snapshot("out").items() if ".run" not in key} == {
            key: value for key, value in before.items() if ".run" not in key
        }
        assert same_bits("out", home)
        write_npz("set.npz", x=torch.zeros(10, 1, 8, 8, dtype=torch.uint8).numpy(), y=torch.arange(10).numpy())
        code, said = told("eval", "set.npz", "--data", "digits", "--nets", "weak", "--repeats", "1")
        assert (code, said["error"]["type"]) == (BrokenPlugin.exit_code, "BrokenPlugin")
        assert "evil-dist 6.6.6" in said["error"]["message"]
    tally.append("exception")


@pytest.mark.parametrize(
    "source",
    [
        "def started(batch): return Batch(batch.x[..., :4], batch.y, batch.index)",
        "def started(batch): return Batch(batch.x[:1], batch.y[:1])",
        "def started(batch): return Batch(batch.x, batch.y[:1])",
    ],
)
def test_a_start_of_another_shape(source, house, home, tally):
    with house.plugin(source):
        code, said = house.run()
        assert (code, said["error"]["field"]) == (BrokenPlugin.exit_code, "init start")
        assert "evil-dist" in said["error"]["remedy"]
        others_work(house, home)
    with house.plugin():
        assert told("resume", "out", "--no-eval")[0] == 0
        assert same_bits("out", home)
    tally.append("shape")


HOOKS = {
    "at the start": ("exception", "@hookimpl\ndef condense_started(run): raise OSError('no tea')", "OSError: no tea"),
    "after a step": (
        "exception",
        "@hookimpl\ndef condense_stepped(run, index, losses):\n  if index == 3: raise OSError('no tea')",
        "OSError: no tea",
    ),
    "where it may stop the run": (
        "exception",
        "@hookimpl\ndef condense_stop(run, index): return 1 / 0",
        "ZeroDivision",
    ),
    "exit": ("exit", "@hookimpl\ndef condense_stepped(run, index, losses): sys.exit(3)", "SystemExit: 3"),
    "when all is done": ("exception", "@hookimpl\ndef condense_finished(run, artifact): raise OSError", "OSError"),
    "a default dtype": (
        "default dtype",
        "@hookimpl\ndef condense_stepped(run, index, losses): torch.set_default_dtype(torch.float16)",
        "float16",
    ),
}


@pytest.mark.filterwarnings("default:.*is set aside:RuntimeWarning")
@pytest.mark.parametrize("case", HOOKS)
def test_a_hook_that_fails_is_set_aside_and_every_run_goes_on(case, house, home, tally):
    kind, source, reason = HOOKS[case]
    with house.plugin(source):
        done = call("run", "evil", "--data", house.data, *RUN, "--out", "out")
        assert done.exit_code == 0, done.output
        assert done.stderr.count("plugin evil-dist 6.6.6") == 1, "it is named once"
        assert reason in done.stderr
        assert "Traceback" not in done.output
        assert same_bits("out", home)
        others_work(house, home)
    tally.append(kind)


def test_an_observer_that_fails_is_set_aside_too(house):
    class Nosy:
        seen = 0

        @hookimpl
        def condense_stepped(self, run, index, losses):
            self.seen += 1
            if index == 3:
                raise ValueError("seen enough")

    x, y = pictures()
    settings = {"pool.net.width": 4, "pool.net.depth": 1, "protocol.nets.0.depth": 1}
    nosy, plain = Nosy(), {"data": (x, y), "per_class": 2, "steps": 6, "device": "cpu", "settings": settings}
    with pytest.warns(RuntimeWarning, match=r"observer .*Nosy is set aside .* ValueError: seen enough"):
        made = condense.run("dm", out="seen", observers=[nosy], **plain)
    assert nosy.seen == 4
    assert alike(tensors(made.path), tensors(condense.run("dm", out="unseen", **plain).path))


# -- while it runs: made harmless -------------------------------------------------------------------------------------

HARMLESS = {
    "reseeds everything": (
        "random generators",
        "def before(step): torch.manual_seed(0); random.seed(0); numpy.random.seed(0)",
    ),
    "draws from the global generators": (
        "random generators", "def before(step): torch.rand(7); random.random(); numpy.random.random()",
    ),
    "leaves a hook on the network": (
        "hooks on the network",
        "seen = []\ndef changed(term, step):\n"
        "  for m in step.model.modules(): m.register_forward_hook(lambda *_: seen.append(1))\n  return term\n"
        "def before(step):\n  del seen[:]; step.model.features(step.syn.x)\n"
        "  assert not seen, f'{len(seen)} hooks of an earlier step'",
    ),
    "gives float64 images": ("dtype", "def started(batch): return Batch(batch.x.double(), batch.y, batch.index)"),
}  # fmt: skip


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_made_harmless(case, house, home, tally):
    kind, source = HARMLESS[case]
    with house.plugin(source):
        code, said = house.run()
        assert code == 0, said
        assert same_bits("out", home)
        others_work(house, home)
    tally.append(kind)


# -- what cannot be prevented -----------------------------------------------------------------------------------------


def test_what_it_writes_into_a_finished_artifact_is_found_or_never_read(house, home, tally):
    """A plugin is code: nothing stops it from writing anywhere. But no artifact opens that is not as it was written."""
    with house.plugin("def before(step): numpy.save('out/stray.npy', numpy.ones(3))"):
        assert house.run()[0] == 0
        assert same_bits("out", home)
        assert "stray" not in Path("out/manifest.json").read_text()
    with house.plugin(AT_3 + "numpy.memmap('out/tensors.safetensors', mode='r+')[-1] ^= 1"):
        assert house.run("evil", "second")[0] == 0
        others_work(house, home)
        assert same_bits("second", home)
        with pytest.raises(Damaged, match=r"tensors\.safetensors"):
            load("out")
    tally.append("writes elsewhere")


# -- what never ends --------------------------------------------------------------------------------------------------


def test_a_plugin_that_hangs_is_ended_by_a_second_ctrl_c(house, home, tally):
    def interrupt():
        while not Path("hangs").exists():
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    with house.plugin(AT_3 + "open('hangs', 'w').close(); time.sleep(600)"):
        hands = threading.Thread(target=interrupt)
        hands.start()
        began = time.monotonic()
        code, said = house.run()
        hands.join()
        assert time.monotonic() - began < 60
        assert code == 130
        assert "what was saved is kept" in said["error"]["remedy"]
        others_work(house, home)
    goes_on_once_repaired(house, home)
    tally.append("hangs")


def test_a_plugin_that_is_slow_is_paused_by_the_minutes(house, home, tally):
    with house.plugin("def before(step): time.sleep(0.02)"):
        code, said = house.run("evil", "out", "--minutes", "0.001")
        assert code == 75
        assert "condense resume out" in said["error"]["remedy"]
    done = Checkpoints(Path("out/.run")).latest()[0]
    assert 0 < done < 6
    goes_on_once_repaired(house, home, at=done)
    tally.append("hangs")


def test_there_is_a_case_of_every_kind():
    tables = (LOADED, RUNNING, HOOKS, HARMLESS)
    found = {case[0] for table in tables for case in table.values()} | {"writes elsewhere", "hangs"}
    assert found == KINDS
    assert len(KINDS) == 12
