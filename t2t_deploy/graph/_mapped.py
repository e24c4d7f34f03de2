"""An ONNX file's graph without its weights, so that a runtime maps them instead of reading them.

ONNX Runtime parses weights inside the file, then packs those of each product in its own layout: two
copies at once. External weights it maps, packs and frees one by one, and they may be in any file of
the folder, so in the ONNX file itself.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from t2t_deploy.graph._tree import BYTES, VARINT, Field, fields, message, varint

MIN_MAPPED_BYTES = 4096
"""Smaller tensors stay in the graph: a page costs more than it saves."""

# Field numbers and wire types, as in onnx.proto (ONNX 1.23) and protobuf's encoding.
_GRAPH, _INITIALIZER = 7, 5
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_EXTERNAL = 1


@dataclass(frozen=True, slots=True)
class MappableModel:
    """graph: a serialised ModelProto with its weights as external data in its own file.

    mapped_bytes: size of these weights.
    """

    graph: bytes
    mapped_bytes: int


def mappable_model(path: Path) -> MappableModel:
    """Read the graph of an ONNX file, with the offsets of its large initializers.

    Raises ValueError where the file is no protobuf message.
    """
    if path.stat().st_size == 0:  # mmap refuses empty files
        return MappableModel(b"", 0)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        rewriter = _Rewriter(data, path.name)
        return MappableModel(rewriter.model(), rewriter.mapped_bytes)


class _Rewriter:
    """Copies a ModelProto without the raw data of the main graph's initializers."""

    def __init__(self, data: mmap.mmap, file_name: str) -> None:
        self._data = data
        self._file_name = file_name
        self.mapped_bytes = 0

    def model(self) -> bytes:
        chunks = []
        for field in fields(self._data, 0, len(self._data)):
            if field.number == _GRAPH and field.wire_type == BYTES:
                chunks.append(message(_GRAPH, self._graph(field)))
            else:
                chunks.append(self._data[field.start : field.end])
        return b"".join(chunks)

    def _graph(self, graph: Field) -> bytes:
        chunks = []
        for field in fields(self._data, graph.content, graph.end):
            if field.number == _INITIALIZER and field.wire_type == BYTES:
                chunks.append(message(_INITIALIZER, self._tensor(field)))
            else:
                chunks.append(self._data[field.start : field.end])
        return b"".join(chunks)

    def _tensor(self, tensor: Field) -> bytes:
        members = list(fields(self._data, tensor.content, tensor.end))
        raw = [f for f in members if f.number == _RAW_DATA and f.wire_type == BYTES]
        external = any(f.number in (_EXTERNAL_DATA, _DATA_LOCATION) for f in members)
        if external or len(raw) != 1 or raw[0].end - raw[0].content < MIN_MAPPED_BYTES:
            return self._data[tensor.content : tensor.end]
        chunks = [self._data[f.start : f.end] for f in members if f is not raw[0]]
        length = raw[0].end - raw[0].content
        self.mapped_bytes += length
        where = {"location": self._file_name, "offset": raw[0].content, "length": length}
        for key, value in where.items():
            entry = message(1, key.encode()) + message(2, str(value).encode())
            chunks.append(message(_EXTERNAL_DATA, entry))
        chunks.append(varint(_DATA_LOCATION << 3 | VARINT) + varint(_EXTERNAL))
        return b"".join(chunks)
