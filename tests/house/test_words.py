"""What must not stand in the source: hidden synchronisations, unpickling, global seeds and clocks, other modalities."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import condense

CORE = Path(condense.__file__).parent
ROOT = Path(__file__).parents[2]
SHELVES = [folder for shelf in ("plugins", "adapters") for folder in sorted((ROOT / shelf).glob("condense_*"))]
EVERYWHERE = sorted(path for root in (CORE, *SHELVES) for path in root.rglob("*.py"))


def named(path):
    return str(path.relative_to(ROOT))


def calls(path):
    """(line, dotted name) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


# -- no hidden synchronisation: see also test_sync.py, which watches a run --------------------------------------------

LOOPS = [CORE / f"{name}.py" for name in ("engine", "fit", "running", "synthetic", "execution")]
LOOPS += sorted((CORE / "parts").glob("*.py"))
WAITS = {"item", "tolist", "cpu", "numpy", "nonzero", "synchronize"}
ALLOWED = {  # (file, call): why it is not in a step
    ("inits.py", "torch.bincount(groups, minlength=source.task.groups).tolist"): "before the first step",
    ("inits.py", "torch.bincount(groups, minlength=run.task.groups).tolist"): "before the first step",
}


@pytest.mark.parametrize("path", LOOPS, ids=named)
def test_no_loop_waits_for_the_device(path):
    found = [
        (path.name, name)
        for _, name in calls(path)
        if name.rpartition(".")[2] in WAITS and (path.name, name) not in ALLOWED
    ]
    assert found == []


# -- nothing is unpickled ---------------------------------------------------------------------------------------------

UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RESTRICTS = {"adapters/condense_graph/sources/pickles.py": "pickle"}  # subclasses its Unpickler: arrays of known bytes


def listed_only(call):
    """Does a call of torch.load say that it makes nothing but what is listed?"""
    return any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)


@pytest.mark.parametrize("path", EVERYWHERE, ids=named)
def test_nothing_unpickles_or_runs_text(path):
    tree = ast.parse(path.read_text())
    modules = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    modules |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not {module.partition(".")[0] for module in modules} & (UNSAFE - {RESTRICTS.get(named(path))})
    names = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call) and not listed_only(n)}
    unsafe = {"torch.load", "torch.save", "eval", "exec", "np.load", "numpy.load", "os.system"}
    assert not names & (unsafe | {"pickle.load", "pickle.loads", "pickle.Unpickler"})
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


# -- randomness is an argument ----------------------------------------------------------------------------------------

GLOBAL = {
    "torch.manual_seed",
    "torch.seed",
    "torch.initial_seed",
    "torch.cuda.manual_seed",
    "random.seed",
    "np.random.seed",
}
SEEDED = {"condense/rng.py"}  # the one fence
DRAWS = {"rand", "randn", "randint", "randperm", "multinomial", "normal", "bernoulli"}


@pytest.mark.parametrize("path", EVERYWHERE, ids=named)
def test_no_global_seed_and_no_draw_without_a_generator(path):
    if named(path) in SEEDED:
        return
    text = path.read_text()
    assert not {name for _, name in calls(path)} & GLOBAL
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{name}" for name in DRAWS}:
            assert "generator" in {keyword.arg for keyword in node.keywords}, (
                f"{path}:{node.lineno} draws without a key"
            )
    assert not re.search(r"^\s*(import random|from random import)", text, re.MULTILINE)


@pytest.mark.parametrize(
    "path", [p for p in EVERYWHERE if "parts" in p.parts or p.name in ("engine.py", "fit.py")], ids=named
)
def test_no_clock_decides_what_is_computed(path):
    assert not {name.partition(".")[0] for _, name in calls(path)} & {"time", "datetime"}


# -- the core knows no modality ---------------------------------------------------------------------------------------

TORCHES = r"create_graph|retain_graph|fullgraph|graph_from|graph_break"  # of torch and its compiler
COMPILER = {"execution.py": "there a graph is what torch.compile makes"}
OTHERS = re.compile(r"graph|adjacen|torch_geometric|molecul|medmnist|opacus", re.IGNORECASE)


def words(path):
    """(line, token) of every name, string and comment."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        torchs_own = token.string == "graph" and "torch.autograd.graph" in token.line
        if token.type in (tokenize.NAME, tokenize.STRING, tokenize.COMMENT) and not torchs_own:
            yield token.start[0], re.sub(TORCHES, "", token.string)


@pytest.mark.parametrize("path", [p for p in sorted(CORE.rglob("*.py")) if p.name not in COMPILER], ids=named)
def test_nothing_in_the_core_has_heard_of_other_modalities(path):
    found = [(line, word) for line, word in words(path) if OTHERS.search(word)]
    assert [f"{named(path)}:{line}: {word[:60]}" for line, word in found] == []


def identifiers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        for field in ("id", "attr", "arg", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value


IMAGES = re.compile("image|pixel|channel(?!s_last)", re.IGNORECASE)  # channels_last is a memory format of torch
MODALITY_FREE = [
    "engine",
    "fit",
    "running",
    "component",
    "recipe",
    "rng",
    "assets",
    "axes",
    "execution",
    "plugins",
    "hookspecs",
]


@pytest.mark.parametrize("name", MODALITY_FREE)
def test_the_engine_and_its_contracts_name_nothing_after_images(name):
    assert [word for word in identifiers(CORE / f"{name}.py") if IMAGES.search(word)] == []


def test_the_parts_name_nothing_after_images_but_the_role_and_pixels():
    """`Pixels` is the design's word for examples that are stored as they are; `images` is its role."""
    for path in sorted((CORE / "parts").glob("*.py")):
        found = {word for word in identifiers(path) if IMAGES.search(word)}
        assert found <= {"Pixels"}, path.name


# -- the house --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EVERYWHERE, ids=named)
def test_every_module_says_what_it_is_for(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no docstring"
    assert "from __future__ import annotations" in path.read_text()


@pytest.mark.parametrize("path", EVERYWHERE, ids=named)
def test_nothing_points_at_the_machine_it_was_written_on(path):
    assert not re.search(r"/work/|/tmp/|/root/|/home/", path.read_text())


def lengths(roots):
    for path in (p for root in roots for p in root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body:
                    yield body[-1].end_lineno - body[0].lineno + 1, f"{named(path)}:{node.name}"


def test_functions_are_short():
    """p90 under 35 lines, and none over 80: the field's whole method sits in one function of 172 to 390."""
    found = sorted(lengths((CORE, *SHELVES)))
    p90, longest = found[int(0.9 * len(found))], found[-1]
    assert p90[0] < 35
    assert longest[0] <= 80, longest
