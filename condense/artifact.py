"""Artifacts: a folder with a condensed set, the plan that made it, where it comes from, and what the judge said.

    manifest.json         format number; size and SHA-256 of every file below; its own SHA-256. Written last.
    tensors.safetensors   the set's storage and the buffers of its preprocessing (condense.store)
    plan.json, recipe.json, provenance.json, and once it is judged: report.json, report.html, pictures

What lies in the folder and is not in the manifest (`.run` above all) is never read. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import Dataset

from . import files, store
from .axes import Transform
from .component import bad_value, digest
from .data import TensorSampler
from .errors import BadValue, CondenseError, Damaged
from .recipe import Plan, Recipe
from .synthetic import Synthetic
from .task import Task

FORMAT = 1
KIND = "artifact"
MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"
NEEDED = (TENSORS, "plan.json", "recipe.json", "provenance.json")
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)?")  # a file, or a file in one folder
REMEDY = "Restore it from a copy, or make it again."


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

    def dataset(self) -> Dataset[tuple[Tensor, Tensor]]:
        """(image, label) pairs for torch's loaders: see `Examples`."""
        return Examples(self.sampler())

    def update(self, report: Mapping[str, Any] | None = None, extra: Mapping[str, bytes] | None = None) -> Artifact:
        """Add or replace the report, and further files by name (`report.html`, `pictures/images.png`).

        Returns the artifact as it is now. A process killed in between leaves a whole artifact, each of these files old or
        new. Raises `NoRoom` or `BadValue` where the folder cannot be written.
        """
        contents = dict(extra or {})
        if report is not None:
            contents["report.json"] = files.json_bytes(report)
        taken = [name for name in contents if name in (*NEEDED, MANIFEST)]
        if taken:
            raise BadValue("extra", taken[0], "is a file of the artifact itself", "Choose another name.")
        _exchange(self.path, contents)
        return self if report is None else replace(self, report=files.read_json(self.path / "report.json"))


class Examples(Dataset[tuple[Tensor, Tensor]]):
    """A decoded set as a torch Dataset: (example, label).

    example: float tensor (C, H, W) in the networks' own input scale. label: 0-d int64, or (K,) float weights.
    """

    def __init__(self, sampler: TensorSampler) -> None:
        form = sampler.task.form
        self.x, self.y = form.pack(sampler.x)[form.content], sampler.y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


# -- writing --------------------------------------------------------------------------------------------------------


def write_artifact(
    folder: Path, plan: Plan, syn: Synthetic, transform: Transform, task: Task, provenance: Mapping[str, Any]
) -> Artifact:
    """Make `folder` an artifact, or replace the one there; returns it as `load` opens it.

    task: of encoded examples (`syn.task`). provenance: plain JSON; task, preprocessing, stored bytes and the format number
    are added to it. The manifest goes first and comes last: a folder without one is no artifact, whatever else it holds.
    Raises `NoRoom` or `BadValue` where the folder cannot be written.
    """
    facts = {
        **provenance,
        "format": FORMAT,
        "task": task.model_dump(mode="json"),
        "preprocessing": transform.describe(),
        "stored": syn.stored(),
    }
    tensors = {"set": dict(syn.state_dict()), "transform": dict(transform.state_dict())}
    contents = {
        TENSORS: store.pack(tensors, KIND),
        "plan.json": files.json_bytes(plan.model_dump(mode="json")),
        "recipe.json": files.json_bytes(plan.recipe.data()),
        "provenance.json": files.json_bytes(facts),
    }
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
    for name, data in contents.items():
        files.write(folder / name, data)
    _write_manifest(folder, {name: _entry(data) for name, data in contents.items()})
    return load(folder)


def _exchange(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace files of an artifact. Meanwhile the manifest admits what was there (`was`; null: nothing) and what comes."""
    listed = _listed(folder)
    before = {name: {key: listed[name][key] for key in ("bytes", "sha256")} for name in contents if name in listed}
    coming = {name: _entry(data) for name, data in contents.items()}
    _write_manifest(folder, {**listed, **{name: {**entry, "was": before.get(name)} for name, entry in coming.items()}})
    for name, data in contents.items():
        with files.writing(folder / name):
            (folder / name).parent.mkdir(exist_ok=True)
        files.write(folder / name, data)
    _write_manifest(folder, {**listed, **coming})


def _entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write_manifest(folder: Path, listed: Mapping[str, Any]) -> None:
    manifest = {"format": FORMAT, "files": listed}
    files.write_json(folder / MANIFEST, {**manifest, "sha256": _seal(manifest)})


def _seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest as it would be written without its seal."""
    return hashlib.sha256(files.json_bytes(manifest)).hexdigest()


# -- reading --------------------------------------------------------------------------------------------------------


def load(path: str | Path) -> Artifact:
    """Open the artifact in the folder `path`, on the CPU, after verifying every file that its manifest lists.

    Raises `Damaged`, naming the file, for what is missing, changed, hostile or newer than this reader; `BadValue` where
    the folder is no artifact, or where a part that it names is not installed.
    """
    folder = Path(path)
    if not (folder / MANIFEST).exists() and not any((folder / name).exists() for name in NEEDED):
        unfinished = (folder / ".run").is_dir()
        remedy = (
            f"Finish it with: condense resume {folder}" if unfinished else "Give the folder that a run has written."
        )
        problem = "is a run that is not finished" if unfinished else "is no artifact: it has no manifest.json"
        raise BadValue("path", str(folder), problem, remedy)
    manifest = _manifest(folder)
    read = store.reader(READERS, manifest["format"], folder / MANIFEST)
    return read(folder, _verified(folder, manifest["files"]))


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest, once its seal has been found right. Seal and format number stand alike in every format."""
    path = folder / MANIFEST
    manifest = files.read_json(path)
    if not isinstance(manifest, dict) or "format" not in manifest or not isinstance(manifest.get("files"), dict):
        raise Damaged(str(path), type(manifest).__name__, "is no manifest", REMEDY)
    sealed = {key: value for key, value in manifest.items() if key != "sha256"}
    # the bytes are compared, not only the values: no other spelling of the same JSON passes
    whole = files.json_bytes({**sealed, "sha256": _seal(sealed)})
    if files.read(path) != whole:
        raise Damaged(str(path), manifest.get("sha256"), "is not as it was written: its SHA-256 is wrong", REMEDY)
    return manifest


def _listed(folder: Path) -> dict[str, Any]:
    manifest = _manifest(folder)
    store.reader(READERS, manifest["format"], folder / MANIFEST)
    return manifest["files"]  # type: ignore[no-any-return]


def _verified(folder: Path, listed: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of every listed file that is there, by name; raises `Damaged` where one is not as the manifest says."""
    missing = [name for name in NEEDED if name not in listed]
    if missing:
        raise Damaged(str(folder / MANIFEST), missing[0], "does not list a file that every artifact has", REMEDY)
    found = {name: _verify(folder, name, entry) for name, entry in listed.items()}
    return {name: data for name, data in found.items() if data is not None}


def _verify(folder: Path, name: str, entry: Any) -> bytes | None:
    """The bytes of one file; None where it is not there yet, and was not before (an update was cut short)."""
    if not NAME.fullmatch(name) or not isinstance(entry, dict):
        raise Damaged(str(folder / MANIFEST), name, "lists a name that no artifact has", REMEDY)
    path = folder / name
    if path.parent != folder and path.parent.is_symlink():
        raise Damaged(str(path.parent), "a link", "must be a plain folder", REMEDY)
    admitted = [{key: entry.get(key) for key in ("bytes", "sha256")}, *([entry["was"]] if entry.get("was") else [])]
    if "was" in entry and entry["was"] is None and not path.exists():
        return None
    data = files.read(path)
    if _entry(data) not in admitted:
        raise Damaged(str(path), f"{len(data)} bytes", "is not as it was written: its SHA-256 is wrong", REMEDY)
    return data


def _read_1(folder: Path, contents: Mapping[str, bytes]) -> Artifact:
    """Format 1, from verified bytes."""
    documents = {name: files.parse_json(contents[name], folder / name) for name in contents if name in JSONS}
    plan = read_plan(documents["plan.json"], folder / "plan.json")
    if documents["recipe.json"] != documents["plan.json"]["recipe"]:
        raise Damaged(str(folder / "recipe.json"), digest(documents["recipe.json"]), "is not the plan's recipe", REMEDY)
    tensors = store.unpack(contents[TENSORS], KIND, folder / TENSORS, finite=True)
    facts = documents["provenance.json"]
    task = _modelled(lambda: Task.model_validate(facts["task"]), "task", folder / "provenance.json")
    transform = _filled(lambda: plan.recipe.preprocess.blank(task), tensors, "transform", folder)
    return Artifact(
        folder, plan, task, _set(plan, task, tensors, folder), transform, facts, documents.get("report.json")
    )


JSONS = ("plan.json", "recipe.json", "provenance.json", "report.json")
READERS: dict[int, Callable[[Path, Mapping[str, bytes]], Artifact]] = {1: _read_1}


def read_plan(data: Any, path: Path) -> Plan:
    """The plan in parsed JSON; `path` is what errors name. Raises `BadValue` for a part that is not installed."""
    return _modelled(lambda: Plan.model_validate(data), "plan", path)


def _modelled(make: Callable[[], Any], where: str, path: Path) -> Any:
    """Run `make`: a part that is unknown here is a `BadValue` (with what may bring it), anything else is `Damaged`."""
    try:
        return make()
    except ValidationError as error:
        if error.errors(include_url=False)[0]["type"] == "component":
            raise bad_value(error, where) from None
        raise Damaged(str(path), str(error), f"holds no {where} of condense", REMEDY) from None
    except (KeyError, TypeError) as error:
        raise Damaged(str(path), str(error), f"holds no {where} of condense", REMEDY) from None


def _set(plan: Plan, task: Task, tensors: Mapping[str, Any], folder: Path) -> Synthetic:
    """The stored set: an empty one of the recipe's parameterization, filled."""
    path = folder / TENSORS
    groups = tensors["set"].get("item_groups") if isinstance(tensors.get("set"), dict) else None
    if not isinstance(groups, Tensor) or groups.dim() != 1 or groups.dtype != torch.int64 or len(groups) == 0:
        raise Damaged(str(path), "set.item_groups", "does not say which class each item is about", REMEDY)
    if not bool(((groups >= 0) & (groups < task.groups)).all()):
        raise Damaged(str(path), "set.item_groups", f"holds classes outside 0..{task.groups - 1}", REMEDY)
    recipe = plan.recipe

    def empty(at: Tensor) -> Synthetic:
        return recipe.parameterization.empty(task, at, recipe.labels)

    try:  # first without memory, so that a shape that does not fit is refused before it is allocated
        with torch.device("meta"):
            hollow = empty(groups.to("meta"))
    except (NotImplementedError, RuntimeError):
        hollow = None
    if hollow is not None:
        _compare(hollow, tensors["set"], "set", path)
    synthetic: Synthetic = _filled(lambda: empty(groups), tensors, "set", folder)
    _check_targets(synthetic, task, path)
    return synthetic


def _check_targets(syn: Synthetic, task: Task, path: Path) -> None:
    y = syn.y
    if not y.is_floating_point() and not bool(((y >= 0) & (y < task.groups)).all()):
        raise Damaged(str(path), "set.y", f"holds labels outside 0..{task.groups - 1}", REMEDY)


def _filled(make: Callable[[], Any], tensors: Mapping[str, Any], part: str, folder: Path) -> Any:
    """A module with exactly the stored tensors in it."""
    path = folder / TENSORS
    state = tensors.get(part)
    if not isinstance(state, dict):
        raise Damaged(str(path), part, "is not in the file", REMEDY)
    try:
        module = make()
        _compare(module, state, part, path)
        module.load_state_dict(state)
    except CondenseError:
        raise
    except (RuntimeError, ValueError, MemoryError) as error:
        raise Damaged(str(path), str(error), f"does not fit the recipe's {part}", REMEDY) from None
    return module


def _compare(module: nn.Module, state: Mapping[str, Any], part: str, path: Path) -> None:
    """Names, shapes and dtypes, one by one: torch alone would cast in silence."""
    expected = {key: (tuple(value.shape), value.dtype) for key, value in module.state_dict().items()}
    found = {
        key: (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else () for key, value in state.items()
    }
    for key in _union(expected, found):
        if expected.get(key) != found.get(key):
            problem = f"{part}.{key} should be {_described(expected.get(key))}"
            raise Damaged(str(path), _described(found.get(key)), problem, REMEDY)


def _union(a: Iterable[str], b: Iterable[str]) -> list[str]:
    return sorted({*a, *b})


def _described(what: Any) -> str:
    return f"{what[0]} {what[1]}" if what else "absent" if what is None else "no tensor"
