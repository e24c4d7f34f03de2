"""`export_onnx` from Python: what it returns, and what it tells on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest

from t2t_deploy.commands import calibrate_onnx, export_onnx, quantize_onnx
from t2t_deploy.errors import UsageError
from t2t_deploy.graph import read_onnx, summarise_graph
from t2t_deploy.types import Precision, Target

from ..small import tiny_exports, tiny_model

TINY = tiny_model("transformer", depth=1)


def test_what_is_returned_and_told() -> None:
    config = Path("größe klein.toml")
    config.write_text(TINY)
    told = Mock(spec=["step", "note"])  # an export has no progress to show
    dims: dict[str, Any] = {"config": config, "num_classes": 3, "image_size": 48}
    artifact = export_onnx(**dims, precision=Precision.FP16, progress=told)
    manifest = artifact.require_manifest()
    assert artifact.path.name.startswith("größe_klein-48-fp16-portable-")
    assert (manifest.config["num_classes"], manifest.config["image_size"]) == (3, 48)
    assert manifest.weights["source"] == {"kind": "random", "seed": 0}
    assert manifest.parents == ({"kind": "weights", "sha256": manifest.weights["sha256"]},)
    assert manifest.verification is not None
    assert manifest.verification["status"] == "passed"
    assert 1e-5 < manifest.verification["rel_l2"] < manifest.verification["tolerance"] == 5e-3
    steps = ("exporting größe klein in fp16", "verifying the file against the reference")
    assert told.step.mock_calls == [call(step) for step in steps]
    assert told.note.mock_calls == [call(note) for note in manifest.details["notes"]]
    assert "serve benchmarking only" in manifest.details["notes"][0]


@pytest.mark.parametrize(
    ("precision", "ends"), [("fp32", {}), ("fp16", {"tail": "topk"}), ("bf16", {})]
)
def test_a_graph_for_cuda_is_verified_on_a_cpu(
    tmp_path: Path, precision: str, ends: dict[str, Any]
) -> None:
    form = {"precision": precision, "target": "cuda", **ends}
    (artifact,) = tiny_exports(tmp_path, form, model=TINY).artifacts()
    manifest = artifact.require_manifest()
    assert manifest.verification is not None
    assert manifest.verification["status"] == "passed"
    ops = summarise_graph(read_onnx(artifact.path)).ops
    fused = {"MultiHeadAttention": 3, "SkipLayerNormalization": 3, "BiasGelu": 3}
    assert {op: ops.get(op, 0) for op in fused} == (
        dict.fromkeys(fused, 0) if precision == "bf16" else fused
    )
    for refused in (quantize_onnx, calibrate_onnx):
        with pytest.raises(UsageError, match="there are no 8-bit graphs for target cuda"):
            refused(artifact.path, images=tmp_path)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"precision": "fp16"}, "fp16 for ncnn: .*; expected precision fp32"),
        ({"tail": "topk"}, "tail topk for ncnn, which has no TopK: expected softmax"),
        ({"embed_preprocess": True}, "a uint8 input for ncnn, .*; leave --embed-preprocess out"),
        ({"batch": 3}, "batch 3 for ncnn, .*; expected batch 1 or dynamic"),
    ],
)
def test_what_ncnn_lacks_is_said_before_the_work(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        export_onnx(variant="7", target="ncnn", **asked)


def test_the_same_model_gives_the_same_bytes() -> None:
    Path("tiny.toml").write_text(TINY)
    request: dict[str, Any] = {"config": "tiny.toml", "batch": 1, "target": Target.TENSORRT}
    one, two = (export_onnx(**request, workspace=name) for name in ("one", "two"))
    assert one.require_manifest().sha256 == two.require_manifest().sha256
