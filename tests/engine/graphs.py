"""Tiny graphs that engines are built of, and the building."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from t2t_deploy.engine import BACKEND_RTX, BuilderModule
from t2t_deploy.engine import _worker as _engine_worker
from t2t_deploy.engine._build import BuildJob, BuildOptions, EngineBuild, build_engine
from t2t_deploy.engine._module import BuilderLog, Progress, load_tensorrt

from ..onnx_models import constants, save_model

FP32, FP16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
Batch = int | str
TOKENS, WIDTH, OUT = 16, 32, 64


def build(
    path: Path,
    *,
    progress: Progress | None = None,
    module: BuilderModule | None = None,
    **options: Any,
) -> EngineBuild:
    return build_engine(path, BuildOptions(**options), module=module, progress=progress)


def build_here(path: Path, *sm: str) -> bytes:
    """What the builder's process does, in this one."""
    order = BuildJob(path, BACKEND_RTX, load_tensorrt().__name__, sm, BuildOptions())
    return _engine_worker.build(order, BuilderLog())[1]


def weight(name: str, dtype: int, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(0).standard_normal(shape) / 8
    return helper.make_tensor(name, dtype, shape, values.ravel())


def linear(path: Path, dtype: int, batch: Batch) -> Path:
    """Cast, MatMul, Add, Relu, cast."""
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], "cast_in", to=dtype),
        helper.make_node("MatMul", ["x", "w"], ["m"], "fc"),
        helper.make_node("Add", ["m", "b"], ["a"], "bias"),
        helper.make_node("Relu", ["a"], ["r"], "act"),
        helper.make_node("Cast", ["r"], ["logits"], "cast_out", to=FP32),
    ]
    weights = [weight("w", dtype, WIDTH, OUT), weight("b", dtype, OUT)]
    return save_model(path, nodes, weights, [batch, TOKENS, WIDTH], [batch, TOKENS, OUT])


def attention(path: Path, batch: Batch) -> Path:
    """Self-attention of 64 tokens, 4 heads of 32, in fp16."""
    tokens, heads, depth = 64, 4, 32
    width = heads * depth
    weights = [
        weight("wqkv", FP16, width, 3 * width),
        weight("wo", FP16, width, width),
        *constants({"split": [0, tokens, 3, heads, depth], "flat": [0, tokens, width]}),
        *constants({"scale": np.float16(depth**-0.5)}),
        *constants({f"at{index}": index for index in range(3)}),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], "cast_in", to=FP16),
        helper.make_node("MatMul", ["x", "wqkv"], ["qkv"], "qkv"),
        helper.make_node("Reshape", ["qkv", "split"], ["s"], "heads"),
        helper.make_node("Transpose", ["s"], ["t"], "perm", perm=[2, 0, 3, 1, 4]),
        *(
            helper.make_node("Gather", ["t", f"at{index}"], [name], f"take_{name}", axis=0)
            for index, name in enumerate("qkv")
        ),
        helper.make_node("Mul", ["q", "scale"], ["qs"], "scaled"),
        helper.make_node("Transpose", ["k"], ["kt"], "turned", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["qs", "kt"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["o"], "mix"),
        helper.make_node("Transpose", ["o"], ["ot"], "merge", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["ot", "flat"], ["of"], "joined"),
        helper.make_node("MatMul", ["of", "wo"], ["y"], "proj"),
        helper.make_node("Cast", ["y"], ["logits"], "cast_out", to=FP32),
    ]
    return save_model(path, nodes, weights, [batch, tokens, width], [batch, tokens, width])


def fp8_linear(path: Path) -> Path:
    """A product whose operands are quantised to E4M3."""
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["xq"], "quantise"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["x"], "dequantise"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], "weights"),
        helper.make_node("MatMul", ["x", "wd"], ["logits"], "fc"),
    ]
    e4m3 = TensorProto.FLOAT8E4M3FN
    weights = [
        weight("w", e4m3, WIDTH, OUT),
        helper.make_tensor("s", FP32, [], [1.0]),
        helper.make_tensor("z", e4m3, [], [0.0]),
    ]
    opset = 19  # the first that quantises to 8-bit floats
    return save_model(path, nodes, weights, [4, TOKENS, WIDTH], [4, TOKENS, OUT], opset=opset)
