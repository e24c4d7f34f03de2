"""What a Python program may call, and with which arguments, is as it was written down."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from enum import Enum
from typing import Any

import t2t_deploy

from .snapshot import hold


def plain(value: Any) -> Any:
    """A default as JSON: members of enumerations by value, functions by name."""
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"<{getattr(value, '__name__', type(value).__name__)}>"


def parameters(function: Callable[..., Any]) -> dict[str, str]:
    """The parameters in order: name and kind, and the default where there is one."""
    told = {}
    for number, one in enumerate(inspect.signature(function).parameters.values(), start=1):
        is_needed = one.default is inspect.Parameter.empty
        default = "" if is_needed else f" = {json.dumps(plain(one.default))}"
        told[f"{number:02}"] = f"{one.name} ({one.kind.description}){default}"
    return told


def members(kind: type) -> dict[str, Any]:
    """What a class offers under names without an underscore."""
    found: dict[str, Any] = {}
    for name, member in inspect.getmembers(kind):
        if not name.startswith("_"):
            found[name] = parameters(member) if callable(member) else "attribute"
    return found


def test_signatures() -> None:
    found: dict[str, Any] = {}
    for name in sorted(t2t_deploy.__all__):
        value = getattr(t2t_deploy, name)
        if callable(value):
            found[name] = {"parameters": parameters(value)}
        if isinstance(value, type):
            found[name]["members"] = members(value)
    hold("python_api.json", {"__all__": sorted(t2t_deploy.__all__), **found})


def test_the_family() -> None:
    family = {name: variant.params for name, variant in t2t_deploy.VARIANTS.items()}
    hold("variants.json", family)
