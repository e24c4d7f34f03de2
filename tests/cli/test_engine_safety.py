"""An engine is code: which ones are loaded, and what a damaged or foreign one is told."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from t2t_deploy.bench import BenchCase
from t2t_deploy.commands import _artifacts as _engine
from t2t_deploy.commands._bench import Bench
from t2t_deploy.commands._predict import classifier_request
from t2t_deploy.engine import engine_version
from t2t_deploy.errors import EngineError
from t2t_deploy.runtime import SessionRequest, open_session
from t2t_deploy.workspace import Workspace, manifest_path_for

from .command import Change, Run, flip, manifest_of

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


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


def test_an_engine_of_another_version(run: Run, engine_file: Path, change_manifest: Change) -> None:
    details = manifest_of(engine_file)["details"]
    details["engine"]["backend_version"] = "1.0.0.1"
    change_manifest(engine_file, details=details)
    for command in ("bench", "verify"):
        done = run(command, engine_file, status=1)
        here = re.escape(str(engine_version("tensorrt-rtx")))
        assert re.search(rf"built with tensorrt-rtx 1\.0\.0\.1, and {here} is installed", done.err)
    # among others it is a row that says so, and the others go on
    (row,) = run.json("verify")["results"][1:]
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
    change_manifest: Change,
    monkeypatch: pytest.MonkeyPatch,
    targets: list[str],
    device: str | None,
    message: str | None,
) -> None:
    details = manifest_of(engine_file)["details"]
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
    done = run("bench", name, status=1)
    assert "has no manifest, and an engine is code" in done.err
    assert "--trust" in done.err
    assert "has no manifest" not in run("bench", name, "--trust").err
    inspected = run.json("inspect", name)["artifacts"][0]
    assert (inspected["kind"], inspected["manifest"]) == ("engine", None)


COMMANDS = (
    ("bench", "{engine}"),
    ("bench", "{engine}", "--backend", "tensorrt-rtx"),
    ("bench", "--backend", "tensorrt-rtx"),
    ("predict", "{engine}", "{picture}", "--backend", "tensorrt-rtx"),
    ("evaluate", "{engine}", "--images", "{folder}"),
    ("verify", "{engine}"),
    ("verify",),
    ("package", "{engine}", "--triton", "models"),
    ("inspect", "{engine}"),
    ("build-trt", "{engine}"),
)


@pytest.mark.parametrize("what", ["foreign", "altered"])
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words))
def test_no_command_loads_an_engine_that_nobody_answers_for(
    run: Run,
    engine_file: Path,
    runs_everywhere: None,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    words: tuple[str, ...],
) -> None:
    """On a machine that could, as far as the commands can tell; loading one fails the test."""
    loaded: list[str] = []

    def load(*arguments: Any) -> None:
        loaded.append(str(arguments[-1]))
        raise EngineError("it would be running now")

    monkeypatch.setattr("t2t_deploy.runtime._trt_session.load_engine", load)
    monkeypatch.setattr("t2t_deploy.runtime._trt_session.Cuda", lambda device: None)
    content = bytearray(engine_file.read_bytes())
    if what == "foreign":
        name = engine_file.with_name("foreign.engine")
    else:
        name, content[-1] = engine_file, content[-1] ^ 1
    name.write_bytes(content)
    Path("pictures/a").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save("pictures/a/a.png")
    facts = {"engine": name, "picture": "pictures/a/a.png", "folder": "pictures"}
    done = run(*(word.format(**facts) for word in words))
    # beside a foreign one the known engine is verified, which its manifest answers for
    known = [engine_file.name] if (words, what) == (("verify",), "foreign") else []
    assert [Path(one).name for one in loaded] == known
    if "{engine}" in words and (words[0], what) != ("inspect", "foreign"):
        assert done.status == 1
        assert re.search("has no manifest|was altered|is an engine", done.err), done.err


def test_what_is_loaded_is_what_was_checked(built: Path, engine_file: Path) -> None:
    """The session has the hash of the manifest, or of the file that is trusted; no other loads."""
    workspace = Workspace(built)
    known = workspace.open(engine_file)
    shutil.copy(engine_file, "foreign.engine")
    foreign = workspace.open(Path("foreign.engine"))
    assert _engine.engine_sha256(known) == known.require_manifest().sha256
    assert _engine.engine_sha256(foreign) == known.require_manifest().sha256
    (graph,) = (built / "onnx").glob("*.onnx")
    assert _engine.engine_sha256(workspace.open(graph)) is None


@pytest.mark.parametrize("sha256", [None, "a" * 64])
def test_a_session_of_an_engine_that_nobody_answers_for(
    engine_file: Path, runs_everywhere: None, sha256: str | None
) -> None:
    request = SessionRequest("tensorrt-rtx", engine_file, sha256=sha256)
    with pytest.raises(EngineError, match=r"is not trusted|changed after it was checked"):
        open_session(request)


def test_hash_is_handed_on(built: Path, engine_file: Path, runs_everywhere: None) -> None:
    workspace = Workspace(built)
    artifact = workspace.open(engine_file)
    wanted = artifact.require_manifest().sha256
    assert classifier_request(workspace, artifact).session.sha256 == wanted
    case = Bench(workspace, 1, named=True).case(artifact, "tensorrt-rtx", 1)
    assert isinstance(case, BenchCase) and case.request.sha256 == wanted
