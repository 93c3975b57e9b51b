"""Wheels: what ours holds, and a stranger's plugin that is built, installed beside ours and run by the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME, VERSION = PROJECT["project"]["name"].replace("-", "_"), PROJECT["project"]["version"]


def done(command: list[str | Path], **more) -> str:
    """What the command prints; fails with all it said where it fails."""
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, **more)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def built(source: Path, out: Path, *targets: str) -> Path:
    done(
        [sys.executable, "-m", "hatchling", "build", "-d", out, *(word for t in targets for word in ("-t", t))],
        cwd=source,
    )
    return out


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    return built(ROOT, tmp_path_factory.mktemp("ours"), "wheel", "sdist")


@pytest.fixture(scope="module")
def wheel(ours) -> zipfile.ZipFile:
    return zipfile.ZipFile(ours / f"{NAME}-{VERSION}-py3-none-any.whl")


# -- what our own wheel and sdist hold ------------------------------------------------------------------------------


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    shelves = [Path(package) for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    expected = {
        str(path.relative_to(ROOT / shelf.parent))
        for shelf in shelves
        for path in (ROOT / shelf).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    found = {name for name in wheel.namelist() if not name.startswith(f"{NAME}-{VERSION}.dist-info/")}
    assert found == expected
    needed = {"condense/py.typed", "condense/report.css", "condense_image/py.typed", "condense_image/published/dm.toml"}
    assert needed <= found


def test_the_wheel_says_what_it_is(wheel):
    told = Parser().parsestr(wheel.read(f"{NAME}-{VERSION}.dist-info/METADATA").decode())
    assert (told["Name"], told["Version"], told["Requires-Python"]) == ("condense-kit", VERSION, ">=3.11")
    assert told["License-Expression"] == "MIT"
    assert f"{NAME}-{VERSION}.dist-info/licenses/LICENSE" in wheel.namelist()
    assert {"graph", "med", "private", "all", "test"} <= set(told.get_all("Provides-Extra"))
    needs = [line for line in told.get_all("Requires-Dist") if "extra ==" not in line]
    assert {"torch>=2.11", "torchvision"} <= set(needs)
    assert not [line for line in needs if "==" in line or "+cpu" in line]


def test_the_entry_points_are_those_of_the_table_of_contents(wheel):
    told = ConfigParser(delimiters="=")
    told.read_string(wheel.read(f"{NAME}-{VERSION}.dist-info/entry_points.txt").decode())
    assert dict(told["condense"]) == PROJECT["project"]["entry-points"]["condense"]
    assert dict(told["console_scripts"]) == PROJECT["project"]["scripts"]


def test_the_sdist_can_be_tested_and_holds_nothing_that_was_made(ours):
    with tarfile.open(ours / f"{NAME}-{VERSION}.tar.gz") as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tests/conftest.py"} <= found
    assert {"docs/example-plugin/condense_tiny.py", "docs/architecture.md", ".ci/run"} <= found
    made = ("runs/", "dist/", ".venv/", ".ci-venv/", ".git/")
    assert not [name for name in found if name.startswith(made) or "__pycache__" in name or "_cache/" in name]


# -- a stranger's plugin --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stranger(ours, tmp_path_factory) -> Path:
    """The bin folder of a new environment with our wheel and the example's; it sees torch where the tests see it."""
    place = tmp_path_factory.mktemp("stranger")
    source = shutil.copytree(ROOT / "docs" / "example-plugin", place / "source")
    wheels = [next(ours.glob("*.whl")), next(built(source, place / "dist", "wheel").glob("*.whl"))]
    venv.create(place / "venv", with_pip=False, symlinks=True)
    python = place / "venv" / "bin" / "python"
    site = Path(done([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    done([sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", *wheels])
    (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return python.parent


@pytest.fixture
def alone(tmp_path, monkeypatch) -> Path:
    """A folder of its own to run in, with an empty cache and no path to the source tree."""
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_stranger_stands_beside_ours(stranger, alone):
    plugins = json.loads(done([stranger / "condense", "plugins", "--json"]))["plugins"]
    assert [plugin["module"] for plugin in plugins if plugin["error"]] == []
    tiny = next(plugin for plugin in plugins if plugin["distribution"] == "condense-tiny")
    assert tiny["parts"] == {"objective": ["pixel-moments"], "parameterization": ["half-size"]}
    methods = json.loads(done([stranger / "condense", "list", "--json"]))["methods"]
    assert {("tiny-moments", "condense-tiny"), ("dm", "condense-kit")} <= {(m["name"], m["from"]) for m in methods}


def test_the_stranger_runs_and_is_judged_by_the_command_line(stranger, alone):
    small = [f"protocol.{setting}" for setting in ("epochs=2", "nets.0.width=4", "nets.0.depth=2", "nets.0.pad=1")]
    command = [stranger / "condense", "run", "tiny-moments", "--steps", "3", "--per-class", "2", "--out", "made"]
    command += ["--repeats", "1", "--no-full", "--json", *(word for leaf in small for word in ("--set", leaf))]
    told = json.loads(done(command))
    assert [row["kind"] for row in told["rows"]] == ["condensed", "random"]
    assert told["stored"]["images"] == 20 * 4 * 4 * 4, "20 images of 4 x 4 float32"
    look = "import condense; print([(tuple(x.shape), int(y)) for x, y in condense.load('made').dataset()][-1])"
    assert done([stranger / "python", "-c", look]).strip() == "((1, 8, 8), 9)"
    provenance = json.loads(Path("made/provenance.json").read_text())
    assert provenance["versions"]["condense-tiny"] == "0.1.0"


def test_the_strangers_own_tests_pass(stranger, alone):
    copy = shutil.copytree(ROOT / "docs" / "example-plugin" / "tests", alone / "tests")
    told = done([stranger / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", copy], env={**os.environ})
    assert "5 passed" in told
