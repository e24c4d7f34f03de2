"""Bare sums of codes, as an engine writes them: how large, and what becomes of them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2t_deploy.types import HALF_MAX, TOLERANCES, Precision, Status
from t2t_deploy.verify import PictureSet
from t2t_deploy.verify._nodewise import evaluate_nodewise
from t2t_deploy.verify._nodewise_sums import CodeSum, CodeSums
from t2t_deploy.verify._typed_graph import typed_graph_from_onnx

from ..onnx_models import constants, model_of

K, OUTPUTS = 64, 3


def product(
    codes: np.ndarray,
    scales: list[np.ndarray],
    *,
    step: float = 1.0,
    dtype: type[np.floating] = np.float16,
) -> onnx.ModelProto:
    """image (n, 1, 1, K) -> codes -> a product for each of ``scales`` -> their sum as logits."""
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    stored = {"step": np.array(step, dtype), "zero": np.zeros((), codes.dtype)}
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], "flat"),
        helper.make_node("Cast", ["flat"], ["x"], "cast", to=number),
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["read"], "quantise"),
        helper.make_node("DequantizeLinear", ["read", "step", "zero"], ["number"], "back"),
    ]
    total = ""
    for index, scale in enumerate(scales):
        stored |= {f"codes{index}": codes, f"scale{index}": scale.astype(dtype)}
        stored[f"zero{index}"] = np.zeros(scale.shape, codes.dtype)
        operands = [f"codes{index}", f"scale{index}", f"zero{index}"]
        axis = 1 if scale.ndim else None
        made = f"y{index}"
        nodes += [
            helper.make_node("DequantizeLinear", operands, [f"w{index}"], f"w{index}", axis=axis),
            helper.make_node("MatMul", ["number", f"w{index}"], [made], f"product{index}"),
        ]
        if total:
            nodes.append(helper.make_node("Add", [total, made], [f"sum{index}"], f"sum{index}"))
            made = f"sum{index}"
        total = made
    nodes.append(helper.make_node("Cast", [total], ["logits"], "logits", to=TensorProto.FLOAT))
    return model_of(nodes, constants(stored), ("n", 1, 1, K), ("n", OUTPUTS), opset=20)


WEAK = np.full((K, OUTPUTS), 127, np.int8)
BY_CHANNEL = np.array([2.0**-14, 2.0**-14, 2.0**-13])
PICTURES = np.full((1, 1, 1, K), 127.0, np.float32)


def judged(model: onnx.ModelProto, wanted: np.ndarray) -> tuple[Status, str | None, CodeSum]:
    report = evaluate_nodewise(
        model, PictureSet(("bright",), PICTURES), wanted, TOLERANCES[Precision.INT8]
    )
    (found,) = report.sums
    return report.status, report.reason, found


def test_a_scale_by_channel_lets_the_bare_sum_overflow() -> None:
    """Codes all 127, K = 64: the sum is 1,032,256, which in float is 63, 63 and 126."""
    total = 64.0 * 127 * 127
    assert total == 1_032_256
    status, reason, found = judged(product(WEAK, [BY_CHANNEL]), total * BY_CHANNEL[None])
    assert status is Status.FAILED and reason is not None
    assert "its bare sum of codes reaches 1032256, float16 ends at 65504" in reason
    assert found == CodeSum("product0", total, total, True, total, total)


def test_one_scale_is_applied_before_anything_is_written() -> None:
    scale = np.array(2.0**-14)
    total = 64.0 * 127 * 127
    status, reason, found = judged(product(WEAK, [scale]), np.full((1, OUTPUTS), total * 2**-14))
    assert (status, reason) == (Status.PASSED, None)
    assert (found.possible, found.seen, found.bare) == (total, total, False)
    assert found.written_possible == found.written_seen == total * 2**-14


def test_in_float32_a_bare_sum_harms_nothing() -> None:
    total = 64.0 * 127 * 127
    model = product(WEAK, [BY_CHANNEL], dtype=np.float32)
    status, _, found = judged(model, total * BY_CHANNEL[None])
    assert status is Status.PASSED and found.bare and found.written_seen > HALF_MAX


@pytest.mark.parametrize(("scales", "bare"), [((0.25, 0.5), True), ((0.5, 0.5), False)])
def test_fp8_products_of_one_tensor_are_bare_where_their_scales_differ(
    scales: tuple[float, float], bare: bool
) -> None:
    codes = np.full((K, OUTPUTS), 2, ml_dtypes.float8_e4m3fn)
    model = product(codes, [np.array(scale) for scale in scales])
    sums = CodeSums(typed_graph_from_onnx(model))
    assert [one.bare for one in sums.found()] == [bare, bare]
    assert [one.possible for one in sums.found()] == [K * 2 * 448.0] * 2


def test_int8_products_of_one_tensor_are_not_merged() -> None:
    model = product(WEAK, [np.array(0.25), np.array(0.5)])
    assert not any(one.bare for one in CodeSums(typed_graph_from_onnx(model)).found())


def test_codes_around_another_zero_are_left_out() -> None:
    model = product(WEAK, [np.array(0.25)])
    for tensor in model.graph.initializer:
        if tensor.name == "zero":
            tensor.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), "zero"))
    assert CodeSums(typed_graph_from_onnx(model)).found() == ()
