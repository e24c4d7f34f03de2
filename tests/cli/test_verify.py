"""A wrong artifact is found, kept, and refused afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import t2t_deploy.export
from t2t_deploy._optional import is_installed

Run = Callable[..., Any]
RESULT = {
    *("artifact", "status", "rel_l2", "max_abs", "cosine", "top1_agreement", "tolerance"),
    "reason",
}


def spoil(model: onnx.ModelProto, scale: float) -> None:
    """Multiply the classifier's weights, 10 classes from 16 channels; everything stays valid."""
    (tensor,) = (t for t in model.graph.initializer if sorted(t.dims) == [10, 16])
    values = numpy_helper.to_array(tensor) * np.float32(scale)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.fixture
def wrong_exporter(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Make every export from now on wrong by a factor."""
    right = t2t_deploy.export.onnx_from_deploy

    def patch(scale: float) -> None:
        def wrong(*arguments: Any, **options: Any) -> onnx.ModelProto:
            model = right(*arguments, **options)
            spoil(model, scale)
            return model

        monkeypatch.setattr(t2t_deploy.export, "onnx_from_deploy", wrong)

    return patch


@pytest.fixture
def wrong_file(onnx_file: Path, change_manifest: Callable[..., None]) -> Path:
    """An export whose file does not compute what its manifest says it verified."""
    model = onnx.load(onnx_file)
    spoil(model, 1.01)
    onnx.save(model, onnx_file)
    change_manifest(onnx_file, sha256=None)
    return onnx_file


def test_a_wrong_export_exits_3_and_is_kept(
    run: Run, tiny_toml: Path, wrong_exporter: Callable[[float], None]
) -> None:
    wrong_exporter(1.01)
    done = run("export", "--config", tiny_toml, "--batch", 1, "--json")
    assert done.status == 3
    verification = done.json["verification"]
    assert verification["status"] == "failed"
    assert verification["tolerance"] == 1e-5 < 5e-3 < verification["rel_l2"] < 2e-2
    reason = verification["reason"]
    assert reason.startswith("relative error ") and reason.endswith(", tolerance 1e-05")
    path = done.json["artifact"]["path"]
    where = f"which layer: t2t-deploy verify --locate {path}"
    assert done.err.splitlines()[-1] == f"error: failed: {reason}; {where}"
    assert Path(path).is_file()


def test_a_failed_artifact_is_refused_unless_forced(
    run: Run, tiny_toml: Path, wrong_exporter: Callable[[float], None]
) -> None:
    wrong_exporter(1.01)
    path = run("export", "--config", tiny_toml, "--batch", 1, "--json").json["artifact"]["path"]
    for command in ("build-trt", "bench"):
        done = run(command, path)
        assert done.status == 1
        assert f"{path} failed its check (relative error " in done.err
        assert "; fix the cause and re-export, or use --force" in done.err

    done = run("build-trt")
    assert done.status == 1
    assert "every suitable onnx artifact of workspace artifacts failed its check" in done.err
    assert "pass --force" in done.err
    done = run("bench")
    assert done.status == 1
    assert f"note: left out {Path(path).name}: relative error " in done.err
    assert "nothing to bench" in done.err

    (listed,) = (line for line in run("workspace", "list").out.splitlines() if ".onnx" in line)
    assert "failed: relative error" in listed


def test_a_failed_artifact_is_built_with_force(
    run: Run, tiny_toml: Path, wrong_exporter: Callable[[float], None], tensorrt_rtx: None
) -> None:
    wrong_exporter(1.01)
    run("export", "--config", tiny_toml, "--batch", 1)
    done = run("build-trt", "--force", "--json")
    assert done.status == 0, done.err
    assert done.json["artifact"]["precision"] == "fp32"


def test_logits_that_are_no_numbers(
    run: Run, tiny_toml: Path, wrong_exporter: Callable[[float], None]
) -> None:
    wrong_exporter(float("nan"))
    done = run("export", "--config", tiny_toml, "--batch", 1)
    reason = (
        "80 of 80 logits of the artifact are NaN or infinite, first on noise 0; NaN or infinity is "
        "stored in head.weight"
    )
    assert done.status == 3
    assert f"verification failed: {reason}" in done.out
    assert done.err.splitlines()[-1].startswith(f"error: failed: {reason}; which layer: ")


def test_verify_finds_a_wrong_file(run: Run, wrong_file: Path) -> None:
    done = run("verify", "--json")
    assert done.status == 3
    (result,) = done.json["results"]
    assert set(result) >= RESULT
    assert result["artifact"] == str(Path("artifacts/onnx", wrong_file.name))
    assert (result["status"], result["top1_agreement"]) == ("failed", 1.0)
    assert result["reason"].startswith("relative error ")
    assert f"failed verification: {wrong_file.name}" in done.err
    # from now on it is refused; verifying it again is not
    assert run("bench").status == 1
    assert run("verify", wrong_file).status == 3


def test_verify_clears_what_is_mended(
    run: Run, onnx_file: Path, change_manifest: Callable[..., None]
) -> None:
    verification = json.loads(Path(f"{onnx_file}.manifest.json").read_text())["verification"]
    change_manifest(onnx_file, verification=verification | {"status": "failed"})
    assert run("build-trt", onnx_file).status == 1
    assert run("verify").status == 0
    assert json.loads(Path(f"{onnx_file}.manifest.json").read_text())["verification"] == (
        verification
    )


def test_own_pictures(run: Run, onnx_file: Path, wrong_file: Path) -> None:
    pictures = Path("my pictures")
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (3, 50, 70, 3), np.uint8)
    for name, pixels in zip(("a.jpg", "b.png", "ü.JPEG"), noise, strict=True):
        Image.fromarray(pixels).save(pictures / name)
    Path(pictures, "notes.txt").write_text("no picture")
    manifest = Path(f"{onnx_file}.manifest.json").read_text()

    done = run("verify", "--images", pictures, "--json")
    assert done.status == 3
    (result,) = done.json["results"]
    assert set(result["pictures"]) == {"a.jpg", "b.png", "ü.JPEG"}
    # the manifest keeps the verdict on the standard pictures
    assert Path(f"{onnx_file}.manifest.json").read_text() == manifest


def test_more_pictures_than_are_taken(run: Run, workspace: Path) -> None:
    pictures = Path("many")
    pictures.mkdir()
    for index in range(66):
        Image.new("RGB", (40, 40), (index, 99, 200)).save(pictures / f"{index:02}.png")
    done = run("verify", "--images", pictures, "--json")
    assert done.status == 0
    assert len(done.json["results"][0]["pictures"]) == 64
    assert "note: took the first 64 pictures, left out 2" in done.err


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("missing", "missing is not a folder; give one with pictures"),
        ("empty", "empty holds no picture (.bmp, .gif, .jpeg, .jpg, "),
        ("broken", "cannot read the picture broken/cut.png: "),
    ],
)
def test_folders_without_pictures(run: Run, workspace: Path, folder: str, message: str) -> None:
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    done = run("verify", "--images", folder)
    assert done.status == 1
    assert f"error: {message}" in done.err


def test_an_engine_is_not_run_and_says_why(run: Run, engine_file: Path) -> None:
    done = run("verify", engine_file, "--json")
    assert done.status == 0
    (result,) = done.json["results"]
    assert (result["status"], result["rel_l2"], result["tolerance"]) == ("not_run", None, 5e-3)
    assert result["reason"]


def test_bf16_is_evaluated_node_by_node(run: Run, tiny_toml: Path) -> None:
    """No runtime on a CPU multiplies in bf16: the result says how it was got instead."""
    done = run("export", "--config", tiny_toml, "--batch", 1, "--precision", "bf16", "--json")
    assert done.status == 0
    for verification in (done.json["verification"], run("verify", "--json").json["results"][0]):
        assert verification["status"] == "passed"
        assert 1e-3 < verification["rel_l2"] < verification["tolerance"] == 4e-2
        assert "evaluated node by node on 3 pictures" in verification["reason"]


def test_files_that_cannot_be_verified(run: Run, onnx_file: Path) -> None:
    done = run("verify", "no.onnx")
    assert (done.status, done.err) == (
        1,
        "error: there is no artifact no.onnx; 't2t-deploy workspace list' shows what there is\n",
    )
    foreign = onnx_file.rename("foreign.onnx")
    done = run("verify", foreign)
    assert done.status == 1
    assert "foreign.onnx has no manifest, so its weights and variant are unknown" in done.err
    assert "use a file that t2t-deploy exported" in done.err
    done = run("verify", "--workspace", "empty")
    assert (done.status, done.err) == (
        1,
        "error: workspace empty has no artifact; make one first: t2t-deploy export\n",
    )


def test_without_onnxruntime(run: Run, tiny_toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2t_deploy.runtime._backend.is_installed", lambda module: False)
    done = run("export", "--config", tiny_toml, "--batch", 1, "--json")
    assert done.status == 0
    verification = done.json["verification"]
    assert (verification["status"], verification["reason"]) == (
        *("not_run", "onnxruntime is not installed: pip install 't2t-deploy[cpu]'"),
    )


@pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
def test_another_runtimes_verdict_is_told_and_not_kept(
    run: Run, wrong_file: Path, change_manifest: Callable[..., None]
) -> None:
    manifest = Path(f"{wrong_file}.manifest.json")
    before = manifest.read_bytes()
    done = run("verify", wrong_file, "--backend", "openvino", "--json")
    assert done.status == 3
    (result,) = done.json["results"]
    assert result["status"] == "failed" and 5e-3 < result["rel_l2"] < 2e-2
    assert manifest.read_bytes() == before
    assert run("verify", wrong_file, "--json").status == 3
    assert manifest.read_bytes() != before


@pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_in_openvino(run: Run, tiny_toml: Path, precision: str) -> None:
    run("export", "--config", tiny_toml, "--precision", precision)
    done = run("verify", "--backend", "openvino", "--json")
    assert done.status == 0
    (result,) = done.json["results"]
    if precision == "fp32":
        assert result["status"] == "passed" and 1e-8 < result["rel_l2"] < 1e-5
    else:
        assert result["status"] == "not_run"
        assert "would compute fp16 in float32" in result["reason"]


def test_a_backend_to_verify_on_is_one_of_two(run: Run, workspace: Path) -> None:
    done = run("verify", "--backend", "eager")
    assert done.status == 2
    assert done.err.startswith(
        "error: --backend is 'eager'; ONNX files are compared on ort-cpu or openvino: name one"
    )
