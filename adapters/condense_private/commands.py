"""The commands that `condense-private` has besides those of condense, and the options that say a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condense import options as o
from condense.faces import option

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
OnData = Annotated[str, typer.Option("--data", metavar="SET", help="The private data set.")]
Budget = Annotated[float, typer.Option("--epsilon", metavar="E", help="The budget of each network.")]
Gradients = Annotated[int, typer.Option("--steps", metavar="K", help="Noised gradients for each network.")]
Batch = Annotated[int, typer.Option("--batch", metavar="N", help="Records expected in each.")]
Rate = Annotated[float, typer.Option("--lr", metavar="R", help="Of a mean gradient that is no longer than the clip.")]
Net = Annotated[str, typer.Option("--net", metavar="NET", help="The network that is trained.")]
Repeats = Annotated[int, typer.Option("--repeats", metavar="N", help="How many networks are trained.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where ledgers and result go; goes on where it was.")]

Shadows = Annotated[int, option("--shadows", "K", "Shadow runs, each on half of the records: even, at least 8.")]
Records = Annotated[int | None, option("--records", "N", "Training examples under attack (default: all of them).")]
Networks = Annotated[int, option("--networks", "N", "Networks trained on each set.")]
Canaries = Annotated[int, option("--canaries", "N", "Records whose label is changed, attacked by themselves.")]
BesideIt = Annotated[
    str, option("--beside", "A,B", "Attacked too: random (real examples), real, noise (starts), or none.")
]
Kept = Annotated[
    Path | None, option("--out", "DIR", "Where shadows and results go (default: runs/membership-NAME-SET-N-SEED).")
]

Statistics = Annotated[str | None, option("--statistic", "A,B", "What is audited, with commas (default: everything).")]
Draws = Annotated[int, option("--draws", "N", "Guesses that are counted, for each statistic and seed.")]
Seeds = Annotated[int, option("--seeds", "S", "How many audits of each statistic: seeds 0, 1, ...")]
Measures = Annotated[int, option("--measures", "R", "Releases that one guess sees, of the same records.")]
CanariesOf = Annotated[int, option("--canaries", "M", "Canaries in one run, each a guess; 1 is exact, and slow.")]
Sampled = Annotated[float, option("--rate", "Q", "The share of the records that a measure samples.")]
Noise = Annotated[float, option("--noise-multiplier", "X", "The noise of one release, in units of the sensitivity.")]
Confidence = Annotated[float, option("--confidence", "P", "That the lower bound holds.")]
NoiseSeed = Annotated[int | None, option("--noise-seed", "K", "Repeatable noise (default: the operating system's).")]


def noised(arguments: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the data set made private on these terms."""
    asked = [f"data.{name}={value}" for name, value in given.items() if value is not None]
    return {**arguments, "data": f"private:{arguments['data']}", "settings": [*asked, *(arguments["settings"] or ())]}


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
    for text in said.get("advice", ()):
        speaker.say(text, "yellow")
    for name, text in said["not_noised"].items():
        speaker.say(f"not noised: {name}: {text}")
    speaker.result(said)


def dp_sgd(
    data: OnData = "fashion-mnist",
    epsilon: Budget = EPSILON,
    delta: Deltas = 1e-5,
    clip: Clip = None,
    steps: Gradients = 1000,
    batch: Batch = 256,
    lr: Rate = 1.0,
    net: Net = "conv-net",
    networks: Repeats = 5,
    seed: o.Seed = 0,
    device: o.Device = None,
    out: Out = Path("runs/dp-sgd"),
    data_root: o.DataRoot = None,
    as_json: o.AsJson = False,
) -> None:
    """The yardstick: networks trained on the private data themselves with DP-SGD, at the same budget each.

    The same call goes on with the next network after an interrupt. What is trained compiled is trained in float32.
    """
    from condense.component import checked
    from condense.execution import passes, using
    from condense.given import as_data
    from condense.places import data_root as reading_from
    from condense.planning import as_net, default_device, execution_of
    from condense.reproduced import spread
    from condense.terminal import Speaker

    from .dp_sgd import RESULT
    from .dp_sgd import dp_sgd as train
    from .private import Private

    speaker = Speaker(as_json)
    where = default_device(device)
    how = execution_of(where, {"compile": True, "precision": "float32"})
    terms: Any = {"epsilon": epsilon, "delta": delta, "clip": clip}
    with reading_from(data_root), using(passes(how)):
        found = train(
            checked(lambda: Private(data=as_data(data), **terms), "data"),
            as_net(net),
            steps=steps,
            batch=batch,
            lr=lr,
            networks=networks,
            seed=seed,
            device=where,
            folder=out,
            progress=lambda i, accuracy: speaker.say(f"network {i + 1} of {networks}: {100 * accuracy:.1f} %"),
        )
    speaker.say(f"{spread(found.accuracies)} (n={len(found.networks)}), {found.networks[0].privacy['sentence']}, each")
    speaker.say(f"written   {out / RESULT}")
    speaker.result(found.model_dump(mode="json"))


def membership(
    name: o.MethodName,
    data: o.DataName = "digits",
    epsilon: Epsilon = None,
    noise_multiplier: Multiplier = None,
    delta: Delta = None,
    clip: Clip = None,
    accountant: Accounts = None,
    per_class: o.PerClass = None,
    seed: o.Seed = 0,
    steps: o.Steps = None,
    device: o.Device = None,
    settings: o.Settings = None,
    plain: o.Plain = False,
    made: o.Made = None,
    net: o.NetName = None,
    protocol: o.ProtocolName = None,
    shadows: Shadows = 16,
    records: Records = None,
    networks: Networks = 2,
    canaries: Canaries = 0,
    beside: BesideIt = "random,real,noise",
    out: Kept = None,
    data_root: o.DataRoot = None,
    as_json: o.AsJson = False,
) -> None:
    """Attack a method: can it be told which records its sets were made from? (LiRA, on shadow condensations.)

    Without --epsilon or --noise-multiplier the method is attacked as it is, without noise. The same call again goes on
    where it was. An attack that fails proves nothing.
    """
    from condense.api import default_folder
    from condense.component import checked
    from condense.places import data_root as reading_from
    from condense.terminal import Speaker, columns

    from .membership import WARNING, Membership, figures, heads, notes

    given = {"epsilon": epsilon, "noise_multiplier": noise_multiplier, "delta": delta, "clip": clip}
    terms = {**given, "accountant": accountant}
    arguments: dict[str, Any] = {"data": data, "settings": settings}
    if epsilon is not None or noise_multiplier is not None:
        arguments = noised(arguments, terms)
    else:
        refuse_alone(terms)
    asked = {
        "per_class": per_class,
        "seed": seed,
        "steps": steps,
        "device": device,
        "net": net,
        "data": arguments["data"],
    }
    speaker = Speaker(as_json)
    fields: dict[str, Any] = {"shadows": shadows, "records": records, "networks": networks, "canaries": canaries}
    fields["beside"] = [part for part in beside.split(",") if part not in ("", "none")]
    with reading_from(data_root):
        evaluator = checked(lambda: Membership.model_validate(fields), "membership")
        settled = o.plan_of(name, o.Judges(protocol), arguments["settings"], made, published=not plain, **asked)
        place = default_folder(settled, plain=plain)
        folder = out or place.with_name(f"membership-{place.name}")
        found = evaluator.attack(settled, folder, lambda told: speaker.progress.print(told, highlight=False))
    for recipe, of in dict.fromkeys((row.recipe, row.of) for row in found.rows):
        rows = [row for row in found.rows if (row.recipe, row.of) == (recipe, of)]
        speaker.say(
            f"{recipe}: {of} of {found.data}, {rows[0].members:,} in and {rows[0].others:,} out of each shadow", "bold"
        )
        speaker.show(columns(heads(rows), [figures(row) for row in rows]))
    for sentence in notes(found.rows):
        speaker.say(sentence)
    speaker.say(WARNING)
    speaker.say(f"stored in {folder / 'membership.json'}")
    speaker.result({"folder": str(folder), **found.model_dump(mode="json")})


def refuse_alone(terms: Mapping[str, Any]) -> None:
    """Refuse terms of noise where no noise is asked for."""
    from condense.errors import BadValue

    for term, value in terms.items():
        if value is not None:
            option_of = f"--{term.replace('_', '-')}"
            problem = "is a term of noise, and none is added"
            raise BadValue(option_of, value, problem, "Give --epsilon or --noise-multiplier too, or leave it out.")


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
