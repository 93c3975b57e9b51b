"""What the adapter needs and condense does not: torch_geometric, imported when it is first used."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from condense.errors import BadValue
from condense.plugins import extra_hint


def pyg(module: str = "") -> Any:
    """torch_geometric, or its submodule `module` (`nn`, `datasets`). Raises `BadValue` saying what to install.

    What its import warns of (torch's deprecations) is for its authors, and is not passed on.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            return importlib.import_module(f"torch_geometric.{module}".rstrip("."))
    except ModuleNotFoundError as error:
        problem = f"is needed for graphs, and cannot be imported: {error}"
        raise BadValue("torch_geometric", module or None, problem, f"Install it{extra_hint('graph')}") from None
