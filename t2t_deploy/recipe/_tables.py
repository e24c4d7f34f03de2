"""What a recipe may say: a table is a command, or what several share; a key is one of its options.

The keys come from the commands' signatures; what stands here besides is what a recipe alone has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from t2t_deploy._options import COUNT, PATH, TEXT, Kind, number, parameters
from t2t_deploy._untrusted import did_you_mean
from t2t_deploy.commands import (
    benchmark,
    build_engine,
    calibrate_onnx,
    evaluate_artifacts,
    export_onnx,
    package_artifact,
    quantize_onnx,
    verify_artifacts,
)
from t2t_deploy.errors import RecipeError, UsageError

COMMANDS: Mapping[str, Callable[..., Any]] = {
    "export": export_onnx,
    "calibrate": calibrate_onnx,
    "quantize": quantize_onnx,
    "build-trt": build_engine,
    "verify": verify_artifacts,
    "evaluate": evaluate_artifacts,
    "bench": benchmark,
    "package": package_artifact,
}
_NAMED = ("export", "quantize", "build-trt")
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a table. argument: the parameter that it sets."""

    kind: Kind
    argument: str
    required: bool = False
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a recipe. several: whether there may be more than one."""

    keys: Mapping[str, Key]
    several: bool = False


def _sha256(value: Any) -> str:
    if re.fullmatch(r"[0-9a-f]{64}", TEXT.read(value).lower()) is None:
        raise ValueError
    return str(value).lower()


_PERCENT = number("a number from 0 to 100", lambda percent: 0 <= percent <= 100)


def _keys(command: str, table: str) -> dict[str, Key]:
    """The keys that a command's options are in a table."""
    found = {}
    for name, parameter in parameters(COMMANDS[command]).items():
        home = parameter.opt.recipe
        if home == table or (home is True and table == command):
            negated = parameter.default is True
            found[parameter.option] = Key(parameter.kind, name, parameter.required, negated)
    return found


def _table(command: str) -> Table:
    own = {"name": Key(TEXT, "name")} if command in _NAMED else {}
    if command in ("quantize", "build-trt", "package"):
        own["from"] = Key(TEXT, "from")
    several = command in (*_NAMED, "package")
    return Table(own | _keys(command, command), several)


_EXPECTED: Mapping[str, Kind] = {
    "sha256": Kind("64 hexadecimal digits", _sha256),
    "classes": COUNT,
    "image-size": COUNT,
    "params": COUNT,
    "top1": _PERCENT,
    "top1-within": _PERCENT,
}
TABLES: Mapping[str, Table] = {
    "model": Table(_keys("export", "model")),
    "expected": Table({name: Key(kind, name) for name, kind in _EXPECTED.items()}),
    **{command: _table(command) for command in COMMANDS},
}
TOP: Mapping[str, Key] = {"workspace": Key(PATH, "workspace")}
"""Keys before the first table."""


def read_tables(values: Mapping[str, Any], file: str) -> dict[str, list[dict[str, Any]]]:
    """The tables of a recipe, each as a list, every value checked, as arguments of the command.

    Keys that stand before the first table are under the empty name. Raises RecipeError naming the
    file, the table and the key, and the nearest known one.
    """
    top: dict[str, Any] = {}
    found: dict[str, list[dict[str, Any]]] = {"": [top]}
    for name, value in values.items():
        if name in TOP:
            top[name] = _value(TOP[name], value, name, file)
            continue
        if name not in TABLES:
            near = _nearest(name, [*TABLES, *TOP]) or _homes(name)
            hint = near or f"known tables: {', '.join(TABLES)}"
            raise RecipeError(f"{file} has the unknown {_thing(name, value)}; {hint}")
        tables = value if isinstance(value, list) else [value]
        if not tables or not all(isinstance(table, dict) for table in tables):
            raise RecipeError(
                f"{file}: {name} is {_shown(value)}; expected a table: write [{name}] on a line of "
                "its own, and its keys below"
            )
        if len(tables) > 1 and not TABLES[name].several:
            raise RecipeError(
                f"{file} has {len(tables)} tables [[{name}]]; expected one, [{name}]: put their "
                "keys together"
            )
        shown = [f"[[{name}]] number {index + 1}" for index in range(len(tables))]
        shown = [f"[{name}]"] if len(tables) == 1 else shown
        places = zip(tables, shown, strict=True)
        found[name] = [_arguments(table, name, f"{file}: {place}") for table, place in places]
    return found


def _arguments(values: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    keys = TABLES[name].keys
    read: dict[str, Any] = {}
    for key, value in values.items():
        if key not in keys:
            hint = _homes(key) or _nearest(key, keys) or f"known keys: {', '.join(keys)}"
            raise RecipeError(f"{where} has the unknown key {_shown(key)}; {hint}")
        known = keys[key]
        found = _value(known, value, key, where)
        if known.negated:
            found = not found
        read[known.argument] = found
    missing = [key for key, known in keys.items() if known.required and key not in values]
    if missing:
        raise RecipeError(
            f"{where} lacks {', '.join(missing)}; expected {keys[missing[0]].kind.expected}: add it"
        )
    return read


def _value(key: Key, value: Any, name: str, where: str) -> Any:
    try:
        if value == []:  # a list says something
            raise ValueError
        return key.kind.read(value)
    except UsageError as err:
        raise RecipeError(f"{where}: {name}: {err}") from err
    except (ValueError, OverflowError):  # a whole number may be too large for a float
        raise RecipeError(
            f"{where}: {name} is {_shown(value)}; expected {key.kind.expected}"
        ) from None


def _homes(key: str) -> str | None:
    homes = " or ".join(f"[{name}]" for name, table in TABLES.items() if key in table.keys)
    return f"it belongs into {homes}" if homes else None


def _nearest(name: str, known: Iterable[str]) -> str | None:
    return did_you_mean(name.lower().replace("_", "-"), known)


def _thing(name: str, value: Any) -> str:
    is_table = isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    )
    return f"{'table' if is_table else 'key'} {_shown(name)}"


def _shown(value: Any) -> str:
    """A value on one line, not longer than a reader wants."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out a number of thousands of digits
        text = "a very large number"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
