"""What a manifest's values must be before anything is done with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from t2t_deploy._untrusted import shortened

_SHA256 = re.compile(r"[0-9a-f]{64}")
_KINDS = ("onnx", "engine")


def check_manifest_values(values: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first value that is of another kind than a manifest's is."""
    json.dumps(values, allow_nan=False)  # an infinity would be no JSON where it is told
    for name, fits in _FITS.items():
        if name in values and not fits(values[name]):
            raise ValueError(f"its {name} is {shortened(values[name])}")
    for name in ("verification", *_CHECKS):
        check = values.get(name) if name == "verification" else values["details"].get(name)
        if check is not None and not (_is_table(check) and _is_text(check.get("status"))):
            raise ValueError(f"its {name} is {shortened(check)}")
    sha256 = values["weights"].get("sha256")
    if values["weights"] and not _is_hash(sha256):
        raise ValueError(f"its weights have the SHA-256 {shortened(sha256)}")
    if values["kind"] == "engine":
        _check_engine(values["details"].get("engine"))


def _check_engine(engine: Any) -> None:
    if not _is_table(engine):
        raise ValueError(f"its engine is {shortened(engine)}")
    for name, fits in _ENGINE_FITS.items():
        if not fits(engine.get(name)):
            raise ValueError(f"its engine's {name} is {shortened(engine.get(name))}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_text, value))


def _are_tables(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_table, value))


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


_CHECKS = ("attestation", "nodewise", "located", "budget", "graph_verification")
_FITS: Mapping[str, Callable[[Any], bool]] = {
    "kind": lambda value: value in _KINDS,
    "file": _is_text,
    "sha256": _is_text,
    "size_bytes": _is_number,
    "variant": _is_text,
    "config": lambda value: (
        _is_table(value) and all(_is_number(value.get(n, 1)) for n in ("image_size", "num_classes"))
    ),
    "batch": _or_none(lambda value: _is_number(value) and value > 0),
    "target": _is_text,
    "weights": lambda value: _is_table(value) and _is_table(value.get("source", {})),
    "opset": _or_none(_is_number),
    "strategies": _or_none(_is_table),
    "parents": _are_tables,
    "details": lambda value: (
        _is_table(value) and all(_is_table(value.get(n, {})) for n in ("asked", "quantization"))
    ),
    "tools": _is_table,
    "sequence": _is_number,
    "created": _is_text,
    "manifest_version": _is_number,
}
_ENGINE_FITS: Mapping[str, Callable[[Any], bool]] = {
    "backend": _is_text,
    "backend_version": _is_text,
    "sm": _are_texts,
    "profiles": _or_none(_are_texts),
    "inputs": _or_none(_are_tables),
    "outputs": _or_none(_are_tables),
}
