"""8-bit operators stand around the layers that were chosen, and nowhere else."""

from __future__ import annotations

import copy
import functools
import re
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2t_deploy.calibration import (
    SIGNED,
    TYPED_QDQ_OPSET,
    UNSIGNED,
    CodeStorage,
    QuantizedGraph,
    RoundedWeight,
    place_dynamic,
    place_static,
    stored_arrays,
)
from t2t_deploy.errors import CalibrationError
from t2t_deploy.export import check_graph
from t2t_deploy.types import Precision, Target

from ..export.conftest import KINDS
from .conftest import (
    chosen,
    decisions_of,
    logits,
    pictures,
    ranges_of,
    relative_error,
    rounded_weights,
    run,
    tiny,
)

STATIC_TARGETS = (Target.CPU, Target.TENSORRT)
QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear")
# (kind, target) -> quantised nodes, float nodes: the float layers, 2 for each attention and each
# performer; for cpu 1 for an attention, 3 for a performer, 4 for the last block with folded keys
NODES = {
    ("performer", Target.CPU): (17, 9 + 1 + 6 + 4),
    ("performer", Target.TENSORRT): (16, 10 + 4 + 4),
    ("transformer", Target.CPU): (19, 5 + 1 + 4 + 4),
    ("transformer", Target.TENSORRT): (18, 8 + 4 + 4),
    ("dense", Target.CPU): (33, 10 + 3 + 6 + 4),
    ("dense", Target.TENSORRT): (32, 11 + 8 + 4),
    ("se", Target.CPU): (21, 11 + 2 + 6),
    ("se", Target.TENSORRT): (18, 12 + 4 + 4),
    ("ghost", Target.CPU): (17, 9 + 1 + 6 + 4),
    ("ghost", Target.TENSORRT): (16, 10 + 4 + 4),
}
EVERY_CASE = pytest.mark.parametrize(("kind", "target"), NODES)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def tiny_ranges(kind: str, target: Target) -> dict[str, float]:
    return ranges_of(tiny(kind, target), pictures())


def static(
    kind: str,
    target: Target,
    precision: Precision = Precision.INT8,
    *,
    base: Precision = Precision.FP32,
    opset: int = 18,
    storage: CodeStorage = SIGNED,
) -> QuantizedGraph:
    model = tiny(kind, target, base, opset)
    # sources are named alike in the 16-bit twin only where no cast stands before them
    known = tiny_ranges(kind, target) if base is Precision.FP32 else {}
    ranges = {layer.source: known.get(layer.source, 4.0) for layer in chosen(decisions_of(model))}
    weights = rounded_weights(model, precision)
    return place_static(model, decisions_of(model), weights, ranges, precision, storage)


@functools.cache
def dynamic(kind: str) -> QuantizedGraph:
    model = tiny(kind, Target.CPU)
    return place_dynamic(model, decisions_of(model), rounded_weights(model))


def readers_of(graph: onnx.GraphProto) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
    """Tensor -> the nodes that read it, and at which input."""
    found: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            found.setdefault(name, []).append((node, index))
    return found


def misplaced(model: onnx.ModelProto) -> list[str]:
    """What breaks the rule that 8 bits lead to products with a constant weight, and nowhere else.

    Written without looking at decisions: it knows the two forms of a layer, and what is not one of
    them is misplaced.
    """
    graph = model.graph
    readers, stored = readers_of(graph), stored_arrays(model)
    maker = {name: node for node in graph.node for name in node.output}
    wrong = [
        f"{name} is read as a number and stored in 8 bits by {reader.op_type} {reader.name}"
        for name, value in stored.items()
        for reader, index in readers.get(name, [])
        if value.dtype.itemsize == 1
        and not (reader.op_type in (*QUANTIZERS, "DequantizeLinear") and index in (0, 2))
        and not (reader.op_type == "MatMulInteger" and index in (1, 3))
    ]
    for node in graph.node:
        if node.op_type in QUANTIZERS:
            if node.input[0] in stored:
                wrong.append(f"{node.name} quantises a constant at run time")
            for reader, index in readers.get(node.output[0], []):
                dequantised = reader.op_type == "DequantizeLinear" and index == 0
                multiplied = (
                    reader.op_type == "MatMulInteger" and index == 0 and reader.input[1] in stored
                )
                if not dequantised and not multiplied:
                    wrong.append(f"{node.name} leads to {reader.op_type} {reader.name}")
        elif node.op_type == "DequantizeLinear":
            constant = node.input[0] in stored
            if constant and stored[node.input[0]].ndim != 2:
                wrong.append(f"{node.name} dequantises something other than a matrix")
            for reader, index in readers.get(node.output[0], []):
                other = maker.get(reader.input[1 - index]) if reader.op_type == "MatMul" else None
                if (
                    index != int(constant)
                    or other is None
                    or other.op_type != "DequantizeLinear"
                    or (other.input[0] in stored) is constant
                ):
                    wrong.append(f"{node.name} leads to {reader.op_type} {reader.name}")
        elif node.op_type == "MatMulInteger" and not (
            node.input[1] in stored and maker[node.input[0]].op_type in QUANTIZERS
        ):
            wrong.append(f"{node.name} is no product of codes with a constant weight")
    return wrong


def quantised_weights(model: onnx.ModelProto) -> list[str]:
    """Names of the layers whose codes are stored."""
    return [t.name.removesuffix("/codes") for t in model.graph.initializer if "/codes" in t.name]


@EVERY_CASE
def test_products_of_a_static_graph_are_counted(kind: str, target: Target) -> None:
    placed = static(kind, target)
    assert (placed.quantized_nodes, placed.float_nodes) == NODES[kind, target]
    ops = Counter(node.op_type for node in placed.model.graph.node)
    sources = {layer.source for layer in chosen(placed.decisions)}
    assert ops["QuantizeLinear"] == len(sources)
    assert ops["DequantizeLinear"] == 2 * placed.quantized_nodes
    before = Counter(node.op_type for node in tiny(kind, target).graph.node)
    added = ops - before
    assert added.keys() == {"QuantizeLinear", "DequantizeLinear"} and before - ops == Counter()


@EVERY_KIND
def test_products_of_a_dynamic_graph_are_counted(kind: str) -> None:
    placed = dynamic(kind)
    assert (placed.quantized_nodes, placed.float_nodes) == NODES[kind, Target.CPU]
    ops = Counter(node.op_type for node in placed.model.graph.node)
    assert ops["MatMulInteger"] == placed.quantized_nodes
    assert ops["DynamicQuantizeLinear"] == len({x.source for x in chosen(placed.decisions)})


@EVERY_CASE
def test_static_operators_lead_to_layers_only(kind: str, target: Target) -> None:
    placed = static(kind, target)
    assert misplaced(placed.model) == []
    assert quantised_weights(placed.model) == [x.name for x in chosen(placed.decisions)]


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_operators_of_a_16_bit_graph_lead_to_layers_only(kind: str, precision: Precision) -> None:
    opset = TYPED_QDQ_OPSET
    placed = static(kind, Target.TENSORRT, precision, base=Precision.FP16, opset=opset)
    assert misplaced(placed.model) == []
    assert quantised_weights(placed.model) == [x.name for x in chosen(placed.decisions)]


@EVERY_KIND
def test_dynamic_operators_lead_to_layers_only(kind: str) -> None:
    placed = dynamic(kind)
    assert misplaced(placed.model) == []
    assert quantised_weights(placed.model) == [x.name for x in chosen(placed.decisions)]


@EVERY_CASE
def test_biases_and_norms_keep_their_own_numbers(kind: str, target: Target) -> None:
    before = stored_arrays(tiny(kind, target))
    gone = {layer.weight for layer in chosen(decisions_of(tiny(kind, target)))}
    found = [static(kind, target).model]
    if target is Target.CPU:
        found.append(dynamic(kind).model)
    for model in found:
        after = stored_arrays(model)
        assert gone.isdisjoint(after)
        for name, value in before.items():
            if name not in gone:
                assert after[name].dtype == value.dtype
                np.testing.assert_array_equal(after[name], value)


def by_hand(base: onnx.ModelProto, name: str, inputs: tuple[int, ...]) -> onnx.ModelProto:
    """A copy in which some inputs of a node are quantised and dequantised."""
    model = copy.deepcopy(base)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "step"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "point"))
    for node in nodes:
        if node.name == name:
            for index in inputs:
                short, wide = f"{name}/short{index}", f"{name}/wide{index}"
                model.graph.node.extend(
                    [
                        helper.make_node(
                            "QuantizeLinear", [node.input[index], "step", "point"], [short], short
                        ),
                        helper.make_node(
                            "DequantizeLinear", [short, "step", "point"], [wide], wide
                        ),
                    ]
                )
                node.input[index] = wide
        model.graph.node.append(node)
    onnx.checker.check_model(model)
    return model


def attention_product(model: onnx.ModelProto) -> str:
    """The backbone's first q @ kT."""
    (softmax, *_) = (n for n in model.graph.node if n.op_type == "Softmax" and "attn" in n.name)
    (name,) = (n.name for n in model.graph.node if softmax.input[0] in n.output)
    return str(name)


@pytest.mark.parametrize("inputs", [(0, 1), (0,), (1,)])
@EVERY_KIND
def test_a_quantised_product_of_two_activations_is_misplaced(
    kind: str, inputs: tuple[int, ...]
) -> None:
    model = static(kind, Target.TENSORRT).model
    name = attention_product(model)
    wrong = misplaced(by_hand(model, name, inputs))
    assert wrong == [f"{name}/wide{index} leads to MatMul {name}" for index in inputs]


@pytest.mark.parametrize("op", ["Add", "LayerNormalization", "Softmax", "Erf", "Div", "Mul"])
def test_a_quantised_input_of_any_other_operator_is_misplaced(op: str) -> None:
    model = static("performer", Target.TENSORRT).model
    stored = stored_arrays(model)
    node = next(n for n in model.graph.node if n.op_type == op)
    index = next(i for i, name in enumerate(node.input) if name not in stored)
    wrong = misplaced(by_hand(model, node.name, (index,)))
    assert wrong == [f"{node.name}/wide{index} leads to {op} {node.name}"]


def test_a_quantised_bias_is_misplaced() -> None:
    model = static("performer", Target.TENSORRT).model
    stored = stored_arrays(model)
    node = next(n for n in model.graph.node if n.op_type == "Add" and set(n.input) & stored.keys())
    index = next(i for i, name in enumerate(node.input) if name in stored)
    wrong = misplaced(by_hand(model, node.name, (index,)))
    assert f"{node.name}/short{index} quantises a constant at run time" in wrong


def test_a_layer_with_one_side_quantised_is_misplaced() -> None:
    model = tiny("performer", Target.TENSORRT)
    node = next(layer.node for layer in chosen(decisions_of(model)))
    assert misplaced(by_hand(model, node, (0,))) == [f"{node}/wide0 leads to MatMul {node}"]


def test_an_integer_product_of_two_activations_is_misplaced() -> None:
    model = copy.deepcopy(dynamic("performer").model)
    first, second, *_ = (n for n in model.graph.node if n.op_type == "DynamicQuantizeLinear")
    model.graph.node.append(
        helper.make_node("MatMulInteger", [first.output[0], second.output[0]], ["by hand"], "hand")
    )
    wrong = misplaced(model)
    assert "hand is no product of codes with a constant weight" in wrong
    assert f"{first.name} leads to MatMulInteger hand" in wrong


@EVERY_CASE
def test_the_graphs_keep_the_export_contract(kind: str, target: Target) -> None:
    found = [static(kind, target).model]
    if target is Target.CPU:
        found.append(dynamic(kind).model)
    for model in found:
        check_graph(model, batch=None, contrib=target is Target.CPU)


@EVERY_CASE
def test_a_source_that_layers_share_is_quantised_once(kind: str, target: Target) -> None:
    found = [static(kind, target).model]
    if target is Target.CPU:
        found.append(dynamic(kind).model)
    for model in found:
        read = Counter(n.input[0] for n in model.graph.node if n.op_type in QUANTIZERS)
        assert set(read.values()) == {1}
        readers = readers_of(model.graph)
        (codes,) = (
            n.output[0]
            for n in model.graph.node
            if n.op_type in QUANTIZERS and n.input[0].startswith("/blocks.0/norm1/")
        )
        assert len(readers[codes]) == 3  # query, key and value


@EVERY_CASE
def test_signed_and_unsigned_codes_give_the_same_logits(kind: str, target: Target) -> None:
    signed, unsigned = (static(kind, target, storage=s).model for s in (SIGNED, UNSIGNED))
    one, other = (stored_arrays(model) for model in (signed, unsigned))
    for name in quantised_weights(signed):
        assert one[f"{name}/codes"].dtype == np.int8 and one[f"{name}/zero"].dtype == np.int8
        assert other[f"{name}/codes"].dtype == np.uint8 and set(other[f"{name}/zero"]) == {128}
        shifted = other[f"{name}/codes"].astype(np.int64) - 128
        np.testing.assert_array_equal(shifted, one[f"{name}/codes"])
    images = pictures(seed=1)
    found, wanted = logits(unsigned, images), logits(signed, images)
    assert relative_error(found, wanted) <= 1e-6
    # near the float model, and not it
    assert 1e-4 < relative_error(found, logits(tiny(kind, target), images)) < 0.1


@EVERY_KIND
def test_dynamic_logits_are_near_the_float_ones(kind: str) -> None:
    images = pictures(seed=1)
    wanted = logits(tiny(kind, Target.CPU), images)
    assert 1e-4 < relative_error(logits(dynamic(kind).model, images), wanted) < 0.1


def test_codes_at_the_ends_are_stored_without_wrapping() -> None:
    codes = np.array([[-127, 0, 127]], np.int8)
    np.testing.assert_array_equal(SIGNED.store(codes), codes)
    found = UNSIGNED.store(codes)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, [[1, 128, 255]])


def test_scales_are_ranges_over_the_largest_code() -> None:
    model = tiny("performer", Target.TENSORRT)
    placed = static("performer", Target.TENSORRT).model
    stored, weights = stored_arrays(placed), rounded_weights(model)
    for layer in chosen(decisions_of(model)):
        largest = tiny_ranges("performer", Target.TENSORRT)[layer.source]
        assert stored[f"{layer.source}/scale"] == np.float32(largest / 127)
        assert stored[f"{layer.source}/scale"].shape == ()
        np.testing.assert_array_equal(stored[f"{layer.name}/scale"], weights[layer.name].scale)
        np.testing.assert_array_equal(stored[f"{layer.name}/codes"], weights[layer.name].codes)
    axes = {
        node.input[0]: [(a.name, a.i) for a in node.attribute]
        for node in placed.graph.node
        if node.op_type == "DequantizeLinear"
    }
    for name, attributes in axes.items():
        assert attributes == ([("axis", 1)] if name.endswith("/codes") else [])


def test_fp8_has_one_scale_for_each_weight_and_float8_zeros() -> None:
    placed = static(
        "performer", Target.TENSORRT, Precision.FP8, base=Precision.FP16, opset=TYPED_QDQ_OPSET
    )
    stored = stored_arrays(placed.model)
    for layer in chosen(placed.decisions):
        for name in (layer.name, layer.source):
            assert stored[f"{name}/scale"].shape == () and stored[f"{name}/zero"].shape == ()
            assert stored[f"{name}/scale"].dtype == np.float16
            assert stored[f"{name}/zero"].dtype == ml_dtypes.float8_e4m3fn
            assert float(stored[f"{name}/zero"]) == 0
        assert stored[f"{layer.name}/codes"].dtype == ml_dtypes.float8_e4m3fn
        assert stored[f"{layer.source}/scale"] == np.float16(4.0 / 448)
    for node in placed.model.graph.node:
        if node.op_type == "DequantizeLinear":
            assert list(node.attribute) == []
    assert (placed.quantized_nodes, placed.float_nodes) == NODES["performer", Target.TENSORRT]


@pytest.mark.parametrize("base", [Precision.FP16, Precision.BF16])
def test_a_16_bit_graph_of_an_older_opset_is_refused(base: Precision) -> None:
    with pytest.raises(CalibrationError, match=r"of opset 18; .+ at least 19: .+--opset 19"):
        static("performer", Target.TENSORRT, base=base, opset=18)
    scales = stored_arrays(static("performer", Target.TENSORRT, base=base, opset=19).model)
    dtype = {Precision.FP16: np.float16, Precision.BF16: ml_dtypes.bfloat16}[base]
    assert {v.dtype for k, v in scales.items() if k.endswith("/scale")} == {np.dtype(dtype)}


def test_fp8_of_an_older_opset_is_refused() -> None:
    with pytest.raises(CalibrationError, match="of opset 18"):
        static("performer", Target.TENSORRT, Precision.FP8, opset=18)


def test_a_float32_graph_of_an_older_opset_is_taken() -> None:
    opsets = tiny("performer", Target.TENSORRT).opset_import
    assert [entry.version for entry in opsets if not entry.domain] == [18]
    assert static("performer", Target.TENSORRT).quantized_nodes == 16


def test_a_missing_range_is_named_with_the_layer_that_reads() -> None:
    model = tiny("performer", Target.TENSORRT)
    decisions, weights = decisions_of(model), rounded_weights(model)
    for layer in chosen(decisions):
        ranges = dict(tiny_ranges("performer", Target.TENSORRT))
        del ranges[layer.source]
        with pytest.raises(CalibrationError, match=re.escape(f"range is known of {layer.source}")):
            place_static(model, decisions, weights, ranges, Precision.INT8)


def test_ranges_of_float_layers_are_not_asked_for() -> None:
    model = tiny("performer", Target.TENSORRT)
    needed = {layer.source for layer in chosen(decisions_of(model))}
    known = tiny_ranges("performer", Target.TENSORRT)
    assert known.keys() > needed
    ranges = {name: known[name] for name in needed}
    placed = place_static(
        model, decisions_of(model), rounded_weights(model), ranges, Precision.INT8
    )
    assert placed.quantized_nodes == len(chosen(placed.decisions))


def test_weights_of_two_types_are_refused() -> None:
    model = copy.deepcopy(tiny("performer", Target.TENSORRT))
    (head, *_) = chosen(decisions_of(model))
    for tensor in model.graph.initializer:
        if tensor.name == head.weight:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    with pytest.raises(CalibrationError, match=r"weights are .+; expected one type"):
        place_dynamic(model, decisions_of(model), rounded_weights(model))


@EVERY_KIND
def test_the_model_given_is_left_as_it_is(kind: str) -> None:
    for target in STATIC_TARGETS:
        model = tiny(kind, target)
        before = model.SerializeToString()
        for precision, storage in ((Precision.INT8, SIGNED), (Precision.INT8, UNSIGNED)):
            static(kind, target, precision, storage=storage)
        place_dynamic(model, decisions_of(model), rounded_weights(model))
        assert model.SerializeToString() == before


def test_nothing_is_quantised_where_nothing_was_chosen() -> None:
    model = tiny("performer", Target.TENSORRT)
    placed = place_static(model, (), {}, {}, Precision.INT8)
    assert placed.quantized_nodes == 0
    assert placed.float_nodes == sum(NODES["performer", Target.TENSORRT])
    images = pictures()
    np.testing.assert_array_equal(logits(placed.model, images), logits(model, images))


# One layer by hand, in ONNX Runtime against numpy.


def product(rows: int, codes: np.ndarray, *, signed: bool = False) -> onnx.ModelProto:
    """MatMulInteger of unsigned activations around 128 with stored codes."""
    stored = (SIGNED if signed else UNSIGNED).store(codes)
    zero = 0 if signed else 128
    arrays = {
        "w": stored,
        "zx": np.array(128, np.uint8),
        "zw": np.full(codes.shape[1], zero, stored.dtype),
    }
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w", "zx", "zw"], ["y"], "product")],
        "by hand",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [rows, len(codes)])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [rows, codes.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def extremes() -> tuple[np.ndarray, np.ndarray]:
    """Codes of activations (rows, 512) and weights (512, columns), near the ends of their types."""
    stream = np.random.RandomState(0)
    x = stream.choice([0, 1, 254, 255], (32, 512)).astype(np.uint8)
    x[0], x[1] = 255, 0
    w = stream.choice([-127, -126, 126, 127], (512, 48)).astype(np.int8)
    w[:, 0], w[:, 1] = 127, -127
    return x, w


def exact(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.asarray((x.astype(np.int64) - 128) @ w.astype(np.int64))


def test_products_of_unsigned_codes_are_exact_at_the_ends() -> None:
    x, w = extremes()
    model = product(len(x), w)
    np.testing.assert_array_equal(run(model, x=x)["y"], exact(x, w))


def has_vnni() -> bool:
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return True  # unknown: nothing is claimed of it
    return "avx2" not in words or not words.isdisjoint({"avx512_vnni", "avx_vnni"})


@pytest.mark.skipif(has_vnni(), reason="this processor has VNNI, or no AVX2: nothing saturates")
def test_signed_weights_by_unsigned_activations_saturate_without_vnni() -> None:
    x, w = extremes()
    model = product(len(x), w, signed=True)
    found = run(model, x=x)["y"]
    assert relative_error(found, exact(x, w)) > 0.01
    # what the storage avoids: sums of two products are cut off at 16 bits
    small = np.minimum(x, 127)
    np.testing.assert_array_equal(run(model, x=small)["y"], exact(small, w))


def quantised_by_the_spec(x: np.ndarray) -> tuple[np.ndarray, np.float32, np.uint8]:
    """DynamicQuantizeLinear-11 as ONNX writes it."""
    low, high = min(np.float32(0), x.min()), max(np.float32(0), x.max())
    scale = np.float32((high - low) / np.float32(255))
    zero = np.uint8(np.clip(np.rint((0 - low) / scale), 0, 255))
    codes = np.clip(np.rint(x / scale) + int(zero), 0, 255).astype(np.uint8)
    return codes, scale, zero


def dynamic_layer() -> tuple[onnx.ModelProto, RoundedWeight, str]:
    """The graph up to one layer, whose source and result are outputs too."""
    placed = dynamic("performer")
    (layer,) = (x for x in chosen(placed.decisions) if x.name == "blocks.0.mlp.fc1")
    model = copy.deepcopy(placed.model)
    (result,) = (node.output[0] for node in model.graph.node if f"{layer.name}/step" in node.input)
    kinds = {
        layer.source: TensorProto.FLOAT,
        f"{layer.source}/quantized": TensorProto.UINT8,
        f"{layer.source}/scale": TensorProto.FLOAT,
        f"{layer.source}/zero": TensorProto.UINT8,
        f"{layer.name}/sum": TensorProto.INT32,
        result: TensorProto.FLOAT,
    }
    for name, dtype in kinds.items():
        model.graph.output.append(helper.make_tensor_value_info(name, dtype, None))
    weight = rounded_weights(tiny("performer", Target.CPU))[layer.name]
    return model, weight, layer.source


def test_a_dynamic_layer_is_what_the_specification_says() -> None:
    model, weight, source = dynamic_layer()
    found = run(model, image=pictures())
    codes, scale, zero = quantised_by_the_spec(found[source])
    assert found[f"{source}/scale"] == pytest.approx(scale, rel=1e-6)
    assert found[f"{source}/zero"] == zero
    np.testing.assert_array_equal(found[f"{source}/quantized"], codes)
    sums = (codes.astype(np.int64) - int(zero)) @ weight.codes.astype(np.int64)
    np.testing.assert_array_equal(found["blocks.0.mlp.fc1/sum"], sums)
    *_, result = found.values()
    wanted = sums.astype(np.float64) * float(scale) * weight.scale.astype(np.float64)
    np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-7)


def test_one_range_holds_for_all_rows_of_a_batch() -> None:
    model, _, source = dynamic_layer()
    assert run(model, image=pictures())[f"{source}/scale"].shape == ()
