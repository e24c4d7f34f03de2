"""Protobuf's encoding, as far as an ONNX file needs it: fields, where they lie, and what is wrong.

Nothing is copied that is not asked for: an ONNX file is mostly weights.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Data = bytes | mmap.mmap


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message: where it begins, and where what it holds begins and ends."""

    number: int
    wire_type: int
    start: int
    content: int
    end: int


def fields(data: Data, position: int, end: int) -> Iterator[Field]:
    """The fields between two places. Raises ValueError where that is no message."""
    while position < end:
        start = position
        key, position = read_varint(data, position, end)
        wire_type = key & 7
        content = position
        if wire_type == VARINT:
            _, position = read_varint(data, position, end)
        elif wire_type == BYTES:
            length, content = read_varint(data, position, end)
            position = content + length
        elif wire_type in (FIXED64, FIXED32):
            position += 8 if wire_type == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {start} is none of protobuf's")
        if position > end:
            raise ValueError(f"the field at byte {start} ends after its message")
        yield Field(key >> 3, wire_type, start, content, position)


def read_varint(data: Data, position: int, end: int) -> tuple[int, int]:
    """An unsigned number and where it ends. Raises ValueError."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
    raise ValueError(f"the number at byte {position} does not end")


def signed(value: int) -> int:
    """A 64-bit number as int64 has it."""
    return value - (1 << 64) if value >> 63 else value


def message(number: int, content: bytes) -> bytes:
    """A field that holds a message or bytes."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """An unsigned number as it is written."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
