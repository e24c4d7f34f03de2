"""Names that a package loads on first use, so that importing it stays light."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any


def lazy(package: str, names: Collection[str], *homes: str) -> Callable[[str], Any]:
    """A package's ``__getattr__``: each of the names is in one of its modules ``homes``."""

    def find(name: str) -> Any:
        for home in homes if name in names else ():
            module = importlib.import_module(f"{package}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
