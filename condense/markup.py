"""Elements of a web page whose texts are escaped where they are made. Nothing else in condense writes markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

VOID = ("img", "meta", "br", "rect", "line", "path", "polyline", "polygon")


class Html(str):
    """Text that is markup already. Only `tag`, `join` and constants of our own make it."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. Children that are no `Html` are escaped, and so is every attribute.

    None as a child or as an attribute is left out. `class_` stands for `class`, `aria_label` for `aria-label`.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opening = "".join([f"<{name}", *(f' {key}="{escape(str(value))}"' for key, value in given.items())])
    if name in VOID:
        return Html(f"{opening} />")
    return Html(f"{opening}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Html:
    """Children, one after the other; those that are no `Html` are escaped."""
    return Html(
        "".join(child if isinstance(child, Html) else escape(str(child)) for child in children if child is not None)
    )


def document(title: str, style: str, *sections: Html | None) -> str:
    """A whole page. Its policy forbids the browser to load anything: what it shows is in it."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("main", *sections)), lang="en") + "\n"
