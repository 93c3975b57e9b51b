"""Charts as inline SVG that stretches with the page, with axes and values as text beside it, which does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .markup import Html, tag


@dataclass(frozen=True)
class Series:
    """One curve. `kind` is its class in the style sheet; `low` and `high`, if given, a band around it."""

    name: str
    kind: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def bar(share: float, spread: float, kind: str) -> Html:
    """A bar from 0 to `share` (of 1), with an error bar of `spread` on either side of its end."""
    end, low, high = (100 * min(1.0, max(0.0, v)) for v in (share, share - spread, share + spread))
    error = [(low, high, 10, 10), (low, low, 5, 15), (high, high, 5, 15)] if spread > 0 else []
    lines = [tag("line", class_="err", x1=_n(a), x2=_n(b), y1=c, y2=d) for a, b, c, d in error]
    rect = tag("rect", class_=f"bar {kind}", x=0, y=2, width=_n(end), height=16)
    return tag("svg", rect, *lines, viewBox="0 0 100 20", preserveAspectRatio="none", aria_hidden="true")


def chart(title: str, series: Sequence[Series], x_label: str, *, log: bool = False, unit: str = "") -> Html:
    """Curves over a common x axis. `log`: a logarithmic y axis; `unit` stands behind its numbers."""
    values = [v for s in series for part in (s.y, s.low, s.high) for v in part]
    low, high = min(values), max(values)
    marks = log_ticks(low, high) if log else ticks(low, high)
    low, high = min(low, marks[0]), max(high, marks[-1])
    left, right = min(s.x[0] for s in series), max(s.x[-1] for s in series)

    def across(x: float) -> float:
        return 100 * (x - left) / (right - left) if right > left else 50.0

    def up(y: float) -> float:
        if log:
            return 100 * math.log(y / low) / math.log(high / low) if high > low else 50.0
        return 100 * (y - low) / (high - low) if high > low else 50.0

    drawn = [line for s in series for line in _curve(s, across, up)]
    grid = [tag("line", class_="grid", x1=0, x2=100, y1=_n(100 - up(m)), y2=_n(100 - up(m))) for m in marks]
    plot = tag("svg", *grid, *drawn, viewBox="0 0 100 100", preserveAspectRatio="none", aria_hidden="true")
    y_axis = [tag("span", f"{number(m)}{unit}", style=f"bottom:{_n(up(m))}%") for m in marks]
    x_marks = [m for m in ticks(left, right) if left <= m <= right]
    x_axis = [tag("span", number(m), style=f"left:{_n(across(m))}%") for m in x_marks]
    legend = [tag("span", tag("i", class_=s.kind), s.name) for s in series] if len(series) > 1 else []
    said = "; ".join(f"{s.name} from {number(s.y[0])}{unit} to {number(s.y[-1])}{unit}" for s in series)
    return tag(
        "figure",
        tag("figcaption", tag("b", title), tag("span", *legend, class_="legend") if legend else None),
        tag(
            "div",
            tag("div", *y_axis, class_="y"),
            plot,
            tag("div", *x_axis, class_="x"),
            tag("div", x_label, class_="xlabel"),
            class_="plot",
            role="img",
            aria_label=f"{title}: {said}.",
        ),
        class_="chart",
    )


def _curve(series: Series, across: Callable[[float], float], up: Callable[[float], float]) -> list[Html]:
    def points(ys: Sequence[float]) -> list[str]:
        return [f"{_n(across(x))},{_n(100 - up(y))}" for x, y in zip(series.x, ys, strict=True)]

    line = tag("polyline", class_=f"line {series.kind}", points=" ".join(points(series.y)))
    if not series.low:
        return [line]
    area = " ".join([*points(series.high), *reversed(points(series.low))])
    return [tag("polygon", class_=f"band {series.kind}", points=area), line]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) that cover low..high, about `about` steps."""
    span = (high - low) or abs(high) or 1.0
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Numbers that cover low..high, all positive, for a logarithmic axis: powers of ten, or 1-2-5 if these are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = len(powers) <= 3
    found = [f * 10.0**p for p in powers for f in ((1, 2, 5) if few else (1,))]
    inside = [m for m in found if low <= m <= high]
    below, above = [m for m in found if m < low], [m for m in found if m > high]
    return [*below[-1:], *inside, *above[:1]]


def number(value: float) -> str:
    """A short number for people: 0.012, 3.5, 1,200."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _n(value: float) -> str:
    """A coordinate: short, and the same on every machine."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
