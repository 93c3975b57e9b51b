"""`condense reproduce`: rows of tiny networks on digits, as small as they can be; and the page in docs/."""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from condense import judging, published, reproduced, reproduction
from condense.artifact import load
from condense.axes import Net
from condense.cli import app
from condense.component import named
from condense.errors import BadValue
from condense.evaluate import evaluate
from condense.execution import EAGER, Compiled, Passes, using
from condense.machine import fast_bfloat16
from condense.memory import judging_cost
from condense.plugins import registry
from condense.protocol import Protocol
from condense.published import Row
from condense.recipe import Execution
from condense.reproduced import Estimate, Finished, Shelf, Target, lines, page, targets
from condense.reproduction import How, Stopwatch, chosen, timed

ROOT = Path(__file__).parents[2]
SMALL = {"pool.net.depth": 1, "pool.net.width": 4, "objective.pairing.n": 4, "outer.steps": 3}
JUDGED = {"nets.0.depth": 1, "nets.0.width": 4, "epochs": 2}


def figure(per_class, accuracy):
    return Row(data="digits", per_class=per_class, accuracy=accuracy, source="a test", settings=SMALL, judging=JUDGED)


FIGURES = {"published/dm.toml": (figure(1, 60.0), figure(2, 70.0)), "published/dc.toml": (Row(data="mnist"),)}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in, where the only published figures are two of tiny networks on digits."""
    monkeypatch.chdir(tmp_path)
    for module in (published, reproduced):
        monkeypatch.setattr(module, "rows", lambda method: FIGURES.get(method.settings, ()))
    return tmp_path


def call(*arguments):
    found = CliRunner().invoke(app, ["reproduce", *map(str, arguments)], prog_name="condense")
    assert "Traceback" not in found.output
    return found


def one(*arguments, repeats=2, code=0):
    """`condense reproduce` of the row with one image per class."""
    row = ("--method", "dm", "--data", "digits", "--per-class", 1, "--repeats", repeats)
    found = call(*row, *arguments)
    assert found.exit_code == code, found.output
    return found


def stored(name="dm-digits-1-0"):
    return json.loads(Path(f"docs/reproduced/{name}.json").read_text())


def cells(text, title, *starts):
    """The cells of the line that begins with these cells, in the section of a page."""
    section = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines()]
    return next((line for line in lines if line[: len(starts)] == list(starts)), None)


# -- which rows -----------------------------------------------------------------------------------------------------


def test_every_published_figure_is_a_target_once_and_the_first_ones_come_first():
    written = []
    for path in (ROOT / "plugins" / "condense_image" / "published").glob("*.toml"):
        method = "random" if path.stem == "baselines" else path.stem.replace("_", "-")
        rows = [row for row in tomllib.loads(path.read_text())["row"] if "accuracy" in row]
        written += [(method, row["data"], row["per_class"], row["accuracy"]) for row in rows]
    known = targets(registry())
    images = [target for target in known if target.data in {data for _, data, *_ in written}]
    assert sorted((t.method, t.data, t.per_class, t.accuracy) for t in images) == sorted(written)
    first = [(target.method, target.data, target.per_class) for target in images[:11]]
    assert first[:2] == [("dc", "mnist", 1), ("dc", "fashion-mnist", 1)]
    assert first[2:4] == [("dsa", "mnist", 1), ("dsa", "fashion-mnist", 1)]
    cifar = {("dc", 1), ("dc", 10), ("dsa", 1), ("dsa", 10), ("dm", 1), ("dm", 10), ("dm", 50)}
    assert set(first[4:]) == {(method, "cifar10", n) for method, n in cifar}


def test_rows_are_chosen_by_any_of_their_names_and_a_full_name_needs_no_figure(place):
    assert [target.per_class for target in chosen("dm", None, None)] == [1, 2]
    assert [target.accuracy for target in chosen(None, "digits", 2)] == [70.0]
    assert chosen("dsa", "mnist", 7) == [Target(method="dsa", data="mnist", per_class=7)]
    with pytest.raises(BadValue, match="matches no row"):
        chosen("dsa", None, None)
    for asked, value in (
        (("dsaa", "mnist", 7), "dsaa"),
        (("dsa", "mnst", 7), "mnst"),
        (("dsa", "npz:x.npz", 7), "npz:"),
    ):
        with pytest.raises(BadValue, match=value):
            chosen(*asked)


# -- a row ----------------------------------------------------------------------------------------------------------


def test_a_row_holds_what_the_judge_found_and_the_page_shows_it(place):
    one("--note", "a note")
    row = stored()
    found = row["condensed"]["accuracies"]
    mean = math.fsum(found) / len(found)
    assert (row["steps"], row["published_steps"], row["seed"], row["note"]) == (3, 3, 0, "a note")
    assert (len(found), row["condensed"]["n"], row["random"]["kind"]) == (2, 2, "random")
    assert row["condensed"]["hardware"]["passes"] == row["making"]["passes"] == "eager float32"
    assert row["making"]["machine"]["threads"] == torch.get_num_threads()
    assert row["making"]["seconds"] > 0
    read = Shelf(Path("docs/reproduced")).finished()[0]
    shown = lines([read])[0]
    assert shown.difference == pytest.approx(100 * mean - 60.0)
    gain = 100 * (mean - statistics.fmean(row["random"]["accuracies"]))
    line = cells(Path("docs/reproduced.md").read_text(), "Finished", "dm", "digits", "1 per class")
    assert line[3:7] == ["3", "vico-dsa", "2", f"{100 * mean:.1f} +- {100 * statistics.pstdev(found):.1f}"]
    assert (line[8].partition(",")[0], line[9]) == (f"{gain:+.1f}", "")
    assert line[10:] == ["60", f"{100 * mean - 60:+.1f}", "0 + 0", "a note"]
    assert cells(Path("docs/reproduced.md").read_text(), "Not run", "dm", "digits", "1 per class") is None
    assert (
        cells(Path("docs/reproduced.md").read_text(), "Not run", "dm", "digits", "2 per class")[-1] == "not timed yet"
    )


def test_a_finished_row_stays_and_more_networks_are_added_to_those_that_judged(place, monkeypatch):
    one()
    before = stored()
    monkeypatch.setattr(reproduction, "judge", lambda *_, **__: pytest.fail("judged again"))
    one()
    assert stored() == before
    monkeypatch.undo()
    monkeypatch.chdir(place)
    for module in (published, reproduced):
        monkeypatch.setattr(module, "rows", lambda method: FIGURES.get(method.settings, ()))
    one(repeats=3)
    after = stored()
    assert after["condensed"]["accuracies"][:2] == before["condensed"]["accuracies"]
    assert (after["condensed"]["n"], after["random"]["n"]) == (3, 3)
    assert after["making"] == before["making"]


def test_a_shortened_row_has_a_name_of_its_own_and_leaves_the_full_one_open(place):
    one("--steps", 2)
    assert (stored("dm-digits-1-0-2")["steps"], stored("dm-digits-1-0-2")["published_steps"]) == (2, 3)
    text = Path("docs/reproduced.md").read_text()
    assert cells(text, "Finished", "dm", "digits", "1 per class")[3] == "2 / 3"
    assert cells(text, "Not run", "dm", "digits", "1 per class")[5:] == ["", "", "", "not timed yet"]


def test_a_row_that_is_paused_between_steps_ends_with_the_same_set(place):
    one("--runs", "unbroken")
    whole = stored()["making"]["artifact"]
    for file in Path("docs/reproduced").iterdir():
        file.unlink()
    pauses = 0
    while call("--method", "dm", "--per-class", 1, "--minutes", "1e-9").exit_code == 75 and pauses < 3:
        assert not list(Path("docs/reproduced").iterdir())
        pauses += 1
    assert pauses == 3  # after steps 1 and 2, and after the first judged network
    one()
    assert stored()["making"]["artifact"] == whole


def test_a_pause_while_judging_keeps_every_network_that_is_judged(place):
    one("--steps", 1, repeats=1)
    before = stored("dm-digits-1-0-1")["condensed"]["accuracies"]
    log = Path("runs/dm-digits-1-0-1/.run/judged.jsonl")
    for kept in (3, 4, 5, 6):  # one of each kind is there; each call adds a network before it pauses
        one("--steps", 1, "--minutes", "1e-9", repeats=3, code=75)
        assert sum(bool(line) for line in log.read_text().splitlines()) == kept
    one("--steps", 1, repeats=3)
    assert stored("dm-digits-1-0-1")["condensed"]["accuracies"][:1] == before
    assert log.read_text().count('{"key"') == 6


def test_a_row_that_is_refused_stops_no_other_and_ends_the_command_with_its_code(place, monkeypatch):
    work = reproduction.reproduce

    def refusing(target, *more, **named):
        if target.per_class == 1:
            raise BadValue("data", "digits", "is refused by this test", "None.")
        return work(target, *more, **named)

    monkeypatch.setattr(reproduction, "reproduce", refusing)
    found = call("--method", "dm", "--repeats", 1)
    assert (found.exit_code, found.stderr.count("is refused by this test")) == (2, 1)
    assert [path.name for path in Path("docs/reproduced").iterdir()] == ["dm-digits-2-0.json"]
    assert stored("dm-digits-2-0")["target"]["accuracy"] == 70.0


def test_the_list_says_where_each_row_stands_and_runs_nothing(place):
    assert not list(place.iterdir())
    listed = call("--list")
    assert [line.split()[:6] for line in listed.stdout.splitlines()[1:]] == [
        ["dm", "digits", "1", "per", "class", "60"],
        ["dm", "digits", "2", "per", "class", "70"],
    ]
    assert not list(place.iterdir())
    one()
    told = json.loads(call("--list", "--json").stdout)
    assert [row["target"]["per_class"] for row in told["rows"]] == [1]


@pytest.mark.parametrize(("rows", "page"), [("res.v2", "res.v2.md"), ("a/b", "a/b.md"), (".", "../rows.md")])
def test_the_page_lies_beside_the_rows_under_their_whole_name(tmp_path, monkeypatch, rows, page):
    (tmp_path / "rows").mkdir()
    monkeypatch.chdir(tmp_path / "rows")
    assert Shelf(Path(rows)).page.resolve() == Path(page).resolve()


def test_minutes_that_are_none_are_refused(place):
    found = call("--method", "dm", "--minutes", 0)
    assert (found.exit_code, "minutes" in found.stderr) == (2, True)


def test_a_malformed_row_is_refused_by_name(place):
    one(repeats=1)
    row = stored()
    row["steps"] = "many"
    Path("docs/reproduced/dm-digits-1-0.json").write_text(json.dumps(row))
    with pytest.raises(BadValue, match=r"dm-digits-1-0.json.steps"):
        Shelf(Path("docs/reproduced")).finished()


def test_a_row_is_that_of_the_protocols_own_network_whatever_else_judged_the_set(place):
    one()
    before = stored()
    artifact = load(Path("runs/dm-digits-1-0"))
    rules = judging.judged_by(artifact.plan).with_(repeats=2)
    judging.judge(artifact, protocol=rules.with_(nets=(named(Net, "mlp"),)), full=False)
    one("--note", "again")
    after = stored()
    for kind in ("condensed", "random"):
        assert all(after[kind][key] == before[kind][key] for key in ("net", "accuracies"))


def test_a_row_that_another_protocol_judges_is_a_row_of_its_own_and_leaves_the_published_one_open(place):
    one("--protocol", "vico")
    row = stored("dm-digits-1-0-vico")
    assert (row["protocol"], row["condensed"]["protocol"], row["random"]["protocol"]) == ("vico", "vico", "vico")
    text = Path("docs/reproduced.md").read_text()
    line = cells(text, "Finished", "dm", "digits", "1 per class")
    assert (line[4], line[10], line[11]) == ("vico", "", ""), "a published figure is of the method's own judge"
    assert cells(text, "Not run", "dm", "digits", "1 per class")[-1] == "not timed yet"
    one()
    assert [row.protocol for row in Shelf(Path("docs/reproduced")).finished()] == ["vico", None]
    assert len(lines(Shelf(Path("docs/reproduced")).finished())) == 2


def test_a_set_that_two_judges_are_to_see_is_made_once_and_judged_by_each(place, monkeypatch):
    made = []
    monkeypatch.setattr(
        reproduction.api, "condense", lambda run, take=reproduction.api.condense: made.append(take(run)) or made[-1]
    )
    one("--terms", "pool.net.width=3", "--terms", "protocol.epochs=1", "--terms", "protocol.nets.0.width=2")
    one("--terms", "pool.net.width=3")
    one("--terms", "pool.net.width=3", "--protocol", "vico")
    assert len(made) == 1
    found = {row.name: row for row in Shelf(Path("docs/reproduced")).finished()}
    ways = ("pool.net.width-3-epochs-1-protocol.nets.0.width-2-0", "width-3-0", "width-3-0-vico")
    rows = [found.pop(f"dm-digits-1-{way}") for way in ways]
    assert not found
    assert len({row.making.artifact for row in rows}) == 1
    assert len({row.condensed.rules for row in rows}) == 3
    assert [row.condensed.network["width"] for row in rows] == [2, 4, 128]
    assert [row.random.rules for row in rows] == [row.condensed.rules for row in rows]


def test_a_set_is_judged_as_those_of_another_method_are_on_these_data_at_this_size(place):
    one("--protocol", "as:kip", repeats=1)
    (row,) = Shelf(Path("docs/reproduced")).finished()
    assert (row.name, row.condensed.protocol) == ("dm-digits-1-0-as-kip", "krr")
    own = reproduction.planned(chosen("kip", "digits", 1)[0], How())
    assert row.condensed.rules == own.protocol.rules_digest()
    assert row.condensed.network == own.protocol.nets[0].dump()
    reduced = reproduction.planned(chosen("dm", "digits", 2)[0], How(protocol="as:dm")).protocol
    assert (reduced.nets[0].width, reduced.epochs) == (4, 2)
    with pytest.raises(BadValue, match="dmm"):
        reproduction.planned(chosen("dm", "digits", 2)[0], How(protocol="as:dmm"))


# -- estimates ------------------------------------------------------------------------------------------------------


def test_an_estimate_is_of_steps_after_the_first_ones(place, monkeypatch):
    watch = Stopwatch()
    watch.at = [(100.0, 200.0), (150.0, 260.0), (151.0, 262.0), (153.0, 266.0), (156.0, 272.0)]
    assert watch.each() == (2.0, 4.0, 3)
    steps = {**SMALL, "outer.steps": 7200}
    rows = {"published/dm.toml": (figure(1, 60.0).model_copy(update={"settings": steps}),)}
    for module in (published, reproduced):
        monkeypatch.setattr(module, "rows", lambda method: rows.get(method.settings, ()))
    one("--estimate")
    estimate = Shelf(Path("docs/reproduced")).estimates()["dm", "digits", "1 per class"]
    assert (estimate.steps, estimate.timed, estimate.data) == (7200, 3, "digits")
    assert 0 < estimate.seconds < 1
    assert estimate.hours == pytest.approx(2 * estimate.seconds)
    assert not Path("runs").exists()
    line = cells(Path("docs/reproduced.md").read_text(), "Not run", "dm", "digits", "1 per class")
    assert (line[5], line[7], line[8]) == ("7,200", f"{2 * estimate.seconds:.1f}", "not run yet")
    one("--estimate", "--note", "no such data here")
    assert Shelf(Path("docs/reproduced")).estimates() == {
        estimate.target.key: estimate.model_copy(update={"note": "no such data here"})
    }
    line = cells(Path("docs/reproduced.md").read_text(), "Not run", "dm", "digits", "1 per class")
    assert line[8] == "no such data here"


def test_an_estimate_may_be_timed_on_other_data_of_the_same_sizes_and_needs_steps(place):
    target = chosen("dm", "digits", 1)[0]
    with pytest.raises(BadValue, match="too few to be timed"):
        timed(target, How())
    more = Target(method="dm", data="digits", per_class=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduction, "WARM", 1)
        patch.setattr(reproduction, "TIMED", 2)
        assert timed(more, How(), on="digits").data == "digits"


def timing(place, found):
    """What the page says of how an estimate was found, which itself stored nothing."""
    assert not list(place.iterdir())
    shelf = Shelf(place / "rows")
    shelf.add(found)
    return cells(page(shelf, [found.target]), "Not run", *found.target.key)[6]


def test_of_a_row_with_experts_steps_of_their_training_are_timed_and_none_is_stored(place, monkeypatch):
    monkeypatch.setenv("CONDENSE_CACHE", str(place / "cache"))
    trained = {"pool.experts.net.depth": 1, "pool.experts.net.width": 4, "pool.experts.fit.batch": 100}
    many = {"pool.experts.count": 3, "pool.experts.fit.epochs": 1000, **trained}
    target = Target(method="mtt", data="digits", per_class=1, terms=dict(sorted(many.items(), reverse=True)))
    found = timed(target, How(device="cpu"))
    steps = math.ceil(1257 / 100) * 1000 * 3
    assert (found.assets, found.timed) == (steps, 3)
    assert 0 < found.seconds < 1
    assert found.hours == pytest.approx(steps * found.seconds / 3600)
    assert "3 of 39,000 steps of its assets alone" in timing(place, found)


def test_of_a_baseline_steps_of_the_networks_that_judge_it_are_timed_and_none_is_kept(place):
    trained = {"protocol.nets.0.depth": 1, "protocol.nets.0.width": 4, "protocol.epochs": 500}
    target = Target(method="random", data="digits", per_class=40, terms=trained)
    found = timed(target, How(device="cpu", repeats=4))
    steps = 4 * 501 * math.ceil(400 / 256)  # one epoch more than is said, as in the official code
    assert (found.judging, found.assets, found.steps, found.timed) == (steps, None, 0, 3)
    assert found.hours == pytest.approx(steps * found.seconds / 3600)
    assert "3 of 4,008 steps of its judging" in timing(place, found)
    with pytest.raises(BadValue, match="too few to be timed"):  # one solution judges, and it is what takes the time
        timed(Target(method="label-solve", data="digits", per_class=1), How(device="cpu"))


def test_a_time_that_is_known_of_the_other_set_is_taken_for_a_row_of_equal_sizes(place, monkeypatch):
    known = Target(method="dm", data="mnist", per_class=1)
    facts = {"wall": 4.0, "timed": 3, "data": "mnist", "passes": "eager float32", "machine": {"device": "a machine"}}
    shelf = Shelf(Path("docs/reproduced"))
    shelf.add(Estimate(target=known, steps=20_000, seconds=2.0, **facts))
    monkeypatch.setattr(reproduction, "timed", lambda *_: pytest.fail("timed again"))
    one("--estimate", "--timed-on", "mnist")
    taken = shelf.estimates()["dm", "digits", "1 per class"]
    assert (taken.seconds, taken.steps, taken.data, taken.target.accuracy) == (2.0, 3, "mnist", 60.0)


# -- how networks that judge are computed ---------------------------------------------------------------------------


def test_judging_is_compiled_where_its_training_is_long(device, place):
    splits = named(reproduction.api.Plan.model_fields["data"].annotation, "digits").open(device)
    small = judging.judged_by(reproduction.planned(chosen("dm", "digits", 1)[0], How()))
    data = splits.train.subset(torch.arange(100, device=device))
    large = small.with_(epochs=10**7)
    assert judging_cost(large, data) == pytest.approx(judging_cost(small, data) * (10**7 + 1) / 3)
    assert judging_cost(small.with_(repeats=50), data) == pytest.approx(10 * judging_cost(small, data))
    trained = judging_cost(small, data)
    tests = [judging_cost(small, data, n) - trained for n in (1000, 2000)]
    assert 0 < tests[0] == pytest.approx(tests[1] / 2)
    how = Execution(device=str(device))
    assert judging.judging_passes(how, small, data, splits) is EAGER
    assert isinstance(judging.judging_passes(how, large, data, splits), Compiled)


@pytest.mark.slow
def test_bfloat16_and_float32_judge_alike(data_root, monkeypatch):
    """Ten networks of width 128 on ten random images of FashionMNIST: the two means differ within their noise."""
    if not fast_bfloat16(torch.device("cpu")):
        pytest.skip("this processor has no units for bfloat16, which is then never chosen; emulated, it takes an hour")
    monkeypatch.setenv("CONDENSE_DATA", str(data_root))
    torch.set_num_threads(1)
    plan = reproduction.api.plan("random", data="fashion-mnist", per_class=1, device="cpu")
    run = reproduction.api.open_run(plan, None, (), reproduction.Limits())
    candidate = judging.random_images(run)
    rules = named(Protocol, "vico", repeats=10, epochs=60, record=1)

    def judged(passes: Passes):
        with using(passes):
            return evaluate(candidate, run.splits, rules).rows[0]

    exact, half = judged(EAGER), judged(Compiled(half=True))
    assert half.hardware["passes"] == "compiled bfloat16"
    assert half.accuracies != exact.accuracies
    paired = [a - b for a, b in zip(half.accuracies, exact.accuracies, strict=True)]  # the same initial weights
    noise = statistics.stdev(paired) / math.sqrt(len(paired))
    print(
        f"float32 {exact.headline}, bfloat16 {half.headline}, difference {statistics.fmean(paired):+.4f} +- {noise:.4f}"
    )
    assert abs(statistics.fmean(paired)) < max(3 * noise, 0.003)
    assert abs(half.mean - exact.mean) < 0.02


def test_a_figure_that_holds_under_terms_is_a_row_of_wrapped_data_made_under_them():
    private = [t for t in targets(registry()) if t.data == "private:fashion-mnist" and t.method == "dp-merf"]
    terms = {t.name: (t.terms, t.accuracy) for t in private if t.per_class == 10}
    assert terms == {
        "dp-merf-private-fashion-mnist-10-epsilon-1": ({"data.epsilon": 1.0}, 65.5),
        "dp-merf-private-fashion-mnist-10-epsilon-10": ({"data.epsilon": 10.0}, None),
    }
    (found,) = chosen("dp-merf", "private:fashion-mnist", 10, terms={"data.epsilon": 10})
    settled = reproduction.planned(found, How())
    assert (settled.data.dump()["epsilon"], settled.protocol.name) == (10.0, "vico")
    assert settled.recipe.dump()["objective"]["net"]["length"] == pytest.approx(22.5389, abs=1e-4)  # of the data within


# -- the page in docs/ ----------------------------------------------------------------------------------------------


def test_the_page_of_reproduced_rows_is_fresh():
    shelf = Shelf(ROOT / "docs" / "reproduced")
    assert shelf.page.read_text() == page(shelf, targets(registry())), "run python -m condense.docs"


def test_every_stored_row_is_named_as_its_file_and_judged_on_the_test_split():
    for path in (ROOT / "docs" / "reproduced").glob("[!e]*.json"):
        row = Finished.model_validate_json(path.read_text())
        assert row.name == path.stem
        assert (row.condensed.split, row.condensed.n) == ("test", len(row.condensed.accuracies))
        assert row.random is None or row.random.rules == row.condensed.rules


def committed(name):
    return Finished.model_validate_json((ROOT / "docs" / "reproduced" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("dc-fashion-mnist-1-0", 10),
        ("dsa-fashion-mnist-1-0", 10),
        ("dm-fashion-mnist-1-0-500", 10),
        ("dm-fashion-mnist-10-0-500", 4),
    ],
)
def test_the_first_methods_beat_random_images_by_what_was_promised(name, points):
    row = committed(name)
    ours, random = (100 * sum(found.accuracies) / found.n for found in (row.condensed, row.random))
    assert ours - random >= points
    assert min(row.condensed.n, row.random.n) >= 5


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("mtt-fashion-mnist-1-0", "dc-fashion-mnist-1-width-32-0-as-mtt"),
        ("frepo-fashion-mnist-1-start-0.003-to-0.0003-0-2000", "dc-fashion-mnist-1-0-as-frepo"),
        (
            "rfad-fashion-mnist-1-objective.n-512-pool.net.n-2-width-64-0-2000",
            "dc-fashion-mnist-1-width-64-0-as-rfad",
        ),
    ],
)
def test_sets_of_the_performance_matching_family_are_above_gradient_matching_by_the_very_same_judge(name, other):
    ours, dc = committed(name).condensed, committed(other).condensed
    assert ours.rules == dc.rules
    assert ours.n == dc.n
    assert sum(ours.accuracies) > sum(dc.accuracies)
