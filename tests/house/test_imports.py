"""Who may import whom, read from the source: the core knows no plugin, and no plugin knows another."""

from __future__ import annotations

import ast
import importlib.metadata
import tomllib
from pathlib import Path

import pytest

import condense

CORE = Path(condense.__file__).parent
ROOT = Path(__file__).parents[2]
PACKAGES = [folder for shelf in ("plugins", "adapters") for folder in sorted((ROOT / shelf).glob("condense_*"))]
PLUGINS = {folder.name for folder in PACKAGES}


def imports(path, package):
    """The absolute names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield resolved(node, package)


def resolved(node, package):
    if node.level == 0:
        return node.module
    parts = package.split(".")[: len(package.split(".")) - (node.level - 1)]
    return ".".join([*parts, *([node.module] if node.module else [])])


def package_of(path, root):
    return ".".join(path.relative_to(root.parent).with_suffix("").parts[:-1])


def files(root):
    return sorted(root.rglob("*.py"))


def within(module, package):
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", files(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_the_core_imports_no_plugin_and_not_its_own_parts(path):
    for module in imports(path, package_of(path, CORE)):
        assert module.partition(".")[0] not in PLUGINS
        if path.parent == CORE:
            assert not within(module, "condense.parts"), "name it: member(Axis, 'name')"


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_plugins_and_adapters_import_condense_and_themselves_never_each_other(folder):
    for path in files(folder):
        for module in imports(path, package_of(path, folder)):
            others = PLUGINS - {folder.name}
            assert module.partition(".")[0] not in others, f"{path}: name it through the registry"
            assert not within(module, "condense.cli")


def private(path, root):
    """(module, name) of everything private that a file takes from another package's modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module and not within(node.module, root):
            yield from ((node.module, alias.name) for alias in node.names if alias.name.startswith("_"))


def test_plugins_use_the_public_door_only():
    found = [
        (path.name, *pair)
        for folder in (*PACKAGES, CORE / "parts")
        for path in files(folder)
        for pair in private(path, folder.name)
        if pair[0].startswith("condense")
    ]
    assert found == []


def test_the_engine_and_what_it_stands_on_import_nothing_of_a_modality():
    """No pictures, no charts, no command line below the engine."""
    seen, todo = set(), ["engine"]
    outside = set()
    while todo:
        name = todo.pop()
        path = CORE / f"{name}.py"
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        for module in imports(path, "condense"):
            if within(module, "condense"):
                todo.append(module.partition(".")[2].partition(".")[0])
            else:
                outside.add(module.partition(".")[0])
    assert {"engine", "fit", "running", "data", "component"} <= seen
    assert not outside & {"torchvision", "PIL", "matplotlib", "sklearn", "typer", "rich", "torch_geometric", "medmnist"}
    assert not seen & {"cli", "pictures", "charts", "html", "terminal"}


def test_importing_condense_is_quick_and_loads_no_torch():
    import subprocess
    import sys

    code = "import condense, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# -- packaging ------------------------------------------------------------------------------------------------------


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_on_a_shelf_is_packed_and_typed():
    packed = set(project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert packed == {"condense", *(str(folder.relative_to(ROOT)) for folder in PACKAGES)}
    for folder in (CORE, *PACKAGES):
        assert (folder / "py.typed").is_file(), f"{folder.name} is not marked as typed"


def test_every_entry_point_resolves_to_hooks():
    table = project()["project"]["entry-points"]["condense"]
    installed = {e.name: e for e in importlib.metadata.entry_points(group="condense") if e.dist.name == "condense-kit"}
    assert {name: entry.value for name, entry in installed.items()} == table
    for entry in installed.values():
        hooks = [name for name in dir(entry.load()) if name.startswith("condense_")]
        assert hooks, f"{entry.value} has no hook"


def test_every_module_of_a_method_is_an_entry_point():
    """A file with hooks that nobody loads would be dead without a word."""
    table = set(project()["project"]["entry-points"]["condense"].values())
    for folder in (*PACKAGES, CORE / "parts"):
        root = folder.parent.parent if folder.name == "parts" else folder.parent
        for path in files(folder):
            text = path.read_text()
            if "@hookimpl" in text:
                module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
                assert module in table, f"{module} has hooks, but no entry point"


def test_scripts_resolve():
    for entry in importlib.metadata.entry_points(group="console_scripts"):
        if entry.dist.name == "condense-kit":
            assert callable(entry.load())
