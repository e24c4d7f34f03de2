"""`inspect`, `variants` and `doctor`."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

import onnx
import pytest

from t2t_deploy._optional import is_installed
from t2t_deploy.engine import why_no_device
from t2t_deploy.export import DEFAULT_OPSET

from ..onnx_models import parsed
from ..program import finish
from .command import Run


def test_an_export(run: Run, onnx_file: Path) -> None:
    (found,) = run.json("inspect", onnx_file, status=0)["artifacts"]
    model = onnx.load(onnx_file)
    assert found["graph"]["nodes"] == len(model.graph.node) == sum(found["graph"]["ops"].values())
    assert found["graph"]["opset"] == DEFAULT_OPSET
    assert found["graph"]["inputs"] == ["image float32 (N, 3, 32, 32)"]
    assert found["graph"]["outputs"] == ["logits float32 (N, 10)"]
    assert set(found["graph"]["weight_bytes"]) <= {"float32", "int64"}
    manifest = found["manifest"]
    assert (manifest["variant"], manifest["precision"], manifest["batch"]) == (
        *("tiny", "fp32", "dynamic"),
    )
    assert manifest["weights"]["source"] == {"kind": "random", "seed": 0}
    assert manifest["verification"]["status"] == "passed"
    assert manifest["tools"]["torch"]


def test_by_name_alone(run: Run, onnx_file: Path) -> None:
    done = run.json("inspect", onnx_file.name)
    assert done["artifacts"][0]["path"] == f"artifacts/onnx/{onnx_file.name}"


def test_in_another_runtime(run: Run, onnx_file: Path) -> None:
    known = run.json("inspect", onnx_file, "--runtime", "tract", status=0)["artifacts"][0]
    assert known["runtime"] == {"name": "tract", "tried": "0.23.9", "faults": []}
    (told,) = run("inspect", onnx_file, "--runtime", "tract").out.splitlines()[-1:]
    assert told == f"{onnx_file.name} in tract (0.23.9): nothing is known against it"

    done = run("inspect", onnx_file, onnx_file, "--runtime", "onnxruntime-ggml", "--json", status=3)
    (fault,) = done.json["artifacts"][1]["runtime"]["faults"]
    assert fault["silent"] and fault["way_out"] == "export in fp16, whose numbers fit"
    said = f"{onnx_file.name} in onnxruntime-ggml: {fault['reason']}; {fault['way_out']}"
    assert f"{said}; {said}" in done.err and done.err.count("\n") == 1


def test_an_engine_is_for_no_other_runtime(run: Run, built: Path, engine_file: Path) -> None:
    done = run("inspect", engine_file, "--runtime", "mnn", status=2)
    assert done.err == (
        f"error: {engine_file.name} is an engine, for TensorRT alone; name an ONNX file\n"
    )


def test_an_engine_beside_its_graph(run: Run, built: Path, engine_file: Path) -> None:
    (graph,) = (built / "onnx").glob("*.onnx")
    engine, source = run.json("inspect", engine_file, graph, status=0)["artifacts"]
    assert engine["manifest"]["parents"][0]["sha256"] == source["manifest"]["sha256"]
    assert engine["engine"]["kernels"] == sum(engine["engine"]["kernels_by_dtype"].values())
    assert engine["attestation"]["status"] == "passed"
    line = engine["engine"]["trtexec"]
    assert line.startswith(f"tensorrt_rtx --onnx={graph.name} ") and "/" not in line
    assert "float16" in source["graph"]["weight_bytes"]

    done = run("inspect", engine_file, graph, status=0)
    assert engine_file.name in done.out and graph.name in done.out
    (kernels,) = (line for line in done.out.splitlines() if "engine.kernels " in line)
    assert str(engine["engine"]["kernels"]) in kernels


def test_a_foreign_file(run: Run, onnx_file: Path) -> None:
    shutil.copy(onnx_file, "theirs.onnx")
    (found,) = run.json("inspect", "theirs.onnx")["artifacts"]
    assert found["manifest"] is None
    assert found["graph"]["inputs"] == ["image float32 (N, 3, 32, 32)"]


def test_a_foreign_file_whose_weights_lie_elsewhere(run: Run) -> None:
    away = '["location": "split.weights", "offset": "0", "length": "16384"]'
    graph = f"g (float[n,64] x) => (float[n,64] y) <float[64,64] w = {away}> {{ y = MatMul(x, w) }}"
    Path("split.onnx").write_bytes(parsed(graph).SerializeToString())
    done = run.json("inspect", "split.onnx", status=0)
    assert done["artifacts"][0]["graph"]["weight_bytes"] == {"float32": 4 * 4096}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no model at all", "junk.onnx is no readable ONNX file ("),
        (bytes(range(256)) * 10, "junk.onnx is no readable ONNX file ("),
        (b"", "junk.onnx holds no ONNX graph; name an .onnx file"),
    ],
)
def test_a_file_that_is_no_model(run: Run, content: bytes, message: str) -> None:
    Path("junk.onnx").write_bytes(content)
    assert message in run.fails("ArtifactError", "inspect", "junk.onnx")


def test_no_such_file(run: Run) -> None:
    done = run("inspect", "no.onnx", status=1)
    assert "there is no artifact no.onnx; 't2t-deploy workspace list' shows" in done.err


def test_variants(run: Run) -> None:
    rows = {row["variant"]: row for row in run.json("variants", status=0)["variants"]}
    assert list(rows) == [
        *("7", "10", "12", "14", "19", "24", "t_14", "t_19", "t_24"),
        *("14_resnext", "14_wide", "dense", "14_se", "16_ghost"),
    ]
    assert rows["14"]["params"] == 21_545_550
    assert (rows["14"]["embed_dim"], rows["14"]["depth"], rows["14"]["num_heads"]) == (384, 14, 6)
    assert (rows["14"]["top1"], rows["14_resnext"]["top1"]) == (81.5, None)
    table = run("variants").out
    assert all(name in table for name in rows)
    assert "21.55" in table


def test_variants_need_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from t2t_deploy.cli import main; main()"
    assert len(finish("variants", "--json", code=code, status=0).json["variants"]) == 14


def test_doctor(run: Run) -> None:
    found = run.json("doctor", status=0)
    assert [backend["name"] for backend in found["backends"]] == [
        *("eager", "compile", "ort-cpu", "ort-cuda", "ort-tensorrt", "openvino"),
        *("tensorrt", "tensorrt-rtx"),
    ]
    assert all(backend["runs"] == (backend["reason"] is None) for backend in found["backends"])
    assert found["can"]["export"] == {"ok": True, "why_not": None}
    assert found["can"]["build-trt"]["ok"] is is_installed("tensorrt_rtx")
    assert found["versions"]["torch"]
    table = run("doctor").out
    assert "build-trt" in table and "ort-cpu" in table

    states = {backend["name"]: backend for backend in found["backends"]}
    ort = states["ort-cpu"]
    assert (ort["importable"], ort["device"], ort["builds"], ort["runs"], ort["steps"]) == (
        *(True, True, None, True, []),
    )
    assert ort["version"] == importlib.metadata.version("onnxruntime")
    rtx, absent = states["tensorrt-rtx"], why_no_device()
    assert rtx["builds"] is rtx["importable"] is is_installed("tensorrt_rtx")
    assert rtx["device"] is (absent is None)
    if absent is not None:
        assert (rtx["reason"], rtx["next_step"]) == (absent.reason, absent.next_step)
        # told once, of all four
        (line,) = (line for line in table.split("\n") if absent.reason in line)
        assert line.startswith("ort-cuda, ort-tensorrt, tensorrt, tensorrt-rtx: ")
    for state in states.values():
        assert bool(state["steps"]) is not (state["runs"] and state["builds"] is not False)


def test_doctor_for_a_bug_report(run: Run) -> None:
    done = run("doctor", "--report", status=0)
    assert done.err == ""
    assert done.out.startswith("t2t-deploy ") and "| eager |" in done.out
    assert run.json("doctor", "--report") == {"report": done.out.removesuffix("\n")}


def test_doctor_on_a_bare_machine_tells_every_missing_step(run: Run, bare_machine: None) -> None:
    done = run.json("doctor", status=0)
    missing = "torch is not installed; this step needs it: pip install 't2t-deploy[export]'"
    assert done["can"]["export"] == {"ok": False, "why_not": missing}
    states = {state["name"]: state for state in done["backends"]}
    assert states["ort-cpu"]["reason"] == "onnxruntime is not installed"
    assert states["eager"]["reason"] == "torch is not installed"
    # of TensorRT both the device, which comes first, and the package
    steps = states["tensorrt"]["steps"]
    assert steps[-1] == "tensorrt is not installed: pip install 't2t-deploy[tensorrt]'"
    assert len(steps) == (1 if why_no_device() is None else 2)
    assert (states["tensorrt"]["version"], states["tensorrt"]["importable"]) == (None, False)


def test_export_without_torch(run: Run, tiny_toml: Path, bare_machine: None) -> None:
    done = run("export", "--config", tiny_toml, status=1)
    missing = "error: torch is not installed; this step needs it: pip install 't2t-deploy[export]'"
    assert done.err == f"{missing}\n"
