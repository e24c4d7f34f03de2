"""Reading an untrusted weights file: nothing in it runs, and memory is bounded by its size."""

from __future__ import annotations

import argparse
import io
import mmap
import re
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from t2t_deploy._untrusted import check_safetensors, first_line, shortened
from t2t_deploy.errors import CheckpointError
from t2t_deploy.model._pickle_scan import PickleError, scan_pickle

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
_PICKLE_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_tensors_file(path: Path) -> Mapping[Any, Any]:
    """The content of a checkpoint or a safetensors file.

    Executes nothing in the file: torch's weights-only unpickler reads pickles, once their
    instructions are counted and the sizes that they claim compared with the file's. Raises
    CheckpointError in one line.
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
    return _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path, size)


def check_tensors(content: Mapping[Any, Any], path: Path) -> None:
    """Raise CheckpointError unless these are tensors in number and size of a model."""
    if len(content) > MAX_KEYS:
        raise CheckpointError(
            f"{path} has {len(content):,} tensors; expected at most {MAX_KEYS:,}: save the model's "
            "state_dict() alone"
        )
    for key, tensor in content.items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
        if not plain or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            raise CheckpointError(
                f"{path} has {shortened(str(key))} as a {type(tensor).__name__} on "
                f"{tensor.device.type}, {tensor.layout}; expected dense floating point"
            )
    weights = sum(tensor.numel() for tensor in content.values())
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


def _read_pickle(path: Path, size: int) -> Mapping[Any, Any]:
    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP_START))
        if start == _ZIP_START:
            _check_zip(path, size)
        elif size:
            _check_legacy(path, size)
        # Released files have the training options as a Namespace, which only stores values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, CheckpointError):
        raise
    except Exception as err:  # torch's reader may raise anything on a damaged file
        banned = _PICKLE_GLOBAL.search(str(err))
        if banned is not None:
            raise CheckpointError(
                f"{path} holds a Python object ({banned.group(1)}), which could run code when "
                "loaded and was not; expected tensors only: save the model's state_dict()"
            ) from err
        raise CheckpointError(
            f"{path} is truncated or no checkpoint ({first_line(err)}); copy or download it again"
        ) from err
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}; expected a dictionary of tensors: save the "
            "model's state_dict()"
        )
    return content


# -- torch's zip files ---------------------------------------------------------------------------


def _check_zip(path: Path, size: int) -> None:
    """Refuse a zip file that unpacks to more than its size, or with a harmful pickle."""
    _check_directory(path, size)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        if len(names) != len(entries):
            raise PickleError("its zip archive has two files of one name")
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
        scan = scan_pickle(io.BytesIO(archive.read(pickles[0])))
    _check_storages(sum(scan.storages.values()), size, path)


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


def _check_legacy(path: Path, size: int) -> None:
    """Refuse a file of pickles that claims more data than it has; torch refuses a bare pickle."""
    with path.open("rb") as file:
        header = file.read(tarfile.BLOCKSIZE)
    if header[257:262] == b"ustar":
        raise CheckpointError(
            f"{path} is a tar archive, as torch wrote before 0.1.10, which cannot be read without "
            "running its code; load it where it was made and save the model's state_dict()"
        )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        stream: Any = data  # never reads beyond the file, whatever a pickle claims
        magic = scan_pickle(stream)
        if magic.value != _LEGACY_MAGIC:
            return
        for _ in ("version", "system"):
            scan_pickle(stream)
        scan, listed = scan_pickle(stream), scan_pickle(stream)
        _check_storages(sum(scan.storages.values()), size, path)
        absent = scan.storages.keys() - set(map(str, listed.value or ()))
        if absent:  # torch leaves these uninitialised
            raise PickleError(f"it lacks the data of {len(absent)} storages")


def _check_storages(claimed: int, size: int, path: Path) -> None:
    if claimed > size:
        raise CheckpointError(
            f"{path} has {size:,} bytes and claims storages of {claimed:,}; copy or download it "
            "again"
        )
