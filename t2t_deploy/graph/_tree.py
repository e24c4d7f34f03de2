"""The structure of an ONNX file without its numbers: names, shapes, nodes, offsets of weights."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Data = bytes | mmap.mmap

MAX_FIELDS = 1_000_000
"""A T2T-ViT has some 30,000; a million take about a second."""
MAX_NESTING = 64
"""Of messages; a graph within a graph takes three. Protobuf's own limit is 100."""

Tree = dict[int, list[Any]]
"""Field number -> values: int, str, or the tree of a message. LENGTH -> its size in bytes."""
LENGTH = 0


@dataclass(slots=True)
class _Kind:
    """The type of a field, and whether it may repeat.

    holds: ``i`` numbers, ``s`` text, ``b`` bytes of which the length counts, ``m`` a message.
    """

    holds: str
    message: dict[int, _Kind] = field(default_factory=dict)
    many: bool = False


def _one(message: dict[int, _Kind]) -> _Kind:
    return _Kind("m", message)


def _many(message: dict[int, _Kind]) -> _Kind:
    return _Kind("m", message, many=True)


_INT, _TEXT, _SIZE = _Kind("i"), _Kind("s"), _Kind("b")
_INTS = _Kind("i", many=True)  # may be packed

# Field numbers as in onnx.proto (ONNX 1.23, IR version 14).
_ENTRY = {1: _TEXT, 2: _TEXT}
_TENSOR = {
    1: _INTS, 2: _INT, 8: _TEXT, 9: _SIZE, 12: _TEXT, 13: _many(_ENTRY), 14: _INT,
    16: _many(_ENTRY),
}  # fmt: skip
_SPARSE = {1: _one(_TENSOR), 2: _one(_TENSOR), 3: _INTS}
_SHAPE = {1: _many({1: _INT, 2: _TEXT, 3: _TEXT})}
_TYPE: dict[int, _Kind] = {6: _TEXT}
_TYPE |= {
    1: _one({1: _INT, 2: _one(_SHAPE)}),
    4: _one({1: _one(_TYPE)}),
    5: _one({1: _INT, 2: _one(_TYPE)}),
    7: _one({1: _TEXT, 2: _TEXT}),
    8: _one({1: _INT, 2: _one(_SHAPE)}),
    9: _one({1: _one(_TYPE)}),
}
_VALUE = {1: _TEXT, 2: _one(_TYPE), 3: _TEXT, 4: _many(_ENTRY)}
_GRAPH: dict[int, _Kind] = {}
_ATTRIBUTE = {
    1: _TEXT, 21: _TEXT, 13: _TEXT, 20: _INT, 5: _one(_TENSOR), 6: _one(_GRAPH), 22: _one(_SPARSE),
    14: _one(_TYPE), 10: _many(_TENSOR), 11: _many(_GRAPH), 23: _many(_SPARSE), 15: _many(_TYPE),
}  # fmt: skip
_NODE = {
    1: _TEXT, 2: _TEXT, 3: _TEXT, 4: _TEXT, 7: _TEXT, 8: _TEXT, 5: _many(_ATTRIBUTE), 6: _TEXT,
    9: _many(_ENTRY),
}  # fmt: skip
_GRAPH |= {
    1: _many(_NODE), 2: _TEXT, 5: _many(_TENSOR), 15: _many(_SPARSE), 10: _TEXT, 11: _many(_VALUE),
    12: _many(_VALUE), 13: _many(_VALUE), 14: _many({1: _TEXT, 2: _many(_ENTRY)}),
    16: _many(_ENTRY),
}  # fmt: skip
_OPSET = {1: _TEXT, 2: _INT}
_FUNCTION = {
    1: _TEXT, 4: _TEXT, 5: _TEXT, 6: _TEXT, 11: _many(_ATTRIBUTE), 7: _many(_NODE), 8: _TEXT,
    9: _many(_OPSET), 10: _TEXT, 13: _TEXT, 12: _many(_VALUE), 14: _many(_ENTRY),
}  # fmt: skip
_MODEL = {
    1: _INT, 8: _many(_OPSET), 2: _TEXT, 3: _TEXT, 4: _TEXT, 5: _INT, 6: _TEXT, 7: _one(_GRAPH),
    14: _many(_ENTRY), 25: _many(_FUNCTION),
    20: _many({1: _one(_GRAPH), 2: _one(_GRAPH), 3: _many(_ENTRY), 4: _many(_ENTRY)}),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelTree:
    """A ModelProto, and all messages of three kinds in it."""

    root: Tree
    tensors: list[Tree]
    sparse_tensors: list[Tree]
    infos: list[Tree]


def model_tree(data: Data, size: int) -> ModelTree:
    """Read a ModelProto from protobuf's encoding, without a package and without copying weights.

    Raises ValueError if it is none, or in an encoding that parsers merge, skip or read in two ways:
    they would disagree about the file.
    """
    reader = _Reader(data)
    root = reader.message(_MODEL, 0, size, 0)
    kinds = (reader.messages.get(id(schema), []) for schema in (_TENSOR, _SPARSE, _VALUE))
    return ModelTree(root, *kinds)


class _Reader:
    """messages: those of each schema, by its id."""

    def __init__(self, data: Data) -> None:
        self.messages: dict[int, list[Tree]] = {}
        self._data = data
        self._seen = 0

    def message(self, schema: dict[int, _Kind], position: int, end: int, depth: int) -> Tree:
        if depth > MAX_NESTING:
            raise ValueError(f"messages nest deeper than {MAX_NESTING} at byte {position}")
        tree: Tree = {LENGTH: [end - position]}
        self.messages.setdefault(id(schema), []).append(tree)
        for one in fields(self._data, position, end):
            if one.number == 0:
                raise ValueError(f"the field at byte {one.start} has the number 0")
            self._count()
            kind = schema.get(one.number)
            if kind is None:
                continue
            values = tree.setdefault(one.number, [])
            if kind.holds == "i" and one.wire_type == VARINT:
                values.append(_signed(one.value))
            elif one.wire_type != BYTES or (kind.holds == "i" and not kind.many):
                raise ValueError(f"the field at byte {one.start} has wire type {one.wire_type}")
            elif kind.holds == "s":
                values.append(self._text(one.content, one.end))
            elif kind.holds == "m":
                if values and not kind.many:
                    raise ValueError(f"the message at byte {one.start} is there a second time")
                values.append(self.message(kind.message, one.content, one.end, depth + 1))
            elif kind.holds == "b":
                values.append(one.end - one.content)
            else:
                self._packed(values, one.content, one.end)
        return tree

    def _count(self) -> None:
        self._seen += 1
        if self._seen > MAX_FIELDS:
            raise ValueError(f"it has more than {MAX_FIELDS:,} fields")

    def _text(self, start: int, end: int) -> str:
        try:
            return self._data[start:end].decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the text at byte {start} is no UTF-8") from None

    def _packed(self, values: list[Any], position: int, end: int) -> None:
        while position < end:
            self._count()
            value, position = _read_varint(self._data, position, end)
            values.append(_signed(value))


# -- protobuf's encoding -------------------------------------------------------------------------


class Field(NamedTuple):
    """A field of a message: its start, and start and end of its content.

    value: of a number.
    """

    number: int
    wire_type: int
    start: int
    content: int
    end: int
    value: int


def fields(data: Data, position: int, end: int) -> Iterator[Field]:
    """The fields of a range. Raises ValueError if it is no message."""
    while position < end:
        start = position
        key, position = _read_varint(data, position, end)
        wire_type = key & 7
        content, value = position, 0
        if wire_type == VARINT:
            value, position = _read_varint(data, position, end)
        elif wire_type == BYTES:
            length, content = _read_varint(data, position, end)
            position = content + length
        elif wire_type in (FIXED64, FIXED32):
            position += 8 if wire_type == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {start} is none of protobuf's")
        if position > end:
            raise ValueError(f"the field at byte {start} ends after its message")
        yield Field(key >> 3, wire_type, start, content, position, value)


def _read_varint(data: Data, position: int, end: int) -> tuple[int, int]:
    """An unsigned number and its end. Raises ValueError."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
    raise ValueError(f"the number at byte {position} does not end")


def _signed(value: int) -> int:
    """A 64-bit number as int64 has it."""
    return value - (1 << 64) if value >> 63 else value


def message(number: int, content: bytes) -> bytes:
    """An encoded field of a message or bytes."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """An encoded unsigned number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
