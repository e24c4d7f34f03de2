"""Workspaces in odd places, clocks that are wrong, manifests of a newer version, no home."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from t2t_deploy._files import temporary_folder
from t2t_deploy.errors import ArtifactError
from t2t_deploy.workspace import Workspace, manifest_path_for, manifest_text, read_manifest
from t2t_deploy.workspace._manifest import MANIFEST_VERSION

from .conftest import Commands

NAMES = ("with space", "ünïcödé-漢字", "a\nline", "quote'\"", "-dash", "[markup]", "x" * 250)
ALL_OF_IT = "ünï 漢\n'[b]"


def whole(command: Commands, folder: Path, workspace: object) -> None:
    """A workspace that is made, read, changed and checked there works."""
    option = f"--workspace={workspace}"
    for words in (
        ("workspace", "list"),
        ("workspace", "check"),
        ("verify",),
        ("evaluate", "--images", "pictures"),
        ("package", "--triton", "served"),
    ):
        for more in ((), ("--json",)):
            assert "Traceback" not in command(folder, *words, option, *more, status=0).err
    (listed,) = command(folder, "workspace", "list", option, "--json").json["artifacts"]
    assert (folder / listed["path"]).is_file()
    done = command(folder, "inspect", folder / "missing.onnx", option, status=1)
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "name", [ALL_OF_IT, *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES)]
)
def test_a_workspace_of_any_name(command: Commands, name: str) -> None:
    folder = command.copy()
    (folder / "artifacts").rename(folder / name)
    whole(command, folder, name)
    (path,) = (folder / name / "onnx").glob("*.onnx")
    path.write_bytes(b"altered")
    done = command(folder, "verify", f"--workspace={name}", status=1)
    assert (done.err.count("\n"), done.err.startswith("error: ")) == (1, True)


@pytest.mark.slow
def test_a_name_that_is_no_text(command: Commands) -> None:
    """The readers of weights take no such path, which is said; all else works."""
    folder = command.copy()
    odd = folder / "odd\udcff"
    (folder / "artifacts").rename(odd)
    for words in (("workspace", "list"), ("workspace", "check"), ("package", "--triton", "served")):
        for more in ((), ("--json",)):
            done = command(folder, *words, f"--workspace={odd.name}", *more, status=0)
    done = command(folder, "verify", f"--workspace={odd.name}", status=1)
    assert "is not valid UTF-8" in done.err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["y" * 300, "/".join(["z" * 200] * 30)])
def test_a_path_that_no_file_can_have(command: Commands, name: str) -> None:
    folder = command.copy()
    for words in (
        ("inspect", name),
        ("verify", name),
        ("predict", name, "pictures"),
        ("predict", "model.onnx", "pictures", "--csv", name),
        ("export", "--config", "tiny.toml", "-o", name),
        ("export", "--config", "tiny.toml", "--workspace", name),
        ("calibrate", "--images", name),
        ("package", "model.onnx", "--triton", name),
        ("workspace", "prune", "--workspace", name),
    ):
        done = command(folder, *words)
        assert done.status in (0, 1, 2), done.err
        assert "Traceback" not in done.err
        assert done.status == 0 or done.err.splitlines()[-1].startswith("error: ")


@pytest.mark.slow
def test_a_workspace_that_moves(command: Commands) -> None:
    folder = command.copy()
    moved = folder / "elsewhere" / "deeper"
    moved.parent.mkdir()
    (folder / "artifacts").rename(moved)
    whole(command, folder, moved)
    (folder / "link").symlink_to(moved)
    whole(command, folder, "link")
    (folder / "artifacts").symlink_to("elsewhere/deeper")
    command(folder / "pictures", "verify", "../model.onnx", "--workspace", "../artifacts", status=0)
    shutil.move(folder / "model.onnx", moved / "renamed.onnx")
    shutil.move(folder / "model.onnx.manifest.json", moved / "renamed.onnx.manifest.json")
    assert command(folder, "verify", "link/renamed.onnx", "--workspace", "link").status == 0


@pytest.mark.slow
def test_a_workspace_that_is_a_file(command: Commands) -> None:
    folder = command.copy()
    for words in (("workspace", "list"), ("doctor",), ("export", "--config", "tiny.toml")):
        done = command(folder, *words, "--workspace", "tiny.toml", status=2)
        assert done.err.count("\n") == 1
        assert "Directory 'tiny.toml' is a file" in done.err
        done = command(folder, *words, "--workspace", "tiny.toml/below")
        assert done.status == (1 if words[0] == "export" else 0)
        assert "Traceback" not in done.err
        if done.status:
            assert done.err.splitlines()[-1].startswith("error: cannot create tiny.toml/below/")


NEEDS_MANIFESTS = (
    ("calibrate", "--images", "pictures"),
    ("quantize", "--mode", "dynamic"),
    ("build-trt", "--fp16"),
    ("verify",),
    ("evaluate", "--images", "pictures"),
    ("bench",),
    ("package", "--triton", "served"),
    ("workspace", "list"),
    ("verify", "model.onnx"),
    ("evaluate", "model.onnx", "--images", "pictures"),
    ("bench", "model.onnx"),
    ("predict", "model.onnx", "pictures"),
    ("inspect", "model.onnx"),
    ("package", "model.onnx", "--triton", "served"),
    ("build-trt", "model.onnx", "--fp16"),
    ("calibrate", "model.onnx", "--images", "pictures"),
    ("quantize", "model.onnx", "--mode", "dynamic"),
)


def change(path: Path, **values: Any) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(manifest_text(manifest | values))


def test_manifests_of_a_newer_version(command: Commands) -> None:
    folder = command.copy()
    (stored,) = (folder / "artifacts/onnx").glob("*.onnx")
    for path in (stored, folder / "model.onnx"):
        change(
            manifest_path_for(path),
            manifest_version=MANIFEST_VERSION + 1,
            novelty={"of": "tomorrow"},
        )
    for words in NEEDS_MANIFESTS:
        done = command(folder, *words)
        assert (done.status, done.err.count("\n")) == (1, 1), (words, done.err)
        assert done.err.endswith(
            "has manifest format 3, this t2t-deploy reads up to 2; update t2t-deploy\n"
        )
    for words in (("workspace", "check"), ("doctor",)):
        done = command(folder, *words, "--json", status=3)
        (problem,) = done.json.get("workspace", done.json)["problems"]
        assert "manifest format 3" in problem


@pytest.mark.slow
def test_an_export_beside_manifests_of_a_newer_version(command: Commands) -> None:
    folder = command.copy()
    (stored,) = (folder / "artifacts/onnx").glob("*.onnx")
    change(manifest_path_for(stored), manifest_version=MANIFEST_VERSION + 1)
    before = manifest_path_for(stored).read_bytes()
    assert command(folder, "export", "--config", "tiny.toml", "--batch", 9).status == 0
    assert manifest_path_for(stored).read_bytes() == before


@pytest.mark.slow
def test_a_clock_that_is_set_back(command: Commands) -> None:
    folder = command.copy()
    made = []
    for batch, clock_s in ((2, 4e9), (3, 0.0), (4, 1e9)):
        words = ("export", "--config", "tiny.toml", "--batch", batch, "--json")
        done = command(folder, *words, clock_s=clock_s, status=0)
        made.append(folder / done.json["artifact"]["path"])
    manifests = [read_manifest(manifest_path_for(path)) for path in made]
    assert [manifest.created[:4] for manifest in manifests] == ["2096", "1970", "2001"]
    assert [manifest.sequence for manifest in manifests] == [2, 3, 4]
    workspace = Workspace(folder / "artifacts")
    assert workspace.newest("onnx").path == made[-1]
    assert [artifact.require_manifest().batch for artifact in workspace.artifacts()] == [1, 2, 3, 4]
    assert command(folder, "doctor", clock_s=0.0).status == 0


HOMELESS: dict[str, str | None] = {"USER": None, "LOGNAME": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        *({"HOME": home, **HOMELESS} for home in (None, "/nonexistent", "/proc")),
        {"TMPDIR": "/nonexistent"},
    ],
)
def test_no_home_and_no_place_for_temporary_files(
    command: Commands, environment: dict[str, str | None]
) -> None:
    folder = command.copy()
    for words in (
        ("predict", "model.onnx", "pictures"),
        ("evaluate", "model.onnx", "--images", "pictures", "--confusion", "plot.png"),
        ("export", "--config", "tiny.toml", "--batch", 7),
        ("doctor",),
        ("calibrate", "--images", "pictures"),
        ("verify", "model.onnx"),
    ):
        done = command(folder, *words, environment=environment, status=0)
        assert "Traceback" not in done.err


def test_scratch_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")
    monkeypatch.setattr(tempfile, "gettempdir", Mock(side_effect=none))
    workspace = Workspace(tmp_path)
    with workspace.scratch() as folder:
        assert folder.parent == tmp_path
    with (
        pytest.raises(ArtifactError, match=r"No usable temporary directory .*; set TMPDIR to"),
        temporary_folder(None),
    ):
        raise AssertionError("there is no place")
