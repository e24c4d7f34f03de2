"""`doctor` checks the workspace: artifacts, weights and ranges, and what killed commands left."""

from __future__ import annotations

from pathlib import Path

import pytest

from .command import Run


def test_a_whole_workspace(run: Run, workspace: Path) -> None:
    done = run("doctor", "--json")
    found = {"path": "artifacts", "artifacts": 1, "problems": [], "leftovers": [], "unknown": []}
    assert (done.status, done.json["workspace"]) == (0, found)
    assert "workspace artifacts: 1 artifact, 0 problems" in run("doctor").out


def test_no_workspace_is_none_to_complain_of(run: Run) -> None:
    assert run.json("doctor", "--workspace", "missing", status=0)["workspace"]["artifacts"] == 0
    assert not Path("missing").exists()


@pytest.mark.parametrize(
    ("pattern", "content", "named"),
    [
        ("onnx/*.onnx", b"altered", "{0.name} was altered"),
        ("onnx/*.onnx", None, "{0.name} is gone"),
        (f"weights/{'0' * 64}.safetensors", b"no such content", "{0.name} was altered"),
        ("weights/*.safetensors", None, "lacks the weights {0.stem:.12}"),
        ("calibration/a.ranges", b"no ranges", "{0.name}"),
    ],
)
def test_damage_is_a_problem(
    run: Run, workspace: Path, pattern: str, content: bytes | None, named: str
) -> None:
    (path,) = list(workspace.glob(pattern)) or [workspace / pattern]
    path.parent.mkdir(exist_ok=True)
    path.unlink() if content is None else path.write_bytes(content)
    (problem,) = run.json("doctor", status=3)["workspace"]["problems"]
    assert named.format(path) in problem
    assert named.format(path) in run("doctor").out


def test_leftovers_harm_nothing_and_are_pruned(run: Run, workspace: Path, onnx_file: Path) -> None:
    before = {path for path in workspace.rglob("*") if path.is_file()}
    # killed between the file and its manifest
    orphan = workspace / "onnx" / f"orphan-{onnx_file.stem[-8:]}.onnx"
    orphan.write_bytes(onnx_file.read_bytes())
    # of somebody else, whatever it does there
    foreign = workspace / "onnx" / "foreign-00000000.onnx"
    foreign.write_bytes(b"foreign")
    paths = [workspace / name for name in ("weights/.t2t-tmp-1.safetensors", ".t2t-tmp-2/a.onnx",
             "calibration/.t2t-tmp-3.ranges", "calibration/a.partial")]  # fmt: skip
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    done = run.json("doctor", status=0)
    assert done["workspace"]["problems"] == []
    shown = {Path(path).name for path in done["workspace"]["leftovers"]}
    assert shown == {orphan.name, ".t2t-tmp-1.safetensors", ".t2t-tmp-2", ".t2t-tmp-3.ranges",
                     "a.partial"}  # fmt: skip
    assert "5 files and folders of killed commands; t2t-deploy workspace prune" in run("doctor").out
    removed = run.json("workspace", "prune")
    assert {Path(path).name for path in removed.pop("removed")} == shown
    assert removed == {"unknown": []}
    assert run("workspace", "prune").out == "removed 0 files and folders\n"
    left = {path for path in workspace.rglob("*") if path.is_file()}
    assert left == before | {foreign, workspace / ".locks/workspace.lock"}
    assert run.json("doctor")["workspace"]["leftovers"] == []


def test_what_was_compiled_is_removed_when_asked(run: Run, workspace: Path) -> None:
    kept = workspace / "logs" / "a.log"
    for path in (workspace / "cache/compile/kernel", workspace / "timing/a.timing", kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert run.json("workspace", "prune")["removed"] == []
    done = run.json("workspace", "prune", "--cache")
    assert done["removed"] == ["artifacts/cache", "artifacts/timing"]
    assert kept.exists() and not (workspace / "cache").exists()


def test_other_folders_are_pruned_where_they_are_named(run: Run, workspace: Path) -> None:
    for name in ("out/.t2t-tmp-1.onnx", "out/below/.t2t-tmp-2"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert run.json("workspace", "prune", "out")["removed"] == ["out/.t2t-tmp-1.onnx"]
    assert Path("out/below/.t2t-tmp-2").exists()


def test_a_model_that_was_moved_out_is_put_back(run: Run, workspace: Path) -> None:
    staging = Path("served/.t2t-tmp-1")
    (staging / "old/m").mkdir(parents=True)
    (staging / "old/m/config.pbtxt").touch()
    (staging / "repository.txt").write_text("repository")
    Path("served/repository").mkdir()
    assert run("workspace", "prune", "served").status == 0
    assert Path("served/repository/m/config.pbtxt").is_file()
    assert not staging.exists()
