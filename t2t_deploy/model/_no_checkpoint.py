"""Files and folders that are no checkpoint: recognised by first bytes, with what mends them.

Each error is one line that ends in a command. Nothing is unpacked for it but a few hundred bytes.
"""

from __future__ import annotations

import bz2
import gzip
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from t2t_deploy._untrusted import MAX_CONFIG_BYTES, json_from_file
from t2t_deploy.errors import CheckpointError, one_line

_BLOCK = 512
_MOST_MEMBERS = 64
_WEIGHTS = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors", ".pkl")
_PAGE = (b"<!doctype html", b"<html", b"<?xml")
_LFS = b"version https://git-lfs.github.com/spec/"
_LEGACY_TAR = {"sys_info", "pickle", "storages", "tensors"}
_NEED = "give a .pth.tar, .pth or .safetensors"

# magic bytes -> name, command that unpacks, reader of the first bytes where its memory is bounded
_PACKED: Mapping[bytes, tuple[str, str, type[gzip.GzipFile | bz2.BZ2File] | None]] = {
    b"\x1f\x8b": ("gzip", "gunzip", gzip.GzipFile),
    b"BZh": ("bzip2", "bunzip2", bz2.BZ2File),
    b"\xfd7zXZ\0": ("xz", "unxz", None),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd", None),
}
_OTHERS: Mapping[bytes, str] = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it with 7z x {file}",
    b"Rar!": "a RAR archive: unpack it with unrar x {file}",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes; convert its weights to a state dict",
    b"\x93NUMPY": "an array of numpy; save a state dict with torch.save",
    b"\x89PNG": "a picture; " + _NEED,
    b"\xff\xd8\xff": "a picture; " + _NEED,
    b"%PDF": "a PDF document; " + _NEED,
    b"GGUF": "a GGUF file of packed weights; give the float checkpoint it was made from",
}


def saved_again(path: Path) -> str:
    """The two lines of Python that save a file's weights alone."""
    return (
        "where you trust it, run these two lines of Python where it was made: content = torch.load("
        f"{str(path.name)!r}, map_location='cpu', weights_only=False) and torch.save(content, "
        "'weights.pth')"
    )


def check_kind(path: Path) -> None:
    """Raise CheckpointError for a file that begins as something else than a checkpoint does."""
    with path.open("rb") as file:
        start = file.read(_BLOCK)
    file_name = _quoted(path)
    if start.startswith(_LFS):
        raise _refused(
            path,
            "a pointer of Git LFS, which stands for the file itself: fetch it with git lfs pull "
            f"--include {_quoted(Path(path.name))}",
        )
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PAGE):
        drive = b"google drive" in text or b"virus scan" in text
        get = "gdown --fuzzy LINK" if drive else "curl -L --fail"
        raise _refused(
            path,
            "a web page, which the server sent instead of the file: download it again with "
            + (f"{get} -O {file_name}" if drive else f"{get} -o {file_name} LINK"),
        )
    if text.startswith((b"{", b"[")):
        shards = path.name.endswith(".index.json") or b'"weight_map"' in text
        raise _refused(path, _shards(path) if shards else "JSON, and holds no weights; " + _NEED)
    if start[257:262] == b"ustar":
        _refuse_tar(path)
    for magic, (name, command, reader) in _PACKED.items():
        if start.startswith(magic):
            inside = _inside(path, reader)
            if inside[257:262] == b"ustar":
                raise _refused(
                    path,
                    f"a tar archive packed by {name}: unpack it with tar -xf {file_name} and give "
                    "the checkpoint in it",
                )
            ends = path.suffix.lower() in (".gz", ".bz2", ".xz", ".zst")
            plain = _quoted(path.with_suffix("") if ends else path.with_name("weights.pth"))
            raise _refused(
                path, f"packed by {name}: unpack it with {command} -c {file_name} > {plain}"
            )
    for magic, words in _OTHERS.items():
        if start.startswith(magic):
            raise _refused(path, words.format(file=file_name))
    if path.suffix.lower() == ".onnx":
        raise _refused(path, "an ONNX graph, which needs no export; verify and quantize take it")


def check_members(path: Path, names: list[str]) -> None:
    """Raise CheckpointError where a zip archive is not what torch.save writes, by its names."""
    last = {name.rstrip("/").rpartition("/")[2] for name in names}
    if "constants.pkl" in last and "data.pkl" in last:
        raise _refused(
            path,
            "TorchScript, which is a program and was not run; where you trust it, save its weights "
            f'with python -c "import torch; torch.save(torch.jit.load({path.name!r}, '
            "map_location='cpu').state_dict(), 'weights.pth')\"",
        )
    if "data.pkl" in last:
        return
    if any(name.endswith("serialized_exported_program.json") or "archive_format" in name
           for name in last):  # fmt: skip
        raise _refused(
            path,
            'a program of torch.export; save its weights with python -c "import torch; torch.save('
            f"torch.export.load({path.name!r}).state_dict, 'weights.pth')\"",
        )
    inner = [name for name in names if name.lower().endswith(_WEIGHTS)]
    if inner:
        raise _refused(
            path,
            f"a zip archive with {_one(inner)} in it: unpack it with unzip {_quoted(path)} and "
            "give that file",
        )
    if any(name.endswith(".distcp") for name in last):
        raise _refused(path, f"a zip archive of a distributed checkpoint: unzip {_quoted(path)}")


def weights_file(path: Path) -> Path:
    """The weights file that a path means: itself, or that of a hub's folder.

    Raises CheckpointError for a folder that has none, or several, or is something else.
    """
    if not path.is_dir():
        return path
    names = sorted(entry.name for entry in path.iterdir())
    found = [n for n in names if n.lower().endswith((".safetensors", *_WEIGHTS)) and n[0] != "."]
    inner = [path / name for name in names if (path / name / "data.pkl").is_file()]
    if any(name.endswith(".distcp") for name in names) or ".metadata" in names:
        raise _refused(
            path,
            "a folder of a distributed checkpoint: join it with python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {_quoted(path)} weights.pth",
        )
    if "data.pkl" in names or inner:
        outer, folder = (path.parent, path.name) if "data.pkl" in names else (path, inner[0].name)
        raise _refused(
            path,
            "the unpacked folder of a checkpoint, which is a zip archive: pack it again with "
            f"(cd {_quoted(outer)} && zip -0 -r weights.zip {shlex.quote(folder)}) and give "
            f"{_quoted(outer / 'weights.zip')}",
        )
    if any(name.endswith(".index.json") for name in names):
        index = next(path / name for name in names if name.endswith(".index.json"))
        if not any("-of-" not in name for name in found):
            raise _refused(index, _shards(index))
    for usual in ("model.safetensors", "pytorch_model.bin", "pytorch_model.safetensors"):
        if usual in found:
            return path / usual
    if len(found) == 1:
        return path / found[0]
    if found:
        raise CheckpointError(
            f"{path} is a folder with {len(found)} weights files ({_one(found)}, ...); give one"
        )
    raise CheckpointError(f"{path} is not a file; {_NEED}")


def config_beside(path: Path) -> dict[str, Any]:
    """The config.json beside a weights file, as hubs have it; empty where there is none."""
    try:
        config = json_from_file(path.with_name("config.json"), MAX_CONFIG_BYTES)
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _refuse_tar(path: Path) -> None:
    members = list(_tar_members(path))
    if _LEGACY_TAR & set(members):
        raise CheckpointError(
            f"{path} is a tar archive, as torch wrote before 0.1.10, which cannot be read without "
            f"running its code; {saved_again(path)}"
        )
    inner = [name for name in members if name.lower().endswith(_WEIGHTS)]
    what = f" with {_one(inner)} in it" if inner else ""
    give = f"give {_quoted(Path(inner[0]))}" if len(inner) == 1 else "give the checkpoint in it"
    raise _refused(path, f"a tar archive{what}: unpack it with tar -xf {_quoted(path)} and {give}")


def _tar_members(path: Path) -> Iterable[str]:
    """Names of the first members; nothing larger than a header is read."""
    with path.open("rb") as file:
        for _ in range(_MOST_MEMBERS):
            header = file.read(_BLOCK)
            if len(header) < _BLOCK or header[257:262] != b"ustar":
                return
            name = header[:100].split(b"\0")[0].decode("utf-8", "replace")
            digits = header[124:136].strip(b"\0 ")
            if header[156:157] in (b"0", b"\0"):
                yield name
            if not digits.isdigit():
                return
            try:
                blocks = -(-int(digits, 8) // _BLOCK)
            except ValueError:
                return
            file.seek(blocks * _BLOCK, 1)


def _shards(path: Path) -> str:
    stem = path.name.removesuffix(".index.json")
    name, dot, suffix = stem.rpartition(".")
    pattern = str(path.parent / f"{name or stem}-*{dot}{suffix}")
    load = "s.load_file(f)" if suffix == "safetensors" else "torch.load(f)"
    return (
        'the index of shards, which are to be joined: python -c "import glob, torch, '
        "safetensors.torch as s; s.save_file({k: v for f in glob.glob("
        f"{pattern!r}) for k, v in {load}.items()}}, 'joined.safetensors')\""
    )


def _inside(path: Path, reader: type[gzip.GzipFile | bz2.BZ2File] | None) -> bytes:
    if reader is None:
        return b""
    try:
        with reader(path) as file:
            return file.read(_BLOCK)
    except (OSError, EOFError, ValueError):
        return b""


def _refused(path: Path, words: str) -> CheckpointError:
    return CheckpointError(f"{path} is {one_line(words)}")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _one(names: list[str]) -> str:
    return one_line(names[0][: _BLOCK // 4])
