"""What a judged set is compared with: networks trained on all of the real data, and random real images."""

from __future__ import annotations

import time
from collections.abc import Callable

import pluggy

from . import hookspecs
from .axes import Asset, Net, Rule, Schedule
from .component import named
from .data import Sampler
from .engine import condense
from .evaluate import Candidate, Progress, answers, as_row, headline, preprocessing, shown, trial
from .fit import Fit
from .machine import fresh_peak
from .plugins import GROUP, registry
from .protocol import Protocol
from .report import Report, Row
from .running import Run


def full_fit(train: Sampler) -> Fit:
    """How networks are trained on all real data: a reference of our own, the same beside every protocol.

    SGD 0.01 with momentum 0.9 and weight decay 5e-4, batches of 256, no augmentation, 20 epochs counted in steps, but
    at least 200 and at most 5,000; the rate falls to a tenth at half. (No protocol of the literature fixes this; a
    reference that is trained too shortly has misled before.)
    """
    steps = min(5000, max(200, 20 * train.chunks(256)))
    rule = named(Rule, "sgd", momentum=0.9, weight_decay=5e-4)
    return Fit(rule=rule, lr=named(Schedule, "drops", start=0.01, at=(0.5,), factor=0.1), steps=steps, batch=256)


def full_networks(run: Run, net: Net, repeats: int) -> list[Asset]:
    """The networks trained on all real data, as assets: addressed by source, preprocessing, network and seed."""
    fit = full_fit(run.splits.train)
    return [named(Asset, "trained", net=net, fit=fit, member=i) for i in range(repeats)]


def full_data_is_made(run: Run, protocol: Protocol) -> bool:
    """Are all networks of `full_data` in the cache, so that it costs only the test passes?"""
    return all(run.assets.has(asset) for net in protocol.nets for asset in full_networks(run, net, protocol.repeats))


def full_data(run: Run, protocol: Protocol, progress: Callable[[Progress], None] | None = None) -> Report:
    """A row of kind `full` for each architecture: trained by `full_fit` on the whole training split of the run.

    The networks are assets: made once, resumable one by one. Of the protocol, nets, repeats, metrics and split count.
    """
    return Report(rows=tuple(_full_row(run, net, protocol, progress) for net in protocol.nets))


def _full_row(run: Run, net: Net, protocol: Protocol, progress: Callable[[Progress], None] | None) -> Row:
    splits, trials = run.splits, []
    test = splits.test if protocol.split == "test" or splits.validation is None else splits.validation
    fit = full_fit(splits.train)
    fresh_peak(run.device)
    for i, asset in enumerate(full_networks(run, net, protocol.repeats)):
        started = time.monotonic()
        network = fit.begin(run.assets.get(asset), run.rng)
        scores, y = answers(network, test)
        accuracy = headline(protocol, scores[0], y, test)
        curve = [(fit.length(splits.train), accuracy)]
        trials.append(trial(protocol, scores[0], curve, y, test, time.monotonic() - started))
        if progress is not None:
            progress(Progress(shown(net), i + 1, protocol.repeats, accuracy))
    about = {
        "kind": "full",
        "method": "full data",
        "images": len(splits.train),
        "labels": "hard",
        "protocol": "full-data",
        "rules": fit.digest(),
        **preprocessing(run.transform),
    }
    return as_row(about, net, test, protocol.split, run.plan.seed, trials)


def random_images(run: Run) -> Candidate:
    """As many random real images as the run's budget allots, by its seed: what a method has to beat."""
    recipe = registry().recipe("random")().with_(budget=run.recipe.budget, preprocess=run.recipe.preprocess)
    quiet = pluggy.PluginManager(GROUP)
    quiet.add_hookspecs(hookspecs)
    plan = run.plan.model_copy(update={"method": "random", "recipe": recipe})
    chosen = condense(Run(plan, run.splits, run.transform, quiet))
    return Candidate(chosen.freeze(), run.transform, "random", kind="random")
