"""Published settings and figures: rows of TOML beside each recipe, data set x budget -> overrides and the paper's
number.
"""

from __future__ import annotations

import functools
import importlib.resources
import tomllib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .component import bad_value
from .recipe import Published


class Row(BaseModel):
    """One row. `data` or `per_class` absent: for every one. Later rows override earlier ones.

    settings, judging: overrides by dotted path, of the recipe and of the protocol. accuracy, std: per cent, as
    published. source: where the figure or the setting stands. embedded: a setting of our own for the embedded data,
    not the paper's. turn: `condense reproduce` runs rows of lower turns first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    data: str | None = None
    per_class: int | None = Field(default=None, ge=1)
    settings: dict[str, Any] = {}
    protocol: str | None = None
    judging: dict[str, Any] = {}
    accuracy: float | None = None
    std: float | None = None
    repeats: int | None = None
    source: str = ""
    note: str = ""
    embedded: bool = False
    turn: int = Field(default=9, ge=1)

    def fits(self, data: str, per_class: int) -> bool:
        return self.data in (None, data) and self.per_class in (None, per_class)


@functools.cache
def rows(method: Published) -> tuple[Row, ...]:
    """All rows of a method, in the file's order; none where it has no file. Raises `BadValue` for a malformed row."""
    if method.settings is None:
        return ()
    package = method.make.__module__.rpartition(".")[0] or method.make.__module__
    text = importlib.resources.files(package).joinpath(method.settings).read_text()
    try:
        return tuple(Row.model_validate(row) for row in tomllib.loads(text).get("row", []))
    except ValidationError as error:
        raise bad_value(error, method.settings) from None


def settings_for(method: Published, data: str, per_class: int) -> Row:
    """The one row that all matching rows add up to: later ones override earlier ones, setting by setting."""
    settings: dict[str, Any] = {}
    judging: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for row in rows(method):
        if row.fits(data, per_class):
            settings |= row.settings
            judging |= row.judging
            found |= {key: value for key, value in row.model_dump(exclude_defaults=True).items()}
    return Row.model_validate({**found, "settings": settings, "judging": judging, "protocol": found.get("protocol")})
