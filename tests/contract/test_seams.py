"""The seams that later packages live on, each by a private stand-in that would fail if the seam were closed.

Graphs: x is opaque. Robustness: a loss wraps a loss. Learned and soft labels. Memory of components, roles and terms.
(Privacy: `Sealed` in test_recipes.py.)
"""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from condense import artifact
from condense.axes import Labels, Loss, Net, Objective, OwnLoss, Parameterization, Preprocess, TaskLoss, Term, Transform
from condense.data import Data, Source, Splits, TensorSampler
from condense.engine import condense
from condense.fit import Crowd, Fit, loss_on
from condense.parts.distances import RowCosine, SquaredError
from condense.parts.inits import Noise, Real
from condense.parts.labels import Hard
from condense.parts.matching import ClassWise, Gradient, Matching, MeanFeature
from condense.parts.pools import Fresh
from condense.parts.rules import SGD
from condense.plugins import registry
from condense.recipe import Group, Outer, Reads, Recipe
from condense.rng import Rng
from condense.running import Limits, Paused
from condense.synthetic import Synthetic
from condense.task import Batch, Form, Task
from condense.testing import ToyNet, check_statistic, toy_recipe, toy_run, toy_splits, toys

GRADIENT = Matching(statistic=Gradient(), distance=RowCosine(), pairing=ClassWise(n=8))
FEATURE = Matching(statistic=MeanFeature(), distance=SquaredError(), pairing=ClassWise(n=8))
INNER = Fit(rule=SGD(), lr=0.05, epochs=1, batch=4)


def outer(*groups, steps=2, **more):
    return Outer(steps=steps, groups=groups or (Group(rule=SGD(momentum=0.5), lr=1.0),), **more)


# -- x is opaque: graphs --------------------------------------------------------------------------------------------


class Sides(Form):
    """x is a dict of two tensors, left (N, 3) and right (N, 2, 2): nothing but this class may know."""

    content: ClassVar[str] = "left"

    def pack(self, x):
        return {"left": x["left"], "right": x["right"]}

    def unpack(self, tensors):
        return {"left": tensors["left"], "right": tensors["right"]}

    def take(self, x, index):
        return {key: value[index] for key, value in x.items()}

    def join(self, xs):
        return {key: torch.cat([x[key] for x in xs]) for key in xs[0]}

    def blank(self, task, n):
        return {"left": torch.zeros(n, 3), "right": torch.zeros(n, 2, 2)}


class BothSides(Net):
    """Reads both tensors."""

    def build(self, task):
        return _BothSides(task)


class _BothSides(nn.Module):
    def __init__(self, task):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 5), nn.Linear(4, 5), nn.Linear(5, task.outputs)

    def features(self, x):
        return torch.tanh(self.left(x["left"]) + self.right(x["right"].flatten(1)))

    def forward(self, x):
        return self.head(self.features(x))


OPAQUE = Task(classes=("a", "b"), shape=(), form=Sides())


class SidedSource(Source):
    """Holds opaque examples."""

    def __init__(self, n):
        g = torch.Generator().manual_seed(1)
        self.task, self.y = OPAQUE, torch.arange(n) % 2
        self.x = {
            "left": torch.randn(n, 3, generator=g) + self.y[:, None],
            "right": torch.randn(n, 2, 2, generator=g) - self.y[:, None, None],
        }

    @property
    def groups(self):
        return self.y

    @property
    def device(self):
        return self.y.device

    def take(self, index):
        return Batch(self.task.form.take(self.x, index), self.y[index], index)

    def provenance(self):
        return {"counts": self.counts()}

    def encoded(self, transform):
        return self


class SidedData(Data):
    """Opens to opaque examples."""

    def open(self, device="cpu"):
        return Splits(SidedSource(24), SidedSource(8))


class Untouched(Preprocess):
    """Nothing is done to x."""

    def fit(self, train, facts):
        return _Untouched()

    def blank(self, task):
        return _Untouched()


class _Untouched(Transform):
    def encode(self, raw):
        return raw

    def decode(self, x):
        return x

    def describe(self):
        return {"name": "untouched"}


@pytest.fixture
def sides():
    with toys(Sides, BothSides, SidedData, Untouched):
        yield


def sided_recipe(objective, init):
    pool = Fresh(net=BothSides(), turns=2, inner=INNER)
    return toy_recipe(objective=objective, pool=pool, init=init, preprocess=Untouched(), outer=outer(steps=3))


@pytest.mark.parametrize("objective", [GRADIENT, FEATURE])
@pytest.mark.parametrize("init", [Noise(), Real()])
def test_an_opaque_x_goes_through_init_decoding_matching_training_and_the_engine(sides, objective, init):
    recipe = sided_recipe(objective, init)
    splits = SidedData().open()
    start = condense(toy_run(recipe.with_(outer=outer(steps=0)), splits)).freeze().x
    syn = condense(toy_run(recipe, splits)).freeze()
    assert syn.y.tolist() == [0, 0, 1, 1]
    for key, shape in (("left", (4, 3)), ("right", (4, 2, 2))):
        assert syn.x[key].shape == shape
        assert float((syn.x[key] - start[key]).abs().flatten(1).amax(1).min()) > 0, f"{key} did not move"


def test_an_opaque_x_resumes_with_the_same_bits(sides, tmp_path):
    (tmp_path / ".run").mkdir()
    recipe, splits = sided_recipe(GRADIENT, Noise()), SidedData().open()
    with pytest.raises(Paused):
        condense(toy_run(recipe, splits, folder=tmp_path, limits=Limits(minutes=0.0)))
    resumed, unbroken = condense(toy_run(recipe, splits, folder=tmp_path)), condense(toy_run(recipe, splits))
    assert all(torch.equal(resumed.freeze().x[key], unbroken.freeze().x[key]) for key in ("left", "right"))


def test_an_opaque_x_is_stored_in_the_artifact_and_comes_back(sides, tmp_path):
    recipe, splits = sided_recipe(GRADIENT, Noise()), SidedData().open()
    run = toy_run(recipe, splits)
    plan = run.plan.model_copy(update={"data": SidedData()})
    syn = condense(run)
    opened = artifact.write_artifact(tmp_path / "made", plan, syn, run.transform, run.task, {})
    again = artifact.load(opened.path)
    assert again.task == OPAQUE
    assert all(torch.equal(again.sampler().x[key], syn.freeze().x[key]) for key in ("left", "right"))
    image, label = again.dataset()[3]
    assert torch.equal(image, syn.freeze().x["left"][3])
    assert int(label) == 1
    assert again.stored["images"] == 4 * (3 + 4) * 4


@pytest.mark.parametrize("statistic", [Gradient(), MeanFeature()])
def test_statistics_of_an_opaque_x_are_means_of_rows(statistic):
    batch = SidedSource(5).draw(None, None, Rng(0))
    check_statistic(statistic, BothSides().make(OPAQUE, Rng(0)), batch, OPAQUE)


def test_networks_on_an_opaque_x_are_trained_together_as_one_by_one():
    data, rngs = SidedSource(24), [Rng(0).fold(i) for i in range(3)]
    alone = [BothSides().make(OPAQUE, rng) for rng in rngs]
    for module, rng in zip(alone, rngs, strict=True):
        INNER.begin(module, rng).advance(data, 6)
    together = [BothSides().make(OPAQUE, rng) for rng in rngs]
    assert Crowd.fits(INNER, together[0], data)
    Crowd(INNER, together, rngs).advance(data, 6)
    for one, other in zip(alone, together, strict=True):
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)


# -- a loss wraps a loss: robustness --------------------------------------------------------------------------------


class Times(Loss):
    """Another loss, times a number."""

    loss: Loss
    by: float = 3.0

    def __call__(self, model, batch, task, rng):
        return self.by * self.loss(model, batch, task, rng)


class Steep(Loss):
    """Another loss plus the squared length of its gradient in the input, by torch.func as the contract asks."""

    loss: Loss

    def __call__(self, model, batch, task, rng):
        def total(x):
            return self.loss(model, batch.with_x(x), task, rng).sum()

        return self.loss(model, batch, task, rng) + torch.func.grad(total)(batch.x).square().flatten(1).sum(1)


def a_batch(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return Batch(torch.randn(6, 1, 8, 8, generator=g).to(dtype), torch.tensor([0, 0, 1, 1, 2, 2]))


@pytest.mark.parametrize("live", [False, True])
def test_a_wrapped_loss_changes_the_gradient_that_is_matched(live):
    task = toy_splits().task
    net, batch = ToyNet().make(task, Rng(0)), a_batch()
    plain = Gradient().mean(net, batch, task, live=live)
    wrapped = Gradient(loss=Times(loss=TaskLoss())).mean(net, batch, task, live=live)
    for part, value in plain.items():
        torch.testing.assert_close(wrapped[part], 3 * value)


def test_a_loss_that_differentiates_in_the_input_works_on_both_sides_of_a_matching():
    task = toy_splits().task
    net, batch = ToyNet(dtype="float64").make(task, Rng(0)), a_batch(torch.float64)
    for live in (False, True):
        found = Gradient(loss=Steep(loss=TaskLoss())).mean(net, batch, task, live=live)
        x = batch.x.clone().requires_grad_()
        losses = F.cross_entropy(net(x), batch.y, reduction="none")
        inside = torch.autograd.grad(losses.sum(), x, create_graph=True)[0]
        slow = torch.autograd.grad((losses + inside.square().flatten(1).sum(1)).mean(), list(net.parameters()))
        for value, plain in zip(found.values(), slow, strict=True):
            torch.testing.assert_close(value.detach(), plain)


def test_the_outer_gradient_reaches_the_images_through_a_wrapped_loss():
    """Against central differences: a detach inside the loss would be found."""
    task = toy_splits().task
    net, batch = ToyNet(dtype="float64").make(task, Rng(0)), a_batch(torch.float64)
    statistic = Gradient(loss=Steep(loss=TaskLoss()))

    def value(x):
        return sum(part.square().sum() for part in statistic.mean(net, batch.with_x(x), task, live=True).values())

    x = batch.x.clone().requires_grad_()
    gradient = torch.autograd.grad(value(x), x)[0].flatten()
    for at in gradient.abs().argsort(descending=True)[:38][[0, 17, 37]].tolist():
        ends = []
        for h in (1e-5, -1e-5):
            moved = batch.x.clone()
            moved.view(-1)[at] += h
            ends.append(float(value(moved).detach()))
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(gradient[at]), rel=1e-5)


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def trained(fit, data):
    net = ToyNet().make(data.task, Rng(0))
    fit.begin(net, Rng(0)).advance(data, 5)
    return weights(net)


def test_a_wrapped_loss_changes_what_fit_computes():
    data = toy_splits().train
    fit = Fit(rule=SGD(), lr=0.01, steps=5, batch=16)
    thrice = fit.rewrite(Loss, lambda loss: Times(loss=loss), field="loss")
    torch.testing.assert_close(trained(thrice, data), trained(fit.with_(lr=0.03), data))
    assert not torch.equal(trained(thrice, data), trained(fit, data))


class Soft(Loss):
    """Squared distance of the probabilities to the targets: a set's own loss."""

    def __call__(self, model, batch, task, rng):
        return (model(batch.x).softmax(1) - F.one_hot(batch.y, 3)).square().sum(1)


def test_the_sets_own_loss_is_used_also_inside_of_wrappers():
    batch = a_batch()
    task = toy_splits().task
    own, none = (TensorSampler(task, batch.x, batch.y, loss=loss) for loss in (Soft(), None))
    fit = Fit(rule=SGD(), lr=0.01, steps=5)
    assert loss_on(fit, own) == Soft()
    assert loss_on(fit, none) == TaskLoss()
    wrapped = fit.rewrite(Loss, lambda loss: Times(loss=loss), field="loss")
    assert loss_on(wrapped, own) == Times(loss=Soft())
    assert loss_on(wrapped, none) == Times(loss=TaskLoss())
    assert loss_on(fit.with_(loss=TaskLoss()), own) == TaskLoss()
    assert not torch.equal(trained(fit, own), trained(fit, none))


@pytest.mark.parametrize("name", ["dc", "dsa", "dm", "herding"])
def test_rewriting_the_field_loss_reaches_every_loss_of_a_method(name):
    recipe = registry().recipe(name)()
    wrapped = recipe.rewrite(Loss, lambda loss: Times(loss=loss), field="loss")
    holders = [part for part in recipe.walk() if "loss" in type(part).model_fields]
    held = [part.loss for part in wrapped.walk() if "loss" in type(part).model_fields and not isinstance(part, Times)]
    assert len(held) == len(holders) == {"dc": 2, "dsa": 2, "dm": 0, "herding": 1}[name]
    assert all(isinstance(loss, Times) for loss in held)
    assert [loss.loss for loss in held] == [part.loss for part in holders]
    with toys(Times):
        assert Recipe.model_validate(wrapped.dump()) == wrapped


def test_a_method_with_wrapped_losses_gives_another_set():
    recipe = toy_recipe(objective=GRADIENT, pool=Fresh(net=ToyNet(), turns=2, inner=INNER), outer=outer(steps=2))
    plain = condense(toy_run(recipe)).freeze().x
    for field, changed in (
        ("both", recipe.rewrite(Loss, lambda loss: Steep(loss=loss), field="loss")),
        ("inner", recipe.with_(pool=recipe.pool.rewrite(Loss, lambda loss: Steep(loss=loss), field="loss"))),
        (
            "matched",
            recipe.with_(objective=recipe.objective.rewrite(Loss, lambda loss: Steep(loss=loss), field="loss")),
        ),
    ):
        assert not torch.equal(condense(toy_run(changed)).freeze().x, plain), field


# -- labels that are learned ----------------------------------------------------------------------------------------


class Learned(Labels):
    """One row of weights for each item, started at its class and moved by the outer groups."""

    loss_: Loss | None = None

    def blank(self, groups, task):
        return nn.Parameter(torch.zeros(len(groups), len(task.classes)))

    def start(self, batch, run):
        return F.one_hot(batch.y, run.task.outputs).float()

    def encode(self, y, task):
        return F.one_hot(y, task.outputs).float()

    def loss(self):
        return self.loss_


def learned_recipe(labels_rate, image_rate=1.0, steps=3):
    groups = (
        Group(role="images", rule=SGD(), lr=image_rate),
        Group(role="labels", rule=SGD(), lr=labels_rate),
    )
    return toy_recipe(
        objective=GRADIENT,
        pool=Fresh(net=ToyNet(), turns=2, inner=INNER),
        init=Real(),
        labels=Learned(),
        outer=outer(*groups, steps=steps),
    )


def test_labels_are_learned_under_a_role_of_their_own():
    syn = condense(toy_run(learned_recipe(0.5))).freeze()
    start = F.one_hot(torch.tensor([0, 0, 1, 1, 2, 2])).float()
    assert syn.y.shape == (6, 3)
    assert float((syn.y - start).abs().amax(1).min()) > 0
    assert not syn.y.requires_grad
    still = condense(toy_run(learned_recipe(0.0))).freeze()
    assert torch.equal(still.y, start)
    frozen = condense(toy_run(learned_recipe(0.5, image_rate=0.0)))
    first = condense(toy_run(learned_recipe(0.5, steps=0)))
    assert torch.equal(frozen.freeze().x, first.freeze().x)


def test_one_step_of_the_labels_is_the_plain_gradient():
    run = toy_run(learned_recipe(0.5, steps=1))
    net = ToyNet().make(run.task, run.rng.fold("pool", 0))
    start = Real()(run, torch.arange(3).repeat_interleave(2))
    y = F.one_hot(start.y, 3).float().requires_grad_()
    total = 0.0
    for c in range(3):
        real = run.splits.train.draw(8, c, run.rng.fold("step", 0, "real", c))
        goal = torch.autograd.grad(F.cross_entropy(net(real.x), real.y), list(net.parameters()))
        x, weights_ = start.x[2 * c : 2 * c + 2], y[2 * c : 2 * c + 2]
        loss = -(weights_ * net(x).log_softmax(1)).sum(1).mean()
        mine = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        for a, b in zip(goal, mine, strict=True):
            if a.dim() > 1:
                a, b = a.flatten(1), b.flatten(1)
                total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    gradient = torch.autograd.grad(total, y)[0]
    found = condense(run).freeze().y
    torch.testing.assert_close(found, (y - 0.5 * gradient).detach(), rtol=1e-4, atol=1e-5)


def test_items_keep_their_class_whatever_their_labels_become():
    syn = condense(toy_run(learned_recipe(0.5)))
    with torch.no_grad():
        syn.y.copy_(syn.y.roll(1, dims=1))
    assert syn.counts() == [2, 2, 2]
    assert syn.freeze().draw(None, 1, Rng(0)).index.tolist() == [2, 3]


def test_a_group_that_forgets_the_labels_is_refused():
    recipe = learned_recipe(0.5).with_(outer=outer(Group(role="images", rule=SGD())))
    with pytest.raises(ValueError, match=r"the role 'labels' is matched by 0 groups"):
        condense(toy_run(recipe))


def test_learned_labels_resume_and_are_stored(tmp_path):
    with toys(Learned):
        (tmp_path / "run" / ".run").mkdir(parents=True)
        recipe = learned_recipe(0.5)
        with pytest.raises(Paused):
            condense(toy_run(recipe, folder=tmp_path / "run", limits=Limits(minutes=0.0)))
        run = toy_run(recipe)
        resumed, unbroken = condense(toy_run(recipe, folder=tmp_path / "run")), condense(run)
        assert torch.equal(resumed.y, unbroken.y)
        assert torch.equal(resumed.freeze().x, unbroken.freeze().x)
        made = artifact.write_artifact(tmp_path / "made", run.plan, unbroken, run.transform, run.task, {})
        again = artifact.load(made.path)
        assert torch.equal(again.dataset()[4][1], unbroken.freeze().y[4])
        assert again.stored == {"images": 6 * 64 * 4, "labels": 6 * 3 * 4}


def test_networks_are_trained_on_the_set_with_its_own_loss():
    class Told(Loss):
        """Remembers what it was asked about."""

        def __call__(self, model, batch, task, rng):
            asked.append(batch.y.shape)
            return TaskLoss()(model, batch, task, rng)

    asked = []
    condense(toy_run(learned_recipe(0.5).with_(labels=Learned(loss_=Told()))))
    assert asked
    assert set(asked) == {(4, 3), (2, 3)}, "batches of 4 and the rest of 2, with soft labels"
    assert Hard().loss() is None
    assert OwnLoss()(ToyNet().make(toy_splits().task, Rng(0)), a_batch(), toy_splits().task, Rng(0)).shape == (6,)


# -- memory, roles, terms -------------------------------------------------------------------------------------------


class Remembering(Objective):
    """Keeps a buffer that counts and a parameter that is learned under the role `aux`."""

    def state(self, run):
        module = nn.Module()
        module.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        module.pull = nn.Parameter(torch.ones(()))
        return module

    def __call__(self, step):
        memory = step.state(self)
        memory.seen += 1
        yield Term({"away": (step.syn.x.mean() - memory.pull).square()})


def test_a_component_keeps_state_between_steps_and_over_a_resume(tmp_path):
    (tmp_path / ".run").mkdir()
    groups = (Group(role="images", rule=SGD(), lr=1.0), Group(role="aux", rule=SGD(momentum=0.5), lr=0.1))
    recipe = toy_recipe(objective=Remembering(), outer=outer(*groups, steps=4))
    unbroken = toy_run(recipe)
    condense(unbroken)
    (memory,) = unbroken.states.values()
    assert int(memory.seen) == 4
    assert float(memory.pull.detach()) != 1.0
    with pytest.raises(Paused):
        condense(toy_run(recipe, folder=tmp_path, limits=Limits(minutes=0.0)))
    resumed = toy_run(recipe, folder=tmp_path)
    condense(resumed)
    (again,) = resumed.states.values()
    assert int(again.seen) == 4
    assert torch.equal(again.pull, memory.pull)


class Mixed(Objective):
    """A term for all roles, then one for the images alone."""

    def __call__(self, step):
        yield Term({"all": step.syn.x.sum() + step.syn.y.sum()})
        yield Term({"images": step.syn.x.sum()}, role="images")


def test_a_term_for_one_role_leaves_what_earlier_terms_asked_of_the_others():
    recipe = learned_recipe(0.25, image_rate=0.25, steps=1).with_(objective=Mixed())
    start = condense(toy_run(recipe.with_(outer=outer(*recipe.outer.groups, steps=0)))).freeze()
    end = condense(toy_run(recipe)).freeze()
    torch.testing.assert_close(end.x, start.x - 2 * 0.25)
    torch.testing.assert_close(end.y, start.y - 0.25)


class Alternating(Objective):
    """Pulls images and labels alike."""

    def __call__(self, step):
        yield Term({"all": step.syn.x.sum() + step.syn.y.sum()})


def test_groups_take_turns():
    groups = (
        Group(role="images", rule=SGD(), lr=1.0, every=3),
        Group(role="labels", rule=SGD(), lr=1.0, every=2, phase=1),
    )
    recipe = learned_recipe(0.5).with_(objective=Alternating(), outer=outer(*groups, steps=5))
    start = condense(toy_run(recipe.with_(outer=outer(*groups, steps=0)))).freeze()
    end = condense(toy_run(recipe)).freeze()
    torch.testing.assert_close(end.x, start.x - 2)  # steps 0 and 3
    torch.testing.assert_close(end.y, start.y - 2)  # steps 1 and 3


class Blurred(Parameterization):
    """Decodes with noise while it is made, and without any when it is released: sampled edges, in miniature."""

    def reads(self, recipe):
        return Reads()

    def empty(self, task, groups, labels):
        return _Blurred(task, groups, labels)


class _Blurred(Synthetic):
    keys: ClassVar[list] = []

    def __init__(self, task, groups, labels):
        super().__init__(task, groups, labels.blank(groups, task), labels.loss())
        self.x = nn.Parameter(torch.zeros(len(groups), *task.shape))

    def fill(self, batch):
        with torch.no_grad():
            self.x.copy_(batch.x)

    def decode(self, index, rng):
        self.keys.append(rng)
        noise = 0.0 if rng is None else torch.randn(self.x.shape, generator=rng.generator())
        x = self.x + noise
        return Batch(x if index is None else x[index], self.y if index is None else self.y[index], index)

    def roles(self):
        return {"images": [self.x]}


def test_a_set_may_decode_with_noise_keyed_by_the_step_and_is_released_without():
    _Blurred.keys.clear()
    recipe = toy_recipe(parameterization=Blurred(), outer=outer(steps=3))
    syn = condense(toy_run(recipe))
    assert torch.equal(syn.freeze().x, syn.x.detach())
    *steps, released = _Blurred.keys
    assert released is None
    assert len({key.seed for key in steps}) == len(steps) == 3, "decoded once for each step, with a key of its own"
    assert torch.equal(condense(toy_run(recipe)).x, syn.x)


def test_notes_and_seconds_of_a_run_survive_a_resume(tmp_path):
    (tmp_path / ".run").mkdir()
    first = toy_run(toy_recipe(outer=outer(steps=3)), folder=tmp_path, limits=Limits(minutes=0.0))
    first.note("seen", {"by": 1})
    with pytest.raises(Paused):
        condense(first)
    again = toy_run(toy_recipe(outer=outer(steps=3)), folder=tmp_path)
    condense(again)
    assert again.notes["seen"] == {"by": 1}
    assert again.earlier > 0
