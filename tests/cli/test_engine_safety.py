"""An engine is code: which ones are loaded, and what a damaged or foreign one is told."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy.pipeline import _engine
from t2t_deploy.runtime import engine_version
from t2t_deploy.workspace import manifest_path_for

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("what", ["engine", "onnx", "engine manifest", "onnx manifest"])
def test_a_flipped_byte_is_refused(run: Run, built: Path, engine_file: Path, what: str) -> None:
    (graph,) = (built / "onnx").glob("*.onnx")
    artifact = engine_file if what.startswith("engine") else graph
    path = manifest_path_for(artifact) if what.endswith("manifest") else artifact
    whole = path.read_bytes()
    stream = random.Random(0)
    # the first byte, the last ones and some between
    for position in (0, len(whole) - 2, *(stream.randrange(len(whole)) for _ in range(6))):
        flip(path, position)
        done = run("bench", artifact) if artifact is engine_file else run("build-trt", artifact)
        assert done.status == 1, position
        assert re.search("was altered|is no valid manifest", done.err), position
        assert done.err.count("\n") == 1
        path.write_bytes(whole)
    assert run("verify", artifact).status == 0


def test_an_engine_of_another_version_is_refused(
    run: Run, engine_file: Path, change_manifest: Callable[..., None]
) -> None:
    details = json.loads(manifest_path_for(engine_file).read_text())["details"]
    details["engine"]["backend_version"] = "1.0.0.1"
    change_manifest(engine_file, details=details)
    for command in ("bench", "verify"):
        done = run(command, engine_file)
        assert done.status == 1
        here = re.escape(str(engine_version("tensorrt-rtx")))
        assert re.search(rf"built with tensorrt-rtx 1\.0\.0\.1, and {here} is installed", done.err)
    # among others it is a row that says so, and the others go on
    (row,) = run("verify", "--json").json["results"][1:]
    assert row["status"] == "not_run" and "built with tensorrt-rtx 1.0.0.1" in row["reason"]


@pytest.mark.parametrize(
    ("targets", "device", "message"),
    [
        (["86"], "89", "was built for SM 86, and this machine's GPU is SM 89: .* --sm 89"),
        (["portable"], "75", "is portable from SM 80 on, and this machine's GPU is SM 75"),
        (["86", "89"], "89", None),
        (["portable"], "120", None),
        (["86"], None, None),
    ],
)
def test_an_engine_for_another_gpu_is_refused(
    run: Run,
    engine_file: Path,
    change_manifest: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    targets: list[str],
    device: str | None,
    message: str | None,
) -> None:
    details = json.loads(manifest_path_for(engine_file).read_text())["details"]
    details["engine"]["sm"] = targets
    change_manifest(engine_file, details=details)
    monkeypatch.setattr(_engine, "device_capability", lambda: device)
    done = run("verify", engine_file)
    assert done.status == (0 if message is None else 1)
    if message is not None:
        assert re.search(message, done.err)


@pytest.mark.parametrize("name", ["foreign.engine", "foreign.plan"])
def test_a_foreign_engine_is_refused_unless_trusted(run: Run, engine_file: Path, name: str) -> None:
    shutil.copy(engine_file, name)
    done = run("bench", name)
    assert done.status == 1
    assert "has no manifest, and an engine is code" in done.err
    assert "--trust" in done.err
    trusted = run("bench", name, "--trust")
    assert "has no manifest" not in trusted.err
    inspected = run("inspect", name, "--json").json["artifacts"][0]
    assert (inspected["kind"], inspected["manifest"]) == ("engine", None)
