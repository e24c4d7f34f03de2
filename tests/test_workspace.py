"""Files that are written whole, named by content and known by manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import t2t_deploy
from t2t_deploy._files import atomic_write, file_sha256, publish, temporary_file, write_text
from t2t_deploy.errors import ArtifactError, BusyError
from t2t_deploy.types import Precision, ShapeProfile
from t2t_deploy.workspace import (
    Artifact,
    Workspace,
    _artifact,
    _workspace,
    manifest_path_for,
    read_manifest,
)
from t2t_deploy.workspace._manifest import Records, Superseded, manifest_text

from .manifests import DRAFT, store


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.csv"
    with atomic_write(path) as temporary:
        temporary.write_text("one")
        assert temporary.parent == path.parent and not path.exists()
    assert path.read_text() == "one"
    with contextlib.suppress(KeyError), atomic_write(path) as temporary:
        temporary.write_text("half of another")
        raise KeyError
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


def test_what_is_computed_is_told_by_weights_and_dimensions() -> None:
    def key(**changes: Any) -> str:
        return dataclasses.replace(DRAFT, **changes).model_key

    assert key(precision=Precision.FP16, variant="other", target="cpu") == DRAFT.model_key
    assert key(weights={"sha256": "1" * 64}) != DRAFT.model_key
    # the weights of 14 fit 14_resnext, which has other heads
    assert key(config={"image_size": 32, "num_heads": 2}) != DRAFT.model_key


@pytest.mark.parametrize(
    ("engine", "profiles"),
    [
        ({"profiles": ["1:8:32", "2:2:2"]}, (ShapeProfile(1, 8, 32), ShapeProfile(2, 2, 2))),
        ({"profiles": None}, ()),
        ({}, ()),
    ],
)
def test_profiles_of_an_engine(engine: dict[str, Any], profiles: tuple[ShapeProfile, ...]) -> None:
    info = {"backend": "tensorrt", "backend_version": "10", "sm": ["86"], **engine}
    assert dataclasses.replace(DRAFT, details={"engine": info}).engine.shape_profiles == profiles


@pytest.mark.parametrize("mode", ["dynamic", "static", None])
def test_the_mode_of_a_quantization_is_none_where_it_is_not_written(mode: str | None) -> None:
    details = {} if mode is None else {"quantization": {"mode": mode}}
    assert dataclasses.replace(DRAFT, details=details).quantization.mode == mode


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "artifacts")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A file outside of the workspace."""
    return tmp_path / "model.onnx"


def write_weights(path: Path) -> None:
    path.write_bytes(b"w")


def files(folder: Path) -> list[str]:
    """Names of files, without those of locks."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in found if path.parent.name != ".locks")


def test_nothing_is_made_before_something_is_stored(workspace: Workspace) -> None:
    assert workspace.artifacts() == []
    assert workspace.check().problems == ()
    assert workspace.prune() == []
    assert not workspace.root.exists()


def test_a_stored_file_is_named_by_its_content(workspace: Workspace) -> None:
    artifact = store(workspace, details={"nodes": 3})
    sha256 = file_sha256(artifact.path)
    assert artifact.path == workspace.root / "onnx" / f"tiny-{sha256[:8]}.onnx"
    manifest = artifact.require_manifest()
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
    assert path.read_text() == artifact.require_manifest().to_json()
    assert json.loads(path.read_text())["precision"] == "fp32"


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt(), SystemExit(143)])
def test_a_failing_write_leaves_the_old_file(
    workspace: Workspace, output: Path, error: BaseException
) -> None:
    store(workspace, b"the old file", output=output)
    manifest = manifest_path_for(output).read_text()

    def write(path: Path) -> Mapping[str, Any]:
        path.write_bytes(b"half of the new")
        raise error

    with pytest.raises(type(error)):
        workspace.store(DRAFT, write, stem="tiny", output=output)
    assert output.read_bytes() == b"the old file"
    assert manifest_path_for(output).read_text() == manifest
    assert files(output.parent) == ["model.onnx", "model.onnx.manifest.json"]


class Stopped(BaseException):
    """A kill, as far as the files are concerned."""


@pytest.mark.parametrize("before", ["ours", "foreign", "altered", "nothing"])
@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_stopped_while_a_file_is_replaced_the_old_or_the_new_is_whole(
    workspace: Workspace,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    renames: int,
) -> None:
    old: Artifact | None = None
    if before == "foreign":
        output.write_bytes(b"foreign")
        old = workspace.open(output)
    elif before != "nothing":
        old = store(workspace, b"old", output=output)
    if before == "altered":
        output.write_bytes(b"altered")
    rename, done = Path.replace, 0

    def counted(source: Path, target: Path) -> Path:
        nonlocal done
        if done == renames:
            raise Stopped
        done += 1
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted)
        with contextlib.ExitStack() as stack:
            if renames < 3:
                stack.enter_context(pytest.raises(Stopped))
            store(workspace, b"new", output=output)
    if renames >= 2:
        assert workspace.open(output).require_manifest().sha256 == file_sha256(output)
        assert output.read_bytes() == b"new"
    elif before == "nothing":
        assert not output.exists()
    elif before == "altered":
        with pytest.raises(ArtifactError, match="was altered"):
            workspace.open(output)
    else:
        assert workspace.open(output) == old
    again = store(workspace, b"newer", output=output)
    assert workspace.open(output) == again
    assert "superseded" not in json.loads(manifest_path_for(output).read_text())


def test_a_verdict_on_the_old_file_of_a_stopped_replacement_is_kept(
    workspace: Workspace, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(workspace, b"old", output=output)
    with monkeypatch.context() as patch:
        patch.setattr(_artifact, "publish", Mock(side_effect=Stopped))
        with pytest.raises(Stopped):
            store(workspace, b"new", output=output)
    workspace.update(workspace.open(output), verification={"status": "passed"})
    assert workspace.open(output).require_manifest().verification == {"status": "passed"}
    assert "superseded" not in json.loads(manifest_path_for(output).read_text())


def test_a_file_replaced_while_it_is_read_is_read_again(
    workspace: Workspace, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(workspace, b"old", output=output)
    made: list[Artifact] = []

    def hashed(path: Path) -> str:
        monkeypatch.setattr(_artifact, "file_sha256", file_sha256)
        made.append(store(workspace, b"new", output=output))
        return file_sha256(path)

    monkeypatch.setattr(_artifact, "file_sha256", hashed)
    # the manifest is read before the file's content, which is the other one's by then
    assert [workspace.open(output)] == made


def test_a_verdict_on_a_file_made_anew_meanwhile_is_refused(
    workspace: Workspace, output: Path
) -> None:
    old = store(workspace, b"old", output=output)
    new = store(workspace, b"new", output=output)
    with pytest.raises(ArtifactError) as raised:
        workspace.update(old, verification={"status": "failed", "reason": "of the old"})
    assert str(raised.value) == (
        f"{output} was made anew while this command ran, and what it found is of the file before; "
        "run it again"
    )
    assert workspace.open(output) == new


def test_two_verdicts_on_one_artifact_are_both_kept(workspace: Workspace) -> None:
    artifact = store(workspace, details={"nodes": 3})
    workspace.update(artifact, details={"nodewise": {"status": "passed"}})
    workspace.update(artifact, details={"other": 2})
    found = workspace.update(artifact, verification={"status": "passed"})
    (kept,) = workspace.artifacts()
    assert kept == found and found.path == artifact.path
    assert kept.require_manifest().details == {
        "nodes": 3,
        "nodewise": {"status": "passed"},
        "other": 2,
    }
    assert kept.require_manifest().verification == {"status": "passed"}


def test_an_altered_file_is_told_by_its_first_digits(workspace: Workspace) -> None:
    artifact = store(workspace)
    stated = artifact.require_manifest().sha256
    artifact.path.write_bytes(b"other")
    found = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ArtifactError) as raised:
        workspace.open(artifact.path)
    assert str(raised.value) == (
        f"{artifact.path} was altered: its SHA-256 is {found[:12]}, its manifest says "
        f"{stated[:12]}; make it again"
    )


def test_an_altered_manifest_is_told_by_its_first_digits(workspace: Workspace) -> None:
    path = manifest_path_for(store(workspace).path)
    values = json.loads(path.read_text())
    stated = values.pop("checksum")
    values["variant"] = "another"
    path.write_text(json.dumps({**values, "checksum": stated}))
    found = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    with pytest.raises(ArtifactError) as raised:
        read_manifest(path)
    assert str(raised.value) == (
        f"{path} was altered: its checksum is {found[:12]}, it states {stated[:12]}; remove it and "
        "make the artifact again"
    )


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as raised:
        read_manifest(tmp_path / "missing")
    assert str(raised.value) == f"cannot read {tmp_path / 'missing'}: No such file or directory"


def test_a_manifest_is_for_people_and_the_same_whatever_the_order(workspace: Workspace) -> None:
    text = manifest_path_for(store(workspace).path).read_text()
    values = json.loads(text)
    backwards = dict(reversed(values.items()))
    assert manifest_text(backwards) == text
    lines = text.splitlines()
    assert lines[1].startswith(' "batch": null'), "a line a field, in a fixed order"
    assert len(lines) > len(values)


def test_versions_of_the_tools_are_those_installed(workspace: Workspace) -> None:
    tools = store(workspace).require_manifest().tools
    assert tools["t2t-deploy"] == t2t_deploy.__version__
    for name in ("numpy", "onnx"):
        assert tools[name] == importlib.metadata.version(name)


def test_a_file_of_nobody_over_a_damaged_manifest_is_replaced(
    workspace: Workspace, output: Path
) -> None:
    store(workspace, b"old", output=output)
    manifest_path_for(output).write_text("{")
    new = store(workspace, b"new", output=output)
    assert workspace.open(output) == new


def test_records_know_their_two_contents_and_no_third() -> None:
    old = Superseded("b" * 64, None)
    records = Records(dataclasses.replace(DRAFT, sha256="a" * 64), old)
    assert records.of("a" * 64) == Superseded("a" * 64, records.manifest)
    assert records.of("b" * 64) is old
    assert records.of("c" * 64) is None
    assert Records(records.manifest).of("b" * 64) is None


def test_only_whole_content_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int | str] = []

    def sync(handle: int) -> None:
        found = os.fstat(handle)
        synced.append("folder" if stat.S_ISDIR(found.st_mode) else found.st_size)

    monkeypatch.setattr(os, "fsync", sync)
    temporary = tmp_path / "temporary"
    temporary.write_bytes(b"12345")
    publish(temporary, tmp_path / "file")
    assert synced == [5, "folder"], "on disk before it has its name, and then the name"
    assert files(tmp_path) == ["file"]


def test_what_is_finished_is_kept_where_another_command_is_busy(
    workspace: Workspace, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise BusyError("busy")

    monkeypatch.setattr(_workspace, "locked", busy)
    with pytest.raises(BusyError, match=r"busy; the finished file is kept: .*model\.kept-") as told:
        store(workspace, b"finished", output=output)
    monkeypatch.undo()
    kept = Path(str(told.value).rpartition(": ")[2])
    assert kept.read_bytes() == b"finished"
    assert workspace.open(kept).require_manifest().file == kept.name
    assert files(output.parent) == sorted([kept.name, manifest_path_for(kept).name])


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_is_finished_is_kept_where_its_manifest_cannot_be_written(
    workspace: Workspace, output: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    def full(path: Path, text: str) -> None:
        raise ArtifactError("full")

    for module in (_workspace, _artifact):
        monkeypatch.setattr(module, "write_text", full)
    with pytest.raises(ArtifactError, match=r"full; .* kept: .*, without its manifest") as told:
        store(workspace, b"finished", output=output if elsewhere else None)
    kept = Path(str(told.value).rpartition(": ")[2].removesuffix(", without its manifest"))
    assert kept.read_bytes() == b"finished"
    assert (kept.parent == output.parent) is elsewhere
    assert workspace.prune() == [], "it is no leftover"
    assert kept.exists()


def test_what_is_finished_is_kept_elsewhere_where_a_disk_became_read_only(
    workspace: Workspace, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    for name in ("replace", "rename", "unlink", "chmod"):
        monkeypatch.setattr(Path, name, read_only)
    with pytest.raises(ArtifactError, match=f"Read-only file system.*kept: {tmp_path}/other"):
        store(workspace, b"finished", output=output)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "missing"))
    with pytest.raises(ArtifactError, match="Read-only file system; free some") as told:
        store(workspace, b"finished", output=output)
    assert "the finished file" not in str(told.value)
    monkeypatch.undo()
    (kept,) = (tmp_path / "other").glob("model.kept-*.onnx")
    assert kept.read_bytes() == b"finished"


def test_a_table_is_kept_where_its_name_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.csv" / "b").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="finished file is kept: "):
        write_text(tmp_path / "a.csv", "1", kept=True)
    (kept,) = tmp_path.glob("a.kept-*.csv")
    assert kept.read_text() == "1"
    with pytest.raises(ArtifactError, match="cannot write in"):
        write_text(tmp_path / "a.csv", "1")
    assert files(tmp_path) == [kept.name]


def test_a_folder_that_takes_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"cannot write in .*missing: No such file.*output"),
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
    first, second = store(workspace, b"1"), store(workspace, b"2", batch=4)
    workspace.update(first, created="2999-01-01T00:00:00+00:00")
    os.utime(first.path)
    assert workspace.newest("onnx").path == second.path
    assert workspace.newest("onnx", lambda m: m.batch is None).path == first.path
    again = store(workspace, b"1")
    assert again.path == first.path
    assert workspace.newest("onnx").path == first.path
    assert [a.require_manifest().sequence for a in workspace.artifacts()] == [2, 3]


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
    bad = store(workspace, b"2", verification=failed)
    assert bad.require_manifest().failed and bad.require_manifest().failure == "far off"
    assert workspace.newest("onnx").path == good.path
    assert workspace.newest("onnx", force=True).path == bad.path
    workspace.update(good, details={"attestation": {"status": "failed", "reason": "float"}})
    with pytest.raises(ArtifactError, match=rf"{bad.path.name} \(far off\).*or use --force"):
        workspace.newest("onnx")
    with pytest.raises(ArtifactError, match=r"failed its check \(float\).*or use --force"):
        workspace.open(good.path)
    assert workspace.open(good.path, force=True).path == good.path


@pytest.mark.parametrize(
    "check", ["attestation", "nodewise", "located", "budget", "graph_verification"]
)
def test_each_check_that_failed_is_a_failure(workspace: Workspace, check: str) -> None:
    artifact = store(workspace)
    found = workspace.update(artifact, details={check: {"status": "failed", "reason": "far off"}})
    assert found.require_manifest().failure == "far off"
    with pytest.raises(ArtifactError, match=r"failed its check \(far off\)"):
        workspace.open(artifact.path)


def test_an_engine_that_ran_is_judged_by_its_own_numbers(workspace: Workspace) -> None:
    artifact = store(workspace, verification={"status": "passed"})
    details = {"graph_verification": {"status": "failed", "reason": "of the graph"}}
    assert not workspace.update(artifact, details=details).require_manifest().failed


@pytest.mark.parametrize("status", ["passed", "not_run"])
def test_not_run_is_no_failure(workspace: Workspace, status: str) -> None:
    artifact = store(workspace, verification={"status": status, "reason": None})
    assert not artifact.require_manifest().failed
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
        artifact.require_manifest()


def test_check_counts_and_names(workspace: Workspace) -> None:
    weights = workspace.store_weights(write_weights)
    one, two = (store(workspace, each, weights={"sha256": weights}) for each in (b"1", b"2"))
    assert dataclasses.astuple(workspace.check()) == (2, (), (), ())
    one.path.write_bytes(b"x")
    manifest_path_for(two.path).write_text("{")
    found = workspace.check()
    assert found.artifacts == 1
    altered, damaged = sorted(found.problems, key=lambda text: "was altered" not in text)
    assert altered.startswith(f"{one.path} was altered")
    assert damaged.startswith(f"{manifest_path_for(two.path)} is no valid manifest")
