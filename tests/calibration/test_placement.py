"""8-bit operators stand around the layers that were chosen, and nowhere else."""

from __future__ import annotations

import copy
import re
from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from t2t_deploy.calibration import (
    TYPED_QDQ_OPSET,
    Codes,
    QuantizedGraph,
    place_dynamic,
    place_static,
    stored_arrays,
)
from t2t_deploy.errors import CalibrationError
from t2t_deploy.graph import check_graph
from t2t_deploy.types import Precision, Target

from ..export.conftest import relative_error
from .graphs import (
    EVERY_KIND,
    QUANTIZERS,
    chosen,
    decisions_of,
    dynamic,
    logits,
    misplaced,
    pictures,
    readers_of,
    rounded_weights,
    static,
    tiny,
    tiny_ranges,
)

STATIC_TARGETS = (Target.CPU, Target.TENSORRT)
# (kind, target) -> quantised nodes, float nodes: the float layers, 2 for each attention and each
# performer; for cpu 1 for an attention, 3 for a performer, 4 for the last block with folded keys
NODES = {
    ("performer", Target.CPU): (17, 9 + 1 + 6 + 4),
    ("performer", Target.TENSORRT): (19, 7 + 4 + 4),
    ("transformer", Target.CPU): (19, 5 + 1 + 4 + 4),
    ("transformer", Target.TENSORRT): (21, 5 + 4 + 4),
    ("dense", Target.CPU): (33, 10 + 3 + 6 + 4),
    ("dense", Target.TENSORRT): (35, 8 + 8 + 4),
    ("se", Target.CPU): (21, 11 + 2 + 6),
    ("se", Target.TENSORRT): (21, 9 + 4 + 4),
    ("ghost", Target.CPU): (17, 9 + 1 + 6 + 4),
    ("ghost", Target.TENSORRT): (19, 7 + 4 + 4),
}
EVERY_CASE = pytest.mark.parametrize(("kind", "target"), NODES)


def quantised_weights(model: onnx.ModelProto) -> list[str]:
    """Names of the layers whose codes are stored."""
    return [t.name.removesuffix("/codes") for t in model.graph.initializer if "/codes" in t.name]


def quantised_graphs(kind: str, target: Target) -> list[QuantizedGraph]:
    return [static(kind, target), *([dynamic(kind)] if target is Target.CPU else [])]


def assert_in_layers_only(placed: QuantizedGraph) -> None:
    assert misplaced(placed.model) == []
    assert quantised_weights(placed.model) == [x.name for x in chosen(placed.decisions)]


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


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_operators_of_a_16_bit_graph_lead_to_layers_only(kind: str, precision: Precision) -> None:
    opset = TYPED_QDQ_OPSET
    assert_in_layers_only(
        static(kind, Target.TENSORRT, precision, base=Precision.FP16, opset=opset)
    )


@EVERY_CASE
def test_operators_lead_to_layers_only(kind: str, target: Target) -> None:
    for placed in quantised_graphs(kind, target):
        assert_in_layers_only(placed)
        check_graph(placed.model, batch=None, contrib=target is Target.CPU)


@EVERY_CASE
def test_biases_and_norms_keep_their_own_numbers(kind: str, target: Target) -> None:
    before = stored_arrays(tiny(kind, target))
    gone = {layer.weight for layer in chosen(decisions_of(tiny(kind, target)))}
    for placed in quantised_graphs(kind, target):
        after = stored_arrays(placed.model)
        assert gone.isdisjoint(after)
        for name in before.keys() - gone:
            assert after[name].dtype == before[name].dtype
            np.testing.assert_array_equal(after[name], before[name])


@EVERY_CASE
def test_a_source_that_layers_share_is_quantised_once(kind: str, target: Target) -> None:
    for placed in quantised_graphs(kind, target):
        graph = placed.model.graph
        codes = {n.input[0]: n.output[0] for n in graph.node if n.op_type in QUANTIZERS}
        assert len(codes) == sum(n.op_type in QUANTIZERS for n in graph.node)
        (shared,) = (name for name in codes if name.startswith("/blocks.0/norm1/"))
        assert len(readers_of(graph)[codes[shared]]) == 3  # query, key and value


@EVERY_CASE
def test_signed_and_unsigned_codes_give_the_same_logits(kind: str, target: Target) -> None:
    stored = Codes.EXACT.weights.store(np.array([-127, 0, 127], np.int8))
    np.testing.assert_array_equal(stored, [1, 128, 255])
    signed, unsigned, mixed = (static(kind, target, codes=codes).model for codes in Codes)
    assert {one.version for one in signed.opset_import if not one.domain} == {18}
    one, other = (stored_arrays(model) for model in (signed, unsigned))
    for name in quantised_weights(signed):
        assert one[f"{name}/codes"].dtype == np.int8 and one[f"{name}/zero"].dtype == np.int8
        assert other[f"{name}/codes"].dtype == np.uint8 and set(other[f"{name}/zero"]) == {128}
        shifted = other[f"{name}/codes"].astype(np.int64) - 128
        np.testing.assert_array_equal(shifted, one[f"{name}/codes"])
    images = pictures(seed=1)
    wanted = logits(signed, images)
    for model in (unsigned, mixed):
        assert relative_error(logits(model, images), wanted) <= 1e-6
    # near the float model, and not it
    assert 1e-4 < relative_error(wanted, logits(tiny(kind, target), images)) < 0.1


@EVERY_KIND
def test_dynamic_logits_are_near_the_float_ones(kind: str) -> None:
    images = pictures(seed=1)
    wanted = logits(tiny(kind, Target.CPU), images)
    assert 1e-4 < relative_error(logits(dynamic(kind).model, images), wanted) < 0.1


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
    # found in the 16-bit twin by itself, the first split's windows are not seen to be normalised
    quantised, others = NODES["performer", Target.TENSORRT]
    assert (placed.quantized_nodes, placed.float_nodes) == (quantised - 3, others + 3)


@pytest.mark.parametrize(
    ("base", "precision"),
    [
        (Precision.FP16, Precision.INT8),
        (Precision.BF16, Precision.INT8),
        (Precision.FP32, Precision.FP8),
    ],
)
def test_graphs_of_an_older_opset_are_refused(base: Precision, precision: Precision) -> None:
    with pytest.raises(CalibrationError, match=r"of opset 18; .+ at least 19: .+--opset 19"):
        static("performer", Target.TENSORRT, precision, base=base, opset=18)
    scales = stored_arrays(
        static("performer", Target.TENSORRT, precision, base=base, opset=19).model
    )
    dtype = {Precision.FP16: np.float16, Precision.BF16: ml_dtypes.bfloat16}.get(base, np.float32)
    assert {v.dtype for k, v in scales.items() if k.endswith("/scale")} == {np.dtype(dtype)}


def test_a_missing_range_is_named_with_the_layer_that_reads() -> None:
    model = tiny("performer", Target.TENSORRT)
    decisions, weights = decisions_of(model), rounded_weights(model)
    for layer in chosen(decisions):
        ranges = dict(tiny_ranges("performer", Target.TENSORRT))
        del ranges[layer.source]
        first = next(one.name for one in chosen(decisions) if one.source == layer.source)
        told = f"{layer.source}, which {first} reads; calibrate this graph again"
        with pytest.raises(CalibrationError, match=rf"no range is known of {re.escape(told)}$"):
            place_static(model, decisions, weights, ranges, Precision.INT8)


def test_ranges_of_float_layers_are_not_asked_for() -> None:
    model, known = tiny("performer", Target.TENSORRT), tiny_ranges("performer", Target.TENSORRT)
    decisions = decisions_of(model)
    needed = {layer.source: known[layer.source] for layer in chosen(decisions)}
    assert known.keys() > needed.keys()
    placed = place_static(model, decisions, rounded_weights(model), needed, Precision.INT8)
    assert placed.quantized_nodes == len(chosen(decisions))


def test_weights_of_two_types_are_refused() -> None:
    model = copy.deepcopy(tiny("performer", Target.TENSORRT))
    (head, *_) = chosen(decisions_of(model))
    for tensor in model.graph.initializer:
        if tensor.name == head.weight:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    types = "float(16, float32|32, float16)"
    told = rf"^the layers' weights are {types}; expected one type: export the model again$"
    with pytest.raises(CalibrationError, match=told):
        place_dynamic(model, decisions_of(model), rounded_weights(model))


def test_every_node_has_a_name_of_its_own() -> None:
    """Profilers, `--locate` and the attestation of engines tell nodes by it."""
    for placed in (dynamic("performer"), static("performer", Target.CPU)):
        names = [node.name for node in placed.model.graph.node]
        assert all(names) and len(set(names)) == len(names)


@EVERY_KIND
def test_the_model_given_is_left_as_it_is(kind: str) -> None:
    for target in STATIC_TARGETS:
        model = tiny(kind, target)
        before = model.SerializeToString()
        for codes in Codes:
            static(kind, target, codes=codes)
            place_dynamic(model, decisions_of(model), rounded_weights(model), codes)
        assert model.SerializeToString() == before


def test_nothing_is_quantised_where_nothing_was_chosen() -> None:
    model = tiny("performer", Target.TENSORRT)
    placed = place_static(model, (), {}, {}, Precision.INT8)
    assert placed.quantized_nodes == 0
    assert placed.float_nodes == sum(NODES["performer", Target.TENSORRT])
    images = pictures()
    np.testing.assert_array_equal(logits(placed.model, images), logits(model, images))
