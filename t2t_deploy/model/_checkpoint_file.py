"""Reading an untrusted weights file: nothing in it runs, and memory is bounded by its size."""

from __future__ import annotations

import functools
import io
import math
import mmap
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from t2t_deploy._untrusted import check_safetensors, first_line, shortened
from t2t_deploy.errors import CheckpointError, one_line
from t2t_deploy.model._no_checkpoint import check_kind, check_members, saved_again
from t2t_deploy.model._pickle_scan import PickleError, scan_pickle
from t2t_deploy.model._unpickle import Skipped, StoredTensor, Unpickler

MAX_FILE_BYTES = 8 << 30
"""T2T-ViT-24 with its average and its optimiser takes 1.3 GB."""
MAX_KEYS = 20_000
"""T2T-ViT-24 has about 400."""
MAX_WEIGHTS = 1 << 29
"""T2T-ViT-24 has 64 million."""
MAX_PICKLE_BYTES = 64 << 20
MAX_DIRECTORY_BYTES = 16 << 20

_ZIP_START = b"PK\x03\x04"
_ZIP_END = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR_BYTES = 20
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")
_LONGEST_COMMENT = 1 << 16
# of files by torch before 1.6: five pickles, then the storages
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_COUNT_BYTES = 8
_LONGEST_KEY = 160
_OTHER_TENSORS = {
    f"torch._utils.{name}": words
    for name, words in {
        "_rebuild_qtensor": "a quantised tensor",
        "_rebuild_sparse_tensor": "a sparse tensor",
        "_rebuild_meta_tensor_no_storage": "a tensor without data",
    }.items()
}
# what stands beside the weights of a released file, and of those that most programs write
_USUAL = frozenset({
    "argparse.Namespace", "torch.device", "torch.Size", "torch.nn.parameter.Parameter",
    "_codecs.encode", *(f"{module}.{name}" for module in ("builtins", "__builtin__")
                        for name in ("set", "frozenset", "complex", "bytearray", "slice", "range")),
})  # fmt: skip

AnyTensor = torch.Tensor | StoredTensor


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a weights file holds, nothing of it made but tensors and plain values.

    value: mostly a dictionary. skipped: kinds of objects that `Skipped` stands for in it.
    """

    value: Any
    skipped: tuple[str, ...] = ()

    @property
    def meta(self) -> Mapping[str, Any]:
        """What libraries note of the training, mmengine's configuration among it; mostly empty."""
        found = self.value.get("meta") if isinstance(self.value, Mapping) else None
        return found if isinstance(found, Mapping) else {}


def read_tensors_file(path: Path) -> FileContent:
    """The content of a checkpoint or a safetensors file.

    Executes nothing in the file: `_unpickle` reads pickles, once their instructions are counted and
    the sizes that they claim compared with the file's. Raises CheckpointError in one line.
    """
    if not path.exists():
        raise CheckpointError(f"there is no file {path}; give a .pth.tar, .pth or .safetensors")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give a .pth.tar, .pth or .safetensors")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise CheckpointError(
            f"{path} has {size / 2**30:.1f} GiB; expected at most {MAX_FILE_BYTES >> 30}: save the "
            "model's state_dict() alone"
        )
    if _is_safetensors(path):
        return FileContent(_read_safetensors(path))
    check_kind(path)
    return _read_pickle(path, size)


def read_tensor(key: str, tensor: AnyTensor, path: Path) -> torch.Tensor:
    """The values of a tensor of a file. Raises CheckpointError."""
    if isinstance(tensor, torch.Tensor):
        return tensor
    try:
        return tensor.read()
    except MemoryError:
        raise
    except Exception as err:  # a damaged archive may raise anything
        raise _damaged(path, f"{one_line(key[:_LONGEST_KEY])}: {first_line(err)}") from err


def check_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError unless these are tensors in number and size of a model."""
    if len(content) > MAX_KEYS:
        raise CheckpointError(
            f"{path} has {len(content):,} tensors; expected at most {MAX_KEYS:,}: save the model's "
            "state_dict() alone"
        )
    for key, value in content.items():
        if isinstance(value, Skipped):
            if value.kind in _OTHER_TENSORS:
                raise CheckpointError(
                    f"{path} has {shortened(key)} as {_OTHER_TENSORS[value.kind]}; expected dense "
                    "floating point: give the float checkpoint it was made from"
                )
            raise CheckpointError(
                f"{path} holds a Python object ({one_line(value.kind[:_LONGEST_KEY])}) as "
                f"{shortened(key)}, which could run code when loaded and was not; expected tensors "
                "only: save the model's state_dict()"
            )
    weights = sum(math.prod(tensor.shape) for tensor in content.values())
    if weights > MAX_WEIGHTS:
        raise CheckpointError(
            f"{path} claims {weights:,} weights; expected at most {MAX_WEIGHTS:,}: save the "
            "model's state_dict() alone"
        )


def _is_safetensors(path: Path) -> bool:
    """By name, or by content: a length in 8 bytes, then a JSON object."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        check_safetensors(path)
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as err:
        # KeyError: a type unknown to this torch
        raise CheckpointError(
            f"{path} is no readable safetensors file ({first_line(err)}); copy or download it again"
        ) from err


def _read_pickle(path: Path, size: int) -> FileContent:
    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP_START))
        reader = _read_zip if start == _ZIP_START else _read_legacy
        value, kinds = reader(path, size)
    except (MemoryError, CheckpointError):
        raise
    except Exception as err:  # a damaged file may raise anything
        raise _damaged(path, first_line(err)) from err
    return FileContent(value, tuple(k for k in kinds if k not in _USUAL))


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated or no checkpoint ({why}); copy or download it again"
    )


# -- torch's zip files ---------------------------------------------------------------------------


def _read_zip(path: Path, size: int) -> tuple[Any, tuple[str, ...]]:
    """Refuse a zip file that unpacks to more than its size, or with a harmful pickle; read it."""
    _check_directory(path, size)
    archive = zipfile.ZipFile(path)  # open as long as its tensors may be read
    entries = archive.infolist()
    names = {entry.filename for entry in entries}
    if len(names) != len(entries):
        raise PickleError("its zip archive has two files of one name")
    check_members(path, [entry.filename for entry in entries])
    packed = [e for e in entries if e.compress_type != zipfile.ZIP_STORED]
    unpacked = sum(entry.file_size for entry in entries)
    if packed or unpacked > size:
        raise CheckpointError(
            f"{path} would unpack to {unpacked:,} bytes from {size:,}; expected a zip archive "
            "without compression, as torch.save writes: save it again"
        )
    pickles = [e for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise PickleError(f"its zip archive has {len(pickles)} files data.pkl; expected one")
    if pickles[0].file_size > MAX_PICKLE_BYTES:
        raise PickleError(f"its data.pkl has {pickles[0].file_size:,} bytes")
    content = archive.read(pickles[0])
    scan = scan_pickle(io.BytesIO(content))
    _check_storages(sum(scan.storages.values()), size, path)
    folder = pickles[0].filename.removesuffix("data.pkl")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise PickleError("its numbers are big-endian: load and save it on a common machine")

    @functools.cache
    def storage(key: str) -> bytearray:
        return bytearray(archive.read(f"{folder}data/{key}"))

    unpickler = Unpickler(io.BytesIO(content), storage)
    return unpickler.load(), unpickler.kinds


def _check_directory(path: Path, size: int) -> None:
    """Refuse a zip directory that is too long, or ambiguous between readers."""
    with path.open("rb") as file:
        start = max(0, size - _LONGEST_COMMENT - _ZIP_END.size)
        file.seek(start)
        tail = file.read()
        index = tail.rfind(b"PK\x05\x06")
        if index < 0 or index + _ZIP_END.size > len(tail):
            raise PickleError("its zip archive has no end record")
        end = start + index
        *_, length, offset, _ = _ZIP_END.unpack_from(tail, index)
        file.seek(max(0, end - _ZIP64_LOCATOR_BYTES))
        locator = file.read(_ZIP64_LOCATOR_BYTES)
        if locator[:4] == b"PK\x06\x07":
            (where,) = struct.unpack_from("<Q", locator, 8)
            file.seek(min(where, size))
            record = file.read(_ZIP64_END.size)
            if len(record) < _ZIP64_END.size or record[:4] != b"PK\x06\x06":
                raise PickleError("its zip archive has no end record")
            *_, length, offset = _ZIP64_END.unpack(record)
            end = where
    if length > MAX_DIRECTORY_BYTES:
        raise PickleError(f"the directory of its zip archive has {length:,} bytes")
    if offset + length != end:
        raise PickleError("the directory of its zip archive is not at its stated offset")


# -- files of older releases ---------------------------------------------------------------------


def _read_legacy(path: Path, size: int) -> tuple[Any, tuple[str, ...]]:
    """Refuse a file of pickles that claims more data than it has; read it."""
    if not size:
        raise PickleError("it is empty")
    with path.open("rb") as file:  # open as long as its tensors may be read
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    stream: Any = data  # never reads beyond the file, whatever a pickle claims
    magic = scan_pickle(stream)
    if magic.value != _LEGACY_MAGIC:
        raise CheckpointError(
            f"{path} is a pickle that torch.save did not write, which could run code when loaded "
            f"and was not; {saved_again(path)}"
        )
    for _ in ("version", "system"):
        scan_pickle(stream)
    start = stream.tell()
    scan, listed = scan_pickle(stream), scan_pickle(stream)
    _check_storages(sum(scan.storages.values()), size, path)
    absent = scan.storages.keys() - set(map(str, listed.value or ()))
    if absent:
        raise PickleError(f"it lacks the data of {len(absent)} storages")
    end = stream.tell()
    places: dict[str, tuple[int, int]] = {}

    @functools.cache
    def storage(key: str) -> bytearray:
        offset, length = places[key]
        return bytearray(data[offset : offset + length])

    stream.seek(start)
    unpickler = Unpickler(stream, storage)
    value = unpickler.load()
    for key in map(str, listed.value or ()):
        elements = int.from_bytes(data[end : end + _COUNT_BYTES], "little")
        end += _COUNT_BYTES
        length = elements * unpickler.storages.get(key, 1)
        if end + length > size:
            raise PickleError("it ends within its data")
        places[key] = end, length
        end += length
    return value, unpickler.kinds


def _check_storages(claimed: int, size: int, path: Path) -> None:
    if claimed > size:
        raise CheckpointError(
            f"{path} has {size:,} bytes and claims storages of {claimed:,}; copy or download it "
            "again"
        )
