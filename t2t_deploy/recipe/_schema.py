"""What a recipe may say: its tables, their keys, and what each value must be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy._untrusted import did_you_mean
from t2t_deploy.engine import parse_sm
from t2t_deploy.errors import RecipeError, UsageError
from t2t_deploy.runtime import BACKENDS

_LARGEST = 2**31 - 1
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value must be. expected: in words. read: gives the value, or raises ValueError."""

    expected: str
    read: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a table."""

    kind: Kind
    required: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a recipe. several: whether there may be more than one."""

    keys: Mapping[str, Key]
    several: bool = False


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _sha256(value: Any) -> str:
    if re.fullmatch(r"[0-9a-f]{64}", _text(value).lower()) is None:
        raise ValueError
    return str(value).lower()


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError
    return number


def whole(low: int, high: int = _LARGEST) -> Kind:
    """A whole number from ``low`` to ``high``."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    bounds = f"from {low}" if high == _LARGEST else f"from {low} to {high}"
    return Kind(f"a whole number {bounds}", read)


def ending(*suffixes: str) -> Kind:
    """A path of a file of one of these kinds."""

    def read(value: Any) -> Path:
        path = Path(_text(value))
        if path.suffix.lower() not in suffixes:
            raise ValueError
        return path

    return Kind(f"a path that ends in {' or '.join(suffixes)}", read)


def choice(*names: str) -> Kind:
    """One of these words."""

    def read(value: Any) -> str:
        if value not in names or not isinstance(value, str):
            raise ValueError
        return value

    return Kind(f"one of {', '.join(repr(name) for name in names)}", read)


def several(kind: Kind) -> Kind:
    """A list of values, or one alone."""

    def read(value: Any) -> tuple[Any, ...]:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError
        return tuple(kind.read(one) for one in values)

    return Kind(f"{kind.expected}, or a list of such", read)


def _batch(value: Any) -> int | None:
    return None if value == "dynamic" else int(COUNT.read(value))


def _device(value: Any) -> int:
    kind, _, ordinal = _text(value).partition(":")
    if kind != "cuda" or not (ordinal.isascii() and ordinal.isdecimal()) or len(ordinal) > 4:
        raise ValueError
    return int(ordinal)


TEXT = Kind("a text", _text)
PATH = Kind("a path, as text", lambda value: Path(_text(value)))
FLAG = Kind("true or false", _flag)
NUMBER = Kind("a number from 0", _number)
SHA256 = Kind("64 hexadecimal digits", _sha256)
COUNT = whole(1)
BATCH = Kind("'dynamic' or a whole number from 1", _batch)
DEVICE = Kind("'cuda:0', 'cuda:1' and so on", _device)


def _sm(value: Any) -> str:
    try:
        parse_sm(_text(value))
    except UsageError:
        raise ValueError from None
    return str(value)


_SM = Kind("capabilities such as '86,89', or 'portable' or 'native'", _sm)
_PRECISION = choice("fp32", "fp16", "bf16")
_TARGET = choice("portable", "cpu", "tensorrt", "openvino")

TABLES: Mapping[str, Table] = {
    "model": Table(
        {
            "variant": Key(TEXT),
            "config": Key(PATH),
            "checkpoint": Key(PATH),
            "num-classes": Key(COUNT),
            "image-size": Key(COUNT),
        }
    ),
    "expected": Table(
        {
            "sha256": Key(SHA256),
            "classes": Key(COUNT),
            "image-size": Key(COUNT),
            "params": Key(COUNT),
            "top1": Key(NUMBER),
            "top1-within": Key(NUMBER),
        }
    ),
    "export": Table(
        {
            "name": Key(TEXT),
            "precision": Key(_PRECISION),
            "target": Key(_TARGET),
            "batch": Key(BATCH),
            "soft-split": Key(TEXT),
            "performer": Key(TEXT),
            "embed-preprocess": Key(FLAG),
            "tail": Key(choice("logits", "softmax", "topk")),
            "opset": Key(COUNT),
            "output": Key(PATH),
        },
        several=True,
    ),
    "calibrate": Table(
        {
            "images": Key(PATH, required=True),
            "count": Key(COUNT),
            "method": Key(choice("minmax", "percentile", "entropy", "mse")),
            "no-equalise": Key(FLAG),
        }
    ),
    "quantize": Table(
        {
            "name": Key(TEXT),
            "from": Key(TEXT),
            "type": Key(choice("int8", "fp8", "int8-weights", "fp8-weights")),
            "mode": Key(choice("static", "dynamic")),
            "target": Key(_TARGET),
            "base": Key(choice("fp32", "fp16")),
            "placement": Key(choice("auto", "balanced", "compact", "accurate")),
            "max-drop": Key(NUMBER),
            "eval": Key(PATH),
            "no-speed": Key(FLAG),
            "output": Key(PATH),
        },
        several=True,
    ),
    "build-trt": Table(
        {
            "name": Key(TEXT),
            "from": Key(TEXT),
            "precision": Key(
                choice("fp32", "fp16", "bf16", "int8", "fp8", "int8-weights", "fp8-weights")
            ),
            "backend": Key(choice("auto", "tensorrt", "tensorrt-rtx")),
            "sm": Key(_SM),
            "profile": Key(several(TEXT)),
            "memory-limit": Key(COUNT),
            "opt-level": Key(whole(0, 5)),
            "output": Key(PATH),
        },
        several=True,
    ),
    "verify": Table(
        {
            "images": Key(PATH),
            "nodewise": Key(FLAG),
            "backend": Key(choice("ort-cpu", "openvino")),
        }
    ),
    "evaluate": Table(
        {
            "images": Key(PATH, required=True),
            "batch": Key(COUNT),
            "limit": Key(COUNT),
            "confusion": Key(ending(".png")),
            "backend": Key(choice("ort-cpu", "openvino")),
        }
    ),
    "bench": Table(
        {
            "backend": Key(several(choice(*BACKENDS))),
            "batch": Key(several(COUNT)),
            "threads": Key(COUNT),
            "device": Key(DEVICE),
            "rounds": Key(COUNT),
            "cuda-graphs": Key(choice("on", "off", "both")),
            "baselines": Key(FLAG),
            "report": Key(ending(".html", ".htm")),
            "csv": Key(ending(".csv")),
            "compare": Key(PATH),
        }
    ),
    "package": Table(
        {
            "from": Key(TEXT),
            "triton": Key(PATH, required=True),
            "format": Key(choice("auto", "tensorrt", "onnxruntime", "python")),
            "name": Key(TEXT),
            "labels": Key(PATH),
            "top": Key(COUNT),
            "max-batch": Key(COUNT),
            "accelerator": Key(choice("none", "cuda", "tensorrt", "openvino")),
            "queue-delay": Key(whole(0)),
            "instances": Key(COUNT),
            "preprocess-instances": Key(COUNT),
            "threads": Key(whole(0)),
        },
        several=True,
    ),
}
"""A table is a command, or what several share; a key is one of the command's options."""

TOP: Mapping[str, Key] = {"workspace": Key(PATH)}
"""Keys before the first table."""


def read_tables(values: Mapping[str, Any], file: str) -> dict[str, list[dict[str, Any]]]:
    """The tables of a recipe, each as a list, every value checked and read.

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
            raise RecipeError(f"{file} has the unknown {_thing(name, value)}; {_hint_top(name)}")
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
        found[name] = [
            _table(table, name, f"{file}: {_place(name, number, len(tables))}")
            for number, table in enumerate(tables, start=1)
        ]
    return found


def _table(values: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    keys = TABLES[name].keys
    read = {}
    for key, value in values.items():
        if key not in keys:
            raise RecipeError(f"{where} has the unknown key {_shown(key)}; {_hint(key, name)}")
        read[key] = _value(keys[key], value, key, where)
    missing = [key for key, known in keys.items() if known.required and key not in values]
    if missing:
        raise RecipeError(
            f"{where} lacks {', '.join(missing)}; expected {keys[missing[0]].kind.expected}: add it"
        )
    return read


def _value(key: Key, value: Any, name: str, where: str) -> Any:
    try:
        return key.kind.read(value)
    except (ValueError, OverflowError):  # a whole number may be too large for a float
        raise RecipeError(
            f"{where}: {name} is {_shown(value)}; expected {key.kind.expected}"
        ) from None


def _hint(key: str, table: str) -> str:
    """The nearest known key; one of another table where it is that."""
    keys = TABLES[table].keys
    homes = [name for name, other in TABLES.items() if key in other.keys]
    if homes:
        return f"it belongs into {' or '.join(f'[{home}]' for home in homes)}"
    return _nearest(key, keys) or f"known keys: {', '.join(keys)}"


def _hint_top(name: str) -> str:
    homes = [table for table, other in TABLES.items() if name in other.keys]
    near = _nearest(name, [*TABLES, *TOP])
    if near is None and homes:
        return f"it belongs into {' or '.join(f'[{home}]' for home in homes)}"
    return near or f"known tables: {', '.join(TABLES)}"


def _nearest(name: str, known: Iterable[str]) -> str | None:
    return did_you_mean(name.lower().replace("_", "-"), known)


def _thing(name: str, value: Any) -> str:
    is_table = isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    )
    return f"{'table' if is_table else 'key'} {_shown(name)}"


def _place(name: str, number: int, total: int) -> str:
    return f"[{name}]" if total == 1 else f"[[{name}]] number {number}"


def _shown(value: Any) -> str:
    """A value on one line, not longer than a reader wants."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out a number of thousands of digits
        text = "a very large number"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
