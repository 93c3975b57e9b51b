"""The command line: its spelling, its output, its exit codes. Runs are a few steps of small networks on digits."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pluggy
import pytest
import typer
from typer.testing import CliRunner

from condense import cli, hookspecs, judging, options, plugins
from condense.artifact import load
from condense.cli import Commands, app
from condense.errors import CondenseError
from condense.hookspecs import hookimpl
from condense.observers import read_log
from condense.options import Judges, pairs, plan_of
from condense.plugins import Plugin, Registry
from condense.report import Report
from condense.terminal import Speaker, columns

SMALL = ("--steps", "3", "--set", "pool.net.width=4", "--set", "objective.pairing.n=8")
JUDGED = ("--repeats", "1", "--set", "protocol.nets.0.width=4", "--set", "protocol.epochs=2")
RUN = ("run", "dm", *SMALL, *JUDGED)

SPELLING = {
    "run": "--data --per-class --total --ratio --of --seed --steps --device --set --plain --with --net --protocol"
    " --nets --repeats --out --minutes"
    " --checkpoint-every --full --no-full --no-eval --publish-report --data-root --tensorboard --json",
    "resume": "--device --minutes --checkpoint-every --full --no-full --no-eval --publish-report --data-root"
    " --tensorboard --json",
    "eval": "--data --nets --repeats --protocol --set --seed --random --full --publish-report --normalised --device"
    " --data-root --json",
    "list": "--form --json",
    "show": "--data --per-class --total --ratio --of --set --plain --with --json",
    "plugins": "--json",
    "export": "--to --json",
    "reproduce": "--list --method --data --per-class --total --terms --seed --seeds --steps --repeats"
    " --protocol --plain --device --minutes --estimate --timed-on --note --runs --rows --data-root --json",
    "experts": "--data --per-class --total --ratio --of --count --device --set --plain --with --net --out --minutes"
    " --data-root --json",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to work in, and a cache of its own; the folder `made` in it holds a finished, judged run."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CONDENSE_CACHE", str(folder / "cache"))
        patch.delenv("COLUMNS", raising=False)
        made = call(*RUN, "--out", "made")
        assert made.exit_code == 0, made.output
        yield SimpleNamespace(folder=folder, made=made)


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="condense")


def refused(*arguments, code):
    """The error that `--json` reports; without it the same sentence is on stderr, and no traceback."""
    told, plain = call(*arguments, "--json"), call(*arguments)
    assert (told.exit_code, plain.exit_code) == (code, code), plain.output
    error = json.loads(told.stdout)["error"]
    assert error["exit_code"] == code
    assert error["message"] in plain.stderr
    assert "Traceback" not in plain.output
    assert plain.stdout == ""
    return error


# -- spelling -------------------------------------------------------------------------------------------------------


def test_spelling_is_as_it_was_fixed():
    group = typer.main.get_command(app)
    found = {
        name: {o for p in command.params if p.param_type_name == "option" for o in (*p.opts, *p.secondary_opts)}
        for name, command in group.commands.items()
    }
    assert found == {name: set(options.split()) for name, options in SPELLING.items()}
    assert {o for p in group.params for o in p.opts} == {"--version", "--debug"}


def test_defaults_are_as_they_were_fixed():
    run = typer.main.get_command(app).commands["run"]
    defaults = {p.name: p.default for p in run.params}
    assert (defaults["data"], defaults["seed"]) == ("digits", 0)
    assert [defaults[name] for name in ("per_class", "total", "ratio")] == [None] * 3, "the method's own: 10 per class"
    settled = plan_of("dm", Judges(), data="digits")
    assert settled.protocol.repeats == 5
    from condense.api import default_folder

    assert str(default_folder(settled)) == "runs/dm-digits-10-0"


def test_help_and_version_load_neither_torch_nor_plugins():
    code = "import sys, condense.cli as c; c.app(['{}'], standalone_mode=False); print('torch' in sys.modules)"
    for asked, text in (("--help", "reproduce"), ("--version", "condense ")):
        done = subprocess.run([sys.executable, "-c", code.format(asked)], capture_output=True, text=True, check=False)
        assert text in done.stdout
        assert "True" not in done.stdout
    assert "Exit codes" in call("--help").stdout


def test_names_that_are_written_twice_so_that_help_is_quick_are_the_same():
    assert (options.DISTRIBUTION, cli.GROUP) == (plugins.DISTRIBUTION, plugins.GROUP)


def test_our_own_plugins_add_no_commands():
    """They may therefore be left alone until a command needs them."""
    hooks = plugins.registry().manager.hook.condense_commands.get_hookimpls()
    assert [h.plugin_name for h in hooks if h.plugin_name.startswith(f"{plugins.DISTRIBUTION}:")] == []


# -- making and judging ---------------------------------------------------------------------------------------------


def test_run_says_what_runs_where_and_what_it_gave(place):
    out = place.made.stdout
    assert out.splitlines()[0].startswith("dm on digits, 10 images per class, 3 steps, seed 0, ")
    for name in ("full data", "random images", "condensed images", "+-", "protocol vico-dsa"):
        assert name in out
    assert out.splitlines()[-2:] == ["artifact  made", "report    made/report.html"]
    assert "step 3 of 3" in place.made.stderr
    assert "Traceback" not in place.made.output


def test_run_leaves_an_artifact_with_report_pictures_and_log(place):
    artifact = load("made")
    assert {row["kind"] for row in artifact.report["rows"]} == {"condensed", "random", "full"}
    assert [line.step for line in read_log(artifact.path)] == [0, 1, 2]
    listed = json.loads((artifact.path / "manifest.json").read_text())["files"]
    assert {"report.html", "report.json", "pictures/images.png", "pictures/loss.png"} <= set(listed)
    assert not any(name.startswith(".run") for name in listed)


def test_run_again_makes_and_judges_nothing_again(place):
    before = (place.folder / "made/report.json").read_bytes()
    again = call(*RUN, "--out", "made", "--json")
    assert again.exit_code == 0, again.output
    found = json.loads(again.stdout)
    assert found["artifact"] == "made"
    assert found["images"] == 100
    assert [(row["kind"], row["n"]) for row in found["rows"]] == [("condensed", 1), ("random", 1), ("full", 1)]
    rows = [json.loads(text)["rows"] for text in (before, (place.folder / "made/report.json").read_bytes())]
    assert [r["accuracies"] for r in rows[0]] == [r["accuracies"] for r in rows[1]]
    assert "finished: nothing is made again" in call("resume", "made", "--no-eval").stdout


def test_another_plan_does_not_touch_the_folder(place):
    before = {p: p.read_bytes() for p in place.folder.glob("made/*.json")}
    error = refused("run", "dm", *SMALL, "--seed", "1", "--out", "made", code=8)
    assert (error["type"], error["field"]) == ("InUse", "out")
    assert {p: p.read_bytes() for p in place.folder.glob("made/*.json")} == before


def test_paused_run_is_resumed_to_the_same_bits(place):
    paused = call(*RUN, "--out", "paused", "--minutes", "0.0001", "--no-eval")
    assert paused.exit_code == 75, paused.output
    assert paused.stderr.splitlines()[-1].startswith("paused: ")
    assert "condense resume paused" in paused.stderr
    assert not (place.folder / "paused" / "manifest.json").exists()
    resumed = call("resume", "paused", "--no-eval")
    assert resumed.exit_code == 0, resumed.output
    assert "goes on from step 1 of 3" in resumed.stderr
    assert [line.step for line in read_log(place.folder / "paused")] == [0, 1, 2]
    a, b = ((place.folder / name / "tensors.safetensors").read_bytes() for name in ("made", "paused"))
    assert a == b, "neither the pause nor the judging changed a bit"


def test_a_run_of_a_device_that_is_not_here_goes_on_where_it_is_told_to(place):
    paused = call(*RUN, "--out", "elsewhere", "--minutes", "0.00001", "--no-eval")
    assert paused.exit_code == 75
    stored = place.folder / "elsewhere" / ".run" / "plan.json"
    settled = json.loads(stored.read_text())
    settled["execution"]["device"] = "cuda:63"
    stored.write_text(json.dumps(settled))
    assert refused("resume", "elsewhere", "--no-eval", code=2)["field"] == "device"
    assert refused("resume", "elsewhere", "--device", "cuda:62", code=2)["value"] == "cuda:62"
    moved = call("resume", "elsewhere", "--device", "cpu", "--no-eval")
    assert moved.exit_code == 0, moved.output
    assert "goes on from step 1 of 3" in moved.stderr
    assert load("elsewhere").plan.execution.device == "cpu"
    assert call("resume", "elsewhere", "--device", "cpu", "--no-eval").exit_code == 0, "a finished one is just opened"


def test_a_reader_who_leaves_ends_no_run(place):
    """As in `condense run dm 2>&1 | head -1`: what is going on goes on."""
    arguments = [sys.executable, "-m", "condense.cli", *RUN, "--out", "unheard", "--no-eval"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdout.close()
    assert process.wait(timeout=240) == 0
    assert len(load("unheard").dataset()) == 100


def test_ctrl_c_saves_and_says_how_to_go_on(place):
    arguments = [sys.executable, "-m", "condense.cli", *RUN, "--steps", "100000", "--out", "broken", "--no-eval"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = place.folder / "broken" / ".run" / "log.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=240)
    assert process.returncode == 130, told
    assert "condense resume broken" in told
    assert list((place.folder / "broken" / ".run").glob("checkpoint-*"))
    steps = [line.step for line in read_log(place.folder / "broken")]
    assert steps == list(range(len(steps))), "the log has every step up to the pause"


def test_ctrl_c_while_judging_says_how_to_go_on(place, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(judging, "judge", stopped)
    told = call("eval", "made")
    assert told.exit_code == 130
    assert "condense eval made" in told.stderr
    told = call(*RUN, "--out", "made")
    assert told.exit_code == 130
    assert "condense resume made" in told.stderr, "eval would leave the random images out"


def test_eval_adds_networks_to_the_report(place):
    told = call("eval", "made", "--nets", "conv-net,mlp", "--repeats", "1", "--set", "protocol.epochs=2", "--json")
    assert told.exit_code == 0, told.output
    rows = json.loads(told.stdout)["rows"]
    kinds = [(row["kind"], row["net"].partition("(")[0]) for row in rows]
    assert ("condensed", "mlp") in kinds
    assert kinds.count(("condensed", "conv-net")) == 1, "the network that suits the images is the one judged before"
    assert "mlp" in (place.folder / "made" / "report.html").read_text()


def test_eval_under_another_protocol_is_refused(place):
    error = refused("eval", "made", "--protocol", "vico", "--repeats", "1", "--set", "epochs=1", code=2)
    assert (error["field"], error["value"]) == ("protocol", "vico")
    assert "vico-dsa" in error["message"]
    assert refused("eval", "made", "--repeats", "1", "--set", "protocol.epochs=3", code=2)["field"] == "protocol", (
        "the same protocol with other rules is another"
    )


def test_a_network_that_is_too_deep_to_judge_says_what_to_type(place):
    error = refused("eval", "made", "--nets", "conv-net,resnet18", code=2)
    assert error["field"] == "protocol.nets.1.norm"
    assert "Use --set protocol.nets.1.norm=batch" in error["remedy"]
    told = call("eval", "made", "--nets", "conv-net,resnet18", "--repeats", "1", "--set", "protocol.nets.1.norm=batch")
    assert told.exit_code == 0, told.output
    assert "resnet18" in told.stdout


@pytest.mark.slow
def test_the_first_command_of_the_readme_gives_a_set_that_beats_random_images(tmp_path):
    told = call("run", "dm", "--out", tmp_path / "run")
    assert told.exit_code == 0, told.output
    found = {row["kind"]: row["accuracies"] for row in load(tmp_path / "run").report["rows"]}
    assert {kind: len(of) for kind, of in found.items()} == {"condensed": 5, "random": 5, "full": 5}
    means = {kind: sum(of) / 5 for kind, of in found.items()}
    assert means["full"] > means["condensed"] > means["random"] + 0.01


def test_eval_by_the_artifacts_own_protocol_by_name_is_by_its_own_rules(place):
    told = call("eval", "made", "--protocol", "vico-dsa", "--json")
    assert told.exit_code == 0, told.output
    assert next(row["n"] for row in json.loads(told.stdout)["rows"] if row["kind"] == "condensed") == 1


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("seed", ("eval", "made", "--seed", "7")),
        ("normalised", ("eval", "made", "--normalised")),
        ("data", ("eval", "made", "--data", "digits")),
        ("random", ("eval", "set.npz", "--data", "digits", "--random")),
        ("full", ("eval", "set.npz", "--data", "digits", "--full")),
        ("protocol", ("eval", "set.npz", "--data", "digits", "--protocol", "as:mtt")),
    ],
)
def test_eval_refuses_options_that_it_would_not_use(place, field, arguments):
    assert refused(*arguments, code=2)["field"] == field


def test_a_run_of_another_plan_says_what_differs(place):
    error = refused(*RUN, "--seed", "9", "--out", "made", code=8)
    assert "seed is 0 there and 9 here" in error["message"]


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (("run", "DM"), "dm"),
        (("run", "dm", "--data", "FashionMNIST"), "fashion-mnist"),
        (("run", "dm", "--data", "CIFAR10"), "cifar10"),
    ],
)
def test_names_in_another_case_have_a_nearest_name(place, arguments, near):
    assert near in refused(*arguments, code=2)["message"].partition("Did you mean ")[2]


def test_inputs_that_another_preprocessing_made_are_refused(place):
    whitened = call(*RUN, "--no-eval", "--set", "preprocess=zca-kornia", "--out", "white")
    assert whitened.exit_code == 0, whitened.output
    assert call("export", "white", "--to", "white.npz").exit_code == 0
    error = refused("eval", "white.npz", "--data", "digits", *JUDGED, code=3)
    assert "--set preprocess=zca-kornia" in error["message"]
    told = call("eval", "white.npz", "--data", "digits", *JUDGED, "--set", "preprocess=zca-kornia")
    assert told.exit_code == 0, told.output


def test_eval_on_a_device_that_is_not_there_is_refused(place):
    assert refused("eval", "made", "--device", "tpu", code=2)["field"] == "device"


@pytest.mark.parametrize("to", ["pictures", "set.npz"])
def test_export_is_judged_as_a_set_of_others(place, to):
    done = call("export", "made", "--to", to, "--json")
    assert json.loads(done.stdout) == {"artifact": "made", "to": to}
    told = call("eval", to, "--data", "digits", *JUDGED, "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["data"] == "digits"
    assert [(row["kind"], row["images"], row["protocol"]) for row in found["rows"]] == [("condensed", 100, "vico")]
    whole = Report.model_validate(found).rows[0]  # no report.json holds the rest of it
    assert whole.curves
    assert whole.hardware["device"]
    assert whole.peak_memory_bytes > 0


@pytest.mark.filterwarnings("default:.* cannot be written")
def test_a_set_of_others_is_judged_where_no_cache_can_be_written(place, monkeypatch):
    call("export", "made", "--to", "set.npz")
    monkeypatch.setenv("CONDENSE_CACHE", "/dev/null/cache")
    told = call("eval", "set.npz", "--data", "digits", *JUDGED)
    assert (told.exit_code, "Set CONDENSE_CACHE" in told.stderr) == (0, True), told.output


def test_export_refuses_a_folder_that_is_taken(place):
    assert refused("export", "made", "--to", "made", code=8)["type"] == "InUse"


# -- looking --------------------------------------------------------------------------------------------------------


def test_list_names_what_is_installed():
    found = json.loads(call("list", "--json").stdout)
    assert {"dm", "dc", "dsa", "random", "herding", "k-center"} <= {row["name"] for row in found["methods"]}
    assert "conv-net" in found["net"]
    assert "digits" in found["data"]
    assert "vico" in found["protocol"]
    text = call("list").stdout
    assert all(row["name"] in text and row["paper"] in text for row in found["methods"])


@pytest.mark.parametrize("name", ["dm", "dc", "herding"])
def test_show_prints_paths_that_set_takes(name):
    lines = [line.strip() for line in call("show", name).stdout.splitlines() if line.startswith("  ")]
    leaves = [line for line in lines if ": " not in line]
    parts = dict(line.split(": ") for line in lines if ": " in line)
    settled = plan_of(name, Judges(), data="digits")
    assert plan_of(name, Judges(), leaves, data="digits") == settled
    assert len(leaves) > 15
    assert parts["protocol.nets.0"] == "conv-net"
    assert parts["init"] == settled.recipe.init.name


def test_show_applies_published_settings_and_gives_the_figures():
    shown = json.loads(call("show", "dm", "--data", "cifar10", "--per-class", "50", "--json").stdout)
    assert shown["recipe"]["budget"]["n"] == 50
    assert shown["recipe"]["outer"]["steps"] == 20000
    assert {"data": "cifar10", "per_class": 50, "accuracy": 63.0}.items() <= shown["published"][2].items()
    assert json.loads(call("show", "dm", "--json").stdout)["recipe"]["outer"]["steps"] < 1000
    made = call("show", "dc", "--data", "cifar10", "--with", "iterations=7", "--json")
    assert json.loads(made.stdout)["recipe"]["outer"]["steps"] == 70


def plugin_with_commands():
    class Commanding:
        @hookimpl
        def condense_commands(self, add):
            add("hello", greet)

    def greet(name: str, loud: bool = False) -> None:
        """Greet."""
        print(f"hello {name}{'!' if loud else ''}")

    class Failing:
        @hookimpl
        def condense_commands(self, add):
            raise RuntimeError("no commands today")

    manager = pluggy.PluginManager("condense")
    manager.add_hookspecs(hookspecs)
    manager.register(Commanding(), name="far:greeting")
    manager.register(Failing(), name="far:failing")
    return Registry([Plugin("gone", "far.gone", "far", "2.0", error="ImportError: No module named 'absent'")], manager)


def test_plugins_lists_the_broken_with_their_reason():
    found = {row["name"]: row for row in json.loads(call("plugins", "--json").stdout)["plugins"]}
    assert found["dm"]["recipes"] == ["dm"]
    assert found["dm"]["distribution"] == plugins.DISTRIBUTION
    assert "conv-net" in found["image"]["parts"]["net"]
    with plugins.using(plugin_with_commands()):
        told = call("plugins").stdout
    assert "gone  far.gone  far 2.0" in told
    assert "did not load: ImportError: No module named 'absent'" in told


def test_plugins_add_commands_and_a_failing_one_stops_no_other():
    with plugins.using(plugin_with_commands()):
        told = call("hello", "world", "--loud")
    assert told.exit_code == 0
    assert told.stdout == "hello world!\n"
    assert "far:failing" in told.stderr
    assert "no commands today" in told.stderr


# -- refusals -------------------------------------------------------------------------------------------------------

REFUSALS = [
    (("run", "dmm"), 2, "recipe", ("Did you mean dm?",)),
    (("show", "dmm"), 2, "recipe", ("datm, dc, dd, dd-fixed, dm, ", ", dsa, ")),
    (("run", "dm", "--data", "digit"), 2, "data", ("Did you mean digits",)),
    (("run", "dm", "--net", "convnet"), 2, "net", ("conv-net",)),
    (("run", "dm", "--nets", "mlp,resnet"), 2, "net", ("resnet18",)),
    (("run", "dm", "--protocol", "vicoo"), 2, "protocol", ("vico",)),
    (("run", "dm", "--per-class", "0"), 2, "per_class", ("1 or more",)),
    (("run", "dm", "--per-class", "-3"), 2, "per_class", ("1 or more",)),
    (("run", "dm", "--per-class", "5000"), 2, "per_class", ("at most",)),
    (("run", "dm", "--steps", "-1"), 2, "steps", ("0 or more",)),
    (("run", "dm", "--device", "tpu"), 2, "device", ("cpu",)),
    (("run", "dm", "--set", "outer.stps=3"), 2, "recipe.outer", ("Did you mean steps?",)),
    (("run", "dm", "--set", "outer.steps"), 2, "--set", ("PATH=VALUE",)),
    (("run", "dm", "--set", "=3"), 2, "--set", ("PATH=VALUE",)),
    (("run", "dm", "--set", "pool.net.depth=deep"), 2, "recipe.pool.net.depth", ("deep",)),
    (("run", "dm", "--set", "objective.distance=cosin"), 2, "recipe.objective.distance", ("row-cosine",)),
    (("run", "dm", "--set", "protocol.epoch=3"), 2, "protocol", ("epochs",)),
    (("run", "dm", "--with", "iteration=3"), 2, "--with", ("iterations",)),
    (("resume", "nowhere"), 2, "path", ("no run of condense",)),
    (("eval", "nowhere"), 2, "path", ("no artifact",)),
    (("eval", "."), 2, "path", ("--data",)),
    (("eval", "nowhere", "--data", "digits"), 2, "path", ("neither a folder nor a file",)),
    (("export", "nowhere", "--to", "x"), 2, "path", ("no artifact",)),
]


@pytest.mark.parametrize(("arguments", "code", "field", "said"), REFUSALS, ids=[" ".join(case[0]) for case in REFUSALS])
def test_refused_in_one_sentence(arguments, code, field, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = refused(*arguments, code=code)
    assert error["field"] == field
    assert all(text in error["message"] for text in said), error["message"]
    assert list(tmp_path.iterdir()) == [], "nothing is written"


@pytest.mark.parametrize(
    "arguments", [("runn",), ("run",), ("run", "dm", "--stepz", "3"), ("run", "dm", "--seed", "x")]
)
def test_usage_errors_keep_their_code(arguments):
    told = call(*arguments)
    assert told.exit_code == 2
    assert "Usage: condense" in told.stderr
    assert told.stdout == ""
    machine = call(*arguments, "--json")
    assert (machine.exit_code, machine.stderr) == (2, told.stderr)
    error = json.loads(machine.stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("BadValue", 2)
    assert "--help" in error["remedy"]


def test_unexpected_failures_are_one_sentence_unless_debugging(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(plugins, "registry", broken)
    told = call("list")
    assert told.exit_code == 1
    assert told.stderr.count("\n") == 1
    assert "of nothing" in told.stderr
    assert "ZeroDivisionError" in told.stderr
    assert "Traceback" not in told.stderr
    assert "Traceback" in call("--debug", "list").stderr


def test_every_error_class_has_an_exit_code_that_the_help_explains():
    def below(cls):
        return [cls, *(c for sub in cls.__subclasses__() for c in below(sub))]

    said = " ".join(call("--help").stdout.replace("│", " ").split())
    for cls in below(CondenseError):
        assert cls.exit_code != 0
        assert f"{cls.exit_code} " in said[said.index("Exit codes") :], cls
    assert issubclass(Commands, object)


def test_values_are_read_as_json_else_as_text():
    given = ["a.b=3", "c=[1, null]", "d=conv-net", "e=", 'f="3"', "g=x=y"]
    assert pairs(given) == {"a.b": 3, "c": [1, None], "d": "conv-net", "e": "", "f": "3", "g": "x=y"}


def test_observers_change_no_bit_of_the_set(place):
    from condense.api import carry_out

    settled = load("made").plan
    carry_out(settled, place.folder / "unwatched")
    a, b = ((place.folder / name / "tensors.safetensors").read_bytes() for name in ("made", "unwatched"))
    assert a == b
    assert read_log(place.folder / "unwatched") == []


def test_a_reader_who_has_seen_enough_is_no_error():
    """As in `condense run --help | head -1`, where the rest is written after the reader has left."""
    program = typer.Typer(cls=Commands, add_completion=False)

    @program.command()
    def speak():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    @program.command()
    def other():
        """So that `speak` is one command of several."""

    told = CliRunner().invoke(program, ["speak"])
    assert (told.exit_code, told.output) == (1, "")


def test_in_a_narrow_terminal_columns_fold_and_nothing_is_cut_off(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    rows = [("a-long-name-of-a-part", "12.345", "quantities of words that tell", "some more of them", "refuted")]
    Speaker().show(columns(("statistic", "claimed (gaussian)", "what", "why", "claim"), rows))
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 60
    told = "".join(out.split())
    assert all(letters in told for letters in ("12.345", "words", "refuted"))
    assert len(told) == len("".join("".join(rows[0]).split())) + len("statisticclaimed(gaussian)whatwhyclaim")
