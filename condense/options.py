"""The options of the command line, each spelt once, and what is read out of their texts."""

from __future__ import annotations

import importlib.metadata as metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import BadValue

if TYPE_CHECKING:
    from .axes import Net
    from .recipe import Plan

DISTRIBUTION = "condense-kit"  # as in condense.plugins, which is not imported here


def _json(ctx: typer.Context, value: bool) -> bool:
    ctx.meta["json"] = value  # where the group of commands finds it when a command fails
    return value


def _version(asked: bool) -> None:
    if asked:
        print(f"condense {metadata.version(DISTRIBUTION)}")
        raise typer.Exit


def option(spelling: str, metavar: str, help: str) -> Any:
    """An option of the command line: how it is spelt, what stands for its value, what it means."""
    return typer.Option(spelling, metavar=metavar, help=help)


MethodName = Annotated[str, typer.Argument(metavar="NAME", help="A method; `condense list` names them.")]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]

DataName = Annotated[str, option("--data", "SET", "A data set; `condense list` names them.")]
JudgedOn = Annotated[str | None, option("--data", "SET", "What a set that somebody else made is judged on.")]
PerClass = Annotated[int | None, option("--per-class", "N", "So many of each class (default: the method's own, 10).")]
Total = Annotated[int | None, option("--total", "N", "So many in all, for methods with sets of such sizes.")]
Ratio = Annotated[float | None, option("--ratio", "R", "A share of what there is, instead of a number.")]
Of = Annotated[str, option("--of", "train|all", "Of what --ratio is a share: items to learn from, or all.")]
Seed = Annotated[int, option("--seed", "S", "The seed of everything that is drawn.")]
Steps = Annotated[int | None, option("--steps", "K", "Outer steps (default: as published).")]
OtherDevice = Annotated[
    str | None, option("--device", "D", "Go on there: cpu, cuda or cuda:0. The set is then not the same bit for bit.")
]
Device = Annotated[str | None, option("--device", "D", "cpu, cuda or cuda:0 (default: cuda if there is one).")]
Settings = Annotated[
    list[str] | None,
    option("--set", "PATH=VALUE", "A leaf of the recipe, or below data., protocol., execution. (see condense show)."),
]
Made = Annotated[list[str] | None, option("--with", "KEY=VALUE", "An argument of the method's own function.")]
NetName = Annotated[str | None, option("--net", "NET", "The network, of the method and of the judge.")]
ProtocolName = Annotated[
    str | None,
    option("--protocol", "NAME", "How the set is judged (default: as published); as:METHOD, as sets of that one are."),
]
Nets = Annotated[str | None, option("--nets", "A,B,C", "The networks that judge.")]
Repeats = Annotated[int | None, option("--repeats", "N", "How many networks of each kind judge (default: 5).")]
Out = Annotated[Path | None, option("--out", "DIR", "Where the artifact goes (default: runs/NAME-SET-N-SEED).")]
Minutes = Annotated[float | None, option("--minutes", "T", "Pause at a checkpoint after so many minutes.")]
CheckpointEvery = Annotated[
    int | None, option("--checkpoint-every", "K", "Save after every K steps, too (default: every minute).")
]
DataRoot = Annotated[Path | None, option("--data-root", "DIR", "Where data lies (default: CONDENSE_DATA).")]
Action = Annotated[str, typer.Argument(metavar="ACTION", help="What to do: train.")]
Count = Annotated[int | None, option("--count", "N", "How many experts (default: as published).")]
ExpertsOut = Annotated[
    Path | None, option("--out", "DIR", "A folder of their own (default: the cache); runs: --set pool.folder=DIR.")
]
To = Annotated[Path, option("--to", "FOLDER", "A new folder, or a file that ends in .npz or .safetensors.")]

Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it, and end.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")]
Full = Annotated[
    bool | None,
    typer.Option("--full/--no-full", help="Judge networks that saw all of the data, too (default: if it is cheap)."),
]
FullToo = Annotated[bool, typer.Option("--full", help="Judge networks that saw all of the data, too.")]
Publish = Annotated[
    bool, typer.Option("--publish-report", help="Of confidential data: store in the artifact what the judge finds.")
]
NoEval = Annotated[bool, typer.Option("--no-eval", help="Make the set, and do not judge it.")]
Plain = Annotated[bool, typer.Option("--plain", help="Leave out the settings that were published for this data set.")]
Forms = Annotated[list[str] | None, option("--form", "FORM", "Only methods and data sets of this form.")]
Random = Annotated[bool, typer.Option("--random", help="Judge as many random real examples, too.")]
Normalised = Annotated[bool, typer.Option("--normalised", help="The .npz file holds the networks' own inputs.")]
Board = Annotated[bool, typer.Option("--tensorboard", help="Write the losses to DIR/.run/tensorboard, too.")]
AsJson = Annotated[bool, typer.Option("--json", callback=_json, is_eager=True, help="Print one JSON object.")]


@dataclass(frozen=True)
class Judges:
    """What the command line says of the judge."""

    protocol: str | None = None
    nets: str | None = None
    repeats: int | None = None

    def changes(self, settled: Plan) -> dict[str, Any]:
        """Leaves of the protocol, by dotted path below it."""
        nets = [] if self.nets is None else [net.dump() for net in named_nets(self.nets, settled)]
        return {**({"nets": nets} if nets else {}), **({} if self.repeats is None else {"repeats": self.repeats})}


def named_nets(text: str, settled: Plan) -> list[Net]:
    """Networks by name. One that the plan uses is taken with its settings there: their depth suits the examples."""
    from .axes import Net
    from .planning import as_net

    known = {part.name: part for part in settled.recipe.walk() if isinstance(part, Net)}
    known |= {net.name: net for net in (settled.protocol.nets if settled.protocol else ())}
    return [known[name] if name in known else as_net(name) for name in (part.strip() for part in text.split(","))]


def pairs(texts: Sequence[str] | None, option: str = "--set") -> dict[str, Any]:
    """`PATH=VALUE` texts as a mapping. A value is read as JSON; what is no JSON is text."""
    found: dict[str, Any] = {}
    for text in texts or ():
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            example = "outer.steps=100" if option == "--set" else "iterations=100"
            raise BadValue(option, text, "is not of the form PATH=VALUE", f"For example: {option} {example}.")
        found[path.strip()] = _parsed(value)
    return found


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # the second: brackets without end
        return text


def plan_of(
    name: str, judges: Judges, texts: Sequence[str] | None = None, made: Sequence[str] | None = None, **planned: Any
) -> Plan:
    """The plan that the command line asks for; `planned` are arguments of `condense.plan`."""
    from .given import as_data
    from .planning import check_options, method_for, plan

    method, options = method_for(name, as_data(planned.get("data", "digits"))), pairs(made, "--with")
    check_options(name, method, options, "--with")
    planned |= {"options": options, "protocol": judges.protocol}
    settings = pairs(texts)
    settled = plan(name, settings=settings, **planned)
    changes = {f"protocol.{key}": value for key, value in judges.changes(settled).items()}
    return plan(name, settings={**changes, **settings}, **planned) if changes else settled
