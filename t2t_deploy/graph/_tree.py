"""The structure of an ONNX file without its numbers: names, shapes, nodes, where weights lie.

It is read from protobuf's encoding and needs no package, so that a file is known before a parser of
ONNX's or of a runtime's gets it. What those merge, skip or take in two ways is refused here: they
would not agree on what the file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from t2t_deploy.graph._protobuf import BYTES, FIXED32, FIXED64, VARINT, Data, read_varint, signed

MAX_FIELDS = 1_000_000
"""A T2T-ViT has some 30,000; a million take about a second."""
MAX_NESTING = 64
"""Of messages; a graph within a graph takes three. Protobuf's own limit is 100."""

Tree = dict[int, list[Any]]
"""Field number -> values: int, str, or the tree of a message. LENGTH -> bytes that it takes."""
LENGTH = 0

_Schema = Mapping[int, "_Kind"]


@dataclass(slots=True)
class _Kind:
    """What a field holds, and whether it may be there more than once.

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
_INTS = _Kind("i", many=True)  # those may be packed

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


def model_tree(data: Data, size: int) -> Tree:
    """Read a ModelProto. Raises ValueError where it is none, or one that readers may differ on."""
    return _Reader(data).message(_MODEL, 0, size, 0)


class _Reader:
    def __init__(self, data: Data) -> None:
        self._data = data
        self._seen = 0

    def message(self, schema: dict[int, _Kind], position: int, end: int, depth: int) -> Tree:
        if depth > MAX_NESTING:
            raise ValueError(f"messages nest deeper than {MAX_NESTING} at byte {position}")
        data = self._data
        tree: Tree = {LENGTH: [end - position]}
        while position < end:
            start = position
            self._seen += 1
            key, position = read_varint(data, position, end)
            number, wire_type = key >> 3, key & 7
            kind = schema.get(number)
            value = 0
            content = position
            if wire_type == VARINT:
                value, position = read_varint(data, position, end)
            elif wire_type == BYTES:
                length, content = read_varint(data, position, end)
                position = content + length
            elif wire_type == FIXED32:
                position += 4
            elif wire_type == FIXED64:
                position += 8
            else:
                raise ValueError(f"wire type {wire_type} at byte {start} is none of protobuf's")
            if position > end:
                raise ValueError(f"the field at byte {start} ends after its message")
            if number == 0:
                raise ValueError(f"the field at byte {start} has the number 0")
            if self._seen > MAX_FIELDS:
                raise ValueError(f"it has more than {MAX_FIELDS:,} fields")
            if kind is None:
                continue
            found = tree.setdefault(number, [])
            if kind.holds == "i" and wire_type == VARINT:
                found.append(signed(value))
            elif wire_type != BYTES or (kind.holds == "i" and not kind.many):
                raise ValueError(f"the field at byte {start} has wire type {wire_type}")
            elif kind.holds == "s":
                found.append(self._text(content, position))
            elif kind.holds == "m":
                if found and not kind.many:
                    raise ValueError(f"the message at byte {start} is there a second time")
                found.append(self.message(kind.message, content, position, depth + 1))
            elif kind.holds == "b":
                found.append(position - content)
            else:
                self._packed(found, content, position)
        return tree

    def _text(self, start: int, end: int) -> str:
        try:
            return self._data[start:end].decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the text at byte {start} is no UTF-8") from None

    def _packed(self, found: list[Any], position: int, end: int) -> None:
        while position < end:
            self._seen += 1
            if self._seen > MAX_FIELDS:
                raise ValueError(f"it has more than {MAX_FIELDS:,} fields")
            value, position = read_varint(self._data, position, end)
            found.append(signed(value))
