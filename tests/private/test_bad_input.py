"""Bad input of private runs: refused before anything is written, or warned of, in a sentence that says what helps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import condense
from condense.axes import Statistic
from condense.component import named
from condense.data import Data
from condense.errors import BadData, BadValue, NotBuilt
from condense.plugins import registry
from condense_private.cli import app
from condense_private.ledger import Entry, Ledger
from condense_private.private import Private
from condense_private.sampling import Sampling
from tests.trust.places import pictures, snapshot, write_npz

NET = ("--set", "pool.net.width=4", "--set", "pool.net.depth=1")
SMALL = {"pool.net.width": 4, "pool.net.depth": 1, "objective.pairing.n": 20, "pool.inner.epochs": 1}
NOISE = ("--set", "init=noise")
GRAPHS = ("--set", "init=noise", "--set", "preprocess.scale=none", "--set", "selection=null")


def call(*arguments):
    return CliRunner().invoke(app(), [str(a) for a in arguments], prog_name="condense-private")


def run(*more, method="psg", data="digits", n=1, steps=2):
    size = ("--per-class", n, "--steps", steps) if method != "dp-random" else ("--per-class", n)
    return ("run", method, "--data", data, *size, "--device", "cpu", "--out", "out", "--no-eval", *more)


def of_npz(*more, **arrays):
    return lambda: run(*more, data=write_npz("own.npz", **arrays))


def unclean(value):
    x, y = pictures(3, 20)
    x = x / 255
    x[7, 0, 3, 3] = value
    return {"x": x, "y": y}


def write_graphs(folder, count=80):
    """A TU set, TOY: rings, and rings with all chords, of 4 to 7 nodes of two kinds. Returns the folder."""
    edges, owner, labels, kinds, before = [], [], [], [], 0
    for i in range(count):
        n, dense = 4 + i % 4, i % 2
        pairs = [(u, v) for u in range(n) for v in range(n) if u != v and (dense or (u - v) % n in (1, n - 1))]
        edges += [f"{before + u + 1}, {before + v + 1}" for u, v in pairs]
        owner += [str(i + 1)] * n
        kinds += [str((u + i) % 2) for u in range(n)]
        labels.append(str(dense))
        before += n
    raw = Path(folder, "TUDataset", "TOY", "raw")
    raw.mkdir(parents=True)
    parts = {"A": edges, "graph_indicator": owner, "graph_labels": labels, "node_labels": kinds}
    for name, lines in parts.items():
        (raw / f"TOY_{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


# cause: (arguments or what makes them, class of the error, in its field, in its value, in its message)
CASES = {
    "graphs without a size": (
        lambda: run("--data-root", write_graphs("."), *GRAPHS, method="doscond", data="tu:TOY"),
        BadValue,
        "data.size",
        "None",
        "--set data.size=20",
    ),
    **{
        f"{option} {value}": (run(f"--{option}={value}"), BadValue, f"data.{option.replace('-', '_')}", value, says)
        for option, values, says in (
            ("epsilon", ("0.0", "-1.0", "nan", "inf"), "Give a positive epsilon, as 1.0"),
            ("noise-multiplier", ("0.0", "-1.0", "nan", "inf"), "Give a positive noise_multiplier"),
            ("clip", ("0.0", "-1.0", "nan", "inf"), "Give a positive clip"),
            ("delta", ("0.0", "1.0", "-1e-05", "nan", "inf"), "Take less than 1 / N"),
        )
        for value in values
    },
    "accountant that underestimates": (run("--accountant", "gdp"), BadValue, "data.accountant", "gdp", "Use rdp"),
    "exact accountant of samples": (run("--accountant", "gaussian"), BadValue, "accountant", "gaussian", "Use rdp"),
    "budget out of reach": (run("--epsilon", "1e-6"), BadValue, "epsilon", "1e-06", "larger epsilon"),
    "rate above 1": (
        run("--set", "objective.pairing.n=2000"),
        BadValue,
        "objective.pairing.n",
        "2000",
        "Take at most 1,258; far fewer need less noise: --set objective.pairing.n=251.",
    ),
    "rate above 1, class by class": (
        run(method="dc"),
        BadValue,
        "objective.pairing.n",
        "256",
        "256 records of each of 10 classes in one sample, and there are 1,258 in all",
    ),
    "rate above 1 of a class of public size": (
        run("--set", "data.public_counts=true", method="dc"),
        BadValue,
        "objective.pairing.n",
        "256",
        "the smallest class has 122",
    ),
    "rate above 1 of means": (
        run("--set", "init.group=500", method="dp-random"),
        BadValue,
        "init.group",
        "500",
        "--set init.group=25",
    ),
    "less than a single measure": (
        run("--noise-multiplier", "0.5", "--epsilon", "0.1"),
        BadValue,
        "data.epsilon",
        "0.1",
        "does not allow a single measure",
    ),
    "less than the set starts from": (
        run("--noise-multiplier", "2", "--epsilon", "1", method="dp-random", n=10),
        BadValue,
        "data.epsilon",
        "1.0",
        "does not allow the 10 measures that the set starts from",
    ),
    "batch norm": (run("--set", "pool.net.norm=batch"), BadValue, "net", "conv-net", "norm=instance"),
    "start from real images": (run(method="dm"), BadValue, "init", "real", "--set init=noise"),
    "graphs as published": (
        lambda: run("--data-root", write_graphs("."), "--set", "data.size=6", method="doscond", data="tu:TOY"),
        BadValue,
        "init",
        "fitting",
        "--set selection=null",
    ),
    "nodes of one graph": (
        ("run", "gcond", "--data", "karate", "--ratio", "0.5", "--out", "out"),
        BadValue,
        "data",
        "karate",
        "sets of whole graphs",
    ),
    "NaN": (of_npz(**unclean(np.nan)), BadData, "own.npz", "example 7", "repair"),
    "infinity": (of_npz(**unclean(np.inf)), BadData, "own.npz", "example 7", "repair"),
    "size of images": (run("--set", "data.size=8"), BadValue, "data.size", "8", "Leave it out"),
    "training of more than there is": (
        ("dp-sgd", "--data", "digits", "--batch", "2000", "--out", "out"),
        BadValue,
        "batch",
        "2000",
        "--batch 251",
    ),
    "calibration at delta 1": (("calibrate", "--delta", "1"), BadValue, "delta", "1.0", "Take less than 1 / N"),
    "calibration at a rate of 2": (("calibrate", "--rate", "2"), BadValue, "rate", "2.0", "batch over N"),
    "calibration of -1 steps": (("calibrate", "--steps=-1"), BadValue, "steps", "-1", "as 1000"),
    "calibration by words": (("calibrate", "--epsilon", "low"), BadValue, "epsilon", "low", "--epsilon 1,8"),
    "statement of no artifact": (("privacy", "nowhere"), BadValue, "path", "nowhere", "run has made"),
}


@pytest.mark.parametrize("cause", CASES)
def test_refused_before_anything_is_written(cause, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, kind, field, value, says = CASES[cause]
    arguments = make() if callable(make) else make
    before = snapshot(".")
    done = call(*arguments, "--json")
    error = json.loads(done.stdout)["error"]
    assert (error["type"], done.exit_code) == (kind.__name__, kind.exit_code), error
    assert field in error["field"], error
    assert value in error["value"], error
    assert says in error["message"], error
    assert error["remedy"], error
    assert snapshot(".") == before


class Silent(Statistic):
    """Says nothing of each record."""

    def rows(self, model, batch, task):
        raise NotImplementedError

    def mean(self, model, batch, task, *, live):
        return {"feature": model.features(batch.x).mean(dim=0)}


def test_a_statistic_without_rows_is_refused(tmp_path):
    recipe = registry().recipe("psg", "tensors")(per_class=1, iterations=1)
    for path, value in SMALL.items():
        recipe = recipe.set(path, value)
    recipe = recipe.rewrite(Statistic, lambda _: Silent())
    with pytest.raises(NotBuilt, match="no `rows`") as caught:
        condense.run(recipe, data=Private(data=named(Data, "digits"), epsilon=8.0), out=tmp_path / "run")
    assert (caught.value.field, caught.value.exit_code) == ("objective.statistic", 9)
    assert not (tmp_path / "run").exists()


# -- what is warned of ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.usefixtures("rdp_only")
@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            ("--delta", "0.01"),
            "delta 0.01 is above 1 / N = 0.0018 (546 records): a mechanism that publishes one record in full",
        ),
        (
            ("--epsilon", "1"),
            "hopeless: 546 records sampled at rate 0.117 are too few for noise of",
        ),
    ],
)
def test_a_budget_that_cannot_be_meant_is_warned_of_with_numbers_before_it_begins(more, says, tmp_path, monkeypatch):
    """As many records as BreastMNIST has."""
    monkeypatch.chdir(tmp_path)
    x, y = pictures(2, 273)
    data = write_npz("own.npz", x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    net = ("--set", "pool.net.width=32") if "--epsilon" in more else NET
    done = call(*run("--set", "objective.pairing.n=64", *net, *more, data=data))
    assert done.exit_code == 0, done.output
    first, second = done.stderr.splitlines()[0], done.stdout.splitlines()[0]
    assert first.startswith(f"warning: {says}"), done.stderr
    assert second.startswith("psg on own-private")
    said = condense.load("out").provenance["privacy"]
    assert [f"warning: {text}" for text in said["advice"]] == [first]
    assert said["advice"][0] in call("privacy", "out").stdout.replace("\n", " ")


@pytest.mark.usefixtures("rdp_only")
def test_a_budget_that_can_be_meant_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*run("--epsilon", "10", "--set", "objective.pairing.n=100", *NET))
    assert (done.exit_code, "warning" in done.output) == (0, False)
    assert condense.load("out").provenance["privacy"]["advice"] == []


# -- what is no error -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:hopeless")
@pytest.mark.usefixtures("rdp_only")
def test_empty_samples_are_releases_like_others(tmp_path, monkeypatch):
    """One record is expected in each, so that more than a third are empty."""
    sizes, sample = [], Sampling.sample

    def counted(plan, source, stream):
        found = sample(plan, source, stream)
        sizes.append(len(found[0]))
        return found

    monkeypatch.setattr(Sampling, "sample", counted)
    private = Private(data=named(Data, "digits"), noise_multiplier=1.0)
    artifact = condense.run(
        "psg", data=private, per_class=1, steps=20, settings={**SMALL, "objective.pairing.n": 1}, out=tmp_path / "run"
    )
    assert (len(sizes), artifact.provenance["privacy"]["draws"]) == (20, 20)
    assert 0 in sizes
    assert max(sizes) > 0


@pytest.mark.filterwarnings("default:hopeless")
@pytest.mark.usefixtures("rdp_only")
def test_a_budget_that_is_used_up_ends_a_run_whose_artifact_is_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = run("--noise-multiplier", "2", "--epsilon", "2", "--set", "objective.pairing.n=300", *NET, steps=100)
    done = call(*asked)
    assert done.exit_code == 0, done.output
    said = condense.load("out").provenance["privacy"]
    assert 0 < said["draws"] < 100
    assert f"stopped   after {said['draws']} steps: epsilon 2 is used up after {said['draws']} measures" in done.stdout
    assert said["epsilon"]["rdp"] <= 2
    told = json.loads(call(*asked, "--json").stdout)
    assert told["stopped"]["after"] == told["privacy"]["draws"] == said["draws"]
    for again in (asked, ("resume", "out", "--no-eval")):
        assert "finished: nothing is made again" in call(*again).stdout
    assert call("export", "out", "--to", "set.npz").exit_code == 0
    assert Path("set.npz").is_file()


def test_a_resume_without_the_key_says_what_is_gone_and_makes_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*run("--set", "objective.pairing.n=100", *NET, "--minutes", "0.00001")).exit_code == 75
    Path("out/.run/noise.key").unlink()
    done = call("resume", "out", "--no-eval", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.exit_code, error["type"]) == (4, "Damaged")
    assert "noise.key: is gone" in error["message"]
    assert not Path("out/.run/noise.key").exists()


@pytest.mark.usefixtures("rdp_only")
def test_a_resume_that_draws_otherwise_pays_and_ends_where_the_budget_does(tmp_path, monkeypatch):
    """Requests of a process that was killed and computed other bits stand in the ledger: they cannot be drawn again."""
    monkeypatch.chdir(tmp_path)
    limits = ("--minutes", "0.00001", "--checkpoint-every", "1")
    done = call(*run("--epsilon", "8", "--set", "objective.pairing.n=100", *NET, *limits, steps=6))
    assert done.exit_code == 75, done.output
    path = Path("out/.run/ledger.jsonl")
    ledger = Ledger(path, json.loads(path.read_text().splitlines()[0])["terms"])
    (first,) = ledger.entries
    for i in range(3):
        ledger.bill(Entry(f"{i:064x}", first.statistic, first.q, first.sigma, first.bound))
    done = call("resume", "out", "--no-eval")
    assert done.exit_code == 0, done.output
    assert "stopped   after 3 steps: epsilon 8 is used up after 6 measures" in done.stdout
    said = condense.load("out").provenance["privacy"]
    assert (said["draws"], said["epsilon"]["rdp"] <= 8) == (6, True)


# -- sets of whole graphs ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default:hopeless")
@pytest.mark.usefixtures("rdp_only")
@pytest.mark.parametrize("statistic", ["joined", "mean-feature"])
def test_whole_graphs_are_condensed_privately_and_no_size_of_them_is_published(statistic, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_graphs(".")
    small = ("--set", "objective.objectives.0.pairing.n=8", "--set", "pool.net.hidden=8")
    if statistic != "joined":
        small += tuple(
            part
            for text in (f"statistic={statistic}", "distance=squared-error")
            for part in ("--set", f"objective.objectives.0.{text}")
        )
    more = ("--data-root", ".", *GRAPHS, "--set", "data.size=9", *small)
    done = call(*run(*more, method="doscond", data="tu:TOY", n=2, steps=3))
    assert done.exit_code == 0, done.output
    artifact = condense.load("out")
    said = artifact.provenance["privacy"]
    assert (said["draws"], said["releases"][0]["rate"]) == (3, 16 / 64)
    assert artifact.provenance["task"]["shape"] == [9, 2]
    assert said["not_noised"]["shape"].endswith("is made of a given size (data.size), not of the private ones'")
    assert "scale" not in said["not_noised"]
    assert "properties" not in artifact.provenance["source"]
    assert artifact.sampler().x.sizes.tolist() == [9] * 4
