"""Reading ONNX files, checked before a parser gets them; mapping their weights in a runtime."""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from t2t_deploy._untrusted import first_line, shortened
from t2t_deploy.errors import ArtifactError, shown_path
from t2t_deploy.graph._rules import check_tree, foreign_operators
from t2t_deploy.graph._tree import BYTES, VARINT, Field, fields, message, model_tree, varint

if TYPE_CHECKING:
    import onnx

MAX_BYTES = (1 << 31) - 1
"""Protobuf's own limit for a message."""

# prefix of tensors in the process's memory, by ONNX Runtime
_MEMORY_MARK = "*/"
_NUMBER = re.compile(r"[0-9]{1,18}")


def check_onnx_file(
    path: Path, *, external_data: bool = True, domains: Callable[[str, str], bool] | None = None
) -> None:
    """Refuse files that must not reach a parser; maps the file, does not read its weights.

    They could make it read other files, take memory without end or recurse until the process dies.
    Files that are merely wrong are left to the runtime.

    Raises ArtifactError, in one line, for files that are no ONNX model, truncated, or larger than
    protobuf allows; for graphs that are cyclic, nest or call too deep, or have impossible shapes;
    for unknown opsets and IR versions; and for external data outside the file's folder.

    external_data: whether it is read, so that it must exist with the declared length.
    domains: whether the parser knows (domain, operator); for a parser that ignores domains, and so
        takes unknown operators for ONNX's own. None leaves it to the parser.
    """
    name = shown_path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ArtifactError(f"{name} is no file; name an .onnx file")
        if size > MAX_BYTES:
            raise ArtifactError(
                f"{name} has {size / 2**30:.1f} GiB and an ONNX file at most 2; keep its weights "
                "in a file beside it, or export it again"
            )
        if size == 0:
            raise LookupError
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            model = model_tree(data, size)
        check_tree(model, _External(path, external_data).check)
        unknown = [one for one in foreign_operators(model) if domains and not domains(*one)]
    except OSError as err:
        raise ArtifactError(f"cannot read {name}: {err.strerror}; name an .onnx file") from err
    except LookupError:
        raise ArtifactError(f"{name} holds no ONNX graph; name an .onnx file") from None
    except ValueError as err:
        raise ArtifactError(
            f"{name} is no readable ONNX file ({first_line(err)}); export it again"
        ) from err
    if unknown:
        domain, op = unknown[0]
        raise ArtifactError(
            f"{name} has the operator {shortened(op)} of the domain {shortened(domain)}, which "
            "this parser does not know and would take for ONNX's own; replace it, or take another "
            "backend"
        )


def read_onnx(path: Path, *, external_data: bool = False) -> onnx.ModelProto:
    """Read a file that `check_onnx_file` lets pass. Raises ArtifactError.

    external_data: also reads the files beside it.
    """
    import onnx
    from google.protobuf.message import DecodeError

    check_onnx_file(path, external_data=external_data)
    try:
        return onnx.load(path, load_external_data=external_data)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as err:
        raise ArtifactError(
            f"{shown_path(path)} is no readable ONNX file ({first_line(err)}); export it again"
        ) from err


class _External:
    """The check of external data: within regular files of the ONNX file's folder."""

    def __init__(self, path: Path, read: bool) -> None:
        self._folder = path.absolute().parent
        self._read = read
        self._sizes: dict[str, int | None] = {}

    def check(self, entries: dict[str, str], needed: int, tensor: str) -> None:
        """Raise ValueError where a tensor's data cannot be read."""
        location = entries.get("location", "")
        start, length = (self._number(entries, key, tensor) for key in ("offset", "length"))
        if location not in self._sizes:
            self._sizes[location] = self._size(location, tensor)
        end = (start or 0) + (needed if length is None else length)
        size = self._sizes[location]
        if size is not None and (length not in (None, needed) or end > size):
            raise ValueError(
                f"tensor {shortened(tensor)} takes {needed} bytes, and {shortened(location)} does "
                "not have them there"
            )

    def _size(self, location: str, tensor: str) -> int | None:
        where = f"tensor {shortened(tensor)} lies in {shortened(location)}"
        names = re.split(r"[/\\]", location)
        outside = (
            not location
            or "\\" in location
            or "\0" in location
            or location.startswith(("/", _MEMORY_MARK))
            or re.match("[A-Za-z]:", location) is not None
            or ".." in names
        )
        path = self._folder
        if not outside:
            try:
                path = (self._folder / location).resolve()
                outside = not path.is_relative_to(self._folder.resolve())
            except (OSError, RuntimeError):  # links that lead in a circle
                outside = True
        if outside:
            raise ValueError(f"{where}; expected a file of the same folder, by a relative name")
        if not self._read:
            return None
        if not path.is_file():
            raise ValueError(f"{where}, which is no file")
        return path.stat().st_size

    @staticmethod
    def _number(entries: dict[str, str], key: str, tensor: str) -> int | None:
        text = entries.get(key)
        if text is None:
            return None
        if not _NUMBER.fullmatch(text):
            raise ValueError(f"tensor {shortened(tensor)} has the {key} {shortened(text)}")
        return int(text)


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
