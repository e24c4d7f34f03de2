"""What a pickle would build, by its instructions, without executing them."""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MAX_INSTRUCTIONS = 2_000_000
"""A checkpoint of T2T-ViT-24 with its average and its optimiser has some 60,000."""
MAX_DEPTH = 64
MAX_EXPANDED = 10_000_000
"""Of an object, with every reference in it expanded."""

_GROWS = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
_STORAGE_WORDS = 5  # kind, class, key, location, elements; a legacy file adds views
_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1,
    "Byte": 1, "Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8, "Untyped": 1,
}  # fmt: skip


class PickleError(Exception):
    """A harmful or broken pickle; the text says why."""


@dataclass(slots=True)
class PickleScan:
    """Storages and result of a pickle.

    storages: key -> bytes. value: of a plain result, and the texts of a list of texts; else None.
    """

    storages: dict[str, int] = field(default_factory=dict)
    value: Any = None


class _Object:
    """An object that the pickle builds: its expanded size, its depth, plain value and items."""

    __slots__ = ("depth", "items", "size", "value")

    def __init__(self, value: Any = None) -> None:
        self.size, self.depth, self.value = 1, 0, value
        self.items: list[_Object] = []

    def take(self, items: list[_Object]) -> None:
        for item in items:
            self.size += item.size
            self.depth = max(self.depth, item.depth + 1)
        if self.depth > MAX_DEPTH:
            raise PickleError(f"its objects nest deeper than {MAX_DEPTH}")
        if self.size > MAX_EXPANDED:
            raise PickleError(
                f"one of its objects has more than {MAX_EXPANDED:,} items, with references expanded"
            )


_MARK = _Object()


def scan_pickle(stream: BinaryIO, *, budget: int = MAX_INSTRUCTIONS) -> PickleScan:
    """Scan the instructions of one pickle, to its end.

    torch's weights-only reader runs no code of a file, yet builds whatever it describes: a key that
    takes for ever to hash, tuples in tuples until the stack overflows, storages of any size.
    Raises PickleError for a harmful one; a damaged one may raise anything.
    stream: left after the pickle; must not read beyond its end in one call, as no file does.
    """
    scan = PickleScan()
    stack: list[_Object] = []
    memo: dict[int, _Object] = {}
    value: Any
    for count, (code, value, _) in enumerate(pickletools.genops(stream)):
        if count >= budget:
            raise PickleError(f"it has more than {budget:,} instructions")
        name = code.name
        # the reader makes room for all below it
        if "PUT" in name and int(value) > MAX_INSTRUCTIONS:
            raise PickleError(f"it numbers an object {int(value):,}")
        if name.startswith("EXT"):  # a class by its number, which the reader imports by itself
            raise PickleError("it has a class by number")
        if name == "MARK":
            stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(value)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(value)])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            result = stack.pop()
            scan.value = result.value
            if result.value is None:
                scan.value = [part.value for part in result.items]
        else:
            items = _popped(code, stack)
            target = items.pop(0) if name in _GROWS else _Object(value)
            if name == "STACK_GLOBAL":
                target.value = items[1].value
            target.take(items)
            if name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "APPEND", "APPENDS"):
                target.items += items
            if name in ("PERSID", "BINPERSID"):
                _note_storage(items, scan)
            stack += [target] * len(code.stack_after)
    return scan


def _popped(code: pickletools.OpcodeInfo, stack: list[_Object]) -> list[_Object]:
    before = code.stack_before
    if pickletools.markobject not in before:
        if len(before) > len(stack):
            raise PickleError(f"{code.name} takes more than there is")
        items = stack[len(stack) - len(before) :]
        del stack[len(stack) - len(before) :]
        return items
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    below = before.index(pickletools.markobject)
    for _ in range(below):
        items.append(stack.pop())
    return items[::-1]


def _note_storage(items: list[_Object], scan: PickleScan) -> None:
    """Keep the size of a storage: ("storage", class, key, location, elements, ...).

    A class of a module has four words: ("module", class, file, source).
    """
    words = items[0].items if items else []
    if len(words) == _STORAGE_WORDS - 1 and words[0].value == "module":
        return
    if len(words) < _STORAGE_WORDS:
        raise PickleError("it refers to something that is no storage")
    kind, key, elements = words[1].value, words[2].value, words[4].value
    if not isinstance(elements, int) or elements < 0:
        raise PickleError(f"a storage has {elements!r} elements")
    name = str(kind).split()[-1].removesuffix("Storage")
    size = elements * _BYTES.get(name, 1)
    scan.storages[str(key)] = max(size, scan.storages.get(str(key), 0))
