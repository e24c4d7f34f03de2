"""Engines of the tiny model: which graph is built, what is refused, what is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from t2t_deploy.engine import device_capability

from .command import Run, manifest_of

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


def test_a_fitting_graph_is_used_again(run: Run, built: Path, engine_file: Path) -> None:
    before = engine_file.read_bytes()
    graphs = sorted((built / "onnx").iterdir())
    done = run("build-trt", "--fp16", "--sm", "86", "-o", "again.engine", "--json", status=0)
    assert Path("again.engine").read_bytes() == before
    assert sorted((built / "onnx").iterdir()) == graphs
    assert "exporting" not in done.err
    assert done.json["engine"]["path"] == "again.engine"
    assert Path("again.engine.manifest.json").is_file()
    assert run("verify", "again.engine").status == 0


def test_a_typed_graph_is_found(run: Run, built: Path, engine_file: Path, tiny_toml: Path) -> None:
    assert run("export", "--config", tiny_toml, "--batch", 1).status == 0
    done = run("build-trt", "--fp16", "--sm", "86", "--json", status=0)
    assert "note: building from the newest export, tiny-32-fp32-portable-b1-" in done.err
    assert "exporting" not in done.err
    assert Path(done.json["engine"]["path"]).name == engine_file.name


def test_another_precision_is_exported_from_the_stored_weights(run: Run, built: Path) -> None:
    (graph,) = (built / "onnx").glob("*.onnx")
    done = run("build-trt", "--fp32", "--sm", "86,89", "--json", status=0)
    note = f"{graph.name} is fp16 for tensorrt: exporting its weights again in fp32 for tensorrt"
    assert f"note: {note}" in done.err
    assert done.json["artifact"]["precision"] == done.json["attestation"]["asked"] == "fp32"
    assert done.json["engine"]["sm"] == ["86", "89"]
    assert set(done.json["attestation"]["found"]) == {"Float"}
    assert len(list((built / "onnx").glob("*.onnx"))) == 2
    assert len(list((built / "weights").iterdir())) == 1


def test_the_builders_log_is_kept(built: Path, engine_file: Path) -> None:
    log = built / manifest_of(engine_file)["details"]["engine"]["log"]
    assert "Layers:" in log.read_text()


def test_whether_it_runs_here_and_why_not(engine_file: Path) -> None:
    details = manifest_of(engine_file)["details"]
    assert details["runnable_here"] is (details["why_not"] is None)
    if device_capability() is None:
        assert details["runnable_here"] is False
        assert details["why_not"].startswith("no CUDA device: ")


def test_what_people_read(run: Run, built: Path) -> None:
    done = run("build-trt", "--sm", "86", status=0)
    for words in ("compute capability", "kernels by dtype", "attestation passed: asked fp16"):
        assert words in done.out
    assert done.out.splitlines()[-1].startswith("artifacts/engines/tiny-32-fp16-tensorrt-b1-sm86-")
    if device_capability() is None:
        assert "not runnable here: no CUDA device: " in done.out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("--fp32 --sm 90", 1, "cannot target SM 90; it targets 75, 80, 86, 89, 120, 121"),
        ("--fp32 --sm 86,90", 1, "cannot target SM 90; "),
        ("--fp32 --sm 75", 1, "SM 75 cannot multiply in it, SM 80 is the first"),
        ("--sm 86 --max-batch 8", 1, "takes batches of exactly 1, and profile 1:1:8 asks for oth"),
        ("junk.onnx", 1, "error: junk.onnx is no readable ONNX file ("),
        ("--sm ampere", 2, "sm is 'ampere'; expected capabilities such as '86,89', or 'portable'"),
    ],
)
def test_what_cannot_be_built(run: Run, built: Path, words: str, status: int, message: str) -> None:
    Path("junk.onnx").write_bytes(bytes(range(256)) * 10)
    assert message in run("build-trt", *words.split(), status=status).err
    assert len(list((built / "engines").glob("*.engine"))) == 1


def test_without_the_builder(run: Run, workspace: Path, bare_machine: None) -> None:
    run.fails("MissingDependencyError", "build-trt", "--sm", "86")


def test_native_without_a_device(run: Run, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2t_deploy.engine._choice.device_capability", lambda: None)
    assert run.fails("BackendError", "build-trt", "--fp16", "--sm", "native") == (
        "'native' builds for this machine's GPU and no CUDA device was found: name the "
        "targets (sm 86,89) or build a portable engine (sm portable)"
    )


def test_an_engine_is_no_source(run: Run, engine_file: Path) -> None:
    done = run("build-trt", engine_file, status=1)
    assert done.err == (
        f"error: {engine_file} is an engine; an engine is built from an ONNX file: name one, or "
        "none to take the newest export\n"
    )


@pytest.fixture
def foreign(built_once: Path) -> Path:
    """The fp16 graph as somebody else's file, in a folder with a space."""
    (graph,) = (built_once / "onnx").glob("*.onnx")
    Path("some models").mkdir()
    return Path(shutil.copy(graph, "some models/theirs.onnx"))


def test_a_foreign_file_is_built_as_it_is(run: Run, foreign: Path) -> None:
    done = run("build-trt", foreign, "--sm", "86", "--json", status=0)
    assert "note: theirs.onnx has no manifest: it is built as it is, never retyped" in done.err
    assert done.json["artifact"]["variant"] == "theirs"
    # nobody asked for a precision: it is the one that is found
    assert done.json["artifact"]["precision"] == "fp16"
    assert done.json["attestation"]["status"] == "passed"

    # its engine has no weights to compare with, so nothing was verified
    (result,) = run.json("verify", status=1)["results"]
    assert (result["status"], result["reason"]) == (
        *("not_run", "made from a file without manifest, so its reference is unknown"),
    )
    assert run("workspace", "check").status == 0
    assert run("inspect", done.json["engine"]["path"]).status == 0
    if device_capability() is None:
        assert "error: nothing here can be measured: no NVIDIA driver" in run("bench", status=1).err


def test_an_engine_of_the_wrong_precision_exits_3_and_is_refused(run: Run, foreign: Path) -> None:
    done = run("build-trt", foreign, "--fp32", "--sm", "86", "--json", status=3)
    attestation = done.json["attestation"]
    assert (attestation["status"], attestation["asked"]) == ("failed", "fp32")
    assert attestation["found"]["Half"] > 0.75
    assert attestation["reason"].startswith("fp32 was asked and ")
    assert f"error: failed: {attestation['reason']}" in done.err
    path = done.json["engine"]["path"]
    assert Path(path).is_file()
    assert f"{path} failed its check (fp32 was asked and " in run("bench", path, status=1).err
