"""docs/privacy.md: what is promised, and of every recipe whether it can be run on private data, and why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from condense import files
from condense.docs import page, table
from condense.errors import BadValue
from condense.evaluate import shown
from condense.given import as_data
from condense.planning import as_net
from condense.plugins import DISTRIBUTION, registry
from condense.recipe import Published, Recipe
from condense.reproduced import spread

from .dp_sgd import Yardstick
from .membership import Findings, figures, heads, notes
from .refusals import LEAKS, measures, refuse_reads

PROMISE = """`condense-private` makes a set that everybody may see, and says by how much any one record of the private
data can have changed it. The promise is (epsilon, delta)-differential privacy of the released set, and of
all that the run did on the way to it: for two data sets that differ in one labelled example, added or removed, the
probability of any outcome differs by a factor of at most exp(epsilon), up to delta.

```bash
condense-private run dc --data fashion-mnist --epsilon 8 --delta 1e-5     # noise calibrated for the run's measures
condense-private run dm --data fashion-mnist --epsilon 8 --set init=noise # starts from noise instead of real images
condense-private run doscond --data mutag --epsilon 8 --set data.size=18 --set init=noise \\
    --set preprocess.scale=none --set objective.objectives.0.pairing.n=15  # whole graphs
condense-private privacy DIR                                              # what an artifact says of it
condense-private calibrate --epsilon 1,8 --delta 1e-5 --rate 0.0427 --steps 1000,10000
```

From Python: `condense.run("dc", data={"name": "private", "data": "fashion-mnist", "epsilon": 8.0})`."""

HOW = """A private data set is a value that wraps another, and its source has one door. `draw`, `take` and `sweep` are
refused, so that a recipe which touches examples cannot run by construction, in strangers' plugins too. `measure`
takes one Poisson sample of all records for everything that a step asks, computes the statistic of each record alone,
clips it, adds up what belongs to each ask, adds Gaussian noise, divides by constants, and bills once. A record is
part of one sum only: the sensitivity of a measure is the clipping length, whatever the number of classes. That each
record has one row, and its own, is tried on random public records before anything is billed: of every statistic with
every architecture, and of every drawn augmentation. What mixes records, makes two of one, or keeps statistics of what
it sees (batch norm, running means) is refused, in strangers' parts too.

- **The ledger.** `DIR/.run/ledger.jsonl` has one line for each release, written and synced before the data are
  touched: a run that is killed has never released more than it billed. A request that comes again after a resume has
  the same digest, gets the same noise, and is not billed twice; a ledger that lacks what the checkpoint beside it has
  seen is refused. The artifact's `provenance.json` carries the sums: unit, neighbours, rates, noise multipliers,
  draws, delta, epsilon by RDP and by PRV, accountant and version, and everything that was not noised.
- **A rehearsal** comes before: the run's first step up to its first measure, of which nothing is computed. What cannot
  work is refused before anything is written: a rate above 1, noise out of reach, a budget that does not allow a single
  measure. A budget that cannot be meant is warned of, and the artifact keeps the warning (`advice`): delta above 1/N,
  and a set so small that noise drowns what all of its records together could say.
- **A budget that is used up** ends the run: what has been released stays valid, and the artifact is made of it. Noise
  that is given (`--noise-multiplier`) with an epsilon ends so; calibrated noise does only where a resumed run computed
  other bits than the one that was killed, whose requests are new ones and are billed.
- **The noise** comes from a key of 256 bits that the operating system gave, by a counter-based generator (Philox).
  No bit of it depends on `--seed`, or on torch's global generator, which each step seeds from it. The key lies in
  `DIR/.run`, mode 600, because a resume needs it; it is never exported, and is deleted when the run is complete.
  `data.noise_seed` replaces it for debugging, and the artifact then says that it is not private.
- **Public** are: the number of records, the names and number of the classes, the shape of an example, the method and
  all of its settings. Class sizes only with `data.public_counts=true`. Images are scaled by 0.5 and 0.5, never by
  their own mean and deviation.
- **The judge** reads test examples that were never in the source. What it finds is not covered by epsilon: it stays
  in `DIR/.run/report.json`, and enters the artifact only with `--publish-report`, which records that.
- **What is outside the promise**: floating-point attacks on the noise (arXiv:2107.10138, 2112.05307), side channels
  (wall time and memory), what you tell others about runs that you did not release, and choosing among several runs
  by how well they did: every run that anybody looks at has spent its own epsilon.
- **Nodes of one graph** are refused: a node reaches its neighbours' rows, so no record can be clipped alone without
  a proved bound on degrees. Sets of whole graphs are accepted; how large a synthetic one is must be said
  (`data.size`), since the mean size of the private ones is a statistic of them.

`condense-private audit` tries to break this: it puts canaries into made-up data, measures them through the same door,
and turns how well it guesses which of them were there into a lower bound on epsilon, beside the claim
([the audit](audit.md))."""

CLAIMS = """## Claims without a guarantee

*Privacy for Free* (Dong, Zhao and Lyu, ICML 2022, arXiv:2206.00240) claims that condensation itself limits what a
record can change, by a bound of order m/n for linear feature extractors. Carlini, Feldman and Nasr (*No Free Lunch
in "Privacy for Free"*, arXiv:2209.14987) answer that the theory gives no differential privacy, that the experiment
has no statistical power, and that DP-SGD has both the better accuracy and a provable bound. *Connect the dots*
(Odoh, arXiv:2402.10423) builds on the same theorem, and chooses noise by an assumed uncertainty of the adversary. So
no method here is called private that adds no noise. Their noiseless sets can be made by `dm`, `dsa` and others, and
attacked: that is what the membership evaluator is for."""

YARDSTICK = """## DP-SGD: the yardstick

```bash
condense-private dp-sgd --data fashion-mnist --epsilon 1 --steps 200
```

What a set gives up: the judge's network, trained on the private data themselves through the same door. Every network is
a release of its own, so its epsilon is that of one; a set is released once, and trains as many as one likes. Rows of
sets at the same epsilon are in [reproduced](reproduced.md), under `private:`."""

MEASURED = Path(__file__).parent / "measured"  # copies of the results that the page shows, in a folder for each kind
ATTACK = """## Membership: an evaluation of the claim

```bash
condense-private membership dm --data mnist --per-class 1 --steps 200 --set init=noise --set objective.pairing.n=64 \
    --set pool.net.width=32 --set protocol.nets.0.width=32 --records 20000 --shadows 16 --networks 2
condense-private membership psg --data mnist --epsilon 10 --per-class 1 --steps 200 --records 20000
```

LiRA (Carlini et al., arXiv:2112.03570) adapted to condensation. Of the records under attack each shadow run condenses a
random half; each record is in exactly half of the shadows. A record has three scores:

- *model*: the logit of the confidence of networks trained on the set, averaged over the networks; of its mirror image,
  too, where that keeps its meaning;
- *set distance*: minus the distance to the nearest image of its class, as networks see both;
- *set detail*: the cosine between both, less the mean of the class and whitened. Condensing moves an image along what
  its class shares; what is left of the one it started from are details. The ridge of the whitening was chosen on one
  shadow of those below.

There are three attacks for each score: the *likelihood ratio* of Gaussians for in and out, *one-sided* (deviations
above the Gaussian for out), and a plain *threshold* on the score; and *all* together: of the model's likelihood ratio
and the set's one-sided attacks the one that fewest non-members exceed. For the first two, scores are standardised
within shadow and class.

- **Nothing of a target enters its attack.** A pair of complementary shadows is attacked by the other pairs: their
  non-members set the thresholds, their scores give mean and variance of each record (one variance for all records
  below 64 shadows). Leaving out one shadow alone would tell who was in: of the others, one fewer has such a record.
- **TPR**: of the members, those above the threshold, pooled over all shadows; **FPR**: of the non-members, which shows
  whether the threshold held. In parentheses, Clopper-Pearson intervals of 95 %, as if all were independent; shadows
  share their records. A rate has no meaning where a shadow has fewer than 1 / rate non-members.
- **Of the used**: of the records that the set was started from (or is). Ten of 10,000 members can move the TPR over all
  members by 0.1 % at most; whether these ten are found is what they would ask.
- **Beside it**: as many random real examples, and starts from real images and from noise. An attack that does not
  find the random real subset could not have found anything.

An attack that fails proves nothing: it is a bound from below on what can be inferred, by these attacks, on these data.
A recipe adds noise only where its name says so; none of the others is private, whatever was not found."""


def recipes() -> Iterator[tuple[str, Published, Recipe]]:
    """Every recipe of our own packages with its name, made with its defaults."""
    for plugin in registry().plugins:
        if plugin.distribution == DISTRIBUTION:
            for name, method in sorted(plugin.recipes.items()):
                yield name, method, method()


def verdict(recipe: Recipe) -> tuple[str, str]:
    """`accepted`, or `refused` and the sentence that a user is told."""
    try:
        refuse_reads(recipe)
    except BadValue as error:
        return "refused", f"{error.field}={error.value}: {error.problem}. {error.remedy}"
    number = measures(recipe)
    return "accepted", f"{number:,} {'measure' if number == 1 else 'measures'} at its defaults"


def verdicts() -> list[tuple[str, str, str, str]]:
    """Form, name, verdict and reason of every recipe, in the order of forms and names."""
    found = [(method.form, name, *_of(method, recipe)) for name, method, recipe in recipes()]
    return sorted(found)


def _of(method: Published, recipe: Recipe) -> tuple[str, str]:
    if method.form == "nodes":
        return "refused", "nodes of one graph: a record reaches its neighbours, and cannot be clipped alone"
    return verdict(recipe)


def yardsticks(folder: Path = MEASURED / "dp-sgd") -> str:
    """The table of what networks trained with DP-SGD reached, as it is stored; empty where nothing is."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        found = Yardstick.model_validate(files.read_json(path))
        settings, privacy = found.settings, found.networks[0].privacy
        epsilon = ", ".join(f"{value:.3g} ({accountant})" for accountant, value in privacy["epsilon"].items())
        lines.append(
            (
                as_data(settings["data"]).label,
                f"{epsilon}; delta {privacy['delta']:g}",
                shown(as_net(settings["net"])),
                f"{settings['steps']:,} of {settings['batch']:,} records, clip {privacy['statistics'][0]['clip']:g}",
                f"{spread(found.accuracies)} (n={len(found.networks)}, seed {settings['seed']})",
                f"{fmean(network.seconds for network in found.networks) / 60:.0f}",
                f"{found.machine['device']}, {found.machine['threads']} thread(s), torch {found.versions['torch']}",
            )
        )
    return table(("data", "epsilon of each", "network", "steps", "accuracy", "minutes each", "on"), lines)


def measured(folder: Path = MEASURED / "membership") -> Iterator[str]:
    """What membership attacks found, as they are stored: a sentence and a table for each, and what they cost."""
    for path in sorted(folder.glob("*.json")):
        found = Findings.model_validate(files.read_json(path))
        networks, shadows = found.evaluator["networks"], found.evaluator["shadows"]
        size = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.per_class.items())
        yield (
            f"**`{found.method}` on `{found.data}`**, {size}, {found.steps:,} steps: {found.records:,} records, "
            f"{shadows} shadows (seeds {found.seed} to {found.seed + shadows - 1}); networks for each: {networks} "
            f"(`{found.net}`, protocol `{found.protocol}`); queries of a record: {found.queries}. Shares in per cent."
        )
        yield table(
            ["recipe", "of", "members / others", *heads(found.rows)],
            [
                [row.recipe, row.of, f"{shadows} x {row.members:,} / {row.others:,}", *figures(row)]
                for row in found.rows
            ],
        )
        yield from notes(found.rows)
        cost = ", ".join(f"{name} {minutes:g}" for name, minutes in found.minutes.items())
        using = ", ".join(f"{name} {version}" for name, version in sorted(found.versions.items()))
        yield f"{found.machine['device']}, {found.machine['threads']} thread(s); minutes: {cost}; {using}."


def page_of_privacy() -> str:
    """The page as Markdown."""
    accepted = "Those that only measure private data. Others are refused, by the sentence that names the leak."
    leaked = [(axis, why, remedy) for axis, (why, remedy) in sorted(LEAKS.items())]
    return page(
        "Privacy",
        PROMISE,
        "## How it holds",
        HOW,
        "## Which recipes",
        accepted,
        table(("data", "recipe", "on private data", "why"), verdicts()),
        "### What is refused of a part, whatever the recipe",
        table(("part", "because it", "instead"), leaked),
        YARDSTICK,
        yardsticks(),
        CLAIMS,
        ATTACK,
        *measured(),
    )


__all__ = ["page_of_privacy", "verdict", "verdicts"]
