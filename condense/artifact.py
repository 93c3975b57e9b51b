"""Artifacts: a folder with a condensed set, the plan that made it, where it comes from, and what the judge said.

    manifest.json         format number, size and SHA-256 of every file below, its own SHA-256 (condense.manifest)
    tensors.safetensors   the set's storage and the buffers of its preprocessing (condense.store)
    plan.json, recipe.json, provenance.json, and once it is judged: report.json, report.html, pictures

What lies in the folder and is not in the manifest (`.run` above all) is never read. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import Dataset

from . import files, manifest, store
from .axes import Transform
from .component import bad_value
from .data import TensorSampler
from .errors import BadValue, CondenseError, Damaged
from .files import REMEDY
from .manifest import MANIFEST
from .plugins import DISTRIBUTION
from .program import hint
from .recipe import Plan, Recipe
from .synthetic import Synthetic
from .task import Task

FORMAT = 1
KIND = "artifact"
TENSORS = "tensors.safetensors"
NEEDED = (TENSORS, "plan.json", "recipe.json", "provenance.json")
M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


@dataclass(frozen=True)
class Artifact:
    """A condensed set on disk, opened and verified. `task` is that of encoded examples, as the networks see them."""

    path: Path
    plan: Plan
    task: Task
    synthetic: Synthetic
    transform: Transform
    provenance: Mapping[str, Any]
    report: Mapping[str, Any] | None = None

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What scale the images are in: the description of the transform that they have been through."""
        return self.transform.describe()

    @property
    def stored(self) -> dict[str, int]:
        """Bytes stored, by kind: images, labels, decoder, external."""
        return self.synthetic.stored()

    def sampler(self) -> TensorSampler:
        """The set decoded once, as networks are trained on it."""
        return self.synthetic.freeze()

    def dataset(self) -> Dataset[tuple[Any, Tensor]]:
        """(example, label) pairs for torch's loaders: see `Examples`."""
        return Examples(self.sampler())

    def update(self, report: Mapping[str, Any] | None = None, extra: Mapping[str, bytes] | None = None) -> Artifact:
        """Add or replace the report, and further files by name (`report.html`, `pictures/images.png`).

        Returns the artifact as it is now. A process killed in between leaves a whole artifact in which each of these
        files is the old or the new one. Raises `NoRoom` or `BadValue` where the folder cannot be written.
        """
        contents = dict(extra or {})
        if report is not None:
            contents["report.json"] = files.json_bytes(report)
        wrong = [name for name in contents if name in (*NEEDED, MANIFEST) or not manifest.NAME.fullmatch(name)]
        if wrong:
            raise BadValue("extra", wrong[0], "is no name for a further file", "Use letters, digits, - _ . and one /.")
        manifest.exchange(self.path, contents)
        return self if report is None else replace(self, report=files.read_json(self.path / "report.json"))


class Examples(Dataset[tuple[Any, Tensor]]):
    """A decoded set as a torch Dataset: (example, label).

    example: what `Form.example` gives, in the networks' own input scale: of images a float tensor (C, H, W).
    label: 0-d int64, or (K,) float weights.
    """

    def __init__(self, sampler: TensorSampler) -> None:
        self.form, self.x, self.y = sampler.task.form, sampler.x, sampler.y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return self.form.example(self.x, index), self.y[index]


def write_artifact(
    folder: Path, plan: Plan, syn: Synthetic, transform: Transform, task: Task, provenance: Mapping[str, Any]
) -> Artifact:
    """Make `folder` an artifact, or replace the one there; returns it as `load` opens it.

    task: of encoded examples (`syn.task`). provenance: plain JSON; the format number, task, preprocessing and stored
    bytes are added to it. Raises `NoRoom` or `BadValue` where the folder cannot be written.
    """
    facts = {
        **provenance,
        "format": FORMAT,
        "task": task.model_dump(mode="json"),
        "preprocessing": transform.describe(),
        "stored": syn.stored(),
    }
    contents = {
        TENSORS: store.pack({"set": syn.state_dict(), "transform": transform.state_dict()}, KIND),
        "plan.json": files.json_bytes(plan.model_dump(mode="json")),
        "recipe.json": files.json_bytes(plan.recipe.dump()),
        "provenance.json": files.json_bytes(facts),
    }
    manifest.write(folder, FORMAT, contents)
    return load(folder)


# -- opening --------------------------------------------------------------------------------------------------------


def load(path: str | Path) -> Artifact:
    """Open the artifact in the folder `path`, on the CPU, after verifying every file that its manifest lists.

    Raises `Damaged`, naming the file, for what is missing, changed, hostile or newer than this reader; `BadValue` where
    the folder is no artifact, or where a part that it names is not installed.
    """
    folder = Path(path)
    if not (folder / MANIFEST).exists():
        _refuse_unlisted(folder)
    listing = manifest.read(folder)
    read = store.reader(READERS, listing["format"], folder / MANIFEST)
    contents = manifest.verified(folder, listing["files"])
    missing = [name for name in NEEDED if name not in contents]
    if missing:
        raise Damaged(str(folder / MANIFEST), missing[0], "does not list a file that every artifact has", REMEDY)
    return read(folder, contents)


def _refuse_unlisted(folder: Path) -> None:
    """Say what a folder without a manifest may be: an unfinished run, or no artifact; else the manifest is missing."""
    if (folder / ".run").is_dir():
        remedy = f"Finish it with: {hint('resume', folder)}"
        raise BadValue("path", str(folder), "is a run that is not finished", remedy)
    if not any((folder / name).exists() for name in NEEDED):
        remedy = "Give the folder that a run has made."
        raise BadValue("path", str(folder), f"is no artifact: it has no {MANIFEST}", remedy)


def _read_1(folder: Path, contents: Mapping[str, bytes]) -> Artifact:
    """Format 1, from verified bytes."""
    named = [name for name in contents if name.endswith(".json") and "/" not in name]
    documents = {name: files.parse_json(contents[name], folder / name) for name in named}
    plan = read_plan(documents["plan.json"], folder / "plan.json")
    if documents["recipe.json"] != documents["plan.json"]["recipe"]:
        raise Damaged(str(folder / "recipe.json"), "another recipe", "is not the recipe of plan.json", REMEDY)
    facts = documents["provenance.json"]
    task: Task = _modelled(lambda: Task.model_validate(facts["task"]), "task", folder / "provenance.json")
    path = folder / TENSORS
    tensors = store.unpack(contents[TENSORS], KIND, path, finite=True)
    transform = _filled(lambda: plan.recipe.preprocess.blank(task), tensors, "transform", path)
    groups = _groups(tensors, task, path)
    recipe = plan.recipe
    syn = _filled(lambda: recipe.parameterization.empty(task, groups, recipe.labels), tensors, "set", path)
    if not syn.y.is_floating_point():
        _within(syn.y, task, "set.y", path)
    return Artifact(folder, plan, task, syn, transform, facts, documents.get("report.json"))


READERS: dict[int, Callable[[Path, Mapping[str, bytes]], Artifact]] = {1: _read_1}


def read_plan(data: Any, path: Path) -> Plan:
    """The plan in parsed JSON; `path` is what errors name. Raises `BadValue` for a part that is not installed."""
    return _modelled(lambda: Plan.model_validate(data), "plan", path)


def _modelled(make: Callable[[], T], where: str, path: Path) -> T:
    """Run `make`: a part that is unknown here is a `BadValue` (with what may bring it), anything else is `Damaged`."""
    try:
        return make()
    except ValidationError as error:
        found = bad_value(error, where)
        if error.errors(include_url=False)[0]["type"] == "component":
            raise found from None
        remedy = f"{REMEDY} If a newer condense wrote it: pip install --upgrade {DISTRIBUTION}"
        raise Damaged(
            str(path), found.value, f"holds no {where} of condense: {found.field} {found.problem}", remedy
        ) from None
    except (KeyError, TypeError) as error:
        raise Damaged(str(path), str(error), f"holds no {where} of condense", REMEDY) from None


def _groups(tensors: Any, task: Task, path: Path) -> Tensor:
    """The class of each item, which says how much is stored."""
    stored = tensors.get("set") if isinstance(tensors, dict) else None
    groups = stored.get("item_groups") if isinstance(stored, dict) else None
    if not isinstance(groups, Tensor) or groups.dim() != 1 or groups.dtype != torch.int64 or len(groups) == 0:
        raise Damaged(str(path), "set.item_groups", "does not say which class each item is about", REMEDY)
    _within(groups, task, "set.item_groups", path)
    return groups


def _within(classes: Tensor, task: Task, name: str, path: Path) -> None:
    if not bool(((classes >= 0) & (classes < task.groups)).all()):
        raise Damaged(str(path), name, f"holds classes outside 0..{task.groups - 1}", REMEDY)


def _filled(make: Callable[[], M], tensors: Any, part: str, path: Path) -> M:
    """The module that `make` shapes, with exactly the stored tensors in it."""
    state = tensors.get(part) if isinstance(tensors, dict) else None
    if not isinstance(state, dict):
        raise Damaged(str(path), "nothing", f"holds no {part}", REMEDY)
    try:
        _compare(_hollow(make), state, part, path)
        module = make()
        _compare(module, state, part, path)
        module.load_state_dict(state)
    except CondenseError:
        raise
    except (RuntimeError, ValueError, MemoryError) as error:
        raise Damaged(str(path), str(error), f"does not fit the recipe's {part}", REMEDY) from None
    return module


def _hollow(make: Callable[[], M]) -> M | None:
    """The module without memory, so that a shape that does not fit is refused before it is allocated; None: cannot."""
    try:
        with torch.device("meta"):
            return make()
    except RuntimeError:
        return None


def _compare(module: nn.Module | None, state: Mapping[str, Any], part: str, path: Path) -> None:
    """Names, shapes and dtypes, one by one: torch alone would cast in silence. Sizes of what is `free` are any."""
    if module is None:
        return
    free: frozenset[str] = getattr(module, "free", frozenset())
    expected = {key: _described(value, key in free) for key, value in module.state_dict().items()}
    found = {key: _described(value, key in free) for key, value in state.items()}
    for key in sorted({*expected, *found}):
        if expected.get(key) != found.get(key):
            problem = f"{part}.{key} should be {expected.get(key, 'absent')}"
            raise Damaged(str(path), found.get(key, "absent"), problem, REMEDY)


def _described(value: Any, free: bool) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype} " + (f"of {value.dim()} dimensions" if free else str(tuple(value.shape)))
