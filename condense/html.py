"""`report.html`: one page, without any other file, that shows a condensed set and what it is worth.

What an artifact says about itself (class names, citations, notes) reaches the page as text only: see `condense.markup`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .charts import Series, bar, chart
from .data import Data
from .markup import Html, document, tag
from .observers import Line, duration, read_log
from .pictures import Pixels, by_class, png, smoothed
from .plugins import DISTRIBUTION, registry
from .report import Report, Row
from .sizes import Size, shares
from .task import Picture
from .terminal import KINDS, called

if TYPE_CHECKING:
    from .artifact import Artifact

CLASSES = 20  # classes whose images are shown
IMAGES = 50  # images of each class that are shown
POINTS = 300  # points of a curve
WHICH = {
    False: "Of the weights at the end of the training.",
    True: "Of the weights that validation chose, where there is a last: that is of those at the end of the training.",
}


def report_page(artifact: Artifact, report: Report, drawings: Sequence[Picture] = ()) -> str:
    """The page of an artifact and its report; drawings: what its form draws of it. Equal input gives equal text."""
    rows = sorted(report.rows, key=lambda row: KINDS.index(row.kind))  # stable: networks as they were judged
    nets = [row.net for row in rows if row.kind == "condensed"] or [row.net for row in rows]
    first = [row for row in rows if row.net == nets[0]]
    return document(
        f"{artifact.plan.method} on {artifact.plan.data.label}",
        resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8"),
        hero(artifact, first, report.caveats()),
        drawn(artifact, drawings) if drawings else pictures(artifact, by_class(artifact)),
        curves(read_log(artifact.path), first),
        accuracies(artifact, rows),
        cost(artifact, rows),
        provenance(artifact),
    )


# -- what is seen first ---------------------------------------------------------------------------------------------


def hero(artifact: Artifact, rows: Sequence[Row], caveats: Sequence[str] = ()) -> Html:
    """What was done, in one line; what it gives, in one sentence, and what it promises; the accuracies as bars."""
    plan, count = artifact.plan, len(artifact.sampler())
    real, noun = real_examples(artifact), artifact.task.form.noun
    title = f"{count:,} {noun} instead of {real:,}" if real else f"{count:,} {noun}"
    words = [plan.method, plan.data.label, *sized(artifact)]
    words += [f"{plan.recipe.outer.steps:,} steps", f"seed {plan.seed}"]
    words += [f"judged by {rows[0].net}"] if rows else []
    doubts = [f"{called(row)}: {text}" for row in rows for text in row.warnings.values()]
    left = tag(
        "div",
        tag("p", *(tag("span", word) for word in words), class_="chips"),
        tag("h1", title),
        tag("p", *(verdict(rows) if rows else ["Not judged yet."]), class_="lead"),
        *(tag("p", tag("b", "Private: "), text) for text in promises(artifact)),
        *(tag("p", text, class_="doubt") for text in caveats),
        *(tag("p", tag("b", "Doubtful: "), text, class_="doubt") for text in doubts),
    )
    return tag("header", left, bars(rows) if rows else None, class_="hero")


def promises(artifact: Artifact) -> list[str]:
    """What a private set says of its privacy, in a sentence, and what whoever set its budget was warned of."""
    said = artifact.provenance.get("privacy")
    return [said["sentence"], *said.get("advice", ())] if said else []


def sized(artifact: Artifact) -> list[str]:
    """How large the set is: `10 per class`, or what share of the real examples it is."""
    budget = artifact.recipe.budget
    if "per_class" in budget.asked:
        return [Size(**budget.asked).told()]
    return shares(len(artifact.sampler()), sum(recorded(artifact, "source", "counts") or []), real_examples(artifact))


def recorded(artifact: Artifact, *keys: str) -> Any:
    """A fact of the provenance by its path; None where it was not recorded (a private source leaves facts out)."""
    found: Any = artifact.provenance
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def real_examples(artifact: Artifact) -> int:
    """How many real examples the set stands for, those without a label included; 0 where that was not recorded."""
    return int(recorded(artifact, "source", "population") or sum(recorded(artifact, "source", "counts") or []))


def verdict(rows: Sequence[Row]) -> list[Any]:
    """The accuracy of the set, against the baselines that there are."""
    by = {row.kind: row for row in rows}
    ours = by.get("condensed", rows[0])
    right = f" of the {ours.split} {ours.noun} right"
    said: list[Any] = ["Networks trained on them get ", tag("b", f"{percent(ours)} %"), right]
    if ours.kind == "condensed" and "random" in by:
        gap = 100 * (ours.mean - by["random"].mean)
        points = tag("b", f"{abs(gap):.1f} points {'more' if gap >= 0 else 'less'}")
        said += [": ", points, f" than with as many random {ours.noun}"]
    if ours.kind == "condensed" and by.get("full") and by["full"].mean > 0:
        share = 100 * ours.mean / by["full"].mean
        said += [", and ", tag("b", f"{share:.1f} %"), " of what they get when they see all of the data"]
    return [*said, "."]


def bars(rows: Sequence[Row]) -> Html:
    said = "; ".join(f"{called(row)} {percent(row)} per cent" for row in rows)
    lines = [
        tag(
            "div",
            tag("span", called(row), class_="name"),
            bar(row.mean, row.std, row.kind),
            tag("span", percent(row), class_="value"),
            class_="row",
        )
        for row in rows
    ]
    caption = f"Test accuracy in per cent, mean ± standard deviation over {_counted(rows)}"
    drawn = tag("div", *lines, role="img", aria_label=f"{caption}: {said}.")
    return tag("figure", drawn, tag("figcaption", caption), class_="bars")


def _counted(rows: Sequence[Row]) -> str:
    numbers = sorted({row.n for row in rows})
    return f"{' or '.join(map(str, numbers))} {'network' if numbers == [1] else 'networks'}"


def percent(row: Row) -> str:
    """`91.3 ± 0.5`, in per cent."""
    return f"{100 * row.mean:.1f} ± {100 * row.std:.1f}"


# -- the images -----------------------------------------------------------------------------------------------------


def pictures(artifact: Artifact, images: Sequence[Pixels] | None) -> Html | None:
    """The first classes with their images; what is left out is said. None where the examples are no images."""
    if images is None:
        return None
    named = [(name, part) for name, part in zip(artifact.task.classes, images, strict=True) if len(part)]
    most = min(IMAGES, max(len(part) for _, part in named[:CLASSES]))
    rows = [_class_row(name, part, most) for name, part in named[:CLASSES]]
    left_out = []
    if len(named) > CLASSES:
        left_out.append(f"the first {CLASSES} of {len(named)} classes")
    if max(len(part) for _, part in named[:CLASSES]) > IMAGES:
        left_out.append(f"the first {IMAGES} images of each class")
    told = tag("p", f"Shown: {' and '.join(left_out)}.", class_="note") if left_out else None
    shape = "cards" if most == 1 else "rows"
    return tag("section", tag("h2", "The images"), tag("div", *rows, class_=f"sets {shape}"), told)


def _class_row(name: str, images: Pixels, most: int) -> Html:
    """A class with its images: `most` of them fill the page in one line, or in lines of 20 (10 on a small screen)."""
    columns = min(most, 20)
    side = max(images.shape[1:3])
    cell = min(88, 940 // columns - 5)
    cell = cell // side * side if side <= cell else cell  # whole multiples stay sharp
    shown = [tag("img", src=data_uri(png(image)), alt="") for image in images[:IMAGES]]
    said = f"{len(images)} images of the class {name}"
    size = f"--columns:{columns};--few:{min(columns, 10)};--cell:{cell}px"
    strip = tag("div", *shown, class_="strip", role="img", aria_label=said, style=size)
    return tag("div", tag("div", name, class_="class"), strip)


def data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


# -- what its form draws of the set -----------------------------------------------------------------------------------


def drawn(artifact: Artifact, drawings: Sequence[Picture]) -> Html:
    """The drawings with what they show, and what the set is like."""
    figures = [
        tag(
            "figure",
            tag("img", src=data_uri(picture.png), alt=picture.caption),
            tag("figcaption", picture.caption),
            class_="drawing",
        )
        for picture in drawings
    ]
    title = tag("h2", f"The {artifact.task.form.noun}")
    return tag("section", title, tag("div", *figures, class_="charts"), properties(artifact))


def properties(artifact: Artifact) -> Html | None:
    """What the set is like, beside the real data where that was recorded."""
    sampler = artifact.sampler()
    ours = artifact.task.form.properties(sampler.x, artifact.task.hard(sampler.y))
    theirs = recorded(artifact, "source", "properties") or {}
    if not ours:
        return None
    sides = {"condensed": ours, **({"real": theirs} if theirs else {})}
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            *(tag("td", _number(of.get(name)), class_="num") for of in sides.values()),
        )
        for name in ours
    ]
    head = tag("thead", tag("tr", *(tag("th", word, scope="col") for word in ("", *sides))))
    table = tag("table", tag("caption", "What they are like"), head, tag("tbody", *rows))
    return tag("div", table, class_="wide", tabindex=0, role="region", aria_label="Properties")


def _number(value: Any) -> str:
    """`2,708`, `0.81`, `12.4`; a dash for what is not known."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}" if abs(value) >= 10 else f"{value:.2g}"


# -- curves ---------------------------------------------------------------------------------------------------------


def curves(log: Sequence[Line], rows: Sequence[Row]) -> Html | None:
    """The loss while the set was made, and the accuracy of the networks while they were trained on each set."""
    charts = [figure for figure in (loss_chart(log), judging_chart(rows)) if figure is not None]
    return tag("section", tag("h2", "How it went"), tag("div", *charts, class_="charts")) if charts else None


def loss_chart(log: Sequence[Line]) -> Html | None:
    kept = [line for line in log if math.isfinite(line.total)]
    if len(kept) < 2:
        return None
    steps, values = [line.step for line in kept], [line.total for line in kept]
    x, y = thinned(steps), thinned(smoothed(values))
    low, high = thinned(values, min), thinned(values, max)
    log_scale = min(low) > 0 and max(high) / min(low) > 20
    return chart("Loss while condensing", [Series("loss", "condensed", x, y, low, high)], "outer step", log=log_scale)


def judging_chart(rows: Sequence[Row]) -> Html | None:
    series = []
    for row in rows:
        values = 100 * np.asarray([[accuracy for _, accuracy in curve] for curve in row.curves], dtype=np.float64)
        steps = [step for step, _ in row.curves[0]]
        if len(steps) > 1:
            x = [100 * step / steps[-1] for step in steps]
            y, low, high = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
            parts = [thinned(part) for part in (x, y.tolist(), low.tolist(), high.tolist())]
            series.append(Series(called(row), row.kind, *parts))
    if not series:
        return None
    return chart(f"Test accuracy while {rows[0].net} is trained", series, "share of its training in %", unit=" %")


def thinned(values: Sequence[float], of: Callable[[Sequence[float]], float] = lambda part: part[-1]) -> list[float]:
    """At most `POINTS` values: of each stretch its last, or what `of` says; stretches are alike for equal lengths."""
    if len(values) <= POINTS:
        return [float(v) for v in values]
    edges = [len(values) * i // POINTS for i in range(POINTS + 1)]
    return [float(of(values[a:b])) for a, b in pairwise(edges)]


# -- numbers --------------------------------------------------------------------------------------------------------


def accuracies(artifact: Artifact, rows: Sequence[Row]) -> Html | None:
    """Every number with its protocol, n, seeds and hardware."""
    if not rows:
        return None
    chosen = any(row.last is not None for row in rows)
    heads = ("trained on", "network", "accuracy, %", *(["last, %"] if chosen else []), "best, %", "n", "seed")
    heads += ("protocol", "time", "hardware")
    note = (
        f"Accuracy on the {rows[0].split} split, mean ± standard deviation over n networks. {WHICH[chosen]} "
        "Best: the mean of the highest points of the networks' curves, which flatters. Network i is made by the key "
        "(seed, network, i). Time: the sum over the n networks."
    )
    table = tag(
        "table",
        tag("caption", f"Accuracy on the {rows[0].split} {rows[0].noun}"),
        tag("thead", tag("tr", *(tag("th", head, scope="col") for head in heads))),
        tag("tbody", *(_table_row(row, chosen) for row in rows)),
    )
    rules = artifact.plan.protocol
    details = tag("details", tag("summary", "The protocol as data"), _json(rules.dump())) if rules else None
    scrolled = tag("div", table, class_="wide", tabindex=0, role="region", aria_label="Accuracy table")
    return tag("section", tag("h2", "Accuracy"), scrolled, tag("p", note, class_="note"), _published(artifact), details)


def _table_row(row: Row, chosen: bool) -> Html:
    def figure(text: Any) -> Html:
        return tag("td", text, class_="num")

    return tag(
        "tr",
        tag("th", tag("i", class_=row.kind), called(row), scope="row"),
        tag("td", row.net),
        figure(percent(row)),
        *([figure("" if row.last is None else f"{100 * row.last:.1f}")] if chosen else []),
        figure(f"{100 * row.best:.1f}"),
        figure(row.n),
        figure(row.seed),
        tag("td", row.protocol),
        figure(duration(row.seconds)),
        tag("td", row.hardware.get("device", "")),
    )


def _published(artifact: Artifact) -> Html | None:
    """The figure of the paper for this method, data and budget, where there is one."""
    from .published import settings_for

    data, size = artifact.plan.data, Size(**artifact.recipe.budget.asked)
    method = registry().recipes(data.form).get(artifact.plan.method)
    row = settings_for(method[0], data.published_as, size.per_class, size.total) if method else None
    if row is None or row.accuracy is None:
        return None
    spread = f" ± {row.std:g}" if row.std is not None else ""
    text = f"Published for this method, data and budget: {row.accuracy:g}{spread} % ({row.source})."
    return tag("p", text, class_="note")


def cost(artifact: Artifact, rows: Sequence[Row]) -> Html:
    """Time, memory and storage."""
    count, stored, real = len(artifact.sampler()), sum(artifact.stored.values()), real_examples(artifact)
    seconds, memory = recorded(artifact, "seconds"), recorded(artifact, "peak_memory_bytes")
    tiles = []
    if seconds is not None:
        tiles.append(("to condense", duration(seconds), recorded(artifact, "machine", "device") or ""))
    if rows:
        tiles.append(("to judge", duration(sum(row.seconds for row in rows)), f"{sum(row.n for row in rows)} networks"))
    if memory is not None:
        tiles.append(("peak memory", size(memory), "while condensing"))
    words = {"images": artifact.task.form.noun}
    kinds = ", ".join(f"{words.get(kind, kind)} {size(n)}" for kind, n in artifact.stored.items() if n)
    tiles.append(("stored", size(stored), kinds))
    if real:
        tiles.append(("fewer examples", times(real / count), f"{count:,} for {real:,}"))
    if real and artifact.plan.data.form == Data.form:
        raw = real * math.prod(artifact.task.shape)
        tiles.append(("smaller", times(raw / stored), f"than {size(raw)} of 8-bit values"))
    return tag("section", tag("h2", "Cost"), tag("dl", *(_tile(*tile) for tile in tiles), class_="tiles"))


def _tile(name: str, value: str, more: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", tag("b", value), tag("span", more)))


def times(ratio: float) -> str:
    return f"{ratio:,.0f}×" if ratio >= 100 else f"{ratio:.1f}×"


def size(n: float) -> str:
    """Bytes for people: 25.6 kB, 1.2 GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


# -- where it comes from --------------------------------------------------------------------------------------------


def provenance(artifact: Artifact) -> Html:
    """Method, data, versions, licence; the plan and everything that was recorded, folded away."""
    facts, plan = artifact.provenance, artifact.plan
    method = registry().recipes(plan.data.form).get(plan.method)
    more = " ..." if artifact.task.groups > CLASSES else ""
    scale = ", ".join(f"{key} {_short(value)}" for key, value in artifact.preprocessing.items())
    pairs = [
        ("method", method[0].title if method else plan.method),
        ("paper", method[0].paper if method else ""),
        ("data", recorded(artifact, "source", "title") or plan.data.label),
        ("licence", recorded(artifact, "source", "licence")),
        ("citation", recorded(artifact, "source", "citation")),
        ("fingerprint", recorded(artifact, "source", "fingerprint")),
        ("classes", ", ".join(artifact.task.classes[:CLASSES]) + more),
        ("preprocessing", scale),
        ("plan", plan.digest()),
        ("machine", _listed(recorded(artifact, "machine"))),
        ("versions", _listed(recorded(artifact, "versions"))),
        *((key, _short(value)) for key, value in sorted((recorded(artifact, "notes") or {}).items())),
    ]
    listed = [Html(tag("dt", key) + tag("dd", value)) for key, value in pairs if value]
    folded = [("The plan as data", plan.model_dump(mode="json")), ("All that was recorded", dict(facts))]
    return tag(
        "section",
        tag("h2", "Where it comes from"),
        tag("dl", *listed, class_="facts"),
        *(tag("details", tag("summary", name), _json(data)) for name, data in folded),
        tag("p", f"Written by {DISTRIBUTION}.", class_="note"),
    )


def _listed(facts: Any) -> str:
    """`device Xeon, threads 1`; text as it is."""
    return ", ".join(f"{key} {value}" for key, value in facts.items()) if isinstance(facts, Mapping) else facts or ""


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _json(data: Any) -> Html:
    return tag("pre", json.dumps(data, indent=2, ensure_ascii=False))
