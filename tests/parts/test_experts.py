"""Experts on disk: what is stored, what is found again, what is refused; and the stretches that are lent of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from condense.axes import Preprocess
from condense.data import Splits, TensorSource
from condense.errors import BadData, BadValue, Damaged, Diverged
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.experts import Experts, Index, Trajectories
from condense.parts.flat import Flat
from condense.parts.rules import SGD
from condense.parts.schedules import Cosine, Linear
from condense.rng import Rng
from condense.running import Paused
from condense.snapshots import Reader, Writer
from condense.testing import Raw, ToyNet, toy_recipe, toy_run, toy_splits, toys

FIT = Fit(rule=SGD(momentum=0.9), lr=Cosine(start=0.05), epochs=3, batch=16)
ASSET = Trajectories(net=ToyNet(), fit=FIT, count=2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "assets"


@pytest.fixture
def run():
    return toy_run(toy_recipe())


def like(run, net=None):
    return dict((net or ToyNet()).make(run.task, Rng(0)).named_parameters())


def every(run, readers):
    return [[reader.get(i, like(run)) for i in range(len(reader))] for reader in readers]


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def by_hand(run, member, seed=0):
    """The snapshots of an expert whose training is interrupted by nothing."""
    rng = Rng(seed).fold("expert", member)
    net = ToyNet().make(run.task, rng)
    training, found = FIT.begin(net, rng), []
    chunks = run.splits.train.chunks(16)
    for _ in range(4):
        found.append({name: p.detach().clone() for name, p in net.named_parameters()})
        training.advance(run.splits.train, chunks, of=3 * chunks)
    return found


def folder_of(run, asset=ASSET):
    return run.assets.folder(asset)


def test_every_epoch_of_every_expert_is_kept_as_a_plain_training_gives_it(run):
    readers = run.assets.get(ASSET)
    for member, found in enumerate(every(run, readers)):
        expected = by_hand(run, member)
        assert len(found) == len(expected) == 4
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert sorted(path.name for path in folder_of(run).iterdir()) == [
        *("expert-0000.safetensors", "expert-0001.safetensors", "index.json", "lock"),
    ]


def test_files_are_safetensors_that_others_read(run):
    run.assets.get(ASSET)
    tensors = load_file(folder_of(run) / "expert-0001.safetensors")
    expected = by_hand(run, 1)
    assert set(tensors) == {f"{i:04d}/{name}" for i in range(4) for name in expected[0]}
    for key, value in tensors.items():
        assert torch.equal(value, expected[int(key[:4])][key[5:]])


class Told:
    def __init__(self):
        self.texts = []

    @hookimpl
    def condense_made(self, run, text):
        self.texts.append(text)


def told(**changes):
    observer = Told()
    return toy_run(toy_recipe(), observers=[observer], **changes), observer.texts


def test_a_second_run_finds_them_whatever_its_seed_and_more_are_added_to_those_there():
    first, texts = told()
    before = every(first, first.assets.get(ASSET))
    assert len(texts) == 6
    assert texts[-1].startswith("expert 2 of 2, epoch 3 of 3, loss ")
    again, texts = told(seed=5)
    assert all(same(a, b) for a, b in zip(every(again, again.assets.get(ASSET))[1], before[1], strict=True))
    assert texts == []
    more = again.assets.get(ASSET.with_(count=3))
    assert [text.partition(",")[0] for text in texts] == ["expert 3 of 3"] * 3
    assert all(same(a, b) for a, b in zip(every(again, more)[2], by_hand(again, 2), strict=True))
    assert len(again.assets.get(ASSET.with_(count=1))) == 1


def test_what_they_depend_on_is_in_their_key(run):
    with toys():
        other_scale = toy_run(toy_recipe(preprocess=Raw(dtype="float64")))
    others = [
        (toy_run(toy_recipe(), splits=toy_splits(seed=8)), ASSET),
        (run, ASSET.with_(net=ToyNet(width=5))),
        (run, ASSET.with_(fit=FIT.with_(epochs=4))),
        (run, ASSET.with_(seed=1)),
        (run, ASSET.with_(dtype="bfloat16")),
        (run, ASSET.with_(flat=Flat())),
        (other_scale, ASSET),
    ]
    keys = {run.assets.key(ASSET), *(other.assets.key(asset) for other, asset in others)}
    assert len(keys) == len(others) + 1
    assert toy_run(toy_recipe(), seed=3).assets.key(ASSET.with_(count=9)) == run.assets.key(ASSET)


class Stop:
    """Interrupts after so many epochs are on disk."""

    def __init__(self, epochs):
        self.left = epochs

    @hookimpl
    def condense_made(self, run, text):
        self.left -= 1
        if not self.left:
            run.interrupted.set()


@pytest.mark.parametrize("epochs", [1, 2, 3, 5])
def test_an_interrupted_training_goes_on_after_the_last_epoch_on_disk(epochs):
    run = toy_run(toy_recipe(), observers=[Stop(epochs)])
    with pytest.raises(Paused, match=r"^run: was interrupted and has saved its state \(got 'expert \d of 2, epoch"):
        run.assets.get(ASSET)
    assert not folder_of(run).exists()
    again, texts = told()
    readers = again.assets.get(ASSET)
    assert len(texts) == 6 - epochs
    for member, found in enumerate(every(again, readers)):
        assert all(same(a, b) for a, b in zip(found, by_hand(again, member), strict=True))
    assert [path for path in folder_of(again).iterdir() if "training" in path.name or path.suffix == ".part"] == []


@pytest.mark.parametrize("kind", ["flat", "in step"])
def test_so_does_an_interrupted_training_of_flat_ones_and_of_several_in_step(kind, monkeypatch, tmp_path):
    asset = ASSET.with_(flat=Flat()) if kind == "flat" else ASSET
    if kind == "in step":
        monkeypatch.setattr(Trajectories, "_groups", lambda self, run, members: [members])
    whole = toy_run(toy_recipe())
    wanted = every(whole, whole.assets.get(asset))
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "again"))
    with pytest.raises(Paused):
        toy_run(toy_recipe(), observers=[Stop(2)]).assets.get(asset)
    again, texts = told()
    found = every(again, again.assets.get(asset))
    assert len(texts) == (4 if kind == "flat" else 1)
    for a, b in zip(wanted, found, strict=True):
        assert all(same(one, two) for one, two in zip(a, b, strict=True))


def test_what_is_half_written_is_never_read(run, monkeypatch):
    """A training that is killed leaves a file under another name, which the index does not list."""

    class Killed(BaseException):
        pass

    def kill(self):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("condense.snapshots.Writer.finish", kill)
        with pytest.raises(Killed):
            run.assets.get(ASSET)
    making = folder_of(run).with_suffix(".making")
    assert (making / "expert-0000.safetensors.part").is_file()
    assert Index.read(making).experts == ()
    assert not run.assets.has(ASSET)
    assert all(same(a, b) for a, b in zip(every(run, run.assets.get(ASSET))[0], by_hand(run, 0), strict=True))


def test_bfloat16_halves_the_disk_and_gives_rounded_weights(run):
    half = ASSET.with_(dtype="bfloat16")
    whole, readers = run.assets.get(ASSET), run.assets.get(half)
    names = ["expert-0000.safetensors"] * 2
    sizes = [(folder_of(run, asset) / name).stat().st_size for asset, name in zip((ASSET, half), names, strict=True)]
    heads = [
        int.from_bytes((folder_of(run, asset) / names[0]).read_bytes()[:8], "little") + 8 for asset in (ASSET, half)
    ]
    assert (sizes[1] - heads[1]) * 2 == sizes[0] - heads[0]
    for a, b in zip(every(run, whole)[1], every(run, readers)[1], strict=True):
        for name in a:
            assert b[name].dtype == torch.float32
            assert torch.equal(b[name], a[name].to(torch.bfloat16).float())


def test_experts_trained_in_step_are_those_trained_one_by_one(run, monkeypatch):
    alone = every(run, run.assets.get(ASSET))
    monkeypatch.setattr(Trajectories, "_groups", lambda self, run, members: [members])
    other, texts = told(splits=toy_splits(seed=7))
    together = ASSET.with_(dtype="float32", seed=0, count=3)
    monkeypatch.setenv("CONDENSE_CACHE", str(folder_of(run).parent.parent / "other"))
    found = every(other, other.assets.get(together))
    assert len(texts) == 3
    assert texts[0].startswith("experts 1 to 3 of 3, epoch 1")
    for a, b in zip(alone, found, strict=False):
        for one, two in zip(a, b, strict=True):
            for name in one:
                torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)


def test_experts_that_explode_are_said_by_number(run):
    with pytest.raises(Diverged, match=r"^experts: expert 0 is not finite after epoch \d"):
        run.assets.get(ASSET.with_(fit=FIT.with_(lr=1e20)))


def test_a_fit_counted_in_steps_is_refused():
    with pytest.raises(ValueError, match="give their fit `epochs`"):
        Trajectories(net=ToyNet(), fit=Fit(rule=SGD(), steps=3))


def anonymous():
    """Bytes of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much memory is no file's")
def test_a_buffer_is_never_whole_in_memory(tmp_path):
    """40 snapshots of 4 MiB, written one by one and read in any order: never more than a few of them at once."""
    weights = {"w": torch.zeros(2**20)}
    writer, before = Writer(tmp_path / "expert-0000.safetensors", weights, 40, "float32"), anonymous()
    sums = []
    for i in range(40):
        weights["w"].fill_(i)
        sums.append(writer.put(i, weights))
        assert anonymous() - before < 40 * 2**20
    writer.finish()
    reader = Reader(tmp_path / "expert-0000.safetensors", sums)
    for i in (7, *range(40)):
        assert reader.get(i, weights)["w"][-1] == i
        assert anonymous() - before < 40 * 2**20


# -- damage -----------------------------------------------------------------------------------------------------------


def spoilt(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
        return
    if kind == "cut":
        data = data[: len(data) // 2]
    elif kind == "head":
        data[8] ^= 1
    else:
        data[-3] ^= 1  # the last snapshot
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", ["flipped", "cut", "head", "missing"])
def test_a_corrupt_file_is_said_by_name_and_the_others_go_on(run, kind):
    run.assets.get(ASSET)
    path = folder_of(run) / "expert-0001.safetensors"
    spoilt(path, kind)
    readers = run.assets.get(ASSET)
    assert same(readers[0].get(3, like(run)), by_hand(run, 0)[3])
    with pytest.raises(Damaged, match=r"expert-0001\.safetensors") as found:
        readers[1].get(3, like(run))
    assert found.value.exit_code == 4
    if kind == "flipped":
        assert same(readers[1].get(2, like(run)), by_hand(run, 1)[2]), "the snapshots before are whole"


def test_a_corrupt_index_is_said_by_name(run):
    run.assets.get(ASSET)
    path = folder_of(run) / "index.json"
    data = json.loads(path.read_text())
    for wrong in ({**data, "format": 2}, {**data, "epochs": 7}, {**data, "experts": "none"}, [1]):
        path.write_text(json.dumps(wrong))
        with pytest.raises(Damaged, match=r"index\.json"):
            run.assets.get(ASSET)
    wrong = json.loads(json.dumps(data))
    wrong["experts"][0]["file"] = "../../secret.safetensors"
    path.write_text(json.dumps(wrong))
    with pytest.raises(Damaged, match=r"index\.json"):
        run.assets.get(ASSET)


# -- the pool ----------------------------------------------------------------------------------------------------------

POOL = {"name": "experts", "experts": ASSET, "below": 2, "span": 1}


def recipe(**changes):
    return toy_recipe(pool={**POOL, **changes})


def lent(run, steps, start=0):
    learners = run.recipe.pool.learners(run, None)
    return [learners.next(i) for i in range(start, steps)]


def test_each_step_lends_a_stretch_of_one_expert():
    run = toy_run(recipe())
    snapshots = [by_hand(run, member) for member in (0, 1)]
    seen = Counter()
    for learner in lent(run, 40):
        assert len(learner.path) == 2
        ((member, start),) = [(m, s) for m in (0, 1) for s in range(4) if same(learner.path[0], snapshots[m][s])]
        assert same(learner.path[-1], snapshots[member][start + 1])
        assert learner.age == start
        seen[member, start] += 1
    assert set(seen) == {(m, s) for m in (0, 1) for s in (0, 1)}
    assert seen[0, 0] + seen[0, 1] == 20, "each expert once in a round"


def test_stretches_are_a_function_of_the_step_and_copies():
    run = toy_run(recipe())
    whole, rest = lent(run, 6), lent(run, 6, start=3)
    for a, b in zip(whole[3:], rest, strict=True):
        assert same(a.path[0], b.path[0])
    taken = whole[0].path[0]
    for value in taken.values():
        value.zero_()
    assert not same(whole[0].path[0], taken)


def test_the_window_may_grow():
    pool = recipe(below=Linear(start=1, to=3, until=0.5)).pool
    assert [pool.window(p) for p in (0.0, 0.3, 0.5, 0.9)] == [1, 2, 3, 3]
    assert pool.with_(first=1, below=2).window(0.5) == 1


def test_a_start_beyond_what_is_stored_is_refused():
    for changes in ({"below": 4}, {"span": 3}, {"below": Linear(start=1, to=5)}):
        made = recipe(**changes)
        with pytest.raises(
            BadValue, match=r"^pool.below: leads to epoch [45], and 3 epochs of each expert are trained"
        ):
            made.pool.check(made, toy_splits().task)


@pytest.mark.parametrize("changes", [{"first": 1, "below": 1}, {"first": 2, "below": Linear(start=2, to=3)}])
def test_a_window_without_a_start_is_refused(changes):
    made = recipe(**changes)
    with pytest.raises(BadValue, match=r"^pool.below: leaves no epoch to start from: `first` is [12]"):
        made.pool.check(made, toy_splits().task)


def test_a_folder_of_experts_is_used_as_it_is_and_refused_by_name_where_it_is_of_something_else(run, tmp_path):
    run.assets.get(ASSET)
    folder = str(folder_of(run))
    many = ASSET.with_(count=50, fit=FIT.with_(lr=0.1))
    own = toy_run(recipe(folder=folder, experts=many))
    own.recipe.pool.admit(own)
    learner = lent(own, 1)[0]
    member = int(learner.path.reader.path.stem[-1])
    assert same(learner.path[0], by_hand(run, member)[learner.age])
    swapped = toy_splits()
    task = swapped.task.model_copy(update={"classes": ("square", "circle", "star")})
    sources = (TensorSource(task, source.x, source.y) for source in (swapped.train, swapped.test))
    refusals = [
        (recipe(folder=folder, experts=ASSET.with_(net=ToyNet(width=5))), None, "of another network"),
        (recipe(folder=folder), Splits(*sources), "of other classes, or of these in another order"),
        (recipe(folder=folder), toy_splits(seed=8), "of other training data"),
    ]
    for made, splits, problem in refusals:
        other = toy_run(made, splits)
        with pytest.raises(BadValue, match=problem) as found:
            made.pool.admit(other)
        assert folder in str(found.value)
    with toys():
        scaled = recipe(folder=folder).with_(preprocess=Raw(dtype="float64"))
        with pytest.raises(BadValue, match="of another preprocessing"):
            scaled.pool.admit(toy_run(scaled))
    empty = recipe(folder=str(tmp_path))
    with pytest.raises(BadValue, match=r"^pool.folder: holds no experts.*condense experts train"):
        empty.pool.admit(toy_run(empty))
    late = recipe(folder=folder, below=9)
    with pytest.raises(BadValue, match="leads to epoch 9"):
        late.pool.admit(toy_run(late))


def test_a_run_on_a_folder_of_experts_says_which_and_goes_on_with_no_others(run, tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    ASSET.make(run, own)
    ASSET.with_(seed=1).make(run, other)
    pool = toy_run(recipe(folder=str(own)))
    state = pool.recipe.pool.learners(pool, None).state_dict()
    sums = json.dumps([expert["snapshots"] for expert in json.loads((own / "index.json").read_text())["experts"]])
    assert pool.notes["experts"] == {
        **{"folder": str(own), "count": 2, "fit": FIT.dump(), "flat": None, "seed": 0, "dtype": "float32"},
        "sha256": hashlib.sha256(sums.replace(" ", "").encode()).hexdigest()[:16],
    }
    pool.recipe.pool.learners(pool, None).load_state_dict(state)
    own.rename(tmp_path / "gone")
    other.rename(own)
    later = toy_run(recipe(folder=str(own)))
    with pytest.raises(BadData, match=r"holds other experts than those that the run began with.*--out"):
        later.recipe.pool.learners(later, None).load_state_dict(state)


def test_a_training_that_was_broken_off_is_gone_on_with_by_its_like_only(tmp_path):
    """In a folder that was given, where no key tells one training from another."""

    with pytest.raises(Paused):
        ASSET.make(toy_run(toy_recipe(), observers=[Stop(1)]), tmp_path)
    for other, what in ((ASSET.with_(fit=FIT.with_(lr=0.3)), "fit"), (ASSET.with_(seed=1), "seed")):
        with pytest.raises(BadValue, match=f"were trained with another {what}"):
            other.make(toy_run(toy_recipe()), tmp_path)
    with pytest.raises(BadValue, match="of other training data"):
        ASSET.make(toy_run(toy_recipe(), toy_splits(seed=8)), tmp_path)
    with pytest.raises(BadValue, match="holds no experts"):
        recipe(folder=str(tmp_path)).pool.admit(toy_run(recipe(folder=str(tmp_path))))
    own = toy_run(toy_recipe())
    ASSET.make(own, tmp_path)
    assert all(same(a, b) for a, b in zip(every(own, ASSET.load(tmp_path, own))[0], by_hand(own, 0), strict=True))


def test_a_kill_between_the_file_and_the_index_is_gone_on_from(run, monkeypatch):
    class Killed(BaseException):
        pass

    finish = Writer.finish

    def kill(self):
        finish(self)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("condense.snapshots.Writer.finish", kill)
        with pytest.raises(Killed):
            run.assets.get(ASSET)
    assert (folder_of(run).with_suffix(".making") / "expert-0000.safetensors").is_file()
    assert all(same(a, b) for a, b in zip(every(run, run.assets.get(ASSET))[0], by_hand(run, 0), strict=True))


def test_what_another_group_left_is_not_taken_up(run, tmp_path):
    """Its file may have been written over: here by a training that is alone with its first expert."""
    (tmp_path / "training-0000-32.safetensors").write_bytes(b"of experts 0 to 31")
    ASSET.make(run, tmp_path)
    assert len(Index.read(tmp_path).experts) == 2
    assert not list(tmp_path.glob("training-*"))


def test_a_folder_takes_no_experts_of_another_fit(run):
    run.assets.get(ASSET)
    with pytest.raises(BadValue, match="were trained with another fit"):
        ASSET.with_(fit=FIT.with_(lr=0.3), count=3).make(run, folder_of(run))
    assert len(Index.read(folder_of(run)).experts) == 2


def test_a_run_whose_experts_are_others_by_now_is_not_gone_on_with(run):
    learners = recipe().pool.learners(toy_run(recipe()), None)
    assert learners.state_dict()["experts"] == 2
    with pytest.raises(BadData, match=r"^experts: were 3 when the run began"):
        learners.load_state_dict({"experts": 3})


def test_they_read_examples_so_that_private_data_refuse_them():
    assert recipe().pool.reads(recipe()).examples
    assert issubclass(Raw, Preprocess)
    assert isinstance(recipe().pool, Experts)
