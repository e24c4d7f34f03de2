"""A workspace that version 0.1.0 wrote is read: nobody has to make things again.

`made_by_0_1_0` is kept as it was written. Its engine alone is not one: a line of text stands for
it, and its manifest was sealed again with that line's hash and size.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .conftest import json_of
from .snapshot import FOLDER


@pytest.fixture
def old(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, the current folder."""
    copy = Path(shutil.copytree(FOLDER / "made_by_0_1_0", here / "old"))
    monkeypatch.chdir(copy)
    monkeypatch.setenv("T2T_DEPLOY_WORKSPACE", "workspace")
    return copy


def test_its_artifacts_are_read(old: Path) -> None:
    listed = json_of(0, "workspace", "list")["artifacts"]
    assert {(one["kind"], one["precision"], one["target"]) for one in listed} == {
        ("onnx", "fp32", "portable"),
        ("onnx", "int8", "portable"),
        ("engine", "fp16", "tensorrt"),
    }
    found = json_of(0, "workspace", "check")
    assert found == {"artifacts": 3, "problems": [], "leftovers": [], "unknown": []}
    for one in listed:
        (told,) = json_of(0, "inspect", one["path"])["artifacts"]
        assert told["manifest"]["sha256"] == one["sha256"]
    graphs = [one["path"] for one in listed if one["kind"] == "onnx"]
    verified = json_of(0, "verify", *graphs)["results"]
    assert [one["status"] for one in verified] == ["passed", "passed"]
    assert json_of(0, "evaluate", "--images", "../val", *graphs)["images"]["count"] == 4


def test_its_ranges_are_taken(old: Path) -> None:
    (graph,) = Path("workspace/onnx").glob("*-fp32-*.onnx")
    (ranges,) = Path("workspace/calibration").glob("*.ranges")
    # the same graph, pictures and method: nothing is calibrated again
    again = json_of(0, "calibrate", graph, "--images", "train", "--no-equalise")
    assert again["ranges"]["reused"] and Path(again["ranges"]["path"]) == ranges
    form = ("--no-equalise", "--no-speed", "-o", "q.onnx")
    made = json_of(0, "quantize", graph, "--ranges", ranges, *form)
    # 10 layers; queries, keys and values are one product since 2026-12
    assert made["calibration"]["images"] == 2 and made["quantized_nodes"] == 7


def test_its_records_are_found(old: Path) -> None:
    steps = json_of(0, "run", "r.toml")["steps"]
    if steps[0]["status"] != "skipped":  # other tools are another thing
        assert steps[0]["reason"].startswith("version of "), steps[0]
        pytest.skip(steps[0]["reason"])
    assert [one["status"] for one in steps] == ["skipped", "skipped", "skipped"], steps
