"""Compiled passes give what eager ones give; what cannot be compiled goes the eager way, and says so once."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from condense import execution
from condense.axes import Net, TaskLoss
from condense.component import named
from condense.engine import condense
from condense.errors import BadValue
from condense.execution import Compiled, Passes, piece
from condense.recipe import Execution
from condense.rng import Rng
from condense.task import Batch, Task
from condense.testing import ToyNet, toy_run
from tests.core.test_engine import gradient_recipe, images, recipe

TASK = Task(classes=("a", "b", "c"), shape=(1, 8, 8))


def batch(n: int, task: Task = TASK) -> Batch:
    g = torch.Generator().manual_seed(3)
    return Batch(torch.randn(n, *task.shape, generator=g), torch.randint(0, len(task.classes), (n,), generator=g))


@pytest.fixture
def traced(monkeypatch):
    """torch.compile that traces but generates no code: quick, and still refuses what cannot be traced."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("n", [1, 7, 20, 45, 64, 97])
def test_gradients_in_pieces_equal_eager_ones(traced, n):
    module, some = ToyNet().make(TASK, Rng(0)), batch(n)
    value, grads = Compiled(half=False).gradients(module, TaskLoss(), some, TASK, Rng(0))
    expected_value, expected = Passes().gradients(module, TaskLoss(), some, TASK, Rng(0))
    torch.testing.assert_close(value, expected_value)
    for name in expected:
        torch.testing.assert_close(grads[name], expected[name], rtol=1e-4, atol=1e-6)


def test_features_and_logits_in_pieces_equal_eager_ones(traced):
    module, some = ToyNet().make(TASK, Rng(0)), batch(75)
    fast = Compiled(half=False)
    torch.testing.assert_close(fast.features(module, some.x, TASK.form), module.features(some.x).detach())
    torch.testing.assert_close(fast.logits(module, some.x, TASK.form), module(some.x).detach())


@pytest.mark.parametrize("make", [recipe, gradient_recipe])
def test_a_compiled_run_gives_the_eager_runs_images(traced, make):
    eager = images(condense(toy_run(make())))
    with execution.using(Compiled(half=False)):
        torch.testing.assert_close(images(condense(toy_run(make()))), eager, rtol=1e-3, atol=1e-4)


def test_networks_of_one_architecture_share_their_graphs(traced):
    fast = Compiled(half=False)
    for seed in range(3):
        module = ToyNet().make(TASK, Rng(seed))
        found = fast.features(module, batch(8).x, TASK.form)
        mine = module.features(batch(8).x).detach()
        torch.testing.assert_close(found, mine, msg="another network's weights answered")
    assert len(fast.functions) == 1
    fast.features(ToyNet(width=5).make(TASK, Rng(0)), batch(8).x, TASK.form)
    assert len(fast.functions) == 2


class _Norm(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(64, 3)

    def features(self, x):
        return self.layer(x).flatten(1)

    def forward(self, x):
        return self.head(self.features(x))


class Neighbours(nn.Module):
    """Looks from one example at the others."""

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(1), nn.Dropout(0.5), Neighbours()])
def test_networks_that_keep_state_or_look_at_neighbours_go_the_eager_way(traced, layer):
    fast = Compiled(half=False)
    fast.gradients(_Norm(layer), TaskLoss(), batch(40), TASK, Rng(0))
    assert not fast.functions


def test_a_loss_that_draws_goes_the_eager_way(traced):
    class Draws(TaskLoss):
        """Says that it draws."""

        deterministic = False

    fast = Compiled(half=False)
    fast.gradients(ToyNet().make(TASK, Rng(0)), Draws(), batch(8), TASK, Rng(0))
    assert not fast.functions


def test_where_nothing_compiles_it_is_said_once_and_results_are_the_same(monkeypatch):
    def broken(function, **options):
        def call(*args):
            raise RuntimeError("no C++ compiler found")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    execution._said().clear()
    module, some, fast = ToyNet().make(TASK, Rng(0)), batch(10), Compiled(half=False)
    with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler found") as said:
        _, grads = fast.gradients(module, TaskLoss(), some, TASK, Rng(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast.features(module, some.x, TASK.form)
        fast.gradients(module, TaskLoss(), some, TASK, Rng(0))
    assert len([w for w in said if "not compiled" in str(w.message)]) == 1
    execution._said().clear()
    for name, grad in Passes().gradients(module, TaskLoss(), some, TASK, Rng(0))[1].items():
        torch.testing.assert_close(grads[name], grad)


def test_a_mistake_in_a_function_raises_as_itself(traced):
    def wrong(x):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        execution.compiled(wrong, "condense_wrong")(torch.zeros(1))
    execution._said().clear()


@pytest.mark.parametrize(
    ("n", "limit", "rows"), [(256, 32, 32), (256, 20, 16), (100, 20, 20), (10, 20, 10), (97, 20, 20), (1, 20, 1)]
)
def test_pieces_divide_where_they_can(n, limit, rows):
    assert piece(n, limit) == rows


def test_what_is_left_open_is_settled_by_the_cost():
    assert execution.settled(Execution(), seconds=1.0) == Execution(compile=False, precision="float32")
    long = execution.settled(Execution(), seconds=1e5)
    assert long.compile
    assert long.precision in ("float32", "bfloat16")
    assert execution.settled(Execution(compile=False), seconds=1e5) == Execution(compile=False, precision="float32")
    with pytest.raises(BadValue, match="needs compiled passes"):
        execution.settled(Execution(compile=False, precision="bfloat16"), seconds=1.0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_generated_code_in_bfloat16_is_close_to_float32(shape):
    """Real gradients have a cosine above 0.999 to the exact ones, image gradients (kept in float32) above 0.9999."""
    task = Task(classes=tuple("abcdefghij"), shape=shape)
    module, some, fast = named(Net, "conv-net", width=32).make(task, Rng(0)), batch(64, task), Compiled(half=True)
    _, grads = fast.gradients(module, TaskLoss(), some, task, Rng(0))
    _, exact = Passes().gradients(module, TaskLoss(), some, task, Rng(0))
    flat = [torch.cat([g[name].flatten() for name in exact if exact[name].dim() > 1]) for g in (grads, exact)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.999
    leaf = some.x.clone().requires_grad_()

    def gap(model, leaves, constants):
        return model.features(leaves["x"]).mean(0).square().sum()

    _, [(_, found)] = fast.gap("test", gap, module, {"x": leaf}, {})
    (expected,) = torch.autograd.grad(gap(module, {"x": leaf}, {}), leaf)
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.9999


SCRIPT = """
import sys, torch, condense
from condense.running import Paused
torch.set_num_threads(1)
class Stop:
    @condense.hookimpl
    def condense_stepped(self, run, index, losses):
        if index == 1 and sys.argv[2] == "pause":
            run.interrupted.set()
settings = {"execution.compile": True, "pool.net.width": 8, "objective.pairing.n": 40}
try:
    condense.run("dsa", per_class=2, steps=4, settings=settings, out=sys.argv[1], observers=[Stop()])
except Paused:
    print("paused")
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")
def test_a_compiled_run_that_another_process_resumes_gives_the_same_bits(tmp_path):
    def call(folder, how):
        arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / folder), how]
        return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout

    call("whole", "go")
    assert "paused" in call("halves", "pause")
    call("halves", "go")
    whole, halves = ((tmp_path / name / "tensors.safetensors").read_bytes() for name in ("whole", "halves"))
    assert whole == halves
