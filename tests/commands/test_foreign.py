"""Files of others that a TensorRT would compute otherwise than ONNX says."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2t_deploy._optional import is_installed
from t2t_deploy._progress import silent
from t2t_deploy.commands import build_engine
from t2t_deploy.engine import check_foreign
from t2t_deploy.errors import EngineError
from t2t_deploy.workspace import Workspace


def quantised(zero: np.ndarray | None, *, inputs: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """x -> QuantizeLinear -> DequantizeLinear -> y with a step of 1."""
    stored = [numpy_helper.from_array(np.array(1, np.float32), "step")]
    operands = ["x32", "step"]
    if zero is not None:
        stored.append(numpy_helper.from_array(zero, "zero"))
        operands.append("zero")
    nodes = [
        helper.make_node("Cast", ["x"], ["x32"], "cast", to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", operands, ["codes"], "quantise"),
        helper.make_node("DequantizeLinear", ["codes", *operands[1:]], ["y"], "back"),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", inputs, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        stored,
    )
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("zero", [None, np.array(0, np.uint8)])
def test_unsigned_codes_are_refused_by_node(zero: np.ndarray | None) -> None:
    told = r"^other.onnx quantises to unsigned codes, 0 to 255, in quantise; TensorRT would read"
    with pytest.raises(EngineError, match=told):
        check_foreign(quantised(zero), "other.onnx", silent)


def test_an_output_type_tells_what_a_missing_zero_does_not() -> None:
    model = quantised(None)
    model.graph.node[1].attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))
    check_foreign(model, "other.onnx", silent)
    model.graph.node[1].attribute[0].i = TensorProto.UINT8
    with pytest.raises(EngineError, match="unsigned codes"):
        check_foreign(model, "other.onnx", silent)


def test_signed_codes_pass_without_a_word() -> None:
    check_foreign(quantised(np.array(0, np.int8)), "other.onnx", Mock(spec=[]))


def test_a_float64_input_is_noted() -> None:
    said = Mock(spec=["note"])
    model = quantised(np.array(0, np.int8), inputs=TensorProto.DOUBLE)
    check_foreign(model, "other.onnx", said)
    told = "input x of other.onnx is float64; the engine takes it as float32"
    said.note.assert_called_once_with(told)


def test_build_trt_asks(tmp_path: Path) -> None:
    if not is_installed("tensorrt_rtx"):
        pytest.skip("tensorrt_rtx is not installed")
    path = tmp_path / "other.onnx"
    onnx.save(quantised(None), path)
    with pytest.raises(EngineError, match="unsigned codes"):
        build_engine(artifact=path, sm="86", workspace=Workspace(tmp_path / "artifacts"))
