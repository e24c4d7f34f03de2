"""The whole way with a real runtime: an ONNX file, ONNX Runtime, a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from t2t_deploy.bench import BenchCase, BenchStatus, run_bench
from t2t_deploy.runtime import SessionRequest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def write_matmul(path: Path) -> None:
    """logits = image @ W, (N, 64) -> (N, 10)."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((64, 10), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "weight"], ["logits"])],
        "matmul",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def test_a_real_file_is_measured_and_a_missing_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "matmul.onnx"
    write_matmul(path)
    cases = [
        BenchCase(SessionRequest("ort-cpu", file, threads=1), file.name, "fp32", batch=2)
        for file in (tmp_path / "missing.onnx", path)
    ]
    missing, measured = run_bench(cases, rounds=5, round_seconds=0.005).results

    assert missing.status is BenchStatus.FAILED
    assert missing.reason is not None and "missing.onnx" in missing.reason

    assert (measured.status, measured.reason) == (BenchStatus.OK, None)
    assert measured.warm_up is not None and measured.warm_up.iterations >= 7
    assert [round_.number for round_ in measured.rounds] == [1, 2, 3, 4, 5]
    assert measured.load_ms is not None and measured.load_ms > 0
    assert measured.first_call_ms is not None and measured.first_call_ms > 0
