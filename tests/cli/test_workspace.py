"""Altered, damaged and missing files are refused; what is kept is kept once and found again."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy.workspace import manifest_path_for, manifest_text

from .command import Run, Temporaries, flip, manifest_of


@pytest.mark.parametrize(
    ("command", "named"),
    [
        *(("build-trt", True), ("bench", True), ("verify", True), ("inspect", True)),
        *(("build-trt", False), ("bench", False), ("verify", False)),
    ],
)
def test_an_altered_artifact(run: Run, onnx_file: Path, command: str, named: bool) -> None:
    flip(onnx_file)
    shown = Path("artifacts/onnx", onnx_file.name)
    message = run.fails("ArtifactError", command, *([shown] if named else []))
    assert message.startswith(f"{shown} was altered: its SHA-256 is ")
    assert message.endswith("; make it again")


@pytest.mark.parametrize("command", [["build-trt", "--fp16"], ["bench"], ["verify"]])
def test_altered_weights_are_refused(run: Run, weights_file: Path, command: list[str]) -> None:
    flip(weights_file)
    name = f"artifacts/weights/{weights_file.name}"
    assert f"error: {name} was altered; remove it and export" in run(*command, status=1).err


def test_weights_that_are_gone(run: Run, weights_file: Path, onnx_file: Path) -> None:
    weights_file.unlink()
    done = run("verify", status=1)
    assert (
        f"error: workspace artifacts lacks the weights {weights_file.stem[:12]} of "
        f"{onnx_file.name}; use the workspace it was exported in, or export it again here"
    ) in done.err


def test_an_artifact_that_is_gone(run: Run, onnx_file: Path) -> None:
    onnx_file.unlink()
    done = run("bench", status=1)
    assert f"{onnx_file.name} is gone, its manifest is not; make it again" in done.err


@pytest.mark.parametrize(
    "content", [b"{", b"", b"[]", b"{}", b"\xff\xfe", b'{"precision": "fp32", "parents": []}']
)
def test_a_damaged_manifest(run: Run, onnx_file: Path, content: bytes) -> None:
    manifest_path_for(onnx_file).write_bytes(content)
    for words in (["build-trt"], ["bench", onnx_file], ["workspace", "list"]):
        done = run(*words, status=1)
        assert f"{onnx_file.name}.manifest.json is no valid manifest (" in done.err
        assert done.err.endswith("); remove it and make the artifact again\n")


def test_check(run: Run, workspace: Path, onnx_file: Path) -> None:
    done = run.json("workspace", "check", status=0)
    assert done == {"artifacts": 1, "problems": [], "leftovers": [], "unknown": []}
    flip(onnx_file)
    (problem,) = run.json("workspace", "check", status=3)["problems"]
    assert f"{onnx_file.name} was altered" in problem
    assert run("workspace", "check", status=3).out.splitlines()[0] == "1 artifact, 1 problem"


def test_newest_artifact(run: Run, workspace: Path, tiny_toml: Path, tensorrt_rtx: None) -> None:
    done = run.json("export", "--config", tiny_toml, "--batch", 2, "--target", "tensorrt")
    path = Path(done["artifact"]["path"])
    manifest = manifest_of(path)
    assert manifest["sequence"] == 2
    manifest["created"] = "1999-01-01T00:00:00+00:00"
    manifest_path_for(path).write_text(manifest_text(manifest))
    os.utime(path, (0, 0))
    os.utime(manifest_path_for(path), (0, 0))
    done = run("build-trt", "--sm", "90", status=1)  # no target of any builder
    assert f"note: building from the newest export, {path.name}" in done.err
    assert run.json("workspace", "list")["artifacts"][-1]["path"] == str(path)


def test_weights_are_stored_once(
    run: Run, workspace: Path, weights_file: Path, tiny_toml: Path
) -> None:
    assert run("export", "--config", tiny_toml, "--batch", 1).status == 0
    assert len(list((workspace / "onnx").glob("*.onnx"))) == 2
    assert list((workspace / "weights").iterdir()) == [weights_file]


def test_list(run: Run, onnx_file: Path) -> None:
    (listed,) = run.json("workspace", "list", status=0)["artifacts"]
    assert (listed["path"], listed["kind"]) == (f"artifacts/onnx/{onnx_file.name}", "onnx")
    assert "usable" in run("workspace", "list").out


def test_a_folder_without_access(
    run: Run, tiny_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Any, *arguments: Any, **options: Any) -> Any:
        if ".t2t-tmp-" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *arguments, **options)

    opened = os.open
    monkeypatch.setattr(os, "open", denied)
    done = run("export", "--config", tiny_toml, status=1)
    assert done.err.splitlines()[-1] == (
        "error: cannot write in artifacts/weights: Permission denied; free some space or choose "
        "another folder (options workspace, output)"
    )


def test_a_full_disk_leaves_the_old_file(
    run: Run, tiny_toml: Path, monkeypatch: pytest.MonkeyPatch, temporaries: Temporaries
) -> None:
    import onnx

    def full(model: onnx.ModelProto, path: Path) -> None:
        Path(path).write_bytes(b"as much as fits")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx, "save", full)
    output = Path("model.onnx")
    output.write_bytes(b"the old file")
    done = run("export", "--config", tiny_toml, "--batch", 1, "-o", output, status=1)
    assert "error: cannot write in .: No space left on device; free some space" in done.err
    assert output.read_bytes() == b"the old file"
    assert temporaries() == []


def test_a_folder_that_cannot_be_made(run: Run, tiny_toml: Path) -> None:
    """Of a workspace: tests/cli/test_outputs.py."""
    Path("file").write_text("no folder")
    done = run("export", "--config", tiny_toml, "--batch", 1, "-o", "file/model.onnx", status=1)
    assert "error: cannot create file: File exists; choose another" in done.err
