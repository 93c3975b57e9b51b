"""Observers: every loss once, read rarely, and no bit of the run changed; pictures that show what is in the set."""

from __future__ import annotations

import io
import json
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from condense import charts, observers, pictures, plugins
from condense.errors import BadValue


def run_in(folder, steps=5):
    recipe = SimpleNamespace(outer=SimpleNamespace(steps=steps))
    if folder is not None:
        (folder / ".run").mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(folder=folder, recipe=recipe, seconds=lambda: 1.5)


def step(observer, run, index, **losses):
    observer.condense_stepped(run, index, {name: torch.tensor(value) for name, value in losses.items()})


def test_log_holds_every_step_once_and_is_read_in_one_transfer(tmp_path, monkeypatch):
    transfers = []
    read = observers.Gathered.read
    monkeypatch.setattr(observers.Gathered, "read", lambda self: transfers.append(len(self)) or read(self))
    run = run_in(tmp_path)
    with observers.JsonLines(every=3600) as log:
        log.condense_started(run)
        for i in range(5):
            step(log, run, i, match=float(i), extra=0.5)
        assert observers.read_log(tmp_path) == []
    lines = observers.read_log(tmp_path)
    assert transfers == [5]
    assert [(line.step, line.seconds, dict(line.losses)) for line in lines] == [
        (i, 1.5, {"match": float(i), "extra": 0.5}) for i in range(5)
    ]
    assert lines[2].total == 2.5


def test_resumed_log_repeats_no_step_and_drops_a_line_that_was_cut_short(tmp_path):
    run = run_in(tmp_path)
    with observers.JsonLines(every=0) as log:
        for i in range(10):
            step(log, run, i, match=float(i))
    path = tmp_path / ".run" / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with observers.JsonLines(every=0) as log:
        log.condense_started(run)
        for i in range(6, 12):
            step(log, run, i, match=100.0 + i)
    lines = observers.read_log(tmp_path)
    assert [line.step for line in lines] == list(range(12))
    assert [line.losses["match"] for line in lines] == [float(i) for i in range(6)] + [100.0 + i for i in range(6, 12)]


def test_log_is_strict_json_whatever_the_loss(tmp_path):
    run = run_in(tmp_path)
    with observers.JsonLines() as log:
        step(log, run, 0, match=float("nan"), other=float("inf"))

    def refuse(text):
        raise AssertionError(text)

    text = (tmp_path / ".run" / "log.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse)["losses"] == {"match": None, "other": None}
    assert np.isnan(observers.read_log(tmp_path)[0].total)


def test_log_of_a_run_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with observers.JsonLines(every=0) as log:
        step(log, run_in(None), 0, match=1.0)
    assert list(tmp_path.iterdir()) == []


def test_progress_in_plain_lines_says_step_rate_and_loss(monkeypatch):
    read = []
    total = observers._total
    monkeypatch.setattr(observers, "_total", lambda losses: read.append(1) or total(losses))
    out = io.StringIO()
    with observers.RichProgress(Console(file=out, width=200), plain=3600) as progress:
        run = run_in(None, steps=400)
        progress.condense_started(run)
        for i in range(7, 400):
            step(progress, run, i, match=2.0, other=0.25)
    lines = out.getvalue().splitlines()
    assert lines[0] == "goes on from step 7 of 400"
    assert lines[-1].startswith("step 400 of 400, ")
    assert "steps/s" in lines[-1]
    assert lines[-1].endswith("loss 2.25")
    assert len(read) == 1, "the loss is read only for the line that shows it"


def test_progress_bar_goes_however_the_run_ends():
    out = io.StringIO()
    progress = observers.RichProgress(Console(file=out, force_terminal=True, width=120), every=0)

    def broken():
        with progress:
            progress.condense_started(run_in(None))
            step(progress, run_in(None), 0, match=3.0)
            assert progress.bar is not None
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        broken()
    assert progress.bar is None
    assert "condensing" in out.getvalue()
    assert "loss 3" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2 s"), (59, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7380, "2 h 03 min")],
)
def test_duration(seconds, text):
    assert observers.duration(seconds) == text


@pytest.mark.parametrize(("speed", "text"), [(None, "- steps/s"), (12.34, "12.3 steps/s"), (0.25, "4.0 s a step")])
def test_rate(speed, text):
    assert observers.rate(speed) == text


def test_tensorboard_that_is_missing_is_refused_with_our_own_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BadValue) as raised:
        observers.TensorBoard()
    assert raised.value.value == "tensorboard"
    assert f"pip install '{plugins.DISTRIBUTION}[tensorboard]'" in raised.value.remedy


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_loss(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_in(tmp_path)
    with observers.TensorBoard() as board:
        for i in range(3, 6):
            step(board, run, i, match=float(i))
    events = EventAccumulator(str(tmp_path / ".run" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/match")] == [(3, 3.0), (4, 4.0), (5, 5.0)]


# -- pictures -------------------------------------------------------------------------------------------------------


def test_grid_shows_each_class_in_its_own_row_pixel_for_pixel():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n, 8, 8), dtype=np.uint8) for n in (3, 2)]
    sheet = np.asarray(Image.open(io.BytesIO(pictures.grid(images, ["first", "second"]))))
    scale = pictures.enlargement(8)
    assert scale == 7
    left = sheet.shape[1] - 8 - 3 * (8 * scale + 4)
    for row, part in enumerate(images):
        for column, image in enumerate(part):
            y, x = 8 + row * (8 * scale + 4), left + column * (8 * scale + 4)
            expected = image.repeat(scale, axis=0).repeat(scale, axis=1)
            np.testing.assert_array_equal(sheet[y : y + 8 * scale, x : x + 8 * scale, 0], expected)


def test_grid_of_many_classes_says_what_it_leaves_out():
    one = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    full = Image.open(io.BytesIO(pictures.grid([one] * pictures.ROWS, ["c"] * pictures.ROWS)))
    more = Image.open(io.BytesIO(pictures.grid([one] * 120, ["c"] * 120)))
    assert more.height == full.height + 24


def test_pictures_are_the_same_bytes_for_the_same_numbers():
    losses = [(i, 10.0 / (i + 1)) for i in range(50)]
    assert pictures.loss_curve(losses) == pictures.loss_curve(losses)
    images = [np.full((2, 5, 5), 90, dtype=np.uint8)]
    assert pictures.grid(images, ["a name that is far too long for the margin of any grid of images"]) == pictures.grid(
        images, ["a name that is far too long for the margin of any grid of images"]
    )


@pytest.mark.parametrize("n", [1, 5, 40, 173])
def test_smoothed_is_a_running_mean(n):
    values = np.random.default_rng(n).normal(size=n).tolist()
    half = n // 40
    for i, mean in enumerate(pictures.smoothed(values)):
        reach = min(half, i, n - 1 - i)
        window = values[i - reach : i + reach + 1]
        assert mean == pytest.approx(sum(window) / len(window))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (87.6, 100.0), (-3.0, 5e4), (2.0, 2.0), (1e-5, 3e-5)])
def test_ticks_are_round_and_cover_the_curve(low, high):
    marks = charts.ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 8
    steps = {round((b - a) / (marks[1] - marks[0]), 6) for a, b in pairwise(marks)}
    assert steps == {1.0}


@pytest.mark.parametrize(("low", "high"), [(0.02, 7.0), (1.0, 1e6), (3.0, 3.5)])
def test_log_ticks_are_positive_and_cover_the_curve(low, high):
    marks = charts.log_ticks(low, high)
    assert 0 < marks[0] <= low
    assert marks[-1] >= high
    assert marks == sorted(marks)
