"""The job itself: checkpoint -> verified ONNX -> engine -> table, and what scripts read of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy._optional import is_installed
from t2t_deploy.export import DEFAULT_OPSET

from ..program import finish
from .command import Run


def test_in_order_in_an_empty_folder(tiny_toml: Path, tmp_path: Path, tensorrt_rtx: None) -> None:
    def t2t_deploy(*words: str) -> Any:
        return finish(*words, "--json", status=0).json

    exported = t2t_deploy("export", "--config", str(tiny_toml))
    artifact = exported["artifact"]
    onnx_path = Path(artifact["path"])
    assert onnx_path.parent == Path("artifacts/onnx")
    assert sha256(tmp_path / onnx_path) == artifact["sha256"]
    assert (artifact["variant"], artifact["precision"], artifact["batch"]) == (
        *("tiny", "fp32", "dynamic"),
    )
    assert (artifact["image_size"], artifact["num_classes"]) == (32, 10)
    assert artifact["opset"] == DEFAULT_OPSET
    assert set(artifact["strategies"]) >= {"soft_split", "performer"}
    assert len(artifact["strategies"]["soft_split"]) == 3
    assert exported["verification"]["status"] == "passed"
    assert exported["verification"]["tolerance"] == 1e-5
    assert exported["verification"]["rel_l2"] <= 1e-5

    built = t2t_deploy("build-trt", "--fp16", "--sm", "86")
    assert built["artifact"]["precision"] == "fp16"
    engine = built["engine"]
    assert (engine["backend"], engine["sm"]) == ("tensorrt-rtx", ["86"])
    assert sha256(tmp_path / engine["path"]) == engine["sha256"]
    assert engine["size_bytes"] == (tmp_path / engine["path"]).stat().st_size
    assert sum(engine["kernels_by_dtype"].values()) == engine["kernels"]
    assert engine["kernels_by_dtype"]["Half"] > engine["kernels_by_dtype"]["Float"]
    assert built["attestation"]["status"] == "passed"
    assert built["attestation"]["asked"] == "fp16"

    # the engine and the graph it is made of find their way to the export's weights
    manifest = json.loads((tmp_path / f"{engine['path']}.manifest.json").read_text())
    (parent,) = manifest["parents"]
    graph = tmp_path / "artifacts/onnx" / parent["file"]
    assert sha256(graph) == parent["sha256"]
    stored = {manifest["weights"]["sha256"]}
    assert {file.stem for file in (tmp_path / "artifacts/weights").iterdir()} == stored

    rows = t2t_deploy("bench", "--rounds", "5", "--threads", "1")["results"]
    ok = {row["backend"]: row for row in rows if row["status"] == "ok"}
    assert set(ok) == {"eager", "ort-cpu"} | ({"openvino"} if is_installed("openvino") else set())
    assert ok["ort-cpu"]["artifact"] == onnx_path.name
    assert set(ok["ort-cpu"]["latency_ms"]) == {"p50", "p90", "p99", "mean", "stdev", "samples"}
    assert set(ok["ort-cpu"]["speedup_vs_eager"]) == {"ratio", "low", "high"}
    assert ok["eager"]["speedup_vs_eager"] is None
    assert all(row["peak_rss_bytes"] > 0 for row in ok.values())
    rest = [row for row in rows if row["status"] != "ok"]
    assert {row["status"] for row in rest} == {"not_run"}
    assert all(row["reason"] and row["latency_ms"] is None for row in rest)
    assert {row["backend"] for row in rest} >= {"compile", "ort-cuda", "openvino", "tensorrt-rtx"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("quiet", [(), ("-q",)], ids=["usual", "quiet"])
def test_what_people_read(run: Run, tiny_toml: Path, quiet: tuple[str, ...]) -> None:
    done = run("export", "--config", tiny_toml, "--batch", 1, *quiet, status=0)
    assert "verification passed: relative error" in done.out
    (path,) = Path("artifacts/onnx").glob("*.onnx")
    assert done.out.splitlines()[-1] == str(path)
    if quiet:
        assert done.err == ""
    else:
        assert "seeded random numbers: they serve benchmarking only" in done.err


def test_workspace_variable(run: Run, exported_once: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2T_DEPLOY_WORKSPACE", str(exported_once))
    (listed,) = run.json("workspace", "list")["artifacts"]
    assert Path(listed["path"]).parent == exported_once / "onnx"
    assert run.json("workspace", "list", "--workspace", "other") == {"artifacts": []}
    assert not Path("artifacts").exists() and not Path("other").exists()


def test_an_output_file_serves_as_artifact(run: Run, tiny_toml: Path) -> None:
    output = Path("my models") / "größe 1.onnx"
    output.parent.mkdir()
    output.write_text("what stood here before")
    exported = run.json("export", "--config", tiny_toml, "--batch", 1, "-o", output)
    assert exported["artifact"]["path"] == str(output)
    assert {path.name for path in output.parent.iterdir()} == {
        output.name,
        f"{output.name}.manifest.json",
    }
    assert not Path("artifacts/onnx").exists()

    (result,) = run.json("verify", output, status=0)["results"]
    assert (result["artifact"], result["status"]) == (str(output), "passed")

    again = run.json("export", "--config", tiny_toml, "--batch", 2, "-o", output)
    assert again["artifact"]["sha256"] == sha256(output) != exported["artifact"]["sha256"]
    assert run.json("inspect", output)["artifacts"][0]["manifest"]["batch"] == 2


def test_a_workspace_can_be_moved(run: Run, workspace: Path) -> None:
    moved = workspace.rename("verschoben nach 東京")
    done = run.json("verify", "--workspace", moved, status=0)
    assert [row["status"] for row in done["results"]] == ["passed"]
