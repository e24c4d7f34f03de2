"""`package`: what it prints, and how it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..web_runtime import write_runtime
from .command import Change, Run


def test_the_json(run: Run, onnx_file: Path) -> None:
    done = run(
        "package", "--triton", "models", "--format", "python", "--top", 3, "--json", status=0
    )
    found = done.json
    assert found["repository"] == "models"
    assert found["artifact"]["path"] == str(Path("artifacts/onnx") / onnx_file.name)
    assert found["model"] == {
        "name": "t2t_vit_tiny_fp32",
        "backend": "python",
        "accelerator": "none",
        "instances": "on CPU",
        "threads": 0,
        "max_batch_size": 32,
        "preferred_batch_sizes": [4, 8, 16, 32],
        "input": "image float32 (N, 3, 32, 32)",
        "outputs": ["logits float32 (N, 10)"],
        "tail": "logits",
    }
    assert found["ensemble"]["name"] == "t2t_vit_tiny_fp32_images"
    assert (found["ensemble"]["top"], found["ensemble"]["labels"]) == (3, False)
    assert [Path(folder).is_dir() for folder in found["folders"]] == [True] * 4
    assert "taking the newest artifact" in done.err


def test_in_words(run: Run, workspace: Path) -> None:
    done = run("package", "--triton", "models", status=0)
    assert "t2t_vit_tiny_fp32: onnxruntime, on CPU, batches up to 32" in done.out
    assert "tritonserver --model-repository=models" in done.out


def test_a_page_in_words(run: Run, workspace: Path) -> None:
    runtime = write_runtime(Path("runtime"))
    done = run("package", "--web", "page", "--ort-web", runtime, status=0)
    assert "t2t_vit_tiny_fp32: fp32, " in done.out
    assert "python -m http.server -d page" in done.out
    assert "taking the newest artifact" in done.err
    assert run("package", "--web", "page", "--triton", "models").status == 2


def test_errors_are_one_line(run: Run, onnx_file: Path, change_manifest: Change) -> None:
    assert run("package").status == 2
    assert run("package", "--triton", "models", "--format", "tensorrt", onnx_file).status == 2
    Path("models/t2t_vit_tiny_fp32").mkdir(parents=True)
    done = run("package", "--triton", "models", status=1)
    assert done.err.splitlines()[-1].startswith("error: models/t2t_vit_tiny_fp32 is there and not")
    failed = {"status": "failed", "reason": "off by 1"}
    change_manifest(onnx_file, verification=failed)
    done = run("package", "--triton", "other", onnx_file, status=1)
    assert "failed its check (off by 1)" in done.err
    assert not Path("other").exists()
    assert run("package", "--triton", "other", onnx_file, "--force").status == 0


OTHER_BASE = "was made for bf16 around its 8-bit products"
NO_VNNI = "without VNNI: serve it with --format python, or quantize"


@pytest.mark.parametrize(
    ("target", "known", "note", "noted"),
    [
        ("openvino", {"base": "bf16"}, OTHER_BASE, True),
        ("openvino", {"base": "fp32"}, OTHER_BASE, False),
        ("cpu", {"codes": "vnni"}, NO_VNNI, True),
        ("cpu", {"codes": "exact"}, NO_VNNI, False),
        ("portable", {"codes": "signed"}, NO_VNNI, True),
        # of files from before `codes`
        ("cpu", {}, NO_VNNI, False),
        ("portable", {}, NO_VNNI, True),
    ],
)
def test_what_the_server_may_compute_otherwise_is_noted(
    run: Run,
    onnx_file: Path,
    change_manifest: Change,
    target: str,
    known: Any,
    note: str,
    noted: bool,
) -> None:
    change_manifest(onnx_file, precision="int8", target=target, details={"quantization": known})
    done = run("package", "--triton", "models", "--format", "onnxruntime", onnx_file, status=0)
    assert (note in done.err) is noted
