"""What outsiders see of the tool, kept in files beside the tests.

A change that is meant is written down: T2T_WRITE_SNAPSHOTS=1 pytest tests/snapshots
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
WRITES = bool(os.environ.get("T2T_WRITE_SNAPSHOTS"))

# keys that depend on the machine, the builder or the numbers, where others do not
_NAMED_BY_OTHERS = {
    *("tools", "versions", "ops", "weight_bytes", "not_equalised"),
    *("kernels_by_kind", "kernels_by_dtype", "gemms_by_dtype", "macs_by_dtype", "found"),
}
# values that are null on one machine and told on another
_OF_THE_MACHINE = {
    *("cuda_device", "why_no_device", "why_not", "governor", "gpus"),
    *("model", "flags", "cpu_flags", "quota", "memory_bytes"),
}
# words that others read: kept as they are
_WORDS = {
    *("kind", "status", "precision", "target", "backend", "mode", "placement", "method", "measure"),
    *("type", "base", "form", "asked", "by", "tail", "image_input", "format", "preprocessing"),
    *("performer", "dtype", "accelerator", "tokens_type", "backbone"),
}
_KINDS = {bool: "flag", int: "number", float: "number", str: "text", type(None): "null"}


def hold(name: str, value: Any) -> None:
    """Fail, naming every difference, where a JSON value or a text is not as the file keeps it."""
    path = FOLDER / name
    is_text = isinstance(value, str)
    shown = value if is_text else json.dumps(value, indent=1, sort_keys=True) + "\n"
    if WRITES:
        path.write_text(shown, encoding="utf-8")
    kept = path.read_text(encoding="utf-8")
    if is_text:
        found = list(difflib.unified_diff(kept.splitlines(), shown.splitlines(), lineterm=""))
    else:
        before, now = dict(_leaves(json.loads(kept))), dict(_leaves(json.loads(shown)))
        found = [
            f"{key}: {before.get(key, 'nothing')} became {now.get(key, 'nothing')}"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]
    if found:
        pytest.fail("\n".join([f"{name} says otherwise:", *found]), pytrace=False)


def structure(value: Any) -> dict[str, str]:
    """Names and kinds of all that a JSON value holds; of a list, of its first element."""
    return dict(_structure(value, ""))


def _structure(value: Any, place: str) -> Iterator[tuple[str, str]]:
    last = place.rpartition(".")[2]
    # of a comparison of two benches; what only some control groups count
    was_measured = "cases[]." in place or last == "throttling"
    if was_measured or (last in _OF_THE_MACHINE and not isinstance(value, Mapping)):
        yield place, "any"
    elif isinstance(value, Mapping) and value:
        first = dict(list(value.items())[:1])
        known = {"*": first.popitem()[1]} if last in _NAMED_BY_OTHERS else value
        for key, one in known.items():
            yield from _structure(one, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and value:
        yield from _structure(value[0], f"{place}[]")
    elif isinstance(value, (Mapping, list)):
        yield place, f"empty {'list' if isinstance(value, list) else 'object'}"
    elif last in _WORDS and isinstance(value, str):
        yield place, f"text: {value}"
    else:
        yield place, _KINDS[type(value)]


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from _leaves(one, f"{place} > {key}" if place else key)
    else:
        yield place, value
