"""Assets: made once, found again by their content, taken up where the making was interrupted."""

from __future__ import annotations

import pytest
import torch

from condense.axes import Augment, Net, Warp
from condense.component import named
from condense.errors import BadValue
from condense.fit import Fit
from condense.parts.assets import Trained
from condense.parts.inits import Herding, KCenter, herding, k_center
from condense.parts.rules import SGD
from condense.parts.schedules import Cosine
from condense.plugins import DISTRIBUTION, versions
from condense.testing import ToyNet, toy_recipe, toy_run, toy_splits

FIT = Fit(rule=SGD(momentum=0.9), lr=Cosine(start=0.05), steps=20, batch=16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "assets"


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def plain(run, member=0):
    """The network as a plain training gives it."""
    rng = run.rng.fold("trained", member)
    net = ToyNet().make(run.task, rng, run.device)
    FIT.begin(net, rng).advance(run.splits.train, 20)
    return net


def test_a_trained_network_is_that_of_a_plain_training_frozen_and_in_evaluation_mode():
    run = toy_run(toy_recipe())
    module = run.assets.get(Trained(net=ToyNet(), fit=FIT))
    assert torch.equal(weights(module), weights(plain(run)))
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


def test_members_differ():
    run = toy_run(toy_recipe())
    first, other = (run.assets.get(Trained(net=ToyNet(), fit=FIT, member=i)) for i in (0, 1))
    assert torch.equal(weights(other), weights(plain(run, 1)))
    assert not torch.equal(weights(first), weights(other))


def test_it_is_made_once_and_named_by_its_digest(cache, monkeypatch):
    asset, made = Trained(net=ToyNet(), fit=FIT), []
    real = Trained.make
    monkeypatch.setattr(Trained, "make", lambda self, run, folder: (made.append(1), real(self, run, folder))[1])
    runs = [toy_run(toy_recipe()) for _ in range(2)]
    first, again = (run.assets.get(asset) for run in runs)
    assert made == [1]
    assert torch.equal(weights(first), weights(again))
    assert [run.assets.used for run in runs] == [{runs[0].assets.key(asset): "trained"}] * 2
    assert [path.name for path in cache.iterdir()] == [f"trained-{runs[0].assets.key(asset)}"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "file"))
    run = toy_run(toy_recipe())
    with pytest.warns(RuntimeWarning, match="CONDENSE_CACHE"), pytest.raises(BadValue, match="Set CONDENSE_CACHE"):
        run.assets.get(Trained(net=ToyNet(), fit=FIT))


def test_what_it_depends_on_is_in_its_key():
    asset = Trained(net=ToyNet(), fit=FIT)
    base = toy_run(toy_recipe())
    others = [
        (toy_run(toy_recipe(), seed=1), asset),
        (toy_run(toy_recipe(), splits=toy_splits(seed=8)), asset),
        (base, asset.with_(member=1)),
        (base, asset.with_(net=ToyNet(width=5))),
        (base, asset.with_(fit=FIT.with_(steps=21))),
    ]
    keys = [base.assets.key(asset), *(run.assets.key(other) for run, other in others)]
    assert len(set(keys)) == len(keys)
    assert toy_run(toy_recipe()).assets.key(asset) == keys[0]


class Fuse(Augment):
    """Interrupts a training when it draws for the 505th time."""

    left: int = 505

    def sample(self, rng, n=None, progress=0.0) -> Warp:
        object.__setattr__(self, "left", self.left - 1)
        if self.left == 0:
            raise KeyboardInterrupt

        class Keep(Warp):
            def __call__(self, batch):
                return batch

            def state(self):
                return {}

        return Keep()


def test_only_the_packages_that_its_parts_are_of_are_in_its_key():
    """Installing somebody's plugin makes nothing anew that it has no part in."""
    own = versions([named(Net, "conv-net"), ToyNet()])
    assert set(own) == {DISTRIBUTION}
    assert versions([ToyNet()]) == {}


def test_a_making_that_was_interrupted_goes_on_where_it_was_saved():
    """Saved at step 500, interrupted in step 505; the second making starts from 500 and ends with the same bits."""
    long = FIT.with_(steps=510)
    run = toy_run(toy_recipe())
    asset = Trained(net=ToyNet(), fit=long.with_(augment=Fuse()))
    with pytest.raises(KeyboardInterrupt):
        run.assets.get(asset)
    asset.fit.augment.__dict__["left"] = 505  # the same value again: its key is over its settings
    resumed = run.assets.get(asset)
    assert asset.fit.augment.left == 505 - 10, "the first 500 steps were trained again"
    rng = run.rng.fold("trained", 0)
    net = ToyNet().make(run.task, rng, run.device)
    long.begin(net, rng).advance(run.splits.train, 510)
    assert torch.equal(weights(resumed), weights(net))


@pytest.mark.parametrize(("init", "rule"), [(Herding, herding), (KCenter, k_center)])
def test_a_scorer_chooses_by_its_features(init, rule):
    run = toy_run(toy_recipe())
    scorer = Trained(net=ToyNet(), fit=FIT)
    batch = init(scorer=scorer)(run, torch.tensor([0, 0, 0, 2, 2]))
    net = plain(run)
    for c, n in ((0, 3), (2, 2)):
        ids = run.splits.train.ids(c)
        chosen = ids[rule(net.features(run.splits.train.take(ids).x).detach(), n)]
        assert torch.equal(batch.index[batch.y == c], chosen)
