"""docs/privacy.md: what is promised, and of every recipe whether it can be run on private data, and why not."""

from __future__ import annotations

from collections.abc import Iterator

from condense.docs import page, table
from condense.errors import BadValue
from condense.plugins import DISTRIBUTION, registry
from condense.recipe import Published, Recipe

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
part of one sum only: the sensitivity of a measure is the clipping length, whatever the number of classes.

- **The ledger.** `DIR/.run/ledger.jsonl` has one line for each release, written and synced before the data are
  touched: a run that is killed has never released more than it billed. A request that comes again after a resume has
  the same digest, gets the same noise, and is not billed twice. The artifact's `provenance.json` carries the sums:
  unit, neighbours, rates, noise multipliers, draws, delta, epsilon by RDP and by PRV, accountant and version, and
  everything that was not noised.
- **A rehearsal** comes before: the run's first step up to its first measure, of which nothing is computed. What cannot
  work is refused before anything is written: a rate above 1, noise out of reach, a budget that does not allow a single
  measure. A budget that cannot be meant is warned of, and the artifact keeps the warning (`advice`): delta above 1/N,
  and a set so small that noise drowns what all of its records together could say.
- **A budget that is used up** ends the run: what has been released stays valid, and the artifact is made of it. Noise
  that is given (`--noise-multiplier`) with an epsilon ends so; calibrated noise does only where a resumed run computed
  other bits than the one that was killed, whose requests are new ones and are billed.
- **The noise** comes from a key of 256 bits that the operating system gave, by a counter-based generator (Philox).
  No bit of it depends on `--seed`. The key lies in `DIR/.run`, mode 600, because a resume needs it; it is never
  exported, and is deleted when the run is complete. `data.noise_seed` replaces it for debugging, and the artifact
  then says that it is not private.
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
  (`data.size`), since the mean size of the private ones is a statistic of them."""

CLAIMS = """## Claims without a guarantee

*Privacy for Free* (Dong, Zhao and Lyu, ICML 2022, arXiv:2206.00240) claims that condensation itself limits what a
record can change, by a bound of order m/n for linear feature extractors. Carlini, Feldman and Nasr (*No Free Lunch
in "Privacy for Free"*, arXiv:2209.14987) answer that the theory gives no differential privacy, that the experiment
has no statistical power, and that DP-SGD has both the better accuracy and a provable bound. *Connect the dots*
(Odoh, arXiv:2402.10423) builds on the same theorem, and chooses noise by an assumed uncertainty of the adversary. So
no method here is called private that adds no noise. Their noiseless sets can be made by `dm`, `dsa` and others, and
attacked: that is what the membership evaluator is for."""


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
        CLAIMS,
    )


__all__ = ["page_of_privacy", "verdict", "verdicts"]
