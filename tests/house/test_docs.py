"""Docs that cannot drift: generated pages are fresh, every hook is told, CI runs the README's own test command."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from torch import Tensor

import condense
from condense import docs, hookspecs
from condense.api import default_folder
from condense.axes import Distance
from condense.cli import app
from condense.plugins import DISTRIBUTION, Plugin, Registry, registry, using

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
HOOKS = [name for name in vars(hookspecs) if name.startswith("condense_")]


def test_the_generated_pages_are_fresh():
    assert list(docs.stale(ROOT / "docs")) == [], "run python -m condense.docs"


def test_a_stale_page_fails_the_check_and_is_named(tmp_path, capsys):
    assert docs.main([], tmp_path) == 0
    assert docs.main(["--check"], tmp_path) == 0
    (tmp_path / "cli.md").write_text("something else")
    assert docs.main(["--check"], tmp_path) == 1
    assert "cli.md is stale" in capsys.readouterr().out


class Stranger(Distance):
    """A part of another package."""

    def __call__(self, real: Tensor, synthetic: Tensor) -> Tensor:
        return (real - synthetic).abs().sum()


def test_other_packages_do_not_change_the_pages():
    stranger = Plugin("x", "x", "another-package", "1", parts=[Stranger], error=None)
    with using(Registry([*registry().plugins, stranger], registry().manager)) as wider:
        assert docs.methods(wider) == docs.pages()["methods.md"]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_stands_with_its_signature_and_says_when_it_fires(hook):
    section = docs.hooks().partition(f"## {hook}\n")[2].partition("\n## ")[0]
    assert f"def {hook}(" in section
    assert "Fires" in section
    assert "eturn" in section or "joined" in section, "says what becomes of what it returns"


def test_every_recipe_every_part_and_every_command_has_its_place():
    pages = docs.pages()
    ours = [plugin for plugin in registry().plugins if plugin.distribution == DISTRIBUTION]
    for plugin in ours:
        for key, method in plugin.recipes.items():
            name = registry().key(key, method.form)
            assert f"**`{name}`**: {method.title} ({docs.linked(method.paper)})" in pages["methods.md"]
        for part in plugin.parts:
            assert f"#### `{part.name}`\n" in pages["methods.md"]
    for command in app.registered_commands:
        assert f"## condense {command.name or command.callback.__name__}\n" in pages["cli.md"]


def test_generated_text_names_no_machine():
    text = "".join(docs.pages().values())
    assert not re.search(r"/(home|root|tmp|usr|work)/|0x[0-9a-f]{6}|<(class|function|object) ", text)


# -- the README -----------------------------------------------------------------------------------------------------


def commands() -> list[str]:
    """The lines of the README's first block of code."""
    return (ROOT / "README.md").read_text().partition("```sh\n")[2].partition("```")[0].splitlines()


def test_the_readme_opens_with_two_commands_for_a_machine_with_nothing_but_python():
    assert commands() == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/condense run dm",
        "python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/pytest",
    ]
    assert (ROOT / "README.md").read_text().index("```sh\n") < 600


def test_ci_takes_its_test_command_from_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    asked = re.search(r'command=\$\(grep -m 1 -F "(.*)" README.md\)', script)
    assert asked, "ci greps the README"
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if asked[1] in line]
    assert lines[0] == commands()[1]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    for check in ("ruff check .", "ruff format --check .", "bin/mypy", "condense.docs --check"):
        assert check in script


def test_what_is_written_by_hand_gives_names_that_exist():
    known = {name for plugin in registry().plugins for name in plugin.recipes}
    known |= {name for members in registry().parts.values() for name in members}
    for page in PAGES:
        for name in re.findall(r"condense (?:run|show) ([a-z][a-z0-9-]*)", page.read_text()):
            assert name in known | {"tiny-moments"}, f"{page.name}: condense run {name}"


def test_no_two_runs_of_the_readme_go_to_one_folder():
    typed = re.findall(r"(?:^|/bin/)(condense run .*)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    folders: dict[Path, str] = {}
    for line in typed:
        words = shlex.split(line, comments=True)
        asked = dict(zip(words[3::2], words[4::2], strict=True))
        size = {"per_class": int(asked["--per-class"])} if "--per-class" in asked else {}
        settled = condense.plan(words[2], data=asked.get("--data", "digits"), **size)
        folder = Path(asked["--out"]) if "--out" in asked else default_folder(settled)
        assert folders.setdefault(folder, " ".join(words)) == " ".join(words)
    assert len(folders) >= 7


def test_the_code_of_write_a_method_is_that_of_the_example():
    text = (ROOT / "docs" / "write-a-method.md").read_text()
    example = ROOT / "docs" / "example-plugin"
    whole = "".join(path.read_text() for path in [*example.glob("*.py"), *example.glob("tests/*.py")])
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 6
    for part in (part.strip() for block in blocks for part in block.split("\n\n\n")):
        assert part in whole, f"not in the example: {part}"
    project = tomllib.loads("".join(re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)))
    theirs = tomllib.loads((example / "pyproject.toml").read_text())
    for key, value in project["project"].items():
        assert theirs["project"][key] == value


def test_the_tests_that_the_architecture_names_exist():
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", (ROOT / "docs" / "architecture.md").read_text())
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not re.match(r"https?:|mailto:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_no_hint_installs_the_other_package_of_our_name():
    """`condense` on the index is another project: ours is condense-kit."""
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    assert name == DISTRIBUTION
    kinds = {".py", ".md", ".toml", ".css"}
    files = [f for shelf in ("condense", "plugins", "adapters", "docs") for f in (ROOT / shelf).rglob("*.*")]
    for file in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(f for f in files if f.suffix in kinds)]:
        assert not re.search(r"pip install [\"']?condense(?!-kit|-tiny)\b", file.read_text()), file
