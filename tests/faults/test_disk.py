"""A full disk, files that may not grow, and a workspace that is read-only."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..program import finish
from .conftest import READING, Commands, Ran
from .test_kill import CASES, check, slowly, temporaries

# of an artifact, weights, a manifest and a picture of a plot
SIZES = (0, 1, 500, 1_000, 3_000, 10_000, 40_000, 90_000, 120_000, 400_000)
ROOM_KB = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def is_told(done: Ran, reason: str) -> bool:
    """Whether a command ended in one line that says so, and was not cut short otherwise."""
    last = done.err.splitlines()[-1]
    clean = done.status == 1 and "Traceback" not in done.err
    return clean and last.startswith("error: ") and reason in last


READING_ONLY = tuple(
    name for name in CASES if name.startswith(("workspace", "inspect", "doctor", "export-again"))
)


@pytest.mark.parametrize(
    ("name", "sizes", "too_small"),
    [("predict", (0, 100), 2), *slowly(SIZES, None, without=READING_ONLY)],
)
def test_files_may_not_grow(
    command: Commands, name: str, sizes: tuple[int, ...], too_small: int | None
) -> None:
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
    print(f"{name}: {failed} of {len(sizes)} sizes were too small")
    assert failed > 0 if too_small is None else failed == too_small


@pytest.mark.parametrize(
    ("name", "rooms_kb", "too_full"),
    [("predict", (0,), 1), *slowly(ROOM_KB, None, without=READING_ONLY)],
)
def test_a_disk_with_less_room_than_needed(
    command: Commands, disk: Path, name: str, rooms_kb: tuple[int, ...], too_full: int | None
) -> None:
    case, failed, shell = CASES[name], 0, command.server.shell
    shell('cp -r "$1" "$1.kept" && mv "$1.kept" "$1/kept"', disk / "artifacts")
    for room in rooms_kb:
        filler = 'cat /dev/zero > "$1/filler" 2> /dev/null; truncate -s "-$2K" "$1/filler"'
        shell(filler, disk, room)
        done = command(disk, *case.words)
        if done.status != case.status:
            assert is_told(done, "No space left on device"), (room, done.err)
            failed += 1
        shell('rm "$1/filler" && ! find "$1" -name ".t2t-tmp-*" | grep .', disk)
        assert command(disk, "workspace", "check", "--json", status=0).json["problems"] == []
        assert command(disk, "inspect", "model.onnx").status == 0
    command(disk, *case.words, status=case.status)
    print(f"{name}: {failed} of {len(rooms_kb)} disks had too little room")
    assert failed > 0 if too_full is None else failed == too_full


EXPORT = ("export", "--config", "tiny.toml", "--batch", 3, "-o", "new.onnx")


@pytest.mark.parametrize("of", [(0.65, 0.7), pytest.param((0.0, 1.0), marks=pytest.mark.slow)])
def test_a_disk_that_becomes_full_at_each_change(
    command: Commands, disk: Path, of: tuple[float, float]
) -> None:
    """What is finished is kept, and named; of: which part of the changes is tried."""
    shell, filler = command.server.shell, disk / "filler"
    changes = command(disk, *EXPORT, status=0).changes
    shell('mv "$1/new.onnx" "$1/good" && rm "$1/new.onnx.manifest.json"', disk)
    kept = 0
    for at in range(1 + int(of[0] * changes), 1 + int(of[1] * changes)):
        done = command(disk, *EXPORT, at=at, filler=str(filler))
        shell('rm "$1" && ! find "$2" -name ".t2t-tmp-*" | grep .', filler, disk)
        if done.status == 0:
            shell('cmp "$1/new.onnx" "$1/good"', disk)
        else:
            assert is_told(done, "No space left on device"), (at, done.err)
        if "the finished file is kept: new.kept-" in done.err:
            shell('cmp "$1"/new.kept-*.onnx "$1/good"', disk)
            kept += 1
        assert command(disk, "workspace", "check", "--json", status=0).json["problems"] == []
        shell('rm -f "$1"/new.*', disk)
    print(f"{kept} of {changes} changes came after the file was finished, and were not made")
    assert kept > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_an_unprintable_result(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = finish("workspace", "list", cwd=tmp_path, stdout=full)
    assert done.status == 1
    assert done.err == (
        "error: the work is done and its result cannot be printed: No space left on device; what "
        "stdout goes to must take it\n"
    )


READING_OR_SHOWING = (
    *READING,
    ("doctor",),
    ("verify", "model.onnx"),
    ("package", "model.onnx", "--triton", "../elsewhere"),
)
CHANGING = ("predict", "package")


def test_a_read_only_workspace(command: Commands, disk: Path) -> None:
    command.server.shell('mount -o remount,ro "$1"', disk)
    try:
        for words in READING_OR_SHOWING:
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
        done = command(disk, "bench", "model.onnx", "--rounds", 5, "--json", status=0)
    finally:
        command.server.shell('mount -o remount,rw "$1"', disk)
    ran = {row["backend"] for row in done.json["results"] if row["status"] == "ok"}
    assert {"eager", "ort-cpu"} <= ran
    assert not [row for row in done.json["results"] if row["status"] == "failed"]
