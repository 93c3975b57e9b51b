"""The command line. Torch and the plugins are imported by the commands that need them, so that help is quick."""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from . import options as o
from .errors import BadValue, CondenseError
from .program import CONDENSE, called, hint
from .terminal import Speaker, error_object

if TYPE_CHECKING:
    from .artifact import Artifact
    from .recipe import Plan
    from .report import Report
    from .running import Limits

GROUP = "condense"  # as in condense.plugins, which is not imported here
HELP = "Learn a small synthetic set from a large one, so that networks trained on it do nearly as well."
ENDS = (
    "Exit codes: 0 done. 2 a setting that cannot work. 3 data. 4 a damaged file. 5 a loss that is not finite. "
    "6 no room in memory or on disk. 7 a broken plugin. 8 a folder in use. 9 not built yet. "
    "10 data whose budget is used up. 75 paused by --minutes, and saved. "
    "130 interrupted; what is done is saved. 1 anything else."
)
ClickException: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


# -- errors, and commands of plugins --------------------------------------------------------------------------------


class Commands(TyperGroup):
    """All commands. An error becomes one sentence and an exit code; plugins add commands of their own."""

    def invoke(self, ctx: Any) -> Any:
        with called(self.name or CONDENSE):
            return self._carried_out(ctx)

    def _carried_out(self, ctx: Any) -> Any:
        as_json = "--json" in (*getattr(ctx, "_protected_args", ()), *ctx.args)  # as typed: it may never be parsed
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warned  # type: ignore[assignment]
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
        except (typer.Exit, typer.Abort, BrokenPipeError):  # the last: as in `condense list | head -1`
            raise
        except ClickException as error:
            if as_json:
                Speaker(True).result(error_object(usage(error)))
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.params.get("debug"):
                traceback.print_exception(error)
            raise typer.Exit(_told(error, bool(ctx.meta.get("json")))) from None

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or _plugin_commands().get(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *(sorted(_plugin_commands()) if _strangers() else [])]


def _warned(message: Warning | str, *_: Any) -> None:
    """A warning as one line, without the place in our source that it comes from."""
    Speaker().warn(f"warning: {message}")


def usage(error: Exception) -> BadValue:
    """What was typed wrongly, as an error of ours."""
    where = getattr(getattr(error, "ctx", None), "command_path", CONDENSE)
    return BadValue("command", where, error.format_message(), f"See {where} --help.")  # type: ignore[attr-defined]


class _Interrupt(CondenseError):
    exit_code = 130


def _told(error: BaseException, as_json: bool) -> int:
    """Say what went wrong, in one sentence or as JSON; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        error = _Interrupt("command", "Ctrl-C", "was interrupted", "Call it again: what was saved is kept.")
    elif isinstance(error, OSError) and error.filename is not None:
        problem, remedy = "is a path that the system refuses", "Choose another, or allow using it."
        error = BadValue(str(error.filename)[:200], error.strerror, problem, remedy)
    elif not isinstance(error, CondenseError):
        problem = f"failed in a way that condense did not expect: {error}"
        error = CondenseError("command", type(error).__name__, problem, f"See where: {hint('--debug', 'COMMAND ...')}")
    speaker = Speaker(as_json)
    speaker.result(error_object(error))
    speaker.complain(error)
    return error.exit_code


def _strangers() -> bool:
    """Is a plugin of another distribution installed? Ours add no commands, and need not be loaded to list them."""
    found = [getattr(entry, "dist", None) for entry in metadata.entry_points(group=GROUP)]
    return any(dist is None or dist.name != o.DISTRIBUTION for dist in found)


def _plugin_commands() -> dict[str, Any]:
    """The commands that plugins add. Where one fails to, that is said on stderr, and the others are there."""
    from .plugins import registry

    found: dict[str, Any] = {}

    def add(name: str, function: Callable[..., Any]) -> None:
        single = typer.Typer(add_completion=False)
        single.command(name)(function)
        found[name] = typer.main.get_command(single)

    for hook in registry().manager.hook.condense_commands.get_hookimpls():
        try:
            hook.function(*(add for _ in hook.argnames))
        except Exception as error:  # a plugin may raise anything
            Speaker().warn(f"The commands of {hook.plugin_name} are left out: {type(error).__name__}: {error}")
    return found


# -- making and judging ---------------------------------------------------------------------------------------------


def root(
    version: o.Version = False,
    debug: o.Debug = False,
) -> None:
    """Options of all commands."""


def program(name: str, help: str) -> typer.Typer:
    """A program without commands yet: `condense` itself, or one of its faces (see condense.faces)."""
    made = typer.Typer(
        cls=Commands,
        name=name,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        epilog=ENDS,
        help=help,
    )
    made.callback(help=help)(root)
    return made


app = program(CONDENSE, HELP)


@app.command()
def run(
    name: o.MethodName,
    data: o.DataName = "digits",
    per_class: o.PerClass = None,
    total: o.Total = None,
    ratio: o.Ratio = None,
    of: o.Of = "train",
    seed: o.Seed = 0,
    steps: o.Steps = None,
    device: o.Device = None,
    settings: o.Settings = None,
    plain: o.Plain = False,
    made: o.Made = None,
    net: o.NetName = None,
    protocol: o.ProtocolName = None,
    nets: o.Nets = None,
    repeats: o.Repeats = None,
    out: o.Out = None,
    minutes: o.Minutes = None,
    checkpoint_every: o.CheckpointEvery = None,
    full: o.Full = None,
    no_eval: o.NoEval = False,
    publish: o.Publish = False,
    data_root: o.DataRoot = None,
    tensorboard: o.Board = False,
    as_json: o.AsJson = False,
) -> None:
    """Make a condensed set and judge it, beside a random set of its size and all of the data.

    The same call again goes on where it was. Ctrl-C pauses after the step; a second one ends at once.
    """
    from .api import asked_limits, default_folder

    asked = {"data": data, "seed": seed, "steps": steps, "device": device, "net": net, "published": not plain}
    size = {"per_class": per_class, "total": total, "ratio": ratio, "of": of}
    with _reading_from(data_root):
        settled = o.plan_of(name, o.Judges(protocol, nets, repeats), settings, made, **size, **asked)
        folder = out or default_folder(settled, plain=plain)
        limits = asked_limits(minutes, checkpoint_every)
        _carry_out(
            Speaker(as_json), settled, folder, limits, full=full, no_eval=no_eval, publish=publish, board=tensorboard
        )


@app.command()
def resume(
    folder: o.RunFolder,
    device: o.OtherDevice = None,
    minutes: o.Minutes = None,
    checkpoint_every: o.CheckpointEvery = None,
    full: o.Full = None,
    no_eval: o.NoEval = False,
    publish: o.Publish = False,
    data_root: o.DataRoot = None,
    tensorboard: o.Board = False,
    as_json: o.AsJson = False,
) -> None:
    """Go on with a run that was paused, interrupted or killed, from its last checkpoint."""
    from .api import asked_limits, stored_plan

    with _reading_from(data_root):
        limits = asked_limits(minutes, checkpoint_every)
        settled = stored_plan(folder)
        how: dict[str, Any] = {"full": full, "no_eval": no_eval, "publish": publish, "board": tensorboard}
        _carry_out(Speaker(as_json), settled, folder, limits, **how, device=device)


def _reading_from(folder: Path | None) -> Any:
    from .places import data_root

    return data_root(folder)


def _carry_out(
    speaker: Speaker,
    settled: Plan,
    folder: Path,
    limits: Limits,
    *,
    full: bool | None,
    no_eval: bool,
    publish: bool,
    board: bool,
    device: str | None = None,
) -> None:
    """Make the set and judge it; say what is done, what was found, and where it lies."""
    if no_eval and (full or publish):
        field = "full" if full else "publish_report"
        raise BadValue(field, True, "is of what is judged, and nothing is", "Leave it out, or --no-eval.")
    from . import api, observers
    from .terminal import Announcer

    announcer = Announcer(speaker)
    with ExitStack() as stack:
        watching: list[Any] = [announcer, observers.Pictures()]
        watching.append(stack.enter_context(observers.RichProgress(speaker.progress)))
        watching.append(stack.enter_context(observers.JsonLines()))
        if board:
            watching.append(stack.enter_context(observers.TensorBoard()))
        artifact = api.carry_out(settled, folder, observers=watching, limits=limits, device=device)
    if not announcer.started:
        speaker.say(f"{folder} holds this run, finished: nothing is made again")
    again = f"Go on with: {hint('resume', folder)}"
    _tell(speaker, artifact if no_eval else _judged(speaker, artifact, again, full=full, publish=publish))


def _judged(speaker: Speaker, artifact: Artifact, again: str, **how: Any) -> Artifact:
    """The artifact with its report. What is judged already is not judged again; Ctrl-C keeps what is done.

    again: how to go on after that, in a sentence.
    """
    from .judging import judge
    from .running import Interrupted
    from .terminal import JudgingBar

    try:
        with JudgingBar(speaker.progress) as bar:
            return judge(artifact, tell=bar.tell, **how)
    except KeyboardInterrupt:
        problem = "was interrupted; what is judged is kept"
        raise Interrupted("judging", str(artifact.path), problem, again) from None


def _tell(speaker: Speaker, artifact: Artifact) -> None:
    """What an artifact gives, and where it and its page lie."""
    from .report import Report
    from .terminal import artifact_object, page_of

    if artifact.report:
        _tell_report(speaker, Report.model_validate(artifact.report))
    speaker.say(f"artifact  {artifact.path}")
    if stopped := artifact.provenance.get("notes", {}).get("stopped"):
        speaker.say(f"stopped   after {stopped['after']:,} steps: {stopped['reason']}", "yellow")
    if "privacy" in artifact.provenance:
        speaker.say(f"privacy   {artifact.provenance['privacy']['sentence']}")
    page = page_of(artifact.path)
    if page:
        speaker.say(f"report    {page}")
    speaker.result(artifact_object(artifact))


def _tell_report(speaker: Speaker, report: Report) -> None:
    from .terminal import accuracy_table, doubts

    speaker.show(accuracy_table(report))
    for text in doubts(report):
        speaker.say(text, "yellow")


@app.command(name="eval")
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="An artifact, an image folder, or an .npz file.")],
    data: o.JudgedOn = None,
    nets: o.Nets = None,
    repeats: o.Repeats = None,
    protocol: o.ProtocolName = None,
    settings: o.Settings = None,
    seed: o.Seed = 0,
    random: o.Random = False,
    full: o.FullToo = False,
    publish: o.Publish = False,
    normalised: o.Normalised = False,
    device: o.Device = None,
    data_root: o.DataRoot = None,
    as_json: o.AsJson = False,
) -> None:
    """Judge an artifact, or with --data a set that somebody else made: an image folder or an .npz file."""
    from .given import as_data
    from .planning import AS, method_for
    from .sizes import taken

    speaker, judges = Speaker(as_json), o.Judges(protocol, nets, repeats)
    with _reading_from(data_root):
        if data is None:
            _refuse_unused(seed=seed or None, normalised=normalised or None)
            how = {"device": device, "random": random, "full": full, "publish": publish}
            _eval_artifact(speaker, path, judges, o.pairs(settings), **how)
            return
        if random or full:
            remedy = "Leave it out, and judge `condense run random` of the same size beside it."
            raise BadValue("random" if random else "full", True, "is judged beside artifacts only", remedy)
        if (protocol or "").startswith(AS):
            problem = "hangs on how many of each class a set was asked to have, which no such set says"
            raise BadValue("protocol", protocol, problem, "Name the protocol itself, with --set for its settings.")
        if (path / "manifest.json").is_file():
            raise BadValue("data", data, f"{path} is an artifact, which knows its data", "Leave out --data.")
        size: dict[str, Any] = {
            kind: 1 for kind in taken(method_for("random", as_data(data)).make)[:1]
        }  # any: nothing is chosen
        settled = o.plan_of("random", judges, settings, data=data, seed=seed, device=device, **size)
        _eval_foreign(speaker, path, settled, normalised)


def _eval_artifact(speaker: Speaker, path: Path, judges: o.Judges, settings: dict[str, Any], **how: Any) -> None:
    from .api import load
    from .planning import judge_for, overridden
    from .sizes import Size

    if path.is_file() or (path.is_dir() and not (path / "manifest.json").exists() and not (path / ".run").is_dir()):
        problem = "is no artifact; a set that somebody else made is judged on the test split of a data set"
        raise BadValue("path", str(path), problem, "Say on which, with --data.")
    artifact = load(path)
    rules = artifact.plan.protocol
    if judges.protocol is not None and (rules is None or judges.protocol != rules.name):
        asked = Size(**artifact.recipe.budget.asked)
        rules = judge_for(judges.protocol, artifact.plan.data, asked, artifact.recipe)
    changes = {key.removeprefix("protocol."): value for key, value in settings.items()}
    changes = {**judges.changes(artifact.plan), **changes}
    rules = overridden(rules, changes) if rules and changes else rules
    again = f"Call {hint('eval', path)} again, with the same options: it goes on with the next network."
    _tell(speaker, _judged(speaker, artifact, again, protocol=rules, **how))


def _refuse_unused(**given: Any) -> None:
    """Refuse what is said of sets that somebody else made, and is settled in an artifact."""
    for name, value in given.items():
        if value is not None:
            problem = "is settled in the artifact, whose own seed and scale count"
            raise BadValue(name, value, problem, "Leave it out; it is for sets that somebody else made (--data SET).")


def _eval_foreign(speaker: Speaker, path: Path, settled: Plan, normalised: bool) -> None:
    from .judging import judge_foreign
    from .terminal import JudgingBar

    with JudgingBar(speaker.progress) as bar:
        report = judge_foreign(path, settled, normalised=normalised, tell=bar.tell)
    _tell_report(speaker, report)
    speaker.result({"set": str(path), "data": settled.data.label, **report.dump()})


# -- looking --------------------------------------------------------------------------------------------------------


@app.command(name="list")
def listing(form: o.Forms = None, as_json: o.AsJson = False) -> None:
    """Name the methods that are installed, and the data sets, networks and protocols."""
    from .axes import Net
    from .data import Data
    from .plugins import registry
    from .protocol import Protocol
    from .terminal import columns

    speaker, found = Speaker(as_json), registry()
    forms = found.all_forms() if form is None else [found.known_form(name) for name in form]
    methods = [
        {"name": name, "form": of, "paper": method.paper, "from": plugin.distribution, "title": method.title}
        for of in forms
        for name, (method, plugin) in found.recipes(of).items()
    ]
    told = [(row["name"], found.noun(row["form"]), row["paper"], row["from"], row["title"]) for row in methods]
    speaker.show(columns(("method", "of", "paper", "from", "what it does"), told))
    data = {of: [name for name, kind in found.members(Data).items() if kind.form == of] for of in forms}
    for of, names in data.items():
        speaker.say(f"data ({found.noun(of)}): {', '.join(names)}")
    others = {axis.axis: list(found.members(axis)) for axis in (Net, Protocol)}
    for axis, names in others.items():
        speaker.say(f"{axis}: {', '.join(names)}")
    broken = [plugin.module for plugin in found.plugins if plugin.error]
    if broken:
        speaker.say(f"did not load: {', '.join(broken)} (the reasons: {hint('plugins')})", "yellow")
    others["data"] = sorted(name for names in data.values() for name in names)
    speaker.result({"methods": methods, **others, "broken": broken})


@app.command()
def show(
    name: o.MethodName,
    data: o.DataName = "digits",
    per_class: o.PerClass = None,
    total: o.Total = None,
    ratio: o.Ratio = None,
    of: o.Of = "train",
    settings: o.Settings = None,
    plain: o.Plain = False,
    made: o.Made = None,
    as_json: o.AsJson = False,
) -> None:
    """Print a method's recipe as data, and the published figures.

    The recipe is that for a data set and a budget, with the settings that were published for them. A line `path=value`
    is a setting as --set takes it; `path: name` is a part, which --set path=NAME replaces with all of its settings.
    """
    from .planning import method_for
    from .plugins import registry
    from .published import rows
    from .sizes import Size
    from .terminal import figure, settings_of

    size = {"per_class": per_class, "total": total, "ratio": ratio, "of": of}
    speaker = Speaker(as_json)
    settled = o.plan_of(name, o.Judges(), settings, made, **size, data=data, published=not plain)
    method, rules = method_for(name, settled.data), settled.protocol.dump() if settled.protocol else {}
    published = [row for row in rows(method) if row.accuracy is not None]
    speaker.say(f"{method.title} ({method.paper})" if method.paper else method.title, "bold")
    budget, noun = settled.recipe.budget, registry().noun(settled.data.form)
    held = Size(**budget.asked).told(noun) if budget.asked else f"budget {budget.name}"
    speaker.say(f"on {settled.data.label}, {held}:")
    parts = [*settings_of(settled.recipe.dump()), *settings_of(settled.data.dump(), "data")]
    for line in [*parts, *settings_of(rules, "protocol")]:
        speaker.say(f"  {line}")
    for row in published:
        speaker.say(figure(row))
    facts = {"name": name, "title": method.title, "paper": method.paper, "protocol": rules}
    figures = [row.model_dump(exclude_defaults=True) for row in published]
    speaker.result({**facts, "recipe": settled.recipe.dump(), "published": figures})


@app.command()
def plugins(as_json: o.AsJson = False) -> None:
    """Name every plugin with its distribution, version, parts and recipes, and the broken ones with the reason."""
    from .plugins import registry
    from .terminal import by_axis, plugin_object

    speaker, found = Speaker(as_json), registry().plugins
    for plugin in found:
        speaker.say(f"{plugin.name}  {plugin.module}  {plugin.distribution} {plugin.version}", "bold")
        if plugin.error:
            speaker.say(f"  did not load: {plugin.error}", "red")
        if plugin.recipes:
            speaker.say(f"  recipes: {', '.join(sorted(plugin.recipes))}")
        for axis, names in by_axis(plugin).items():
            speaker.say(f"  {axis}: {', '.join(names)}")
    speaker.result({"plugins": [plugin_object(plugin) for plugin in found]})


@app.command()
def export(folder: o.RunFolder, to: o.To, as_json: o.AsJson = False) -> None:
    """Write an artifact for other programs: arrays in an .npz or .safetensors file, or images as a folder of PNG."""
    from .api import load
    from .export import export as write

    speaker = Speaker(as_json)
    written = write(load(folder), to)
    speaker.say(f"written   {written}")
    speaker.result({"artifact": str(folder), "to": str(written)})


@app.command()
def experts(
    action: o.Action,
    name: o.MethodName,
    data: o.DataName = "digits",
    per_class: o.PerClass = None,
    total: o.Total = None,
    ratio: o.Ratio = None,
    of: o.Of = "train",
    count: o.Count = None,
    device: o.Device = None,
    settings: o.Settings = None,
    plain: o.Plain = False,
    made: o.Made = None,
    net: o.NetName = None,
    out: o.ExpertsOut = None,
    minutes: o.Minutes = None,
    data_root: o.DataRoot = None,
    as_json: o.AsJson = False,
) -> None:
    """Train the experts of a method: networks on all of the data, of which every epoch is kept (action: train).

    A run of the method with the same options finds them, and trains them itself where they are missing. The same call
    again goes on where it was, or trains more of them (--count).
    """
    from .api import asked_limits
    from .experts import train
    from .terminal import Announcer

    if action != "train":
        raise BadValue(
            "action", action, "is nothing that can be done with experts", f"Try {hint('experts train', name)}."
        )
    asked = {"data": data, "device": device, "net": net, "published": not plain}
    size = {"per_class": per_class, "total": total, "ratio": ratio, "of": of}
    speaker, more = Speaker(as_json), [] if count is None else [f"pool.experts.count={count}"]
    with _reading_from(data_root):
        settled = o.plan_of(name, o.Judges(), [*(settings or ()), *more], made, **size, **asked)
        found = train(settled, out=out, observers=[Announcer(speaker)], limits=asked_limits(minutes, None))
    speaker.say(f"experts   {found.count}, {found.epochs} epochs each, {found.size / 2**20:,.1f} MiB: {found.folder}")
    speaker.result({"folder": str(found.folder), "experts": found.count, "epochs": found.epochs, "bytes": found.size})


if importlib.util.find_spec("condense.reproduce"):
    from . import reproduce

    app.command(name="reproduce")(reproduce.command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `condense`: never returns. The exit code is 0 only on success; the others stand in the help."""
    app(args=arguments, prog_name="condense")


if __name__ == "__main__":
    main()
