"""The engine: one flat loop that knows no modality and no method."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .axes import Objective, Selection, Term
from .data import TensorSampler
from .errors import Diverged, Exhausted
from .fit import schedule
from .isolation import bare, check_dtype, check_start, check_term
from .recipe import Outer, Recipe
from .rng import seeded
from .running import Run, Stateful, Step
from .synthetic import Synthetic
from .task import Batch, Task


def condense(run: Run) -> Synthetic:
    """Run the recipe: fill the set, then take its outer steps; returns the finished set (the released form decodes)."""
    recipe, steps = run.recipe, run.recipe.outer.steps
    run.states = {part.digest(): made for part in recipe.walk() if (made := part.state(run)) is not None}
    syn = open_set(run)
    fill = Fill(run, syn)
    updates = Updates(recipe.outer, roles(syn, run.states))
    learners = recipe.pool.learners(run, syn)
    memory = nn.ModuleDict(run.states)
    run.hooks.hook.condense_started(run=run)
    dtype = torch.get_default_dtype()
    best = Best(run, syn, recipe.selection) if recipe.selection else None
    kept: dict[str, Stateful] = {} if best is None else {"best": best}
    kept |= {"set": fill, "updates": updates, "pool": learners, "memory": memory, "source": run.splits.train}
    for index in run.loop("outer", steps, **kept):
        fill.once(index)
        if best is not None:
            best.look(index)
        try:
            with seeded(run.rng.fold("global", index), run.device):
                step = Step(run, index, learners.next(index), TensorSampler(run.task, None, syn.y))
                with bare(step.learner.module):
                    losses = outer_step(step, syn, updates)
        except Exhausted as end:
            if not index:  # there is no set yet but the one it started from
                raise
            run.note("stopped", {"reason": f"{end.field} {end.problem}", "after": index})
            break
        run.watch.see(index, torch.stack(list(losses.values())).sum())
        run.hooks.hook.condense_stepped(run=run, index=index, losses=losses)
        check_dtype(dtype, recipe)
    fill.once(steps)
    if steps and fill.unmoved():
        text = f"no value of the set has moved in {steps} steps: the losses say nothing of it, or the rate is too small"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    if best is not None:
        best.release()
    recipe.labels.finish(syn, run)
    syn.release()
    fill.check()
    return syn


def check_roles(recipe: Recipe, task: Task) -> None:
    """Refuse, before anything is computed, parameters of the set that no group moves. Raises `BadValue`.

    Where storage cannot be shaped without values, `Updates` refuses them later.
    """
    try:
        with torch.device("meta"):
            syn = recipe.parameterization.empty(task, torch.arange(task.groups, device="cpu"), recipe.labels)
    except (NotImplementedError, RuntimeError):
        return
    for role in syn.roles() if recipe.outer.steps else ():
        recipe.outer.group(role)


def open_set(run: Run) -> Synthetic:
    """The empty set of the run's recipe, on its device."""
    recipe = run.recipe
    groups = recipe.budget.allot(run.splits.train)
    return recipe.parameterization.empty(run.task, groups, recipe.labels).to(run.device)


class Fill:
    """The set's own state in a checkpoint, and its one filling from Init where there is no checkpoint."""

    def __init__(self, run: Run, syn: Synthetic) -> None:
        self.run, self.syn, self.filled, self.at = run, syn, False, 0
        self.first: dict[str, Tensor] | None = None  # the values it was filled with, where that was in this process

    def once(self, index: int) -> None:
        """Before outer step `index`."""
        self.at = index
        if not self.filled:
            batch = self.run.recipe.init(self.run, self.syn.item_groups)
            check_start(self.run.recipe.init, batch, self.run.task, len(self.syn.item_groups))
            y = self.run.recipe.labels.start(batch, self.run)
            self.syn.start(self.run.rng.fold("start"))
            self.syn.fill(Batch(batch.x, y, batch.index))
            self.filled = True
            if self.run.recipe.outer.steps:
                self.first = {name: value.clone() for name, value in self.syn.state_dict().items()}

    def unmoved(self) -> bool:
        """Are all values still those that it was filled with? No, where nobody knows these."""
        now = self.syn.state_dict()
        return self.first is not None and all(torch.equal(value, now[name]) for name, value in self.first.items())

    def check(self) -> None:
        """Refuse to store a set that is not finite, whatever the losses were, or makes no sense. Raises `Diverged`."""
        self.syn.check()
        for name, value in self.syn.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                remedy = "What was saved before is kept. Lower `outer.groups.0.lr`, or look at the objective."
                raise Diverged("set", "NaN or infinity", f"{name} is not finite by outer step {self.at}", remedy)

    def state_dict(self) -> dict[str, Any]:
        self.check()
        return dict(self.syn.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.syn.load_state_dict(state)
        self.filled = True


class Best:
    """The best set so far by the recipe's selection: part of every checkpoint, and what is released at the end."""

    def __init__(self, run: Run, syn: Synthetic, selection: Selection) -> None:
        self.run, self.syn, self.selection = run, syn, selection
        self.scores: dict[str, float] = {}
        self.kept: dict[str, Tensor] = {}

    def look(self, done: int) -> None:
        """Score the set after `done` steps if it is time to; of equal scores the first counts."""
        if self.selection.looks(done, self.run.recipe.outer.steps):
            self._score(done)

    def _score(self, done: int) -> None:
        score = self.selection.score(self.run, self.syn)
        if not self.scores or score > max(self.scores.values()):
            self.kept = {name: value.detach().clone() for name, value in self.syn.state_dict().items()}
        self.scores[str(done)] = score

    def release(self) -> None:
        """Score the last set, put the best one in its place, and note which that is."""
        stopped = self.run.notes.get("stopped", {})
        self._score(stopped.get("after", self.run.recipe.outer.steps))
        self.syn.load_state_dict(self.kept)
        self.run.note("selected", {"after": int(max(self.scores, key=self.scores.__getitem__)), "scores": self.scores})

    def state_dict(self) -> dict[str, Any]:
        return {"scores": dict(self.scores), "kept": dict(self.kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scores, self.kept = dict(state["scores"]), dict(state["kept"])


def roles(syn: Synthetic, states: Mapping[str, nn.Module]) -> dict[str, list[nn.Parameter]]:
    """The set's parameters by role, and under `aux` those that components keep between steps."""
    aux = [p for module in states.values() for p in module.parameters()]
    return {**syn.roles(), **({"aux": aux} if aux else {})}


class Decoded:
    """The set decoded once for a step: its tensors are leaves, and what reaches them is pulled into storage later."""

    def __init__(self, syn: Synthetic, step: Step) -> None:
        form = syn.task.form
        self.batch = syn.decode(None, step.rng.fold("decode"))
        self.x = form.leaf(self.batch.x)
        self.y = self.batch.y.detach().requires_grad_(self.batch.y.is_floating_point() and self.batch.y.requires_grad)
        pairs = [
            *zip(form.pack(self.batch.x).values(), form.pack(self.x).values(), strict=True),
            (self.batch.y, self.y),
        ]
        self.pairs = [(source, leaf) for source, leaf in pairs if leaf.requires_grad and source.requires_grad]
        self.leaves = [leaf for _, leaf in self.pairs]
        step.syn = syn.sampler(Batch(self.x, self.y))

    def pull(self, parameters: list[nn.Parameter]) -> None:
        """Send what the leaves have gathered through the decoding, into these parameters only."""
        reached = [(source, leaf) for source, leaf in self.pairs if leaf.grad is not None]
        if reached and parameters:
            sources, grads = [s for s, _ in reached], [leaf.grad for _, leaf in reached]
            torch.autograd.backward(sources, grads, inputs=parameters, retain_graph=True)
        for _, leaf in reached:
            leaf.grad = None


def outer_step(step: Step, syn: Synthetic, updates: Updates) -> dict[str, Tensor]:
    """Push every term back as it comes, update the parameters, project; returns the losses, summed by name."""
    losses: dict[str, Tensor] = {}
    updates.index = step.index
    decoded = Decoded(syn, step)
    for term in asked(step.run.recipe.objective, step):
        push(term, decoded, updates)
        for name, value in term.losses.items():
            losses[name] = losses.get(name, torch.zeros((), device=value.device)) + value.detach()
        if updates.outer.commit == "term":
            decoded.pull(updates.of("*"))
            updates.apply(step)
            decoded = Decoded(syn, step)
    if updates.outer.commit == "step":
        decoded.pull(updates.of("*"))
        updates.apply(step)
    syn.project(step.index)
    return losses


def asked(objective: Objective | None, step: Step) -> Iterator[Term]:
    """The terms of a step, one by one, each held against the contract. Raises `BrokenPlugin`."""
    if objective is not None:
        for term in objective(step):
            check_term(term, objective)
            yield term


def push(term: Term, decoded: Decoded, updates: Updates) -> None:
    """Backward of one term. Inputs are named: a plain backward would fill the learner's gradients too."""
    if term.role != "*":
        decoded.pull(updates.of("*"))  # what earlier terms have gathered may go everywhere, this term's may not
    aux = [p for p in updates.parameters.get("aux", []) if fnmatchcase("aux", term.role)]
    inputs = [*decoded.leaves, *updates.of(term.role), *aux]  # a learned rate is no part of an example
    if term.cotangents:
        drawn, grads = zip(*((t, g * term.weight) for t, g in term.cotangents), strict=True)
        torch.autograd.backward(drawn, grads, inputs=inputs)
    else:
        total = torch.stack([value for value in term.losses.values()]).sum() * term.weight
        if total.requires_grad:
            torch.autograd.backward(total, inputs=inputs)
    if term.role != "*":
        decoded.pull(updates.of(term.role))


class Updates:
    """How parameters move: for each role its group's rule, with that rule's state."""

    def __init__(self, outer: Outer, parameters: Mapping[str, list[nn.Parameter]]) -> None:
        self.outer, self.parameters, self.index = outer, dict(parameters), 0
        self.groups = {role: outer.group(role) for role in parameters} if outer.steps else {}
        self.state = {role: group.rule.init(self._named(role)) for role, group in self.groups.items()}

    def of(self, glob: str) -> list[nn.Parameter]:
        """The set's own parameters whose role matches, and whose turn it is: no gradient is computed for others."""
        moving = [role for role, group in self.groups.items() if role != "aux" and group.moves(self.index)]
        return [p for role in moving if fnmatchcase(role, glob) for p in self.parameters[role]]

    def _named(self, role: str) -> dict[str, Tensor]:
        return {str(i): p for i, p in enumerate(self.parameters[role])}

    def apply(self, step: Step) -> None:
        """One update of every role whose turn it is; gradients are consumed."""
        for role, group in self.groups.items():
            named = self._named(role)
            grads = {key: p.grad for key, p in named.items() if p.grad is not None}
            moving = {key: named[key].detach() for key in grads}
            if moving and group.moves(self.index):
                rates, before = schedule(group.lr), (step.index - 1) / max(1, self.outer.steps)
                if rates.restarts(before, step.progress):
                    self.state[role] = group.rule.init(named)
                state = group.rule.move(moving, grads, self.state[role], rates.value(step.progress))
                self.state[role] = {**self.state[role], **state}
                if group.bounds != (None, None):
                    for value in moving.values():
                        value.clamp_(*group.bounds)
            for parameter in named.values():
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {role: dict(state) for role, state in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = {role: dict(slots) for role, slots in state.items()}
