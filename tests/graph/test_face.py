"""The command `condense-graph`: the commands of `condense` in the words of graphs, and nothing beyond them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

import condense_graph
from condense import cli
from condense.artifact import load
from condense.errors import BadValue
from condense_graph.cli import FACE

APP = FACE.app()
JUDGED = ("--repeats", "1", "--set", "protocol.steps=20")
LEARN = ("run", "gcond", "--steps", "3", "--set", "selection=null")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to work in, with a cache of its own; `made` is what the shortest command prints, cut to 3 steps."""
    folder = tmp_path_factory.mktemp("face")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CONDENSE_CACHE", str(folder / "cache"))
        patch.delenv("COLUMNS", raising=False)
        made = call(*LEARN, *JUDGED)
        assert made.exit_code == 0, made.output
        yield SimpleNamespace(folder=folder, made=made)


def call(*arguments, app=APP, name="condense-graph"):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name=name)


def plain(*arguments):
    """The same program without a face."""
    return call(*arguments, app=cli.app, name="condense")


def options(app):
    """Command -> its options."""
    group = typer.main.get_command(app)
    return {
        name: {o for p in command.params if p.param_type_name == "option" for o in (*p.opts, *p.secondary_opts)}
        for name, command in group.commands.items()
    }


# -- spelling -------------------------------------------------------------------------------------------------------


def test_the_commands_are_those_of_condense_with_their_options_spelt_for_graphs():
    ours, theirs = options(APP), options(cli.app)
    assert set(ours) == set(theirs)
    for name in theirs:
        expected = {"--nodes" if o == "--total" else o for o in theirs[name]} - {"--form"}
        assert ours[name] - {"--setting"} == expected
        assert ("--setting" in ours[name]) == (name in ("run", "show", "experts"))


def test_help_speaks_of_this_program_and_loads_no_torch():
    code = "import sys, condense_graph.cli as c; c.FACE.app()({}, standalone_mode=False); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code.format(["run", "--help"])], capture_output=True, text=True)
    assert "condense-graph list" in done.stdout
    assert "karate" in done.stdout
    assert "--nodes" in done.stdout
    assert "True" not in done.stdout.splitlines()[-1]


def test_a_face_leaves_condense_as_it_is():
    run = typer.main.get_command(cli.app).commands["run"]
    assert {p.name: p.default for p in run.params}["data"] == "digits"
    assert "`condense list`" in next(p.help for p in run.params if p.name == "data")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((), ("--data", "karate")),
        (("--nodes", "8", "--data", "sbm"), ("--total", "8", "--data", "sbm")),
        (("--ratio", "0.1", "--of", "all", "--data", "sbm"), ("--ratio", "0.1", "--of", "all", "--data", "sbm")),
        (("--setting", "inductive"), ("--data", "karate", "--set", "data.setting=inductive")),
        (
            ("--setting", "inductive", "--set", "outer.steps=7"),
            ("--data", "karate", "--set", "outer.steps=7", "--set", "data.setting=inductive"),
        ),
    ],
)
def test_condense_does_the_same_in_its_own_words(ours, theirs):
    a, b = call("show", "gcond", *ours), plain("show", "gcond", *theirs)
    assert (a.exit_code, b.exit_code) == (0, 0), a.output + b.output
    assert a.stdout == b.stdout
    shown = [json.loads(done("show", "gcond", *how, "--json").stdout) for done, how in ((call, ours), (plain, theirs))]
    assert shown[0] == shown[1]


def test_the_setting_is_a_field_of_the_data(place):
    asked = ("--data", "sbm", "--nodes", "9", "--setting", "inductive")
    done = call("run", "random", *asked, "--no-eval", "--out", "inductive")
    assert done.exit_code == 0, done.output
    found = load("inductive")
    assert found.plan.data.setting == "inductive"
    assert found.provenance["source"]["size"]["nodes"] < found.provenance["source"]["population"]


# -- running --------------------------------------------------------------------------------------------------------


def test_the_shortest_command_condenses_the_karate_club_and_says_both_shares(place):
    lines = place.made.stdout.splitlines()
    assert lines[0].startswith("gcond on karate, 4 nodes (12 % of all 34, 100 % of the 4 to learn from), 3 steps, ")
    for text in ("test nodes, protocol graph", "full data", "random nodes", "condensed nodes"):
        assert text in place.made.stdout
    assert "images" not in place.made.output
    assert lines[-1] == "report    runs/gcond-karate-4-0/report.html"


def test_its_page_draws_the_nodes_and_says_what_they_are_like(place):
    page = (place.folder / "runs/gcond-karate-4-0/report.html").read_text()
    assert "<h2>The nodes</h2>" in page
    assert "4 nodes instead of 34" in page
    for name in ("edges", "density", "mean degree", "isolated nodes"):
        assert f">{name}</th>" in page
    assert "images" not in page.partition("<details>")[0].partition("</style>")[2]
    listed = json.loads((place.folder / "runs/gcond-karate-4-0/manifest.json").read_text())["files"]
    drawn = {name for name in listed if name.startswith("pictures/")}
    assert drawn in (
        {"pictures/graph.png", "pictures/adjacency.png", "pictures/loss.png"},
        {"pictures/nodes.png", "pictures/loss.png"},
    )


def test_a_share_of_all_nodes_is_said_as_one(place):
    done = call("run", "random", "--data", "sbm", "--ratio", "0.05", "--of", "all", "--no-eval")
    assert done.exit_code == 0, done.output
    assert "9 nodes (5 % of all 180, " in done.stdout
    assert re.search(r"artifact  runs/random-sbm-\w+-0\.05-all-0\n", done.stdout)


def test_a_pause_and_an_unfinished_run_say_how_this_program_goes_on(place):
    paused = call(*LEARN, "--minutes", "0.0001", "--no-eval", "--out", "paused", "--seed", "1")
    assert paused.exit_code == 75, paused.output
    assert "Resume with: condense-graph resume paused" in paused.stderr
    assert "Finish it with: condense-graph resume paused" in call("eval", "paused").stderr
    assert "Finish it with: condense resume paused" in plain("eval", "paused").stderr
    resumed = call("resume", "paused", "--no-eval")
    assert resumed.exit_code == 0, resumed.output
    whole = call(*LEARN, "--no-eval", "--out", "whole", "--seed", "1")
    assert whole.exit_code == 0
    a, b = ((place.folder / name / "tensors.safetensors").read_bytes() for name in ("paused", "whole"))
    assert a == b


def test_json_is_one_object(place):
    found = json.loads(call(*LEARN, *JUDGED, "--json").stdout)
    assert (found["data"], found["images"], found["noun"]) == ("karate", 4, "nodes")
    assert {row["kind"] for row in found["rows"]} == {"condensed", "random", "full"}


def test_list_names_what_is_for_graphs():
    found = json.loads(call("list", "--json").stdout)
    assert {row["form"] for row in found["methods"]} == {"nodes", "graphs"}
    assert {"gcond", "doscond", "random", "whole"} <= {row["name"] for row in found["methods"]}
    assert "dm" not in {row["name"] for row in found["methods"]}
    assert {"karate", "cora", "mutag"} <= set(found["data"])
    assert "digits" not in found["data"]
    assert "dm" in {row["name"] for row in json.loads(plain("list", "--json").stdout)["methods"]}


# -- refusals -------------------------------------------------------------------------------------------------------

REFUSALS = {
    "below one node of a class": (("run", "random", "--nodes", "3"), "at least 4"),
    "more than there are to learn from": (("run", "random", "--nodes", "5"), "more than the 4"),
    "no node at all": (("run", "random", "--nodes", "0"), "1 or more"),
    "two sizes": (("run", "random", "--nodes", "4", "--ratio", "0.5"), "Give --nodes or --ratio"),
    "no share": (("run", "random", "--ratio", "0"), "above 0"),
    "more than all": (("run", "random", "--ratio", "1.5"), "1 at most"),
    "a share of nothing": (("run", "random", "--nodes", "4", "--of", "all"), "--ratio"),
    "graphs of a class for one graph": (("run", "random", "--per-class", "1"), "--nodes"),
    "nodes of a set of graphs": (("show", "random", "--data", "mutag", "--nodes", "4"), "--per-class"),
    "an image method": (("run", "dm"), "nodes"),
    "a setting of a set of graphs": (("show", "random", "--data", "mutag", "--setting", "inductive"), "setting"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_work_is_refused_in_a_sentence_in_the_words_of_this_program(case, place):
    arguments, said = REFUSALS[case]
    done = call(*arguments, *(("--no-eval", "--out", "refused") if arguments[0] == "run" else ()))
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "--total" not in done.stderr
    assert "Traceback" not in done.output
    assert not (place.folder / "refused").exists()


def test_without_torch_geometric_a_sentence_says_what_to_install_and_the_rest_works(place, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_geometric"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("torch_geometric", "torch_geometric.datasets", "torch_geometric.data"):
        monkeypatch.setitem(sys.modules, name, None)
    done = call("run", "random", "--no-eval", "--out", "missing", "--json")
    assert done.exit_code == 2
    error = json.loads(done.stdout)["error"]
    assert error["field"] == "torch_geometric"
    assert "pip install 'condense-kit[graph]'" in error["message"]
    assert not (place.folder / "missing").exists()
    assert plain("list").exit_code == 0
    assert plain("show", "dm").exit_code == 0
    assert call("show", "gcond").exit_code == 0
    with pytest.raises(BadValue, match="condense-kit"):
        condense_graph.to_pyg("runs/gcond-karate-4-0")


# -- what is written ------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/graphs.md")
LINES = [
    shlex.split(line, comments=True)[1:]
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("condense-graph ")
]


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_the_commands_of_the_pages_can_be_typed(words):
    known = options(APP)[words[0]]
    assert {word for word in words if word.startswith("--")} <= known
    if words[0] == "run":  # what it asks for can be planned, on data that need not be there
        done = call("show", *words[1:])
        assert done.exit_code == 0, done.output


def test_the_code_of_the_pages_runs(place):
    """But for its steps: an image method's objective condenses a graph."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/graphs.md").read_text(), flags=re.DOTALL)
    mixed = next(block for block in blocks if "registry" in block)
    assert "steps=100" in mixed
    names: dict[str, object] = {}
    exec(mixed.replace("steps=100", "steps=2"), names)
    assert len(load("runs/mixed").sampler()) == 4
    assert names["mixed"].objective == names["dm"].objective
    (opening,) = [block for block in blocks if "to_pyg" in block]
    exec(opening, names)
    assert names["data"].num_nodes == 4


def test_what_torch_deprecates_in_pyg_is_not_said_to_users():
    code = "import warnings; warnings.simplefilter('error'); from condense_graph.needs import pyg; pyg('datasets')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
