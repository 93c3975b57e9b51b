"""Published settings and figures: rows of TOML beside each recipe, data set x budget -> overrides and the paper's
number.
"""

from __future__ import annotations

import functools
import importlib.resources
import tomllib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .component import bad_value
from .recipe import Published
from .sizes import Size


class Row(BaseModel):
    """One row. `data`, `per_class` or `total` absent: for every one. Later rows override earlier ones.

    per_class, total: the size that the row is about, of each class or in all; of a data set's rows the first that says
    one says the usual size, for a method without a default of its own.
    settings, judging: overrides by dotted path, of the recipe and of the protocol. terms: leaves of the plan
    (`data.epsilon`) under which a figure was found on data that are wrapped (`private:mnist`); such a row changes no
    settings, since wrapped data take those of the data within. accuracy, std: per cent, as published. In settings the
    text "null" is None, which TOML cannot say. source: where the figure or the setting stands. embedded: a setting of
    our own for the embedded data, not the paper's. turn: `condense reproduce` runs rows of lower turns first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    data: str | None = None
    per_class: int | None = Field(default=None, ge=1)
    total: int | None = Field(default=None, ge=1)
    settings: dict[str, Any] = {}
    protocol: str | None = None
    judging: dict[str, Any] = {}
    terms: dict[str, Any] = {}
    accuracy: float | None = None
    std: float | None = None
    repeats: int | None = None
    source: str = ""
    note: str = ""
    embedded: bool = False
    turn: int = Field(default=9, ge=1)

    @field_validator("settings")
    @classmethod
    def _nothing(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return {path: None if value == "null" else value for path, value in settings.items()}

    @property
    def size(self) -> Size:
        return Size(self.per_class, self.total)

    def fits(self, data: str, per_class: int | None, total: int | None) -> bool:
        asked = ((self.data, data), (self.per_class, per_class), (self.total, total))
        return all(about in (None, of) for about, of in asked)


def told(terms: Mapping[str, Any]) -> list[str]:
    """Terms as tables have them: `epsilon 1` of `data.epsilon=1.0`; by their paths where two have one last name.

    In the order of their paths, whatever the mapping's is: rows are told apart by them.
    """
    terms = dict(sorted(terms.items()))
    last = [path.rpartition(".")[2] for path in terms]
    names = [name if last.count(name) == 1 else path for name, path in zip(last, terms, strict=True)]
    values = [f"{value:g}" if isinstance(value, float) else str(value) for value in terms.values()]
    return [f"{name} {value}" for name, value in zip(names, values, strict=True)]


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


def settings_for(
    method: Published, data: str, per_class: int | None = None, total: int | None = None, *, plain: bool = False
) -> Row:
    """The one row that all matching rows add up to: later ones override earlier ones, setting by setting.

    plain: without the settings of rows that name a data set, but with their figures, and judged by their rules.
    """
    settings: dict[str, Any] = {}
    judging: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for row in rows(method):
        if row.fits(data, per_class, total):
            settings |= {} if plain and row.data is not None else row.settings
            judging |= row.judging
            found |= row.model_dump(exclude_defaults=True)
    return Row.model_validate({**found, "settings": settings, "judging": judging, "protocol": found.get("protocol")})


def usual_size(method: Published, data: str) -> Size:
    """The size of the first row about a data set that says one; none where there is no such row."""
    return next((row.size for row in rows(method) if row.data == data and row.size.given), Size())
