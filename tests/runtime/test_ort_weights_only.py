"""Graphs whose weights alone are codes, and FP8, in ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from t2t_deploy._optional import require
from t2t_deploy.runtime import SessionRequest, open_session, why_not_in
from t2t_deploy.types import Precision

from ..onnx_models import constants, save_model

ROWS, INPUTS, OUTPUTS = 8, 64, 32


def weights_only(path: Path) -> np.ndarray:
    """x @ dequantised codes, written to a file; returns the weight."""
    random = np.random.RandomState(0)
    codes = random.randint(-127, 128, (INPUTS, OUTPUTS)).astype(np.int8)
    scale = np.array(0.01, np.float32)
    stored: dict[str, np.ndarray] = {"codes": codes, "scale": scale, "zero": np.zeros((), np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", list(stored), ["w"], "w"),
        helper.make_node("MatMul", ["image", "w"], ["logits"], "product"),
    ]
    save_model(path, nodes, constants(stored), [ROWS, INPUTS], [ROWS, OUTPUTS], opset=20)
    return np.asarray(codes.astype(np.float32) * scale)


def test_activations_stay_float_beside_8_bit_weights(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 alone makes 8-bit activations of them: the error is 1 % instead of 1e-6."""
    path = tmp_path / "weights.onnx"
    weight = weights_only(path)
    x = np.random.RandomState(1).standard_normal((ROWS, INPUTS)).astype(np.float32)
    wanted = x @ weight

    def error(y: np.ndarray) -> float:
        return float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted))

    with open_session(SessionRequest("ort-cpu", path)) as session:
        assert error(session.run({"image": x})["logits"]) < 1e-5
    ort = require("onnxruntime")
    plain = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert error(plain.run(None, {"image": x})[0]) > 1e-3


@pytest.mark.parametrize(
    ("version", "refused"), [("1.31.1", True), ("1.32.0", False), ("2.0.0", False)]
)
@pytest.mark.parametrize("precision", [Precision.FP8, Precision.FP8_WEIGHTS])
def test_fp8_needs_a_newer_runtime(
    precision: Precision, version: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(require("onnxruntime"), "__version__", version)
    reason = why_not_in("ort-cpu", precision)
    if refused:
        assert reason is not None
        assert reason.startswith("ONNX Runtime 1.31.1 refuses FP8 graphs; expected 1.32 or newer")
    else:
        assert reason is None
    assert why_not_in("ort-cpu", Precision.INT8) is None
