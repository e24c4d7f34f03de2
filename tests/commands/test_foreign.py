"""Files of others that a TensorRT would compute otherwise than ONNX says."""

from __future__ import annotations

from unittest.mock import Mock

import onnx
import pytest

from t2t_deploy._optional import is_installed
from t2t_deploy._progress import silent
from t2t_deploy.commands import build_engine
from t2t_deploy.engine import check_foreign
from t2t_deploy.errors import EngineError

from ..onnx_models import parsed

UNSIGNED, SIGNED = ", uint8 zero = {0}", ", int8 zero = {0}"


def quantised(zero: str = "", more: str = "", inputs: str = "float") -> onnx.ModelProto:
    """x -> QuantizeLinear -> DequantizeLinear -> y with a step of 1; more: a type of codes."""
    operands = "step, zero" if zero else "step"
    return parsed(
        f"""foreign ({inputs}[1,4] x) => (float[1,4] y) <float step = {{1}}{zero}> {{
            [cast] x32 = Cast<to = 1>(x)
            [quantise] codes = QuantizeLinear{more}(x32, {operands})
            [back] y = DequantizeLinear(codes, {operands})
        }}""",
        opset=21,
    )


@pytest.mark.parametrize("zero", ["", UNSIGNED])
def test_unsigned_codes_are_refused_by_node(zero: str) -> None:
    message = r"^other.onnx quantises to unsigned codes, 0 to 255, in quantise; TensorRT would read"
    with pytest.raises(EngineError, match=message):
        check_foreign(quantised(zero), "other.onnx", silent)


def test_an_output_type_tells_what_a_missing_zero_does_not() -> None:
    check_foreign(quantised(more="<output_dtype = 3>"), "other.onnx", silent)
    with pytest.raises(EngineError, match="unsigned codes"):
        check_foreign(quantised(more="<output_dtype = 2>"), "other.onnx", silent)


def test_signed_codes_pass_without_a_word() -> None:
    check_foreign(quantised(SIGNED), "other.onnx", Mock(spec=[]))


def test_a_float64_input_is_noted() -> None:
    progress = Mock(spec=["note"])
    check_foreign(quantised(SIGNED, inputs="double"), "other.onnx", progress)
    note = "input x of other.onnx is float64; the engine takes it as float32"
    progress.note.assert_called_once_with(note)


def test_build_trt_asks() -> None:
    if not is_installed("tensorrt_rtx"):
        pytest.skip("tensorrt_rtx is not installed")
    onnx.save(quantised(), "other.onnx")
    with pytest.raises(EngineError, match="unsigned codes"):
        build_engine("other.onnx", sm="86")
