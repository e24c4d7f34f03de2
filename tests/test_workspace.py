"""Files that are written whole, named by content and known by manifest."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy import workspace as workspace_module
from t2t_deploy.errors import ArtifactError
from t2t_deploy.types import Precision
from t2t_deploy.workspace import (
    Artifact,
    Manifest,
    Workspace,
    file_sha256,
    manifest_path_for,
    publish,
    read_manifest,
    temporary_file,
)

DRAFT = Manifest(
    kind="onnx",
    file="",
    sha256="",
    size_bytes=0,
    variant="tiny",
    precision=Precision.FP32,
    config={"image_size": 32},
    batch=None,
    target="portable",
    weights={"sha256": "0" * 64, "source": {"kind": "random"}},
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "artifacts")


def store(workspace: Workspace, content: bytes = b"content", **options: Any) -> Artifact:
    def write(path: Path) -> Mapping[str, Any]:
        path.write_bytes(content)
        return {"details": {"nodes": 3}}

    draft = dataclasses.replace(DRAFT, **options.pop("draft", {}))
    return workspace.store(draft, write, stem="tiny", **options)


def write_weights(path: Path) -> None:
    path.write_bytes(b"w")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_nothing_is_made_before_something_is_stored(workspace: Workspace) -> None:
    assert workspace.artifacts() == []
    assert workspace.check().problems == ()
    assert workspace.prune() == []
    assert not workspace.root.exists()


def test_a_stored_file_is_named_by_its_content(workspace: Workspace) -> None:
    artifact = store(workspace)
    sha256 = file_sha256(artifact.path)
    assert artifact.path == workspace.root / "onnx" / f"tiny-{sha256[:8]}.onnx"
    manifest = artifact.known()
    assert (manifest.file, manifest.sha256) == (artifact.path.name, sha256)
    assert (manifest.size_bytes, manifest.sequence, manifest.details) == (7, 1, {"nodes": 3})
    assert manifest.tools["t2t-deploy"] and manifest.created
    assert workspace.artifacts() == [artifact] == [workspace.open(artifact.path)]
    assert files(workspace.root) == [artifact.path.name, f"{artifact.path.name}.manifest.json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_files_are_as_readable_as_any(workspace: Workspace) -> None:
    before = os.umask(0o027)
    try:
        artifact = store(workspace)
    finally:
        os.umask(before)
    assert stat.S_IMODE(artifact.path.stat().st_mode) == 0o640


def test_a_manifest_is_read_as_it_was_written(workspace: Workspace) -> None:
    artifact = store(workspace)
    path = manifest_path_for(artifact.path)
    assert read_manifest(path) == artifact.manifest
    assert path.read_text() == artifact.known().to_json()
    assert json.loads(path.read_text())["precision"] == "fp32"


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt(), SystemExit(143)])
def test_a_failing_write_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    workspace = Workspace(tmp_path / "artifacts")
    output = tmp_path / "model.onnx"
    store(workspace, b"the old file", output=output)
    manifest = manifest_path_for(output).read_text()

    def write(path: Path) -> Mapping[str, Any]:
        path.write_bytes(b"half of the new")
        raise error

    with pytest.raises(type(error)):
        workspace.store(DRAFT, write, stem="tiny", output=output)
    assert output.read_bytes() == b"the old file"
    assert manifest_path_for(output).read_text() == manifest
    assert files(tmp_path) == ["model.onnx", "model.onnx.manifest.json"]


def test_stopped_between_file_and_manifest_nothing_unchecked_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "artifacts")
    output = tmp_path / "model.onnx"
    store(workspace, b"the old file", output=output)

    def stopped(temporary: Path, path: Path) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        publish(temporary, path)

    monkeypatch.setattr(workspace_module, "publish", stopped)
    with pytest.raises(KeyboardInterrupt):
        store(workspace, b"the new file", output=output)
    assert output.read_bytes() == b"the new file"
    with pytest.raises(ArtifactError, match="was altered"):
        workspace.open(output)
    assert files(tmp_path) == ["model.onnx", "model.onnx.manifest.json"]


def test_only_whole_content_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    temporary = tmp_path / "temporary"
    temporary.write_bytes(b"12345")
    publish(temporary, tmp_path / "file")
    assert synced == [5], "on disk before it has its name"
    assert files(tmp_path) == ["file"]


def test_a_folder_that_takes_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"cannot write in .*missing: No such file.*-o"),
        temporary_file(tmp_path / "missing", ".onnx"),
    ):
        raise AssertionError("there is no file to write to")


def test_a_full_disk(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="No space left on device; free some space"),
        temporary_file(tmp_path, ".onnx"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert files(tmp_path) == []


def test_the_newest_is_the_last_made(workspace: Workspace) -> None:
    first, second = store(workspace, b"1"), store(workspace, b"2", draft={"batch": 4})
    workspace.update(first, created="2999-01-01T00:00:00+00:00")
    os.utime(first.path)
    assert workspace.newest("onnx").path == second.path
    assert workspace.newest("onnx", lambda m: m.batch is None).path == first.path
    again = store(workspace, b"1")
    assert again.path == first.path
    assert workspace.newest("onnx").path == first.path
    assert [a.known().sequence for a in workspace.artifacts()] == [2, 3]


def test_there_is_no_newest(workspace: Workspace) -> None:
    with pytest.raises(ArtifactError, match=r"no suitable onnx artifact.*t2t-deploy export"):
        workspace.newest("onnx")
    with pytest.raises(ArtifactError, match=r"no suitable engine artifact.*t2t-deploy build-trt"):
        workspace.newest("engine")
    store(workspace)
    with pytest.raises(ArtifactError, match="no suitable onnx artifact"):
        workspace.newest("onnx", lambda m: m.batch == 7)


def test_what_failed_is_not_the_newest_unless_forced(workspace: Workspace) -> None:
    failed = {"status": "failed", "reason": "far off"}
    good = store(workspace, b"1")
    bad = store(workspace, b"2", draft={"verification": failed})
    assert bad.known().failed and bad.known().failure == "far off"
    assert workspace.newest("onnx").path == good.path
    assert workspace.newest("onnx", force=True).path == bad.path
    workspace.update(good, details={"attestation": {"status": "failed", "reason": "float"}})
    with pytest.raises(ArtifactError, match=rf"{bad.path.name} \(far off\).*or pass --force"):
        workspace.newest("onnx")
    with pytest.raises(ArtifactError, match=r"failed its check \(float\).*or pass --force"):
        workspace.open(good.path)
    assert workspace.open(good.path, force=True).path == good.path


@pytest.mark.parametrize("status", ["passed", "not_run"])
def test_not_run_is_no_failure(workspace: Workspace, status: str) -> None:
    artifact = store(workspace, draft={"verification": {"status": status, "reason": None}})
    assert not artifact.known().failed
    assert workspace.open(artifact.path) == artifact


def test_weights_are_named_by_content_and_kept_once(workspace: Workspace) -> None:
    first = workspace.store_weights(write_weights)
    second = workspace.store_weights(write_weights)
    assert first == second
    assert files(workspace.root) == [f"{first}.safetensors"]
    manifest = dataclasses.replace(DRAFT, weights={"sha256": first, "source": {}})
    assert workspace.weights(manifest).read_bytes() == b"w"
    with pytest.raises(ArtifactError, match="lacks the weights 000000000000 of"):
        workspace.weights(DRAFT)


def test_a_foreign_file_has_no_manifest(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "theirs.onnx"
    path.write_bytes(b"?")
    artifact = workspace.open(path)
    assert artifact == Artifact(path, None)
    with pytest.raises(
        ArtifactError, match=r"has no manifest.*use a file that t2t-deploy exported"
    ):
        artifact.known()


def test_check_counts_and_names(workspace: Workspace) -> None:
    weights = workspace.store_weights(write_weights)
    draft = {"weights": {"sha256": weights}}
    one, two = (store(workspace, content, draft=draft) for content in (b"1", b"2"))
    assert dataclasses.astuple(workspace.check()) == (2, ())
    one.path.write_bytes(b"x")
    manifest_path_for(two.path).write_text("{")
    found = workspace.check()
    assert found.artifacts == 1
    altered, damaged = sorted(found.problems, key=lambda text: "was altered" not in text)
    assert altered.startswith(f"{one.path} was altered")
    assert damaged.startswith(f"{manifest_path_for(two.path)} is no valid manifest")
