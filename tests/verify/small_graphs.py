"""Small typed graphs, from ``image`` to ``logits``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import onnx_models
from ..onnx_models import Shape

F32, F16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def model_of(
    nodes: Sequence[onnx.NodeProto],
    shape: Shape = (1, 4),
    out: Shape = (1, 4),
    *,
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """A graph of float32 images and logits, four numbers each; nothing checks it."""
    return onnx_models.model_of(nodes, constants, shape, out)


def op(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; names of tensors are separated by spaces."""
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def cast(source: str, result: str, to: int) -> onnx.NodeProto:
    return op("Cast", source, result, name=f"cast_{result}", to=to)


def in_type(code: int, *nodes: onnx.NodeProto, **parts: Any) -> onnx.ModelProto:
    """``image`` cast to a type as ``a``, nodes, and what the last of them gives as ``logits``."""
    last = nodes[-1].output[0] if nodes else "a"
    return model_of([cast("image", "a", code), *nodes, cast(last, "logits", F32)], **parts)


def f32(values: object) -> np.ndarray:
    return np.array(values, np.float32)


def constant(name: str, values: object, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values).astype(dtype), name)
