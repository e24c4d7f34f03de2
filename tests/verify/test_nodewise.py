"""Overflow, underflow and error growth, found at the right node."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from unittest.mock import Mock, call

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from t2t_deploy.errors import ArtifactError
from t2t_deploy.types import TOLERANCES, Precision, Status
from t2t_deploy.verify import NodewiseReport, PictureSet, nodewise_not_run
from t2t_deploy.verify import _nodewise as module
from t2t_deploy.verify._nodewise import NodeFigures, evaluate_nodewise
from t2t_deploy.verify._pictures import nodewise_pictures

from ..onnx_models import Shape
from ..prepared import usual
from .small_graphs import BF16, F16, constant, f32, in_type, model_of, op

FP16 = TOLERANCES[Precision.FP16]


def pictures_of(*rows: Sequence[float]) -> PictureSet:
    values = np.array(rows, np.float32)
    return PictureSet(tuple(f"picture {i}" for i in range(len(rows))), values)


def evaluate(
    model: onnx.ModelProto, *rows: Sequence[float], wanted: object = None
) -> NodewiseReport:
    """wanted: None for float64 ones."""
    pictures = pictures_of(*rows)
    logits = np.ones_like(pictures.pictures, np.float64) if wanted is None else np.array(wanted)
    return evaluate_nodewise(model, pictures, logits, FP16)


def by_tensor(report: NodewiseReport) -> dict[str, NodeFigures]:
    return {node.tensor: node for node in report.nodes}


def scaled_up_and_down(code: int = F16) -> onnx.ModelProto:
    """Identity, by way of 4096 times 4096."""
    dtype = helper.tensor_dtype_to_np_dtype(code)
    return in_type(
        code,
        op("Mul", "a up", "b"),
        op("Mul", "b up", "c", name="culprit"),
        op("Mul", "c down", "d"),
        op("Mul", "d down", "e"),
        constants=[constant("up", 4096, dtype), constant("down", 1 / 4096, dtype)],
    )


def test_overflow_is_found_where_the_whole_graph_hides_it() -> None:
    ort = pytest.importorskip("onnxruntime")
    model, row = scaled_up_and_down(), [1.0, 2, 1e-3, 0.5]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (hidden,) = session.run(None, {"image": f32([row])})
    np.testing.assert_allclose(hidden, [row], rtol=1e-3)

    report = evaluate(model, row, wanted=[row])
    assert report.status is Status.FAILED
    first = report.first_overflow
    assert first is not None
    assert (first.name, first.op, first.tensor, first.dtype) == ("culprit", "Mul", "c", "float16")
    assert (first.overflow, first.non_finite, first.elements) == (3, 3, 4)
    assert (first.max_abs, first.dtype_max) == (2.0 * 4096**2, 65504.0)
    assert first.range_share == pytest.approx(512, rel=1e-3)
    assert first.overflow_on == "picture 0"
    assert report.reason == (
        "Mul overflows first in c on picture 0: 3 of 4 numbers become infinite; it reaches "
        "3.36e+07, float16 ends at 6.55e+04"
    )


def test_an_infinity_that_is_passed_on_is_no_new_overflow() -> None:
    found = by_tensor(evaluate(scaled_up_and_down(), [1, 1, 0, 0]))
    assert {t: (node.overflow, node.non_finite) for t, node in found.items()} == {
        "a": (0, 0),
        "b": (0, 0),
        "c": (2, 2),
        "d": (0, 2),
        "e": (0, 2),
        "logits": (0, 2),
    }
    # what is finite still counts
    assert found["d"].max_abs == 0.0 and found["d"].min_nonzero_abs is None


def test_the_same_graph_within_range_passes() -> None:
    row = [1e-4, 2e-4, 1e-5, 3e-3]
    report = evaluate(scaled_up_and_down(), row, wanted=[row])
    assert (report.status, report.reason, report.first_overflow) == (Status.PASSED, None, None)
    assert report.first_non_finite is None
    largest = report.largest_range
    assert [node.tensor for node in largest] == ["c", "b", "d", "e", "a"]
    assert largest[0].range_share == pytest.approx(3e-3 * 4096**2 / 65504, rel=1e-2)


def test_bf16_has_the_range_of_float32() -> None:
    report = evaluate(scaled_up_and_down(BF16), [1, 2, 4, 0.5], wanted=[[1, 2, 4, 0.5]])
    assert (report.status, report.first_overflow) == (Status.PASSED, None)
    assert {node.dtype for node in report.nodes} == {"bfloat16", "float32"}


@pytest.mark.parametrize(
    ("nodes", "row", "op_type", "tensor", "overflow"),
    [
        ([], [1, 1, 1, 65520], "Cast", "a", 1),
        # exp(100) is beyond float32 already: rounding alone would not tell; exp(12) = 162755
        ([op("Exp", "a", "b")], [0, 100, 1, 12], "Exp", "b", 2),
    ],
)
def test_what_overflows_in_the_node_itself_is_found(
    nodes: list[onnx.NodeProto], row: list[float], op_type: str, tensor: str, overflow: int
) -> None:
    first = evaluate(in_type(F16, *nodes), row).first_overflow
    assert first is not None
    assert (first.op, first.tensor, first.overflow) == (op_type, tensor, overflow)
    # the largest that float32 has
    assert first.max_abs == pytest.approx(162755 if nodes else 65520, rel=1e-4)


def test_nan_without_overflow() -> None:
    model = model_of(
        [
            op("Sub", "image image", "zero"),
            op("Div", "zero zero", "bad"),
            op("Where", "no bad image", "logits"),
        ],
        constants=[constant("no", False, np.bool_)],
    )
    report = evaluate(model, [1, 1, 1, 1])
    assert report.logits.status is Status.PASSED
    assert report.status is Status.FAILED
    assert report.first_overflow is None
    first = report.first_non_finite
    assert first is not None and (first.tensor, first.rel_error) == ("bad", None)
    assert report.reason == "4 of 4 numbers are NaN first in bad (Div, float32)"


def test_underflow_is_counted() -> None:
    model = in_type(F16, op("Mul", "a a", "b"))
    node = by_tensor(evaluate(model, [1e-5, 1e-3, 1, 0], [1e-4, 1, 1, 1]))["b"]
    # 1e-10 and 1e-8 become zero, 1e-6 subnormal; a true zero is none of them
    assert (node.underflow, node.subnormal_share, node.elements) == (2, 3 / 8, 8)
    assert node.min_nonzero_abs == pytest.approx(1e-10, rel=1e-2)
    assert (node.max_abs, node.overflow, node.non_finite) == (1.0, 0, 0)


def multiplications(count: int, code: int) -> onnx.ModelProto:
    names = ["a", *(f"t{i}" for i in range(count))]
    nodes = [op("Mul", f"{a} w", b) for a, b in itertools.pairwise(names)]
    w = constant("w", np.linspace(0.9, 1.1, 256), helper.tensor_dtype_to_np_dtype(code))
    return in_type(code, *nodes, shape=(1, 256), out=(1, 256), constants=[w])


def test_error_growth_is_measured() -> None:
    """Against the same chain in numpy: bfloat16 there rounds after every operation."""
    x = np.random.default_rng(3).standard_normal(256).astype(np.float32)
    w = np.linspace(0.9, 1.1, 256).astype(np.float32).astype(ml_dtypes.bfloat16)
    report = evaluate(multiplications(20, BF16), x.tolist())
    found = by_tensor(report)
    rounded, exact = x.astype(ml_dtypes.bfloat16), x.astype(np.float64)
    errors = [np.linalg.norm(rounded - exact) / np.linalg.norm(exact)]
    for _ in range(20):
        rounded, exact = rounded * w, exact * w.astype(np.float64)
        errors.append(np.linalg.norm(rounded.astype(np.float64) - exact) / np.linalg.norm(exact))
    measured = [found[name].rel_error for name in ("a", *(f"t{i}" for i in range(20)))]
    np.testing.assert_allclose(np.array(measured, float), errors, rtol=1e-6)
    assert errors[-1] > 2.5 * errors[0] > 0
    jumps = [found[f"t{i}"].error_jump for i in range(20)]
    np.testing.assert_allclose(
        np.array(jumps, float), np.maximum(np.diff(errors), 0), rtol=1e-4, atol=1e-9
    )
    # the image is exact: the cast makes the first error
    assert report.largest_jumps[0].tensor == "a"


def test_the_error_of_the_weights_is_apart_from_that_of_activations() -> None:
    """0.3 in bf16 is 0.30078: an error of the stored weights, not of the run."""
    model = in_type(
        BF16, op("Mul", "a w", "b"), constants=[constant("w", [0.3], ml_dtypes.bfloat16)]
    )
    report = evaluate(model, [1, 2, 4, 8], wanted=np.array([[0.3, 0.6, 1.2, 2.4]]))
    assert report.weights_rel_l2 == pytest.approx(0.30078125 / 0.3 - 1, rel=1e-6)
    assert by_tensor(report)["b"].rel_error == 0.0


def test_a_float32_graph_is_compared_with_float64() -> None:
    model = model_of([op("Mul", "image image", "a"), op("Erf", "a", "logits")])
    report = evaluate(model, [0.1, 0.2, 0.3, 0.7])
    error = by_tensor(report)["a"].rel_error
    assert error is not None and 1e-9 < error < 1e-7
    assert report.float32_ops == ("Erf",)


def test_nodes_that_only_move_are_not_among_the_largest() -> None:
    model = model_of(
        [
            op("Transpose", "image", "a", perm=[1, 0]),
            op("Neg", "a", "b"),
            op("Transpose", "b", "logits", perm=[1, 0]),
        ]
    )
    report = evaluate(model, [1, 2, 3, 4])
    assert [node.tensor for node in report.nodes] == ["a", "b", "logits"]
    assert [node.tensor for node in report.largest_range] == ["b"]
    assert report.largest_jumps == ()


def test_the_worst_of_all_pictures_is_reported() -> None:
    model = scaled_up_and_down()
    rows: list[list[float]] = [[1e-4, 0, 0, 0], [1, 0, 0, 0], [0, 5e-4, 1, 1]]
    report = evaluate(model, *rows)
    found = by_tensor(report)
    assert found["c"].elements == 12
    assert (found["c"].overflow, found["c"].overflow_on) == (3, "picture 1")
    assert found["b"].max_abs == 4096.0
    assert found["b"].min_nonzero_abs == pytest.approx(0.41, rel=1e-2)
    assert found["c"].rel_error is None
    alone = [by_tensor(evaluate(model, row))["a"].rel_error or 0.0 for row in rows]
    assert 0.0 == alone[1] < alone[2] < alone[0]
    assert found["a"].rel_error == alone[0]


@pytest.mark.parametrize(("shape", "elements"), [(("n", 4), 12), ((1, 4), 12), ((2, 4), 16)])
def test_any_batch(shape: Shape, elements: int) -> None:
    """A fixed batch of two takes three pictures, the last one twice."""
    rows = np.arange(12.0).reshape(3, 4)
    model = in_type(F16, shape=shape, out=shape)
    report = evaluate(model, *rows.tolist(), wanted=rows)
    assert report.status is Status.PASSED
    assert list(report.logits.pictures) == ["picture 0", "picture 1", "picture 2"]
    assert report.nodes[0].elements == elements
    off = rows * np.array([1, 1, 1, 1.1])
    report = evaluate(model, *rows.tolist(), wanted=off)
    assert (report.status, report.logits.tolerance) == (Status.FAILED, 5e-3)
    assert report.reason is not None and report.reason.startswith("relative error ")


def test_progress_is_told() -> None:
    progress = Mock()
    pictures = pictures_of([1, 1, 1, 1], [2, 2, 2, 2])
    evaluate_nodewise(in_type(F16), pictures, f32(pictures.pictures), FP16, progress)
    assert progress.mock_calls == [call.progress("node by node", n, 4) for n in (1, 2, 3, 4)]


def test_a_graph_without_logits() -> None:
    model = in_type(F16)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "other"
    with pytest.raises(ArtifactError, match="outputs are other; node by node compares 'logits'"):
        evaluate(model, [1, 1, 1, 1])


def test_json_of_the_worst_case() -> None:
    report = evaluate(scaled_up_and_down(), [1, 1, 1, 1])
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["status"] == "failed"
    assert values["first_overflow"]["tensor"] == values["first_non_finite"]["tensor"] == "c"
    assert [node["tensor"] for node in values["nodes"]] == ["a", "b", "c", "d", "e", "logits"]
    assert values["rel_l2"] is None and values["tolerance"] == 5e-3
    assert "nodes" not in report.summary()
    json.dumps(nodewise_not_run(FP16, "because").to_dict(), allow_nan=False)
    assert nodewise_not_run(FP16, "because").status is Status.NOT_RUN


def test_an_error_without_a_right_number_to_compare_with() -> None:
    """Where the unrounded numbers are all zero, a relative error does not exist."""
    assert module._relative_error(np.zeros(3), np.zeros(3)) == 0.0
    assert module._relative_error(np.ones(3), np.zeros(3)) is None
    assert module._relative_error(np.full(3, np.inf), np.ones(3)) is None
    assert module._relative_error(np.full(3, np.inf), np.full(3, np.inf)) is None


def test_the_pictures_it_takes() -> None:
    pytest.importorskip("sklearn")
    found = nodewise_pictures(usual(32))
    assert found.names == ("noise 0", "china", "cream")
    assert (found.pictures.shape, found.pictures.dtype) == ((3, 3, 32, 32), np.float32)
    assert np.ptp(found.pictures[2], axis=(1, 2)).max() == 0


# -- the performer, as the paper writes it and as it is deployed -----------------------------------

TOKENS, DIM, FEATURES = 16, 8, 4


def performer_features(*, shifted: bool) -> onnx.ModelProto:
    """exp(k wᵀ - |k|²/2), as it stands or less its maximum over the tokens, and its sum, fp16."""
    # rows of length 5.2, so that k along one of them gives exp(5.2² / 2) = 7.4e5
    w = np.linalg.qr(np.random.default_rng(5).standard_normal((DIM, DIM)))[0][:FEATURES] * 5.2
    shift = [op("ReduceMax", "log", "top", axes=[1], keepdims=1), op("Sub", "log top", "low")]
    model = in_type(
        F16,
        op("MatMul", "a w", "kw"),
        op("Mul", "a a", "squares"),
        op("ReduceSum", "squares last", "norm", keepdims=1),
        op("Mul", "norm half", "half_norm"),
        op("Sub", "kw half_norm", "log"),
        *(shift if shifted else ()),
        op("Exp", "low" if shifted else "log", "features", name="features"),
        op("ReduceSum", "features tokens", "sum", keepdims=1),
        op("Div", "features sum", "shares"),
        op("Flatten", "shares", "flat"),
        shape=(1, TOKENS, DIM),
        out=(1, TOKENS * FEATURES),
        constants=[
            constant("w", w.T, np.float16),
            constant("half", 0.5, np.float16),
            constant("last", [2], np.int64),
            constant("tokens", [1], np.int64),
        ],
    )
    model.opset_import[0].version = 17  # ReduceMax with its axes as an attribute
    return model


@pytest.mark.parametrize("shifted", [False, True], ids=["plain", "shifted"])
def test_plain_performer_features_overflow_and_shifted_ones_do_not(shifted: bool) -> None:
    ort = pytest.importorskip("onnxruntime")
    model = performer_features(shifted=shifted)
    w = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    k = np.random.default_rng(6).standard_normal((TOKENS, DIM)) * 0.3
    k[3] = w[:, 1]
    k = k.astype(np.float16).astype(np.float32)
    logs = k @ w - (k.astype(np.float64) ** 2).sum(1, keepdims=True) / 2
    assert 3e5 < np.exp(logs).max() < 1e6
    wanted = np.exp(logs) / np.exp(logs).sum(0, keepdims=True)

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (hidden,) = session.run(None, {"image": k[None]})
    assert np.isfinite(hidden).all()

    tolerance = dataclasses.replace(FP16, rel_l2=5e-2)
    report = evaluate_nodewise(model, PictureSet(("k",), k[None]), wanted.reshape(1, -1), tolerance)
    first = report.first_overflow
    if shifted:
        assert first is None
        assert by_tensor(report)["features"].max_abs == 1.0
        assert all(math.isfinite(node.rel_error or 0) for node in report.nodes)
    else:
        assert report.status is Status.FAILED
        assert first is not None and first.name == "features" and first.overflow == 1
        assert by_tensor(report)["shares"].non_finite > 0
