"""Components: frozen pydantic values that a recipe is made of.

An *axis* is an abstract base that declares `axis`; its members are final. A field typed with an axis takes an instance,
a name, `name:argument` (where the member has a `shorthand` field) or a mapping with a `name` and settings; names are
looked up in the registry in force.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from .errors import BadValue, listed, meant

if TYPE_CHECKING:
    from torch import nn

    from .recipe import Reads, Recipe
    from .running import Run
    from .task import Task

REMEDY = "See `condense show NAME` for the recipe with all of its fields."
T = TypeVar("T")
C = TypeVar("C", bound="Component")


def kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


class Component(BaseModel):
    """A frozen value with a registry name. Two components are equal when their settings are."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False, protected_namespaces=()
    )

    axis: ClassVar[str]
    name: ClassVar[str]
    shorthand: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = kebab(cls.__name__)

    @classmethod
    def is_axis(cls) -> bool:
        return "axis" in cls.__dict__

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if not cls.is_axis():
            return handler(source)
        return core_schema.no_info_plain_validator_function(
            lambda value: member(cls, value),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.model_dump(mode="json")),
            metadata={"pydantic_js_functions": [lambda *_: {"type": ["object", "string"], "title": cls.axis}]},
        )

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, str):
            data = named_settings(cls, data)
        if isinstance(data, Mapping) and "name" in data:
            if data["name"] != cls.name:
                raise PydanticCustomError("component", "{cls} is not {name}", {"cls": cls.name, "name": data["name"]})
            data = {key: value for key, value in data.items() if key != "name"}
        unknown = [key for key in data if key not in cls.model_fields] if isinstance(data, Mapping) else []
        if unknown:
            problem, remedy = no_field(cls.name, unknown[0], cls.model_fields)
            raise PydanticCustomError(
                "component", "{problem}", {"problem": problem, "remedy": remedy, "got": unknown[0]}
            )
        return handler(data)

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": self.name, **handler(self)}

    # -- what the engine asks of every part -----------------------------------------------------------------------

    def check(self, recipe: Recipe, task: Task) -> None:
        """Refuse, before anything is computed, what cannot work with this recipe on this task (raise `BadValue`)."""

    def reads(self, recipe: Recipe) -> Reads:
        """What this part reads of the real data. Axes that are handed the source default to the worst."""
        from .recipe import Reads

        return Reads(examples=False)

    def state(self, run: Run) -> nn.Module | None:
        """Memory between steps: buffers, and parameters learned by the outer groups under the role `aux`."""
        return None

    # -- as a value -----------------------------------------------------------------------------------------------

    def __hash__(self) -> int:
        return hash(self.digest())

    def dump(self) -> dict[str, Any]:
        """The component as plain JSON data; `member(axis, data)` reads it back, equal."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """16 hexadecimal digits of SHA-256 over the canonical JSON of the value: its address in caches."""
        return digest(self.dump())

    def with_(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again (`model_copy` would not)."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def rewrite(self, kind: type[T], f: Callable[[T], Any], field: str | None = None) -> Self:
        """Tree map: every topmost instance of `kind` (in a field called `field`, if given) replaced by `f(it)`."""
        changes = {
            name: _rewritten(getattr(self, name), kind, f, field in (None, name), field)
            for name in type(self).model_fields
        }
        return self.with_(**changes)

    def walk(self) -> list[Component]:
        """This component and every component below it, depth first."""
        found: list[Component] = [self]
        for name in type(self).model_fields:
            found += _parts(getattr(self, name))
        return found


def _rewritten(value: Any, kind: type[T], f: Callable[[T], Any], here: bool, field: str | None) -> Any:
    if here and isinstance(value, kind):
        return f(value)
    if isinstance(value, Component):
        return value.rewrite(kind, f, field)
    if isinstance(value, tuple):
        return tuple(_rewritten(item, kind, f, here, field) for item in value)
    if isinstance(value, Mapping):
        return {key: _rewritten(item, kind, f, here, field) for key, item in value.items()}
    return value


def _parts(value: Any) -> list[Component]:
    if isinstance(value, Component):
        return value.walk()
    if isinstance(value, tuple):
        return [part for item in value for part in _parts(item)]
    if isinstance(value, Mapping):
        return [part for item in value.values() for part in _parts(item)]
    return []


def digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def named_settings(cls: type[Component], text: str) -> dict[str, Any]:
    """`name` or `name:argument` as a mapping; the argument goes to the member's `shorthand` field."""
    name, colon, argument = text.partition(":")
    if not colon:
        return {"name": name}
    if cls.shorthand is None:
        raise PydanticCustomError("component", "{name} takes no argument after a colon", {"name": name})
    return {"name": name, cls.shorthand: argument}


def by_name_alone(cls: type[Component]) -> None:
    """Refuse a member that its name alone does not describe, and say what to write."""
    wanted = [name for name, field in cls.model_fields.items() if field.is_required()]
    if wanted:
        remedy = "From Python: an instance, or a mapping with its name and settings."
        if cls.shorthand in wanted:
            remedy = f"Write {cls.name}:{str(cls.shorthand).upper()}, all of it in one word."
        context = {"name": cls.name, "wanted": listed(wanted), "got": cls.name, "remedy": remedy}
        raise PydanticCustomError("component", "{name} is more than a name: it takes {wanted}", context)


def member(axis: type[C], value: Any) -> C:
    """An instance of a member of `axis` from an instance, a name, `name:argument`, or a mapping with a name."""
    from .plugins import registry

    if isinstance(value, axis):
        return value
    if isinstance(value, str):
        name, colon, _ = value.partition(":")
        if not colon:
            by_name_alone(registry().lookup(axis, name))
    elif isinstance(value, Mapping) and isinstance(value.get("name"), str):
        name = value["name"]
    else:
        context = {"axis": axis.axis, "known": listed(registry().members(axis)), "got": value}
        message = "is no {axis}: give an instance, a name, or a mapping with a name; known: {known}"
        raise PydanticCustomError("component", message, context)
    return registry().lookup(axis, name).model_validate(value)


def named(axis: type[C], name: str, **settings: Any) -> C:
    """The member of `axis` called `name`, by the registry: packages use each other's parts without importing them."""
    return checked(lambda: member(axis, {"name": name, **settings}), axis.axis)


def checked(make: Callable[[], T], where: str) -> T:
    """Run `make`, turning pydantic's errors into one `BadValue` with the full path of the first field at fault."""
    try:
        return make()
    except ValidationError as error:
        raise bad_value(error, where) from None
    except PydanticCustomError as error:  # of `member`, outside of any other validation
        context = error.context or {}
        raise BadValue(where, context.get("got"), error.message(), context.get("remedy") or REMEDY) from None


def bad_value(error: ValidationError, where: str) -> BadValue:
    """The first thing at fault, in our words. Of a union's alternatives, the one that came furthest speaks."""
    found = [(_place(e), e) for e in error.errors(include_url=False)]
    rivals = [(place, e) for place, e in found if place[: len(found[0][0])] == found[0][0]]
    place, first = max(rivals, key=lambda rival: (len(rival[0]), _apt(rival[1])))
    context = first.get("ctx", {})
    problem, value = first["msg"].replace("Input should", "should"), context.get("got", first["input"])
    if first["type"] == "value_error":
        problem = str(context["error"])
    elif first["type"] == "missing":
        problem, value = "is required", None
    own = context.get("error")
    if isinstance(own, BadValue):  # of a validator that knows better than we do
        problem, value = own.problem, own.value
    remedy = own.remedy if isinstance(own, BadValue) else context.get("remedy") or REMEDY
    more = len({place for place, _ in found} - {place for place, _ in rivals})
    path = ".".join(str(part) for part in (where, *place) if part != "")
    return BadValue(path, value, problem, remedy + (f" ({more} more at fault.)" if more else ""))


def _place(error: ErrorDetails) -> tuple[int | str, ...]:
    """The path of the field, without the tags by which pydantic tells a union's alternatives apart."""
    return tuple(part for part in error["loc"] if not _TAG.fullmatch(str(part)))


def _apt(error: ErrorDetails) -> bool:
    """Does the error speak of the alternative that was meant: the number for a number, else the component?"""
    return (error["type"] == "component") != isinstance(error["input"], int | float)


_TAG = re.compile(r"(constrained-)?(float|int|str)|bool|none|function-.*|(tuple|list|dict|set|literal)\[.*\]")


def no_field(owner: str, name: str, fields: Iterable[str]) -> tuple[str, str]:
    """Problem and remedy for a field that is not there."""
    return f"{owner} has no field {name}; it has {listed(fields)}", meant(name, fields)
