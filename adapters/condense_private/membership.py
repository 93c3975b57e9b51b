"""Membership inference on condensed sets: which records was this set made from?

LiRA (Carlini et al., arXiv:2112.03570) adapted to condensation. What is shadowed is the condensation itself: each
shadow run makes a set from a random half of the records, and each record is scored: by networks trained on that set
(the logit of their confidence in its label), and by the set alone (how near the nearest image of its class is, and how
alike they are in what sets each apart from its class). Statistics, thresholds, intervals: `condense_private.lira`.

What came of it is evidence about one method, one set of data and these attacks. It proves no privacy: *Privacy for
Free* (arXiv:2206.00240) took the failure of weaker attacks for a guarantee, and was answered (arXiv:2209.14987).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from condense import execution, files, store
from condense.api import carry_out, open_run
from condense.artifact import Artifact
from condense.axes import Evaluator, Init, Transform
from condense.checkpoint import Lock, private_folder
from condense.component import digest, named
from condense.data import Data, Splits, TensorSampler
from condense.engine import open_set
from condense.errors import BadValue
from condense.evaluate import CHUNK, network_key, shown
from condense.judging import judged_by
from condense.machine import machine
from condense.memory import judging_cost
from condense.plugins import registry, software
from condense.protocol import Protocol
from condense.recipe import Execution, Plan, Recipe
from condense.running import Limits
from condense.task import Tensors

from . import lira
from .private import Private
from .shadows import Chosen, Design, Shadow, chosen

KIND = "membership-scores"
RESULT = "membership.json"
RATES = (0.001, 0.01)  # false positives that are allowed for
RIDGE = 0.1  # of the mean variance, added to every direction; of six powers of ten the best, on one shadow of MNIST
WIDEST = 4096  # numbers in an example, up to which it is whitened
WARNING = (
    "An attack that fails proves nothing: only added noise that is accounted for does. These figures are computed from "
    "the records themselves, and no epsilon covers them."
)
Beside = Literal["random", "real", "noise"]
Population = Literal["records", "canaries"]


# -- what was found ----------------------------------------------------------------------------------------------------


class Share(BaseModel):
    """`hits` of `n`, with the interval of Clopper and Pearson: 95 %, as if they were independent."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    hits: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, flags: Tensor) -> Share:
        hits, n = int(flags.sum()), len(flags)
        low, high = lira.clopper_pearson(hits, n)
        return cls(hits=hits, n=n, low=low, high=high)

    @property
    def share(self) -> float:
        return self.hits / self.n if self.n else float("nan")


class AtRate(BaseModel):
    """An attack at a threshold that `rate` of other shadows' non-members exceed.

    members: caught, of those that were in. others: of those that were not (the rate that came true). used: of those
    that the set was started from, or is. spread: deviation of the members' share over the shadows. meaningful: are a
    shadow's non-members as many as 1 / rate? With fewer, less than one of them is expected above the threshold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rate: float
    members: Share
    others: Share
    used: Share
    spread: float
    meaningful: bool


class Attacked(BaseModel):
    """One attack by one score on one recipe, over all of its shadows.

    of: `records`, or `canaries`: records whose label was changed. score: a name of `SCORES`, or `all`. area: under the
    ROC curve, mean over the shadows; low and high for as many members and non-members as one shadow has, since all
    shadows share the records.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    recipe: str
    of: Population
    score: str
    attack: str
    members: int
    others: int
    area: float
    low: float
    high: float
    rates: tuple[AtRate, ...]


class Findings(BaseModel):
    """All attacks, and what they were made with. plans: of each recipe, as shadow 0 ran it. minutes: of wall time."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["membership"] = "membership"
    format: Literal[1] = 1
    evaluator: dict[str, Any]
    method: str
    data: str
    per_class: dict[str, Any]
    steps: int
    records: int
    queries: int
    seed: int
    protocol: str
    net: str
    plans: dict[str, dict[str, Any]]
    rows: tuple[Attacked, ...]
    minutes: dict[str, float]
    machine: dict[str, Any]
    versions: dict[str, str]
    warning: str = WARNING


# -- as lines ----------------------------------------------------------------------------------------------------------


def heads(rows: Sequence[Attacked]) -> list[str]:
    """Of a table of `figures`."""
    each = [head for at in rows[0].rates for head in (f"TPR at {100 * at.rate:g} % FPR", "FPR", "of the used")]
    return ["attack", *each, "AUC"]


def figures(row: Attacked) -> list[str]:
    """One attack as a line: per cent with intervals of 95 %. A rate that too few non-members can show says so."""
    cells = []
    for at in row.rates:
        used = f"{at.used.hits:,}/{at.used.n:,} {per_cent(at.used)}" if at.used.n else "none used"
        shown = [per_cent(at.members), f"{100 * at.others.share:.2f}", used]
        cells += shown if at.meaningful else ["no meaning", "", ""]
    return [f"{row.score}, {row.attack}", *cells, f"{row.area:.3f} ({row.low:.3f}-{row.high:.3f})"]


def per_cent(share: Share) -> str:
    return f"{100 * share.share:.2f} ({100 * share.low:.2f}-{100 * share.high:.2f})"


def notes(rows: Sequence[Attacked]) -> list[str]:
    """What has to be said below tables of these rows."""
    short = {(row.of, row.others, at.rate) for row in rows for at in row.rates if not at.meaningful}
    return [
        f"No meaning: {others:,} non-members among the {of} are fewer than the {1 / rate:,.0f} of which one is "
        f"expected above a threshold of {100 * rate:g} % FPR."
        for of, others, rate in sorted(short)
    ]


# -- the evaluator -----------------------------------------------------------------------------------------------------


@final
class Membership(Evaluator):
    """LiRA on condensation (arXiv:2112.03570, adapted): shadow runs on random halves, each attacked by the others.

    shadows: even, at least 8 (a pair under attack, one for thresholds, two for statistics); the paper takes 16 for
    figures with one variance for all records, which then is what is done, and 64 for one of each record's own. records:
    how many training examples are under attack, drawn by the plan's seed; None: all. networks: trained on each set by
    the plan's protocol; their scores are averaged. canaries: records whose label is changed, attacked by themselves.
    beside: what is attacked too: as many random real examples, and the recipe started from real ones or from noise;
    private data are taken without noise for these.
    """

    shadows: int = Field(default=16)
    records: int | None = Field(default=None, ge=1)
    networks: int = Field(default=2, ge=1)
    canaries: int = Field(default=0, ge=0)
    beside: tuple[Beside, ...] = ("random", "real", "noise")

    @field_validator("shadows")
    @classmethod
    def _paired(cls, shadows: int) -> int:
        if shadows < lira.LEAST or shadows % 2:
            problem = "must be even, so that each record is in half of the shadows, and at least {least}"
            remedy = "Two are under attack, two set the thresholds, the others give means and deviations. Try 16."
            raise PydanticCustomError("component", problem, {"least": lira.LEAST, "got": shadows, "remedy": remedy})
        return shadows

    def __call__(self, artifact: Artifact, folder: Path, progress: Callable[[str], None] | None = None) -> Findings:
        """The plan of an artifact under attack; what is made is kept in `folder`."""
        return self.attack(artifact.plan, folder, progress)

    def attack(self, plan: Plan, folder: Path, progress: Callable[[str], None] | None = None) -> Findings:
        """The recipe of a plan under attack on its data, and others beside it; also written to `membership.json`.

        Shadow runs and their scores are kept in `folder`, so that the same call goes on after an interrupt. Raises
        `BadValue` for records and halves that cannot be, and what `condense.run` raises.
        """
        inner = plan.data.data if isinstance(plan.data, Private) else plan.data
        opened = plan.data.open(plan.execution.device)  # refuses what cannot be opened, noise that is not said too
        splits = opened if inner is plan.data else inner.open(plan.execution.device)
        design = self._shadow(inner, plan, 0).design(splits.train)
        check_rows(splits, inner)
        files_of = Files(folder)
        with Lock(private_folder(folder)):
            rows, plans, minutes = [], {}, {}
            for label, recipe_plan in variants(plan, inner, self.beside).items():
                runs = [self._of(recipe_plan, inner, i) for i in range(self.shadows)]
                made = []
                for i, run in enumerate(runs):
                    if progress is not None:
                        progress(f"{label}: shadow {i + 1} of {self.shadows}")
                    made.append(scored(run, splits, design, self.networks, files_of.place(label, i)))
                rows += attacked(label, made, design)
                plans[label] = runs[0].model_dump(mode="json")
                minutes[label] = round(sum(scores.seconds for scores in made) / 60, 1)
            found = self._findings(plan, design, len(made[0].of["model"]), plans, rows, minutes)
            files.write_json(folder / RESULT, found.model_dump(mode="json"))
        return found

    def _shadow(self, inner: Data, plan: Plan, number: int) -> Shadow:
        return Shadow(
            data=inner,
            shadows=self.shadows,
            number=number,
            records=self.records,
            canaries=self.canaries,
            seed=plan.seed,
        )

    def _of(self, plan: Plan, inner: Data, number: int) -> Plan:
        """The plan of shadow `number`: half of the records, and a seed of its own."""
        half = self._shadow(inner, plan, number)
        data = plan.data.with_(data=half) if isinstance(plan.data, Private) else half
        return plan.model_copy(update={"data": data, "seed": plan.seed + number})

    def _findings(
        self,
        plan: Plan,
        design: Design,
        queries: int,
        plans: dict[str, dict[str, Any]],
        rows: Sequence[Attacked],
        minutes: dict[str, float],
    ) -> Findings:
        rules, device = judged_by(plan), torch.device(plan.execution.device)
        return Findings(
            evaluator=self.dump(),
            method=plan.method,
            data=plan.data.label,
            per_class=dict(plan.recipe.budget.asked),
            steps=plan.recipe.outer.steps,
            records=len(design.y),
            queries=queries,
            seed=plan.seed,
            protocol=rules.name,
            net=shown(rules.nets[0]),
            plans=plans,
            rows=tuple(rows),
            minutes=minutes,
            machine=machine(device),
            versions=software(),
        )


def check_rows(splits: Splits, data: Data) -> None:
    """Refuse examples of different sizes, which have no distance from each other. Raises `BadValue`."""
    if not splits.task.form.in_rows:
        problem = f"holds {splits.task.form.noun}, which are not of one size: they have no distance"
        raise BadValue("data", data.label, problem, "Attack a data set of images or vectors.")


def variants(plan: Plan, inner: Data, beside: Sequence[Beside]) -> dict[str, Plan]:
    """What is attacked, by name: the plan as it is, and others beside it on the data without noise; none twice."""
    bare = plan.model_copy(update={"data": inner})
    recipes = registry().recipes(inner.form)
    known = recipes if "random" in recipes else registry().recipes(Data.form)
    random = known["random"][0]().with_(budget=plan.recipe.budget, preprocess=plan.recipe.preprocess)
    more = {
        "random": bare.model_copy(update={"method": "random", "recipe": random}),
        **{init: bare.model_copy(update={"recipe": started(plan.recipe, init)}) for init in ("real", "noise")},
    }
    found = {called(plan): plan}
    for other in (more[name] for name in beside):
        if other not in found.values():
            found[called(other)] = other
    return found


def started(recipe: Recipe, init: str) -> Recipe:
    return recipe.with_(init=named(Init, init))


def called(plan: Plan) -> str:
    """How tables call it: method, start, and whether noise was added."""
    if plan.method == "random":
        return "random real subset"
    name = f"{plan.method}, init={plan.recipe.init.name}"
    if not isinstance(plan.data, Private):
        return name
    terms = plan.data
    return (
        f"{name}, epsilon {terms.epsilon:g}"
        if terms.epsilon
        else f"{name}, noise multiplier {terms.noise_multiplier:g}"
    )


# -- one shadow --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """Where shadows lie: `RECIPE/shadow-00/`, an artifact, and `RECIPE/shadow-00.safetensors`, its scores."""

    folder: Path

    def place(self, label: str, number: int) -> Path:
        safe = re.sub(r"[^A-Za-z0-9.-]+", "-", label)
        return self.folder / safe / f"shadow-{number:02d}"


@dataclass(frozen=True)
class Scores:
    """Of one shadow: by name of the score, (Q, N) float64; used: (N,) bool, the records that its set started from."""

    of: Mapping[str, Tensor]
    used: Tensor
    seconds: float


def scored(plan: Plan, splits: Splits, design: Design, networks: int, place: Path) -> Scores:
    """The scores of all records by one shadow run: read from disk where they are there, else made and kept."""
    rules = judged_by(plan).with_(repeats=networks)
    key = digest([plan.model_dump(mode="json", exclude={"execution"}), rules.dump()])
    path = place.with_name(f"{place.name}.safetensors")
    if path.is_file():
        kept = store.load(path, KIND, finite=True)
        if kept["key"] == key:
            return Scores(kept["scores"], kept["used"], kept["seconds"])
    artifact = carry_out(plan, place)
    began = time.monotonic()
    scores = {name: score(artifact, rules, splits, design) for name, score in SCORES.items()}
    used = started_from(plan, design)
    seconds = float(artifact.provenance["seconds"]) + time.monotonic() - began
    store.save(path, {"key": key, "scores": scores, "used": used, "seconds": seconds}, KIND)
    return Scores(scores, used, seconds)


def by_model(artifact: Artifact, rules: Protocol, splits: Splits, design: Design) -> Tensor:
    """(Q, N) float64: the logit-scaled confidence of networks trained on the set, averaged over these networks.

    The queries are the record and, where the data set says that this keeps its meaning, its mirror image. Networks are
    the protocol's first kind, with the keys that the judge gives them, trained together on a GPU.
    """
    device = splits.train.device
    data = on_device(artifact, device)
    transform = artifact.transform.to(device)
    net, fit, form = rules.nets[0], rules.fit(data), data.task.form
    source = chosen(splits.train, design)
    keys = [network_key(artifact.plan.seed, net, i) for i in range(rules.repeats)]
    cost = judging_cost(rules, data, len(source))
    settled = execution.settled(Execution(device=str(device)), cost)
    with execution.using(execution.passes(settled)):
        modules = [net.make(data.task, key.fold("make"), device) for key in keys]
        together = device.type == "cuda" and len(keys) > 1 and fit.together(modules[0], data)
        groups = [range(len(keys))] if together else [[i] for i in range(len(keys))]
        total = torch.zeros((), dtype=torch.float64)
        for group in groups:
            trains = [keys[i].fold("train") for i in group]
            some = [modules[i] for i in group]
            loop = fit.crowd(some, trains) if together else fit.begin(some[0], trains[0])
            loop.advance(data, fit.length(data))
            found = [
                torch.stack([lira.confidence(loop.predict(x, form), y).sum(dim=0) for x in queries])
                for queries, y in asked(source, transform, splits, CHUNK.get(device.type, 4096))
            ]
            total = total + torch.cat(found, dim=1).cpu()
    return total / len(keys)


def asked(source: Chosen, transform: Transform, splits: Splits, chunk: int) -> Iterator[tuple[list[Any], Tensor]]:
    """The records in order, a chunk at a time: the network's inputs for each query, and the labels."""
    mirrors = isinstance(source.task.form, Tensors) and len(source.task.shape) == 3 and splits.facts.extra.get("mirror")
    encoded = source.encoded(transform)
    ends = [*range(0, len(source), chunk), len(source)]
    for start, end in pairwise(ends):
        index = torch.arange(start, end, device=source.device)
        plain = encoded.take(index)
        mirrored = [transform.encode(source.take(index).x.flip(-1))] if mirrors else []
        yield [plain.x, *mirrored], plain.y


def by_distance(artifact: Artifact, rules: Protocol, splits: Splits, design: Design) -> Tensor:
    """(1, N) float64: minus the distance to the nearest example of its class in the set, in float32, as networks see
    both. Where the set has none of that class: to the nearest of any.
    """
    source, data = seen(artifact, splits, design)
    items, form = data.task.form.flat(data.x).float(), data.task.form
    found = []
    for batch in source.sweep(1024):
        far = torch.cdist(form.flat(batch.x).float(), items, compute_mode="donot_use_mm_for_euclid_dist")
        found.append(nearest(-far, batch.y, data.groups))
    return torch.cat(found).double().cpu().unsqueeze(0)


def by_detail(artifact: Artifact, rules: Protocol, splits: Splits, design: Design) -> Tensor:
    """(1, N) float64: the largest cosine between the record and an example of its class in the set, both less the mean
    of that class and whitened.

    Ours: a matched filter. Condensing moves an image mostly along what all records of its class share; what is left of
    the one it started from are details, and these weigh most once the covariance within classes is divided out (with a
    ridge). Mean and covariance are those of all records under attack, in or not. Examples of more than 4,096 numbers
    are not whitened.
    """
    source, data = seen(artifact, splits, design)
    form, k = data.task.form, data.task.groups
    batches = ((form.flat(batch.x).double(), batch.y) for batch in source.sweep(1024))
    items = form.flat(data.x).double()
    total = items.new_zeros(k, items.shape[1])
    wide = items.shape[1] > WIDEST
    products = items.new_zeros(() if wide else (items.shape[1], items.shape[1]))
    for x, y in batches:
        total.index_add_(0, y, x)
        if not wide:
            products.addmm_(x.T, x)
    counts = torch.bincount(source.groups, minlength=k).double().unsqueeze(1)
    mean = total / counts
    covariance = (products - mean.T @ total) / len(source) if not wide else products
    factor = None if wide else torch.linalg.cholesky(ridged(covariance))

    def rows(x: Tensor, y: Tensor) -> Tensor:
        apart = x - mean[y]
        white = apart if factor is None else torch.linalg.solve_triangular(factor, apart.T, upper=False).T
        return F.normalize(white, dim=1)

    stored = rows(items, data.groups)
    found = [
        nearest(rows(form.flat(batch.x).double(), batch.y) @ stored.T, batch.y, data.groups)
        for batch in source.sweep(1024)
    ]
    return torch.cat(found).cpu().unsqueeze(0)


def ridged(covariance: Tensor) -> Tensor:
    diagonal = covariance.diagonal()
    return covariance + torch.diag(torch.full_like(diagonal, max(RIDGE * float(diagonal.mean()), 1e-12)))


def nearest(alike: Tensor, y: Tensor, classes: Tensor) -> Tensor:
    """Of (N, M) the largest of each row among the columns of its class; among all where there is none."""
    same = y.unsqueeze(1) == classes.unsqueeze(0)
    same |= ~same.any(dim=1, keepdim=True)
    return alike.masked_fill(~same, -torch.inf).amax(dim=1)


def seen(artifact: Artifact, splits: Splits, design: Design) -> tuple[Chosen, TensorSampler]:
    """The records under attack and the set, as networks see them."""
    device = splits.train.device
    return chosen(splits.train, design).encoded(artifact.transform.to(device)), on_device(artifact, device)


Score = Callable[[Artifact, Protocol, Splits, Design], Tensor]
SCORES: dict[str, Score] = {"model": by_model, "set distance": by_distance, "set detail": by_detail}


def on_device(artifact: Artifact, device: torch.device) -> TensorSampler:
    """The set as networks are trained on it."""
    data = artifact.sampler()
    return TensorSampler(data.task, data.task.form.to(data.x, device), data.y.to(device), loss=data.loss)


def started_from(plan: Plan, design: Design) -> Tensor:
    """(N,) bool: the records under attack that the run of this plan put into its set at the start.

    Asked of the recipe's init anew: it is a function of the plan. One that reads no examples used none.
    """
    used = torch.zeros(len(design.y), dtype=torch.bool)
    run = open_run(plan, None, (), Limits())
    if run.recipe.init.reads(run.recipe).examples:
        number = next(part.number for part in plan.data.walk() if isinstance(part, Shadow))
        batch = run.recipe.init(run, open_set(run).item_groups)
        if batch.index is not None:
            used[design.member[number].nonzero().flatten()[batch.index.cpu()]] = True
    return used


# -- all shadows of a recipe -----------------------------------------------------------------------------------------


def attacked(label: str, made: Sequence[Scores], design: Design) -> list[Attacked]:
    """Every attack by every score, then both scores as one; of the records, and of the canaries, if there are any."""
    scores = {name: torch.stack([one.of[name] for one in made]) for name in SCORES}
    used = torch.stack([one.used for one in made])
    alike = {score: lira.standard(value, design.y) for score, value in scores.items()}
    found: dict[tuple[str, str], list[lira.Trial]] = {}
    rows = []
    populations: dict[Population, Tensor] = {"records": ~design.canary, "canaries": design.canary}
    for of, which in populations.items():
        if not bool(which.any()):
            continue
        member = design.member[:, which]
        for score in SCORES:
            for name, attack in lira.ATTACKS.items():
                values = scores[score] if attack is lira.plain else alike[score]
                found[score, name] = lira.trials(values[:, :, which], member, attack)
        found["all", "the strongest"] = lira.combined(
            found["model", "likelihood ratio"], *(found[name, "one-sided"] for name in ("set distance", "set detail"))
        )
        for (score, name), trials in found.items():
            figures = row_of(trials, used[:, which])
            rows.append(Attacked(recipe=label, of=of, score=score, attack=name, **figures))
    return rows


def row_of(trials: Sequence[lira.Trial], used: Tensor) -> Mapping[str, Any]:
    """The figures of one attack: pooled over all shadows, each against the thresholds of another pair."""
    values, member = torch.cat([t.values for t in trials]), torch.cat([t.member for t in trials])
    areas = [lira.auc(v[m], v[~m]) for v, m in zip(values, member, strict=True)]
    area, inside, outside = sum(areas) / len(areas), int(member[0].sum()), int((~member[0]).sum())
    low, high = lira.auc_interval(area, inside, outside)
    rates = tuple(at_rate(trials, values, member, used, rate) for rate in RATES)
    counts = {"members": inside, "others": outside}
    return {**counts, "area": area, "low": low, "high": high, "rates": rates}


def at_rate(trials: Sequence[lira.Trial], values: Tensor, member: Tensor, used: Tensor, rate: float) -> AtRate:
    limits = [lira.threshold(t.other_values[~t.other_member], rate) for t in trials]
    flagged = values > torch.tensor(limits, dtype=values.dtype).repeat_interleave(2).unsqueeze(1)
    shares = torch.tensor([float(f[m].double().mean()) for f, m in zip(flagged, member, strict=True)])
    return AtRate(
        rate=rate,
        members=Share.of(flagged[member]),
        others=Share.of(flagged[~member]),
        used=Share.of(flagged[used]),
        spread=float(shares.std(correction=0)),
        meaningful=int((~member).sum(dim=1).min()) * rate >= 1,
    )


__all__ = ["Attacked", "Findings", "Membership"]
