"""condense: learn a small synthetic set from a large one, so that models trained on it do nearly as well."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import load, resume, run
    from .hookspecs import hookimpl
    from .judging import judge

_WHERE = {"judge": "judging", "load": "api", "plan": "planning", "resume": "api", "run": "api", "hookimpl": "hookspecs"}


def __getattr__(name: str) -> Any:
    """The public functions, imported when they are first asked for: `import condense` stays quick."""
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = ["hookimpl", "judge", "load", "plan", "resume", "run"]
