"""Protobuf's text format, as far as a model configuration needs it: nothing is needed to write it.

A message is a mapping of field names; a list is a repeated field. Tests parse what is written with
Triton's own protobuf.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

_STEP = "  "
_ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


@dataclass(frozen=True, slots=True)
class Word:
    """The name of an enumeration's value: written without quotes."""

    name: str


Scalar: TypeAlias = str | bool | int | float | Word
Value: TypeAlias = "Scalar | Message | Sequence[Scalar] | Sequence[Message]"
Message: TypeAlias = Mapping[str, "Value"]


def pbtxt(message: Message) -> str:
    """A message as text, fields in the order they are given; lists without members are left out."""
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
    inner = list(_lines(message))
    if not inner:
        yield f"{name} {{}}"
        return
    yield f"{name} {{"
    yield from (f"{_STEP}{line}" for line in inner)
    yield "}"


def _scalar(value: Scalar) -> str:
    if isinstance(value, Word):
        return value.name
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{"".join(map(_character, value))}"'
    return repr(value)


def _character(character: str) -> str:
    if character in _ESCAPED:
        return _ESCAPED[character]
    # control characters as three octal digits, which a digit behind them cannot prolong
    return character if character >= " " and character != "\x7f" else f"\\{ord(character):03o}"
