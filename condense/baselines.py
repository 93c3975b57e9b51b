"""What a judged set is compared with: networks trained on all of the real data, and random real examples."""

from __future__ import annotations

import time
from collections.abc import Callable

import pluggy

from . import hookspecs
from .axes import Asset, Net, Rule, Schedule
from .component import digest, named
from .data import Data, Sampler, Source
from .engine import condense
from .evaluate import (
    Candidate,
    Judge,
    Kept,
    Progress,
    Trial,
    answers,
    as_row,
    begin,
    headline,
    held_out,
    preprocessing,
    shown,
    trial,
)
from .fit import Fit
from .machine import fresh_peak
from .places import writable_cache
from .plugins import GROUP, registry
from .protocol import Protocol
from .report import Report, Row
from .running import Run

FULL = "full-data"  # where in the cache what its networks scored lies


def full_fit(train: Sampler) -> Fit:
    """How networks are trained on all real data: a reference of our own, the same beside every protocol.

    SGD 0.01 with momentum 0.9 and weight decay 5e-4, batches of 256 (64 of fewer than 5,120 examples), no augmentation,
    20 epochs counted in steps, but at least 200 and at most 5,000; the rate falls to a tenth at half. (No protocol of
    the literature fixes this; a reference that is trained too shortly has misled before.)
    """
    batch = 256 if len(train) >= 5120 else 64
    steps = min(5000, max(200, 20 * train.chunks(batch)))
    rule = named(Rule, "sgd", momentum=0.9, weight_decay=5e-4)
    return Fit(rule=rule, lr=named(Schedule, "drops", start=0.01, at=(0.5,), factor=0.1), steps=steps, batch=batch)


def full_networks(run: Run, net: Net, repeats: int) -> list[Asset]:
    """The networks trained on all real data, as assets: addressed by source, preprocessing, network and seed."""
    fit = full_fit(run.splits.train)
    return [named(Asset, "trained", net=net, fit=fit, member=i) for i in range(repeats)]


def full_data_is_made(run: Run, protocol: Protocol) -> bool:
    """Are all networks of `full_data` in the cache, so that it costs at most the test passes?"""
    if protocol.whole:
        return whole_judge(run, protocol).done
    return all(run.assets.has(asset) for net in protocol.nets for asset in full_networks(run, net, protocol.repeats))


def full_data(run: Run, protocol: Protocol, progress: Callable[[Progress], None] | None = None) -> Report:
    """A row of kind `full` for each architecture: networks trained on the whole training split of the run.

    By the protocol's own rules where it judges all real data too (`Protocol.whole`); what they scored is kept in the
    cache. Else by `full_fit`: of the protocol, nets, repeats, metrics and split count, and the networks are assets,
    made once, resumable one by one; what they scored and how long they took is kept too.
    """
    if protocol.whole:
        return whole_judge(run, protocol, progress).report()
    return Report(rows=tuple(_full_row(run, net, protocol, progress) for net in protocol.nets))


def whole_judge(run: Run, protocol: Protocol, progress: Callable[[Progress], None] | None = None) -> Judge:
    """The protocol's own judge of all the real training examples of the run."""
    everything = Candidate(run.splits.train, run.transform, "full data", kind="full")
    return begin(everything, run.splits, protocol, run.plan.seed, run.device, writable_cache(FULL), progress)


def _full_row(run: Run, net: Net, protocol: Protocol, progress: Callable[[Progress], None] | None) -> Row:
    splits, trials = run.splits, []
    test = held_out(splits, protocol)
    networks = full_networks(run, net, protocol.repeats)
    key = digest([run.assets.key(networks[0]), test.provenance(), [metric.dump() for metric in protocol.metrics]])
    kept = Kept.within(writable_cache(FULL), key)
    fresh_peak(run.device)
    for i, asset in enumerate(networks):
        found = kept.find(net, i)
        if found is None:
            found = _full_trial(run, asset, protocol, test)
            kept.add(net, i, found)
        trials.append(found)
        if progress is not None:
            progress(Progress(shown(net), i + 1, protocol.repeats, found.curve[-1][1]))
    about = {
        "kind": "full",
        "method": "full data",
        "images": len(splits.train),
        "labels": "hard",
        "protocol": "full-data",
        "rules": full_fit(splits.train).digest(),
        **preprocessing(run.transform),
    }
    return as_row(about, net, test, protocol.split, run.plan.seed, trials)


def _full_trial(run: Run, asset: Asset, protocol: Protocol, test: Source) -> Trial:
    """Make the network if the cache has none, and test it once."""
    started, train = time.monotonic(), run.splits.train
    fit = full_fit(train)
    network = fit.begin(run.assets.get(asset), run.rng)
    scores, y = answers(network, test)
    curve = [(fit.length(train), headline(protocol, scores[0], y, test))]
    return trial(protocol, scores[0], curve, y, test, time.monotonic() - started, network.passes)


def random_images(run: Run) -> Candidate:
    """As many random real examples as the run's budget allots, by its seed: what a method has to beat.

    Chosen and stored by the method `random` of their form; where it has none, by that of tensors, which opens none.
    """
    form = run.task.form.name
    recipe = registry().recipe("random", form if "random" in registry().recipes(form) else Data.form)()
    recipe = recipe.with_(budget=run.recipe.budget, preprocess=run.recipe.preprocess)
    quiet = pluggy.PluginManager(GROUP)
    quiet.add_hookspecs(hookspecs)
    plan = run.plan.model_copy(update={"method": "random", "recipe": recipe})
    chosen = condense(Run(plan, run.splits, run.transform, quiet))
    return Candidate(chosen.freeze(), run.transform, "random", kind="random")
