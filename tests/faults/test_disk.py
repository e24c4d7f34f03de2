"""A full disk, files that may not grow, and a workspace that is read-only."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..program import finish
from .conftest import Commands, Ran
from .test_kill import ALL, CASES, check, temporaries

# of an artifact, weights, a manifest and a picture of a plot
SIZES = (0, 1, 500, 1_000, 3_000, 10_000, 40_000, 90_000, 120_000, 400_000)
ROOM_KB = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
WRITING = [
    one
    for one in ALL
    if not str(one.values[0]).startswith(("workspace", "inspect", "doctor", "export-again"))
]


def is_told(done: Ran, reason: str) -> bool:
    """Whether a command ended in one line that says so, and was not cut short otherwise."""
    last = done.err.splitlines()[-1]
    return (
        done.status == 1
        and last.startswith("error: ")
        and reason in last
        and "Traceback" not in done.err
    )


def files_limited(command: Commands, name: str,
                  sizes: tuple[int, ...]) -> int:  # fmt: skip
    """How often the command could not do its work."""
    case, failed = CASES[name], 0
    for size in sizes:
        folder = command.copy()
        done = command(folder, *case.words, file_bytes=size)
        if done.status != case.status:
            assert is_told(done, "File too large"), (size, done.err)
            failed += 1
        assert temporaries(folder) == []
        check(command, folder)
    command(folder, *case.words, status=case.status)
    return failed


@pytest.mark.parametrize("name", ["predict"])
def test_a_file_may_not_grow(command: Commands, name: str) -> None:
    assert files_limited(command, name, (0, 100)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITING)
def test_files_may_not_grow(command: Commands, name: str) -> None:
    failed = files_limited(command, name, SIZES)
    print(f"{name}: {failed} of {len(SIZES)} sizes were too small")
    assert failed > 0


def disk_filled(command: Commands, disk: Path, name: str, rooms_kb: tuple[int, ...]) -> int:
    """How often the command could not do its work on a disk with that much room."""
    case, failed = CASES[name], 0
    command.server.shell('cp -r "$1" "$1.kept" && mv "$1.kept" "$1/kept"', disk / "artifacts")
    for room in rooms_kb:
        command.server.shell(
            'cat /dev/zero > "$1/filler" 2> /dev/null; '
            'truncate -s "-$2K" "$1/filler"', disk, room,
        )  # fmt: skip
        done = command(disk, *case.words)
        if done.status != case.status:
            assert is_told(done, "No space left on device"), (room, done.err)
            failed += 1
        command.server.shell('rm "$1/filler" && ! find "$1" -name ".t2t-tmp-*" | grep .', disk)
        assert command(disk, "workspace", "check", "--json", status=0).json["problems"] == []
        assert command(disk, "inspect", "model.onnx").status == 0
    command(disk, *case.words, status=case.status)
    return failed


@pytest.mark.parametrize("name", ["predict"])
def test_a_full_disk(command: Commands, disk: Path, name: str) -> None:
    assert disk_filled(command, disk, name, (0,)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITING)
def test_a_disk_with_less_room_than_needed(command: Commands, disk: Path, name: str) -> None:
    failed = disk_filled(command, disk, name, ROOM_KB)
    print(f"{name}: {failed} of {len(ROOM_KB)} disks had too little room")
    assert failed > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_an_unprintable_result(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = finish("workspace", "list", cwd=tmp_path, stdout=full)
    assert done.status == 1
    assert done.err == (
        "error: the work is done and its result cannot be printed: No space left on device; what "
        "stdout goes to must take it\n"
    )


READING = (
    ("workspace", "list"),
    ("workspace", "check"),
    ("inspect", "model.onnx"),
    ("predict", "model.onnx", "pictures"),
    ("evaluate", "model.onnx", "--images", "pictures"),
    ("doctor",),
    ("verify", "model.onnx"),
    ("package", "model.onnx", "--triton", "../elsewhere"),
)
CHANGING = ("predict", "package")


def test_a_read_only_workspace(command: Commands, disk: Path) -> None:
    command.server.shell('mount -o remount,ro "$1"', disk)
    try:
        for words in READING:
            done = command(disk, *words)
            assert done.status == 0, (words, done.err)
            if words[0] == "verify":
                assert "the verdict on model.onnx is shown here and not kept" in done.err
        for name in CHANGING:
            assert is_told(command(disk, *CASES[name].words), "Read-only file system"), name
    finally:
        command.server.shell('mount -o remount,rw "$1"', disk)
    assert command(disk, "verify", "model.onnx").status == 0


@pytest.mark.slow
def test_a_bench_in_a_read_only_workspace(command: Commands, disk: Path) -> None:
    command.server.shell('mount -o remount,ro "$1"', disk)
    try:
        done = command(disk, "bench", "model.onnx", "--rounds", 5, "--json")
    finally:
        command.server.shell('mount -o remount,rw "$1"', disk)
    assert done.status == 0, done.err
    ran = {row["backend"] for row in done.json["results"] if row["status"] == "ok"}
    assert {"eager", "ort-cpu"} <= ran
    assert not [row for row in done.json["results"] if row["status"] == "failed"]
