"""The command `condense-private`: condense on private data. What it does, `condense` does too.

`--data SET --epsilon 8` is `--data private:SET --set data.epsilon=8`; `audit`, `calibrate` and `privacy` are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condense import options as o
from condense.faces import Face, option

if TYPE_CHECKING:
    from .accounting import Calibrated
    from .audit import Audit

Epsilon = Annotated[
    float | None, option("--epsilon", "E", "The privacy budget; noise is calibrated for it (8, if none).")
]
Multiplier = Annotated[
    float | None, option("--noise-multiplier", "X", "The noise's deviation, in units of what one record can change.")
]
Delta = Annotated[float | None, option("--delta", "D", "Take it below 1 / N (default: 1e-5).")]
Clip = Annotated[
    float | None, option("--clip", "C", "Length that a record's part is clipped to (default: the method's).")
]
Accounts = Annotated[
    str | None, option("--accountant", "A", "rdp (default), prv, or gaussian where all records count.")
]

EPSILON = 8.0  # where neither a budget nor noise is given

Epsilons = Annotated[str, typer.Option("--epsilon", metavar="E,E", help="Budgets, with commas.")]
Counts = Annotated[str, typer.Option("--steps", metavar="K,K", help="Numbers of measures, with commas.")]
Deltas = Annotated[float, typer.Option("--delta", metavar="D", help="Below 1 / N.")]
RateOf = Annotated[float, typer.Option("--rate", metavar="Q", help="The share of all records in a measure: batch / N.")]
By = Annotated[str, typer.Option("--accountant", metavar="A,A", help="rdp, prv, gaussian, with commas.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="An artifact.")]

Statistics = Annotated[str | None, option("--statistic", "A,B", "What is audited, with commas (default: everything).")]
Draws = Annotated[int, option("--draws", "N", "Guesses that are counted, for each statistic and seed.")]
Seeds = Annotated[int, option("--seeds", "S", "How many audits of each statistic: seeds 0, 1, ...")]
Measures = Annotated[int, option("--measures", "R", "Releases that one guess sees, of the same records.")]
CanariesOf = Annotated[int, option("--canaries", "M", "Canaries in one run, each a guess; 1 is exact, and slow.")]
Sampled = Annotated[float, option("--rate", "Q", "The share of the records that a measure samples.")]
Noise = Annotated[float, option("--noise-multiplier", "X", "The noise of one release, in units of the sensitivity.")]
Confidence = Annotated[float, option("--confidence", "P", "That the lower bound holds.")]
NoiseSeed = Annotated[int | None, option("--noise-seed", "K", "Repeatable noise (default: the operating system's).")]


def settled(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `condense run` or `show` that those of this program come to."""
    names = ("epsilon", "noise_multiplier", "delta", "clip", "accountant")
    given = {name: arguments.pop(name) for name in names}
    if given["epsilon"] is None and given["noise_multiplier"] is None:
        given["epsilon"] = EPSILON
    asked = [f"data.{name}={value}" for name, value in given.items() if value is not None]
    return {**arguments, "data": f"private:{arguments['data']}", "settings": [*asked, *(arguments["settings"] or ())]}


FACE = Face(
    program="condense-private",
    help="Learn a small set from private data, such that it may be published: with differential privacy, and a ledger.",
    forms=("tensors", "graphs"),
    own={"epsilon": Epsilon, "noise_multiplier": Multiplier, "delta": Delta, "clip": Clip, "accountant": Accounts},
    settle=settled,
)


def calibrate(
    epsilon: Epsilons = "1,8",
    delta: Deltas = 1e-5,
    rate: RateOf = 0.01,
    steps: Counts = "1000",
    accountant: By = "rdp",
    as_json: o.AsJson = False,
) -> None:
    """The noise multiplier for each budget and number of measures."""
    from dataclasses import asdict

    from condense.terminal import Speaker, columns

    from .accounting import calibrate as table

    names: Any = accountant.split(",")
    found = table(numbers("epsilon", epsilon, float), delta, rate, numbers("steps", steps, int), names)
    speaker = Speaker(as_json)
    heads = ("epsilon", "delta", "rate", "steps", "accountant", "noise multiplier", "epsilon reached")
    lines = [_line(line) for line in found]
    speaker.show(columns(heads, lines))
    speaker.result({"lines": [asdict(line) for line in found]})


def _line(line: Calibrated) -> tuple[str, ...]:
    asked = (f"{line.epsilon:g}", f"{line.delta:g}", f"{line.rate:g}", f"{line.steps:,}", line.accountant)
    return (*asked, f"{line.noise_multiplier:.4f}", f"{line.reached:.4f}")


def numbers(name: str, text: str, kind: type) -> list[Any]:
    """`1,8` as numbers. Raises `BadValue`."""
    from condense.errors import BadValue

    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise BadValue(name, text, "is no list of numbers", f"Give them with commas: --{name} 1,8.") from None


def privacy(folder: Folder, as_json: o.AsJson = False) -> None:
    """What an artifact says of its privacy: its ledger, in short."""
    from condense.api import load
    from condense.errors import BadValue
    from condense.terminal import Speaker, columns

    said = load(folder).provenance.get("privacy")
    if said is None:
        raise BadValue("path", str(folder), "was not made privately", "Make one: condense-private run dc.")
    speaker = Speaker(as_json)
    speaker.say(said["sentence"])
    releases = [(f"{r['count']:,}", f"{r['rate']:.4g}", f"{r['noise_multiplier']:.4g}") for r in said["releases"]]
    speaker.show(columns(("measures", "rate", "noise multiplier"), releases))
    for name, text in said["not_noised"].items():
        speaker.say(f"not noised: {name}: {text}")
    speaker.result(said)


def audit(
    statistic: Statistics = None,
    draws: Draws = 100_000,
    seeds: Seeds = 1,
    measures: Measures = 5,
    canaries: CanariesOf = 62,
    rate: Sampled = 1.0,
    noise_multiplier: Noise = 3.0,
    delta: Deltas = 1e-5,
    confidence: Confidence = 0.99,
    noise_seed: NoiseSeed = None,
    as_json: o.AsJson = False,
) -> None:
    """A lower bound on epsilon, from guessing canaries, beside the claimed one; exit code 1 if it is higher.

    Needs no data: canaries are made up, and measured as recipes measure. A minute or so for each statistic.
    """
    from condense.errors import BadValue
    from condense.terminal import Speaker, columns

    from .audit import Terms, cases
    from .audit import audit as of

    terms = Terms(draws, measures, canaries, rate, noise_multiplier, delta, confidence, noise_seed)
    if seeds < 1:
        raise BadValue("seeds", seeds, "is no number of audits", "Give 1 or more.")
    names = list(cases()) if statistic is None else statistic.split(",")
    speaker, found = Speaker(as_json), []
    for name in names:
        for seed in range(seeds):
            found.append(of(name, seed, terms))
            speaker.progress.print(f"{name}, seed {seed}: epsilon is at least {found[-1].lower:.3f}", highlight=False)
    accountants = sorted({accountant for each in found for accountant in each.claimed})
    heads = ("statistic", "seed", "at least", *(f"claimed ({each})" for each in accountants), "guessed from", "claim")
    speaker.show(columns(heads, [_audited(each, accountants) for each in found]))
    speaker.say(
        f"{terms.draws:,} guesses each, of {terms.measures} releases with noise multiplier {terms.noise_multiplier:g}; "
        f"delta {terms.delta:g}, confidence {terms.confidence:g}. A bound below the claim is no proof of it."
    )
    speaker.result({"audits": [each.dump() for each in found], "refuted": any(each.refuted for each in found)})
    if any(each.refuted for each in found):
        raise typer.Exit(1)


def _audited(found: Audit, accountants: Sequence[str]) -> tuple[str, ...]:
    claims = [f"{found.claimed[each]:.3f}" if each in found.claimed else "" for each in accountants]
    verdict = "refuted" if found.refuted else "stands"
    return (found.statistic, str(found.seed), f"{found.lower:.3f}", *claims, found.test, verdict)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `condense-private`: never returns."""
    app = FACE.app()
    app.command()(audit)
    app.command()(calibrate)
    app.command()(privacy)
    app(args=arguments, prog_name=FACE.program)
