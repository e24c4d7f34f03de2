"""Nodes evaluated one at a time: what is rounded, to what, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from t2t_deploy.errors import ArtifactError, BackendError, InputError
from t2t_deploy.verify import NodewiseSession
from t2t_deploy.verify._nodewise_session import Evaluation, NodeKernels
from t2t_deploy.verify._typed_graph import BFLOAT16, FLOAT16, FloatFormat, typed_graph_from_onnx

from .small_graphs import BF16, F16, F32, cast, constant, f32, in_type, model_of, op


def run(model: onnx.ModelProto, picture: np.ndarray) -> np.ndarray:
    with NodewiseSession(model) as session:
        return session.run({"image": picture.astype(np.float32)})["logits"]


@pytest.mark.parametrize("form", [FLOAT16, BFLOAT16], ids=lambda form: form.name)
def test_every_node_is_rounded(form: FloatFormat) -> None:
    """Two multiplications: one rounding at the end would give something else."""
    code = {"float16": F16, "bfloat16": BF16}[form.name]
    x, factors = np.random.default_rng(1).standard_normal((2, 1, 64)).astype(np.float32)
    model = in_type(
        code,
        op("Mul", "a w", "b"),
        op("Mul", "b w", "c"),
        shape=(1, 64),
        out=(1, 64),
        constants=[constant("w", factors, form.dtype)],
    )
    w = factors.astype(form.dtype)
    found = run(model, x)
    # numpy and ml_dtypes round after every operation
    wanted = ((x.astype(form.dtype) * w) * w).astype(np.float32)
    np.testing.assert_array_equal(found, wanted)
    exact = form.round(x) * w.astype(np.float32) ** 2
    assert not np.array_equal(found, form.round(exact))


def test_float32_nodes_are_not_rounded() -> None:
    x = f32([[0.1, 1e30, -1e-30, 3]])
    model = model_of([op("Identity", "image", "logits")])
    np.testing.assert_array_equal(run(model, x), x)


def test_products_accumulate_in_float32() -> None:
    """In fp16 a sum of ones stops at 2048."""
    model = in_type(
        F16,
        op("MatMul", "a ones", "b"),
        shape=(1, 4096),
        out=(1, 1),
        constants=[constant("ones", np.ones((4096, 1)), np.float16)],
    )
    assert run(model, np.ones((1, 4096))) == 4096.0


def test_layer_normalization_is_float32_inside() -> None:
    """Its squares are beyond fp16, its result is not."""
    model = in_type(
        F16,
        op("LayerNormalization", "a g", "b", axis=-1, stash_type=1),
        constants=[constant("g", np.ones(4), np.float16)],
    )
    found = run(model, f32([[3000, -3000, 3000, -3000]]))
    np.testing.assert_array_equal(found, [[1, -1, 1, -1]])


def test_casts_between_numbers_of_all_kinds() -> None:
    model = model_of(
        [
            cast("image", "half", F16),
            cast("half", "whole", TensorProto.INT64),
            op("Mul", "whole times", "more"),
            cast("more", "brain", BF16),
            cast("brain", "logits", F32),
        ],
        constants=[constant("times", [1, 1, 257, -3], np.int64)],
    )
    # 257 needs nine bits, bf16 has eight; fp16 takes 2049 to 2048
    found = run(model, f32([[1.75, 2049, 1, 1]]))
    np.testing.assert_array_equal(found, [[1, 2048, 256, -3]])


def test_constant_nodes_and_several_outputs() -> None:
    half = helper.make_node("Constant", [], ["half"], value=constant("v", [0.5], np.float16))
    nodes = [
        half,
        helper.make_node("Constant", [], ["axes"], value_ints=[1]),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        cast("image", "a", F16),
        op("Mul", "a half", "b"),
        op("Split", "b", "left right", axis=1, num_outputs=2),
        op("Concat", "right left", "c", axis=1),
        helper.make_node("Dropout", ["c"], ["d", ""]),
        helper.make_node("Clip", ["d", "", "half"], ["e"]),
        op("ReduceSum", "e axes", "f", keepdims=1),
        cast("f", "g", F32),
        op("Mul", "g two", "logits"),
    ]
    model = model_of(nodes, out=(1, 1))
    assert run(model, f32([[1, 2, -4, 0.5]])) == 2 * (0.5 + 0.5 - 2 + 0.25)


# -- sessions -------------------------------------------------------------------------------------


def relu_chain(count: int) -> onnx.ModelProto:
    names = ["image", *(f"t{i}" for i in range(count - 1)), "logits"]
    return model_of(
        [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)],
        ("n", 4),
        ("n", 4),
    )


def test_nodes_of_the_same_kind_share_a_session() -> None:
    graph = typed_graph_from_onnx(relu_chain(5))
    kernels = NodeKernels(graph)
    for batch in (1, 3):
        run = Evaluation(graph, kernels, np.float32)
        run.start({"image": np.ones((batch, 4), np.float32)})
        for step in graph.steps:
            run.keep(step, run.compute(step))
        assert run.results()["logits"].shape == (batch, 4)
    assert len(kernels._sessions) == 1


def test_nodes_that_differ_in_an_attribute_do_not() -> None:
    nodes = [
        helper.make_node("LeakyRelu", [a], [b], alpha=alpha)
        for a, b, alpha in (("image", "a", 0.5), ("a", "logits", 0.25))
    ]
    np.testing.assert_array_equal(run(model_of(nodes), f32([[-8, 8, 0, -16]])), [[-1, 8, 0, -2]])


def test_tensors_are_freed_after_their_last_use() -> None:
    graph = typed_graph_from_onnx(relu_chain(4))
    run = Evaluation(graph, NodeKernels(graph), np.float32)
    run.start({"image": np.ones((1, 4), np.float32)})
    for step in graph.steps:
        run.keep(step, run.compute(step))
        assert list(run._values) == [step.outputs[0]]


def test_the_unrounded_run_is_float64_where_there_is_a_kernel() -> None:
    model = model_of([op("Mul", "image image", "a"), op("Erf", "a", "logits")])
    graph = typed_graph_from_onnx(model)
    kernels = NodeKernels(graph)
    run = Evaluation(graph, kernels, np.float64)
    x = f32([[0.1, 0.2, 0.3, 0.4]])
    run.start({"image": x})
    square = run.compute(graph.steps[0])
    np.testing.assert_array_equal(square[0], x.astype(np.float64) ** 2)
    run.keep(graph.steps[0], square)
    (erf,) = run.compute(graph.steps[1])
    assert erf.dtype == np.float64
    assert kernels.float32_ops == {"Erf"}


def test_it_is_a_session_like_others(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    onnx.save(relu_chain(2), path)
    with NodewiseSession(path) as session:
        assert session.backend == "nodewise"
        assert [str(spec) for spec in (*session.inputs, *session.outputs)] == [
            "image float32 (N, 4)",
            "logits float32 (N, 4)",
        ]
        with pytest.raises(InputError, match="inputs given: x; this model takes image"):
            session.run({"x": np.ones((1, 4), np.float32)})
        with pytest.raises(InputError, match=r"'image' is float64 \(1, 4\); expected"):
            session.run({"image": np.ones((1, 4))})
    with pytest.raises(BackendError, match="the session is closed"):
        session.run({"image": np.ones((1, 4), np.float32)})


# -- refusals: one clear line each ----------------------------------------------------------------


def refused(model: onnx.ModelProto) -> str:
    with pytest.raises(ArtifactError) as raised:
        run(model, np.ones((1, 4)))
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


@pytest.mark.parametrize(
    ("code", "name"), [(TensorProto.FLOAT8E5M2, "FLOAT8E5M2"), (TensorProto.DOUBLE, "DOUBLE")]
)
def test_types_it_does_not_know(code: int, name: str) -> None:
    model = in_type(code)
    model.opset_import[0].version = 19
    assert refused(model) == (
        f"tensor 'a', a result of Cast, has type {name}; node by node takes FLOAT, FLOAT16, "
        "BFLOAT16, integers and BOOL: verify this file without it"
    )


def test_stored_types_it_does_not_know() -> None:
    model = model_of(
        [op("Identity", "image", "logits")], constants=[constant("w", [1.0], np.float64)]
    )
    assert refused(model).startswith("tensor 'w', a stored tensor, has type DOUBLE; ")


def test_an_operator_nobody_knows() -> None:
    node = op("Bend", "image", "a", name="bend", domain="example.org")
    model = model_of([node, op("Relu", "a", "logits")])
    model.opset_import.append(helper.make_opsetid("example.org", 1))
    assert refused(model).startswith("tensor 'a', a result of Bend, has no type that could be ")


def test_an_operator_without_kernel() -> None:
    """Its type is known, its result is the graph's; ONNX Runtime has never heard of it."""
    node = op("Bend", "image", "logits", name="bend", domain="example.org")
    model = model_of([node])
    model.opset_import.append(helper.make_opsetid("example.org", 1))
    message = refused(model)
    assert message.startswith("node 'bend' (Bend) does not run in ONNX Runtime in float32: ")
    assert message.endswith("; verify this file without --nodewise")


def test_control_flow_is_refused() -> None:
    branch = helper.make_graph(
        [op("Relu", "image", "r")], "branch", [], [helper.make_tensor_value_info("r", F32, (1, 4))]
    )
    node = op("If", "yes", "logits", name="fork", then_branch=branch, else_branch=branch)
    model = model_of([node], constants=[constant("yes", True, np.bool_)])
    assert refused(model).startswith("node 'fork' (If) holds a subgraph; ")


def test_functions_are_refused() -> None:
    model = model_of([op("Relu", "image", "logits")])
    body = [op("Relu", "x", "y")]
    function = helper.make_function("own", "F", ["x"], ["y"], body, model.opset_import)
    model.functions.append(function)
    assert refused(model).startswith("the graph holds 1 function; ")


def test_types_that_do_not_fit_together() -> None:
    model = model_of([cast("image", "a", F16), op("Add", "a image", "logits")])
    assert refused(model).startswith("the graph's types do not fit together (")


def test_files_that_are_no_graphs(tmp_path: Path) -> None:
    path = tmp_path / "no.onnx"
    with pytest.raises(ArtifactError, match=r"there is no file .*no\.onnx; export"):
        NodewiseSession(path)
    path.write_bytes(b"this is no protobuf \xff\xff")
    with pytest.raises(ArtifactError, match=r"no\.onnx is no readable ONNX file \("):
        NodewiseSession(path)
