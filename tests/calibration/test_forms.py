"""Products of codes in graphs for TensorRT: how each form is written, and that all are near."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper

from t2t_deploy.calibration import (
    ACCURATE,
    BALANCED,
    COMPACT,
    FP8_BALANCED,
    FP8_COMPACT,
    TYPED_QDQ_OPSET,
    WEIGHTS_BALANCED,
    WEIGHTS_COMPACT,
    Form,
    FormRule,
    Placement,
    decide,
    find_layers,
    half_bound,
    place_static,
    storable_scale,
    stored_arrays,
)
from t2t_deploy.calibration._weights import tensor_scale
from t2t_deploy.errors import CalibrationError
from t2t_deploy.graph import check_graph
from t2t_deploy.types import HALF_MAX, Precision, Target

from ..export.conftest import KINDS, relative_error
from .graphs import (
    Formed,
    formed,
    logits,
    makers_of,
    misplaced_forms,
    observed_ranges,
    pictures,
    readers_of,
    tiny,
    with_codes_before,
)

# what is multiplied by codes, and the forms: channel, tensor, result, weights
COUNTS = {
    ("performer", BALANCED): (18, 16, (0, 11, 7, 0)),
    ("performer", COMPACT): (19, 15, (0, 11, 8, 3)),
    ("performer", ACCURATE): (19, 15, (19, 0, 0, 0)),
    ("performer", FP8_BALANCED): (12, 22, (0, 12, 0, 0)),
    ("performer", FP8_COMPACT): (12, 22, (0, 9, 3, 0)),
    ("transformer", BALANCED): (20, 14, (4, 11, 5, 0)),
    ("transformer", COMPACT): (21, 13, (4, 11, 6, 3)),
    ("transformer", ACCURATE): (21, 13, (21, 0, 0, 0)),
    ("transformer", FP8_BALANCED): (14, 20, (0, 14, 0, 0)),
    ("transformer", FP8_COMPACT): (14, 20, (0, 11, 3, 0)),
    ("dense", BALANCED): (32, 23, (0, 23, 9, 0)),
    ("dense", COMPACT): (33, 22, (0, 21, 12, 4)),
    ("dense", ACCURATE): (35, 20, (35, 0, 0, 0)),
    ("dense", FP8_BALANCED): (26, 29, (0, 26, 0, 0)),
    ("dense", FP8_COMPACT): (26, 29, (0, 21, 5, 0)),
    ("se", BALANCED): (19, 19, (0, 12, 7, 0)),
    ("se", COMPACT): (19, 19, (0, 11, 8, 7)),
    ("se", ACCURATE): (21, 17, (21, 0, 0, 0)),
    ("se", FP8_BALANCED): (13, 25, (0, 13, 0, 0)),
    ("se", FP8_COMPACT): (13, 25, (0, 10, 3, 0)),
    ("ghost", BALANCED): (18, 16, (0, 11, 7, 0)),
    ("ghost", COMPACT): (19, 15, (0, 11, 8, 3)),
    ("ghost", ACCURATE): (19, 15, (19, 0, 0, 0)),
    ("ghost", FP8_BALANCED): (12, 22, (0, 12, 0, 0)),
    ("ghost", FP8_COMPACT): (12, 22, (0, 9, 3, 0)),
}
FORMS = (Form.CHANNEL, Form.TENSOR, Form.RESULT, Form.WEIGHTS)
IN_FP8 = (FP8_BALANCED, FP8_COMPACT)
EVERY_CASE = pytest.mark.parametrize(
    ("kind", "placement"),
    COUNTS,
    ids=lambda value: (
        value if isinstance(value, str) else f"{'fp8 ' if value in IN_FP8 else ''}{value.name}"
    ),
)
# random weights of 16 and 32 channels; E4M3 has 4 bits of significand
MOST = {Precision.INT8: 0.08, Precision.FP8: 0.12}


def precision_of(placement: Placement) -> Precision:
    return Precision.FP8 if placement in IN_FP8 else Precision.INT8


def case(kind: str, placement: Placement) -> Formed:
    return formed(kind, placement, precision_of(placement))


def error_of(kind: str, model: onnx.ModelProto) -> float:
    """Relative error of the logits against the float32 graph's, on other pictures."""
    images = pictures(seed=1)
    return relative_error(logits(model, images), logits(tiny(kind, Target.TENSORRT), images))


def test_every_placement_of_every_kind_is_here() -> None:
    placements = (BALANCED, COMPACT, ACCURATE, *IN_FP8)
    assert set(COUNTS) == {(kind, placement) for kind in KINDS for placement in placements}


@EVERY_CASE
def test_products_and_forms_are_counted(kind: str, placement: Placement) -> None:
    found = case(kind, placement)
    forms = Counter(one.form for one in found.quantised.values())
    told = (found.placed.quantized_nodes, found.placed.float_nodes)
    assert (*told, tuple(forms[form] for form in FORMS)) == COUNTS[kind, placement]
    # weights alone make no product of codes
    assert found.placed.quantized_nodes == forms.total() - forms[Form.WEIGHTS]


@EVERY_CASE
def test_operators_stand_where_the_forms_say_and_nowhere_else(
    kind: str, placement: Placement
) -> None:
    found = case(kind, placement)
    check_graph(found.model, batch=None, contrib=False)
    assert misplaced_forms(found.model) == []
    stored = [t.name for t in found.model.graph.initializer if t.name.endswith("/codes")]
    assert sorted(stored) == sorted(f"{name}/codes" for name in found.quantised)
    before = Counter(
        node.op_type for node in tiny(kind, Target.TENSORRT, Precision.FP16, 19).graph.node
    )
    added = Counter(node.op_type for node in found.model.graph.node) - before
    forms = Counter(one.form for one in found.quantised.values())
    ratios = forms[Form.CHANNEL] + forms[Form.WEIGHTS]
    read = {one.layer.ranged for one in found.quantised.values() if one.form is not Form.WEIGHTS}
    assert added == {
        "QuantizeLinear": len(read) + forms[Form.RESULT],
        "DequantizeLinear": 2 * forms.total() - forms[Form.WEIGHTS] + forms[Form.RESULT],
        **({"Mul": ratios} if ratios else {}),
    }


@EVERY_CASE
def test_logits_are_near_the_float_ones_and_not_them(kind: str, placement: Placement) -> None:
    found = case(kind, placement)
    assert 1e-3 < error_of(kind, found.model) < MOST[precision_of(placement)]


@EVERY_CASE
def test_every_weight_has_one_scale(kind: str, placement: Placement) -> None:
    """Ratios by channel are left to a kernel of their own, in the graph's type."""
    found = case(kind, placement)
    stored = stored_arrays(found.model)
    for node in found.model.graph.node:
        if node.op_type == "DequantizeLinear":
            scale = stored[node.input[1]]
            assert (scale.shape, scale.dtype, list(node.attribute)) == ((), np.float16, [])
            assert scale >= np.finfo(np.float16).smallest_normal
    for name, one in found.quantised.items():
        parts = found.weights[name].parts
        assert parts is not None and stored[f"{name}/scale"] == parts.base
        by_channel = one.form in (Form.CHANNEL, Form.WEIGHTS)
        assert (parts.ratio is not None) is by_channel is (f"{name}/ratio" in stored)
        if by_channel:
            ratio = stored[f"{name}/ratio"]
            assert (ratio.shape, ratio.dtype) == ((one.layer.outputs,), np.float16)
            np.testing.assert_array_equal(ratio, parts.ratio)


@EVERY_CASE
def test_no_product_can_pass_the_end_of_float16(kind: str, placement: Placement) -> None:
    found = case(kind, placement)
    for name, one in found.quantised.items():
        bound = half_bound(found.weights[name], one.form, found.steps[one.layer.ranged])
        assert (bound is None) is (one.form in (Form.RESULT, Form.WEIGHTS))
        assert bound is None or bound < HALF_MAX


@EVERY_CASE
def test_layers_that_read_one_tensor_share_their_scale(kind: str, placement: Placement) -> None:
    """TensorRT makes one product of them; what leaves in codes, or is cut afterwards, is apart."""
    found = case(kind, placement)
    stored = stored_arrays(found.model)
    shared: dict[str, set[float]] = {}
    cut: dict[str, np.ndarray] = {}
    for name, one in found.quantised.items():
        scale = stored[f"{name}/scale"]
        if one.layer.cut_from is not None:
            if one.form is not Form.WEIGHTS:
                cut[one.layer.ranged] = scale
        elif one.form in (Form.CHANNEL, Form.TENSOR):
            shared.setdefault(one.layer.ranged, set()).add(float(scale))
    assert {len(scales) for scales in shared.values()} == {1}
    assert len({scale for scales in shared.values() for scale in scales}) > 1
    # of the last block one row is asked for: what computes all rows for it has a step of its own
    compact = placement is COMPACT and kind != "se"
    assert len(cut) == int(compact)
    for tensor, step in cut.items():
        alone = {one.layer.name for one in found.quantised.values() if one.layer.ranged == tensor}
        assert sorted(name.rpartition(".")[2] for name in alone) == ["k", "q", "v"]
        (others,) = shared[tensor]
        query = next(one.layer for one in found.quantised.values() if one.layer.cut_from == tensor)
        weight = stored_arrays(tiny(kind, Target.TENSORRT))[query.weight]
        own = storable_scale(tensor_scale(weight, Precision.INT8), np.dtype(np.float16))
        # the next number of float16, so that it differs even where its step would be that of others
        assert step == np.nextafter(own, np.float16(np.inf)) and float(step) != others


@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_a_scale_by_channel_is_a_product_by_ratios_behind_the_sum(kind: str) -> None:
    graph = formed(kind, ACCURATE).model.graph
    maker = makers_of(graph)
    readers = readers_of(graph)
    for name, one in formed(kind, ACCURATE).quantised.items():
        product = maker[one.layer.result]
        assert (product.op_type, product.name) == ("Mul", f"{name}/by_channel")
        bare, ratio = product.input
        assert ratio == f"{name}/ratio"
        assert (maker[bare].op_type, maker[bare].name) == ("MatMul", one.layer.node)
        # the sum is read by nothing else
        assert [reader.name for reader, _ in readers[bare]] == [product.name]


@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_what_leaves_in_codes_is_quantised_behind_its_product(kind: str) -> None:
    found = formed(kind, BALANCED)
    graph = found.model.graph
    maker = makers_of(graph)
    readers, stored = readers_of(graph), stored_arrays(found.model)
    results = {n: one.layer for n, one in found.quantised.items() if one.form is Form.RESULT}
    assert {"blocks.0.mlp.fc1", "tokens.blocks.0.tail.mlp.fc2"} <= results.keys()
    for layer in results.values():
        back = maker[layer.result]
        there = maker[back.input[0]]
        assert (back.op_type, there.op_type) == ("DequantizeLinear", "QuantizeLinear")
        assert maker[there.input[0]].name == layer.node
        assert len(readers[there.input[0]]) == 1  # in 16 bit it is read by nothing else
        assert back.input[1] == there.input[1] == f"{layer.result}/scale"
        step = np.float16(observed_ranges(kind)[layer.result] / 127)
        assert stored[f"{layer.result}/scale"] == step


@pytest.mark.parametrize(("kind", "block"), [("performer", 1), ("dense", 4)])
def test_a_row_is_cut_out_of_the_result_where_codes_are_read_whole(kind: str, block: int) -> None:
    found = formed(kind, COMPACT)
    graph = found.model.graph
    maker = makers_of(graph)
    readers = readers_of(graph)
    query = found.quantised[f"blocks.{block}.attn.q"].layer
    assert query.cut_from is not None
    cut = maker[query.result]
    assert cut.op_type == "Slice" and cut.input[0] == f"{query.result}/rows"
    assert maker[cut.input[0]].name == query.node
    # the norm writes codes, and nothing else of it is read
    ((quantise, _),) = [
        (reader, index)
        for name in readers
        for reader, index in readers[name]
        if reader.op_type == "QuantizeLinear" and index == 0 and f"blocks.{block}/norm1/" in name
    ]
    assert len(readers[quantise.input[0]]) == 1
    assert len(readers[quantise.output[0]]) == 3  # query, key and value
    # where the query stays float, its row is cut out of the norm as before
    plain = formed(kind, BALANCED)
    assert f"blocks.{block}.attn.q" not in plain.quantised
    before = makers_of(plain.model.graph)
    assert before[query.result].name == query.node


def test_a_row_that_something_else_reads_is_cut_as_before() -> None:
    """A query of all rows would do, but its row is asked of the norm itself too."""
    wide = tiny("performer", Target.TENSORRT)
    half = copy.deepcopy(tiny("performer", Target.TENSORRT, Precision.FP16, TYPED_QDQ_OPSET))
    found = formed("performer", COMPACT)
    query = found.quantised["blocks.1.attn.q"].layer
    (row,) = (node.input[0] for node in half.graph.node if node.name == query.node)
    half.graph.node.append(helper.make_node("Identity", [row], ["also"], name="also"))
    decisions = decide(find_layers(wide), placement=COMPACT)
    ranges = {**observed_ranges("performer"), row: observed_ranges("performer")[query.ranged]}
    placed = place_static(half, decisions, found.weights, ranges, Precision.INT8)
    maker = makers_of(placed.model.graph)
    assert maker[row].op_type == "Slice"
    assert maker[query.result].name == query.node
    assert f"{query.result}/rows" not in maker


def test_a_row_whose_reader_has_codes_of_weights_alone_is_cut_as_before() -> None:
    """There are no codes of all rows that it could read."""
    rules = (FormRule(r"blocks\.1\.attn\.q", Form.WEIGHTS, ""), *COMPACT.rules)
    found = formed("performer", dataclasses.replace(COMPACT, rules=rules))
    query = found.quantised["blocks.1.attn.q"]
    assert query.form is Form.WEIGHTS
    maker = makers_of(found.model.graph)
    assert f"{query.layer.result}/rows" not in maker
    (product,) = (node for node in found.model.graph.node if node.name == query.layer.node)
    assert maker[product.input[0]].op_type == "Slice"
    assert misplaced_forms(found.model) == []
    assert error_of("performer", found.model) < MOST[Precision.INT8]


def test_a_missing_range_of_what_a_layer_writes_is_named() -> None:
    found = formed("performer", BALANCED)
    half = tiny("performer", Target.TENSORRT, Precision.FP16, TYPED_QDQ_OPSET)
    fc1 = found.quantised["blocks.0.mlp.fc1"].layer
    ranges = dict(observed_ranges("performer"))
    del ranges[fc1.result]
    told = rf"^no range is known of {fc1.result}, which blocks\.0\.mlp\.fc1 writes; calibrate this "
    with pytest.raises(CalibrationError, match=told):
        place_static(half, found.placed.decisions, found.weights, ranges, Precision.INT8)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
@pytest.mark.parametrize("placement", [WEIGHTS_BALANCED, WEIGHTS_COMPACT])
def test_weights_alone_leave_every_activation_as_it_is(
    placement: Placement, precision: Precision
) -> None:
    found = formed("performer", placement, precision)
    ops = Counter(node.op_type for node in found.model.graph.node)
    assert (ops["QuantizeLinear"], ops["DequantizeLinear"]) == (0, len(found.quantised))
    assert found.placed.quantized_nodes == 0
    forms = Counter(one.form for one in found.quantised.values())
    assert set(forms) <= {Form.WEIGHTS, Form.WEIGHTS_TENSOR}
    assert (forms[Form.WEIGHTS_TENSOR] > 0) is (placement is WEIGHTS_BALANCED)
    stored = stored_arrays(found.model)
    for name, one in found.quantised.items():
        assert (f"{name}/ratio" in stored) is (one.form is Form.WEIGHTS)
    assert misplaced_forms_of_weights(found.model) == []
    # the class row and the head too: they are the last that rounding meets
    most = {Precision.INT8: 0.03, Precision.FP8: 0.12}[precision]
    assert 1e-3 < error_of("performer", found.model) < most


def misplaced_forms_of_weights(model: onnx.ModelProto) -> list[str]:
    """As `misplaced_forms`, whose products here have one operand of the graph's own type."""
    made = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    read = {n.input[1] for n in model.graph.node if n.op_type == "MatMul"}
    return [*misplaced_forms(model), *sorted(made - read)]


# That each wrong place is seen: the check that the others rely on.


@pytest.mark.parametrize("op", ["Add", "Softmax", "Erf", "LayerNormalization"])
def test_codes_before_other_operators_are_misplaced(op: str) -> None:
    model = formed("performer", ACCURATE).model
    stored = stored_arrays(model)
    node = next(n for n in model.graph.node if n.op_type == op and n.name.startswith("/blocks.0"))
    index = next(i for i, name in enumerate(node.input) if name not in stored)
    wrong = misplaced_forms(with_codes_before(model, node.name, (index,), np.float16))
    assert wrong == [f"{node.name}/wide{index} leads to {op} {node.name}"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_product_of_activations_in_codes_is_misplaced(index: int) -> None:
    model = formed("performer", BALANCED).model
    softmax = next(n for n in model.graph.node if n.name == "/blocks.0/attn/Softmax")
    scores = next(n for n in model.graph.node if softmax.input[0] in n.output)
    wrong = misplaced_forms(with_codes_before(model, scores.name, (index,), np.float16))
    assert f"{scores.name}/wide{index} leads to MatMul {scores.name}" in wrong


def with_stored(name: str, value: np.ndarray) -> onnx.ModelProto:
    """The accurate graph with another stored tensor."""
    model = copy.deepcopy(formed("performer", ACCURATE).model)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float16), name))
    return model


def test_a_second_scale_is_misplaced_and_ratios_that_are_left_out_are_seen() -> None:
    # the old form: a scale for each output, in the operator
    vector = with_stored("blocks.0.mlp.fc1/scale", np.full(96, 0.1))
    assert misplaced_forms(vector) == ["blocks.0.mlp.fc1/weight has more than one scale"]
    without = with_stored("blocks.0.mlp.fc1/ratio", np.ones(96))
    assert error_of("performer", without) > 2 * MOST[Precision.INT8]
