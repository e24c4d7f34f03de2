"""An ONNX file's graph without its weights, so that a runtime maps them instead of reading them.

ONNX Runtime parses a file with the weights inside, and then packs each product's weights in a
layout of its own: two copies at once. Weights that are external data it maps, packs and lets go
one after the other. External data may lie in any file of the folder, so in the ONNX file itself.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIN_MAPPED_BYTES = 4096
"""Smaller tensors stay in the graph: one page costs more than it saves."""

# Field numbers and wire types, as in onnx.proto (ONNX 1.23) and protobuf's encoding.
_GRAPH, _INITIALIZER = 7, 5
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_EXTERNAL = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class MappableModel:
    """graph: a serialised ModelProto whose weights are external data in the file it was read from.

    mapped_bytes: how much of the file that is.
    """

    graph: bytes
    mapped_bytes: int


def mappable_model(path: Path) -> MappableModel:
    """Read the graph of an ONNX file, of its large initializers only where they are.

    Raises ValueError where the file is no protobuf message.
    """
    if path.stat().st_size == 0:  # nothing that could be mapped
        return MappableModel(b"", 0)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        rewriter = _Rewriter(data, path.name)
        return MappableModel(rewriter.model(), rewriter.mapped_bytes)


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a message: where it begins, and where what it holds begins and ends."""

    number: int
    wire_type: int
    start: int
    content: int
    end: int


class _Rewriter:
    """Copies a ModelProto but for the raw data of the main graph's initializers."""

    def __init__(self, data: mmap.mmap, file_name: str) -> None:
        self._data = data
        self._file_name = file_name
        self.mapped_bytes = 0

    def model(self) -> bytes:
        parts = []
        for field in self._fields(0, len(self._data)):
            if field.number == _GRAPH and field.wire_type == _BYTES:
                parts.append(_message(_GRAPH, self._graph(field)))
            else:
                parts.append(self._data[field.start : field.end])
        return b"".join(parts)

    def _graph(self, graph: _Field) -> bytes:
        parts = []
        for field in self._fields(graph.content, graph.end):
            if field.number == _INITIALIZER and field.wire_type == _BYTES:
                parts.append(_message(_INITIALIZER, self._tensor(field)))
            else:
                parts.append(self._data[field.start : field.end])
        return b"".join(parts)

    def _tensor(self, tensor: _Field) -> bytes:
        fields = list(self._fields(tensor.content, tensor.end))
        raw = [f for f in fields if f.number == _RAW_DATA and f.wire_type == _BYTES]
        elsewhere = any(f.number in (_EXTERNAL_DATA, _DATA_LOCATION) for f in fields)
        if elsewhere or len(raw) != 1 or raw[0].end - raw[0].content < MIN_MAPPED_BYTES:
            return self._data[tensor.content : tensor.end]
        parts = [self._data[f.start : f.end] for f in fields if f is not raw[0]]
        length = raw[0].end - raw[0].content
        self.mapped_bytes += length
        where = {"location": self._file_name, "offset": raw[0].content, "length": length}
        for key, value in where.items():
            entry = _message(1, key.encode()) + _message(2, str(value).encode())
            parts.append(_message(_EXTERNAL_DATA, entry))
        parts.append(_varint(_DATA_LOCATION << 3 | _VARINT) + _varint(_EXTERNAL))
        return b"".join(parts)

    def _fields(self, position: int, end: int) -> Iterator[_Field]:
        while position < end:
            start = position
            key, position = self._read_varint(position, end)
            wire_type = key & 7
            content = position
            if wire_type == _VARINT:
                _, position = self._read_varint(position, end)
            elif wire_type == _BYTES:
                length, content = self._read_varint(position, end)
                position = content + length
            elif wire_type in (_FIXED64, _FIXED32):
                position += 8 if wire_type == _FIXED64 else 4
            else:
                raise ValueError(f"wire type {wire_type} at byte {start} is none of protobuf's")
            if position > end:
                raise ValueError(f"the field at byte {start} ends after its message")
            yield _Field(key >> 3, wire_type, start, content, position)

    def _read_varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while position < end and shift < 64:
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
        raise ValueError(f"the number at byte {position} does not end")


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
