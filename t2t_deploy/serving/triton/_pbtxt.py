"""Protobuf's text format, as far as a model configuration needs it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from google.protobuf.text_encoding import CEscape

_STEP = "  "


@dataclass(frozen=True, slots=True)
class Word:
    """The name of an enumeration's value: written without quotes."""

    name: str


Scalar: TypeAlias = str | bool | int | float | Word
Value: TypeAlias = "Scalar | Message | Sequence[Scalar] | Sequence[Message]"
Message: TypeAlias = Mapping[str, "Value"]


def pbtxt(message: Message) -> str:
    """A message, as a mapping of fields, as text in their order; empty lists are left out."""
    return "".join(f"{line}\n" for line in _lines(message))


def map_entries(values: Mapping[str, Value]) -> list[Message]:
    """A protobuf map as what it is on the wire: a repeated field of keys and values."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _lines(message: Message) -> Iterator[str]:
    for name, value in message.items():
        repeated = isinstance(value, Sequence) and not isinstance(value, str)
        scalars = []
        for one in cast("Sequence[Scalar | Message]", value if repeated else [value]):
            if isinstance(one, Mapping):
                yield from _block(name, one)
            else:
                scalars.append(_scalar(one))
        if scalars:
            yield f"{name}: [{', '.join(scalars)}]" if repeated else f"{name}: {scalars[0]}"


def _block(name: str, message: Message) -> Iterator[str]:
    if not message:
        yield f"{name} {{}}"
        return
    yield f"{name} {{"
    yield from (f"{_STEP}{line}" for line in _lines(message))
    yield "}"


def _scalar(value: Scalar) -> str:
    if isinstance(value, Word):
        return value.name
    if isinstance(value, str):
        return f'"{CEscape(value, as_utf8=True)}"'
    return json.dumps(value)
