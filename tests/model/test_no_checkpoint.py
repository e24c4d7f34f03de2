"""Files and folders that are no checkpoint: one line, with the command that mends it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .tiny import StateDict, load, refusal


@pytest.fixture
def checkpoint(weights: StateDict) -> Path:
    torch.save(weights, "inner.pth")
    return Path("inner.pth")


def mended(command: str, path: str) -> None:
    """Run what a message says; the file that it gives is read."""
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)
    assert load(Path(path)).container == "file"


def tarred(content: bytes, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        entry = tarfile.TarInfo("best/inner.pth")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "what", "give"),
    [
        ("w", " with best/inner.pth in it", "best/inner.pth"),
        ("w:gz", " packed by gzip", "the checkpoint in it"),
        ("w:bz2", " packed by bzip2", "the checkpoint in it"),
    ],
)
def test_a_tar_archive_with_a_checkpoint(mode: str, what: str, give: str, checkpoint: Path) -> None:
    Path("model.pth.tar").write_bytes(tarred(checkpoint.read_bytes(), mode))
    command = "tar -xf model.pth.tar"
    assert refusal(Path("model.pth.tar")) == (
        f"model.pth.tar is a tar archive{what}: unpack it with {command} and give {give}"
    )
    mended(command, "best/inner.pth")


@pytest.mark.parametrize(
    ("pack", "suffix", "command"),
    [
        (gzip.compress, ".gz", "gunzip -c model.pth.gz > model.pth"),
        (bz2.compress, ".bz2", "bunzip2 -c model.pth.bz2 > model.pth"),
        (lzma.compress, ".xz", "unxz -c model.pth.xz > model.pth"),
        (gzip.compress, "", "gunzip -c model.pth > weights.pth"),
    ],
)
def test_a_packed_checkpoint(
    pack: Callable[[bytes], bytes], suffix: str, command: str, checkpoint: Path
) -> None:
    path = Path(f"model.pth{suffix}")
    path.write_bytes(pack(checkpoint.read_bytes()))
    assert refusal(path).endswith(f": unpack it with {command}")
    if shutil.which(command.split()[0]):
        mended(command, command.rpartition(" ")[2])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_archive_with_a_checkpoint(compression: int, checkpoint: Path) -> None:
    with zipfile.ZipFile("model.zip", "w", compression) as archive:
        archive.write(checkpoint, "best/81.5.pth.tar")
    assert refusal(Path("model.zip")) == (
        "model.zip is a zip archive with best/81.5.pth.tar in it: unpack it with unzip model.zip "
        "and give that file"
    )


@pytest.mark.parametrize("inner", [True, False])
def test_an_unpacked_folder(inner: bool, checkpoint: Path) -> None:
    with zipfile.ZipFile(checkpoint) as archive:
        archive.extractall("a folder.pth")
    path = Path("a folder.pth/inner" if inner else "a folder.pth")
    command = "(cd 'a folder.pth' && zip -0 -r weights.zip inner)"
    assert refusal(path) == (
        f"{path} is the unpacked folder of a checkpoint, which is a zip archive: pack it again "
        f"with {command} and give 'a folder.pth/weights.zip'"
    )
    if shutil.which("zip"):
        mended(command, "a folder.pth/weights.zip")


def test_a_folder_packed_again_is_read(checkpoint: Path) -> None:
    """With entries for folders, as the program zip makes them."""
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile("weights.zip", "w") as new:
        new.writestr("inner/", b"")
        for name in reversed(old.namelist()):
            new.writestr(name, old.read(name))
    assert load(Path("weights.zip")).container == "file"


TEXTS: dict[str, tuple[str, str]] = {
    "model.pth": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 86000000\n",
        "is a pointer of Git LFS, which stands for the file itself: fetch it with git lfs pull "
        "--include model.pth",
    ),
    "drive.pth": (
        "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>",
        "is a web page, which the server sent instead of the file: download it again with gdown "
        "--fuzzy LINK -O drive.pth",
    ),
    "page.pth": (
        "\n<HTML><body>404</body></HTML>",
        "is a web page, which the server sent instead of the file: download it again with curl -L "
        "--fail -o page.pth LINK",
    ),
    "model.safetensors.index.json": (
        '{"metadata": {}, "weight_map": {"head.weight": "model-00001-of-00002.safetensors"}}',
        "is the index of shards, which are to be joined: python -c ",
    ),
    "labels.json": ('["cat", "dog"]', "is JSON, and holds no weights; give a .pth.tar"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str) -> None:
    content, message = TEXTS[name]
    Path(name).write_text(content)
    assert refusal(Path(name)).startswith(f"{name} {message}")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it with 7z x model.pth"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\x93NUMPY", "is an array of numpy"),
        (b"\x89PNG", "is a picture"),
        (b"GGUF", "is a GGUF file of packed weights"),
    ],
)
def test_other_kinds(start: bytes, message: str) -> None:
    Path("model.pth").write_bytes(start + bytes(1000))
    assert message in refusal(Path("model.pth"))


def test_torchscript() -> None:
    """A real program of torch's, by the entries that tell it."""
    with zipfile.ZipFile("model.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version", "code/__torch__.py"):
            archive.writestr(f"model/{name}", b"")
    assert refusal(Path("model.pt")) == (
        "model.pt is TorchScript, which is a program and was not run; where you trust it, save its "
        "weights with python -c \"import torch; torch.save(torch.jit.load('model.pt', "
        "map_location='cpu').state_dict(), 'weights.pth')\""
    )


def test_a_distributed_checkpoint() -> None:
    Path("dcp").mkdir()
    Path("dcp/__0_0.distcp").write_bytes(b"x")
    Path("dcp/.metadata").write_bytes(b"y")
    assert refusal(Path("dcp")) == (
        "dcp is a folder of a distributed checkpoint: join it with python -m "
        "torch.distributed.checkpoint.format_utils dcp_to_torch dcp weights.pth"
    )


def test_folders_of_several_and_of_none(checkpoint: Path) -> None:
    Path("runs").mkdir()
    assert refusal(Path("runs")).startswith("runs is not a file; give a .pth.tar, .pth or")
    for name in ("a.pth", "b.pth"):
        shutil.copy(checkpoint, f"runs/{name}")
    assert refusal(Path("runs")) == "runs is a folder with 2 weights files (a.pth, ...); give one"
    Path("runs/b.pth").unlink()
    assert load(Path("runs")).container == "file"
