"""An ONNX file's graph without its weights, so that a runtime maps them instead of reading them."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from t2t_deploy.graph._tree import BYTES, VARINT, Field, fields, message, varint

MIN_MAPPED_BYTES = 4096
"""Smaller tensors stay in the graph: a page costs more than it saves."""

# Field numbers and wire types, as in onnx.proto (ONNX 1.23) and protobuf's encoding.
_GRAPH, _INITIALIZER = 7, 5
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_EXTERNAL = 1


class MappableModel(NamedTuple):
    """graph: a serialised ModelProto with its weights as external data in its own file.

    mapped_bytes: size of these weights.
    """

    graph: bytes
    mapped_bytes: int


def mappable_model(path: Path) -> MappableModel:
    """Read the graph of an ONNX file, with the offsets of its large initializers.

    ONNX Runtime parses weights inside the file, then packs those of each product in its own layout:
    two copies at once. External weights it maps, packs and frees one by one, and they may be in any
    file of the folder, so in the ONNX file itself. Raises ValueError where the file is no protobuf
    message.
    """
    if path.stat().st_size == 0:  # mmap refuses empty files
        return MappableModel(b"", 0)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        mapped: list[int] = []

        def tensor(found: Field) -> bytes:
            members = list(fields(data, found.content, found.end))
            raw = [f for f in members if f.number == _RAW_DATA and f.wire_type == BYTES]
            external = any(f.number in (_EXTERNAL_DATA, _DATA_LOCATION) for f in members)
            if external or len(raw) != 1 or raw[0].end - raw[0].content < MIN_MAPPED_BYTES:
                return data[found.content : found.end]
            chunks = [data[f.start : f.end] for f in members if f is not raw[0]]
            length = raw[0].end - raw[0].content
            mapped.append(length)
            where = {"location": path.name, "offset": raw[0].content, "length": length}
            for key, value in where.items():
                entry = message(1, key.encode()) + message(2, str(value).encode())
                chunks.append(message(_EXTERNAL_DATA, entry))
            chunks.append(varint(_DATA_LOCATION << 3 | VARINT) + varint(_EXTERNAL))
            return b"".join(chunks)

        def graph(found: Field) -> bytes:
            return _copied(data, found.content, found.end, _INITIALIZER, tensor)

        return MappableModel(_copied(data, 0, len(data), _GRAPH, graph), sum(mapped))


def _copied(
    data: mmap.mmap, start: int, end: int, number: int, rewrite: Callable[[Field], bytes]
) -> bytes:
    """A message with the messages of one field rewritten, the rest as it is."""
    return b"".join(
        message(number, rewrite(field))
        if field.number == number and field.wire_type == BYTES
        else data[field.start : field.end]
        for field in fields(data, start, end)
    )
