"""Tiny graphs with products of 8-bit codes, their scales in the operator or behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from ..onnx_models import constants, save_model
from .graphs import FP16, FP32, OUT, TOKENS, WIDTH, Batch

INT8, FP8 = TensorProto.INT8, TensorProto.FLOAT8E4M3FN
_DTYPES: dict[int, np.dtype] = {INT8: np.dtype(np.int8), FP8: np.dtype(ml_dtypes.float8_e4m3fn)}
_REAL: dict[int, np.dtype] = {FP16: np.dtype(np.float16), FP32: np.dtype(np.float32)}
OPSET = 19  # the first whose QuantizeLinear takes float16


@dataclass(frozen=True)
class Coded:
    """A product of codes named ``name``.

    scale: of its weight, a number or one for each output. ratio: a vector that multiplies by
    channel behind the product. bias: added after all.
    """

    name: str
    scale: float | np.ndarray = 0.01
    ratio: np.ndarray | None = None
    bias: bool = False


def by_output(scale: float = 0.01) -> np.ndarray:
    """A different scale for each output."""
    return np.asarray(np.linspace(0.5, 1.5, OUT) * scale)


def coded(
    path: Path,
    products: Sequence[Coded],
    batch: Batch = 4,
    *,
    codes: int = INT8,
    real: int = FP16,
) -> Path:
    """All products read the codes of one tensor; their results are summed."""
    dtype = _REAL[real]
    zero = np.zeros((), _DTYPES[codes])
    weights: dict[str, np.ndarray] = {"step": np.asarray(0.02, dtype), "zero": zero}
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], "cast_in", to=real),
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["xq"], "quantise"),
    ]
    random = np.random.default_rng(0)
    results = []
    for one in products:
        drawn = random.integers(-127, 128, (WIDTH, OUT)).astype(_DTYPES[codes])
        scale = np.asarray(one.scale, dtype)
        point = np.zeros(scale.shape, _DTYPES[codes])
        words = [f"{one.name}.{word}" for word in "wsz"]
        weights |= dict(zip(words, (drawn, scale, point), strict=True))
        made = f"{one.name}.out"
        nodes += [
            helper.make_node(
                "DequantizeLinear", ["xq", "step", "zero"], [f"{one.name}.x"], f"{one.name}.read"
            ),
            # the axis of one scale in all counts for nothing
            helper.make_node(
                "DequantizeLinear", words, [f"{one.name}.wd"], f"{one.name}.weight", axis=1
            ),
            helper.make_node("MatMul", [f"{one.name}.x", f"{one.name}.wd"], [made], one.name),
        ]
        for op, vector in (("Mul", one.ratio), ("Add", by_output() if one.bias else None)):
            if vector is not None:
                word = f"{one.name}.{op}"
                weights[word] = np.asarray(vector, dtype)
                nodes.append(helper.make_node(op, [made, word], [f"{word}.out"], word))
                made = f"{word}.out"
        results.append(made)
    while len(results) > 1:
        first, second, *rest = results
        made = f"sum{len(rest)}"
        nodes.append(helper.make_node("Add", [first, second], [made], made))
        results = [made, *rest]
    nodes.append(helper.make_node("Cast", results, ["logits"], "cast_out", to=FP32))
    shapes = [batch, TOKENS, WIDTH], [batch, TOKENS, OUT]
    return save_model(path, nodes, constants(weights), *shapes, opset=OPSET)
