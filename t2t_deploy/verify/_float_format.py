"""The floating-point types of a graph, and rounding to them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from t2t_deploy._optional import require


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A floating-point type: its largest finite number and its smallest normal one."""

    name: str
    max: float
    smallest_normal: float

    @property
    def dtype(self) -> np.dtype[Any]:
        """As numpy knows it, bfloat16 by the package that onnx brings."""
        import onnx

        code = onnx.TensorProto.DataType.Value(_ONNX_NAMES[self.name])
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))

    def round(self, values: np.ndarray) -> np.ndarray:
        """float32 values as the nearest of this type, ties to even, infinite where it ends."""
        if self.name == "float32":
            return values
        if self.name == "float16":
            result: np.ndarray = _float16_and_back().run(None, {"x": values})[0]
            return result
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(self.dtype).astype(np.float32)


# Largest finite and smallest normal number, IEEE 754 binary32 and binary16, and bfloat16.
FLOAT32 = FloatFormat("float32", float(np.finfo(np.float32).max), 2.0**-126)
FLOAT16 = FloatFormat("float16", 65504.0, 2.0**-14)
BFLOAT16 = FloatFormat("bfloat16", (2 - 2.0**-7) * 2.0**127, 2.0**-126)
_ONNX_NAMES = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}
FORMATS = {_ONNX_NAMES[form.name]: form for form in (FLOAT32, FLOAT16, BFLOAT16)}
"""By the names that ONNX has for them."""


def float_format(code: int) -> FloatFormat | None:
    """What ONNX's code of an element type stands for; None where it is no float of these."""
    import onnx

    return FORMATS.get(onnx.TensorProto.DataType.Name(code))


@functools.cache
def _float16_and_back() -> Any:
    """ONNX Runtime's two casts, which are the processor's: 0.5 ns a number.

    numpy's own take 7, and 90 where the result is subnormal.
    """
    import onnx
    from onnx import helper

    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=half),
        helper.make_node("Cast", ["half"], ["y"], to=single),
    ]
    x, y = (helper.make_tensor_value_info(name, single, None) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "round", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ort: Any = require("onnxruntime")
    options = ort.SessionOptions()
    # So that no release takes the pair for one that does nothing.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
