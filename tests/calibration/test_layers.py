"""Which layers a graph has, and what the policy makes of each."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from t2t_deploy.calibration import (
    WEIGHTS_COMPACT,
    Form,
    RoundedWeight,
    decide,
    find_layers,
    place_static,
    sources,
)
from t2t_deploy.calibration._layers import FP8_WINDOWS, NOT_NORMALISED, ONE_ROW, POLICY
from t2t_deploy.errors import CalibrationError
from t2t_deploy.model import VARIANTS, config_for_variant
from t2t_deploy.types import Precision, Target

from ..export.conftest import KINDS
from ..onnx_models import constants, graph_model
from .graphs import TARGETS, chosen, decisions_of, graph_of, layer, tiny

# One line for each module: its layers in the graph's order, those that stay float with a minus.
# What a token block makes of its windows; for the CPU a performer's are other ones.
WINDOWS = {"performer": ("features", "norms", "v"), "transformer": ("q", "k", "v")}
CPU_WINDOWS = {**WINDOWS, "performer": ("k", "q", "v")}
# of a picture, centred on a pixel and no more: one range would leave flat windows no bits
FLOAT_FIRST_SPLIT = {Target.PORTABLE}
TAIL = "tail.mlp.fc1 tail.mlp.fc2"
TOKENS = {"performer": f"-proj_weight {TAIL}", "transformer": f"proj {TAIL}"}
CPU_TOKENS = {**TOKENS, "performer": f"-proj_weight -w_transposed {TAIL}"}
BLOCK = "attn.q attn.k attn.v attn.proj mlp.fc1 mlp.fc2"
GATE = "-attn.gate.down -attn.gate.up"
GATED = f"attn.q attn.k attn.v attn.proj {GATE}"
# only the class row is left in the last block, and where keys are folded no key and no value
LAST = {
    Target.CPU: "-attn.q -attn.proj -mlp.fc1 -mlp.fc2",
    **dict.fromkeys(
        (Target.TENSORRT, Target.PORTABLE), "-attn.q attn.k attn.v -attn.proj -mlp.fc1 -mlp.fc2"
    ),
}
PLAIN_BLOCKS = {
    target: [f"blocks.0: {BLOCK}", f"blocks.1: {last}"] for target, last in LAST.items()
}
# a gate averages all rows, so the last attention has all of them
SE_BLOCKS = [f"blocks.0: {GATED} mlp.fc1 mlp.fc2", f"blocks.1: {GATED} -mlp.fc1 -mlp.fc2"]
DENSE_BLOCKS = {
    target: [
        f"blocks.0: {BLOCK} dense_linear",
        f"blocks.1: {BLOCK} dense_linear",
        "blocks.2: linear",
        f"blocks.3: {BLOCK} dense_linear",
        f"blocks.4: {last} -dense_linear",
    ]
    for target, last in LAST.items()
}
BLOCKS = {
    "performer": PLAIN_BLOCKS,
    "transformer": PLAIN_BLOCKS,
    "dense": DENSE_BLOCKS,
    "se": dict.fromkeys(LAST, SE_BLOCKS),
    "ghost": PLAIN_BLOCKS,
}
CASES = pytest.mark.parametrize(("kind", "target"), list(itertools.product(KINDS, TARGETS)))


def expected(kind: str, target: Target) -> dict[str, bool]:
    """Name -> whether it is quantised, in the graph's order."""
    tokens_type = "transformer" if kind == "transformer" else "performer"
    token_block = (CPU_TOKENS if target is Target.CPU else TOKENS)[tokens_type]
    parts = (CPU_WINDOWS if target is Target.CPU else WINDOWS)[tokens_type]
    windows = [f"weights.{part}" for part in parts]
    minus = "-" if target in FLOAT_FIRST_SPLIT else ""
    lines = [
        f"tokens.splits.0: {' '.join(minus + one for one in windows)}",
        f"tokens.blocks.0: {token_block}",
        f"tokens.splits.1: {' '.join(windows)}",
        f"tokens.blocks.1: {token_block}",
        "tokens.project: weights.0",
        *BLOCKS[kind][target],
    ]
    found = {}
    for line in lines:
        module, _, words = line.partition(": ")
        for word in words.split():
            found[f"{module}.{word.lstrip('-')}"] = not word.startswith("-")
    return {**found, "head": False}


@CASES
def test_layers_are_quantised_or_float_as_written_down(kind: str, target: Target) -> None:
    """They are named by module and in the order of the graph."""
    found = {made.layer.name: made.quantised for made in decisions_of(tiny(kind, target))}
    assert list(found.items()) == list(expected(kind, target).items())


def test_a_layer_knows_its_node_sizes_and_source() -> None:
    model = tiny("performer", Target.TENSORRT)
    by_name = {layer.name: layer for layer in find_layers(model)}
    nodes = {node.name: node for node in model.graph.node}
    for found in by_name.values():
        node = nodes[found.node]
        assert (node.op_type, *node.input) == ("MatMul", found.source, found.weight)
        assert list(node.output) == [found.result]
    assert len(by_name) == len({found.node for found in by_name.values()})
    # 32 pixels, 64 windows, 16 windows, 4 tokens and the class token
    fc1 = by_name["tokens.blocks.0.tail.mlp.fc1"]
    assert (fc1.rows, fc1.inputs, fc1.outputs, fc1.normalised) == (64, 16, 16, True)
    assert fc1.macs == 64 * 16 * 16
    values = by_name["tokens.splits.1.weights.v"]
    assert (values.rows, values.inputs, values.outputs, values.normalised) == (16, 144, 16, True)
    # 7 x 7 windows of 3 channels are 147 numbers, padded to whole eights
    first = by_name["tokens.splits.0.weights.v"]
    assert (first.rows, first.inputs, first.outputs, first.normalised) == (64, 152, 16, True)
    fc2 = by_name["blocks.0.mlp.fc2"]
    assert (fc2.rows, fc2.inputs, fc2.outputs, fc2.normalised) == (5, 96, 32, False)
    head = by_name["head"]
    assert (head.rows, head.inputs, head.outputs, head.normalised) == (1, 32, 10, True)


@pytest.mark.parametrize(("kind", "block"), [("performer", 1), ("dense", 4), ("se", None)])
def test_a_layer_that_reads_one_row_of_a_tensor_knows_the_tensor(
    kind: str, block: int | None
) -> None:
    """The last attention asks for its class row alone; its keys and values read the same norm."""
    by_name = {layer.name: layer for layer in find_layers(tiny(kind, Target.TENSORRT))}
    cut = {layer.name: layer for layer in by_name.values() if layer.cut_from is not None}
    assert list(cut) == ([] if block is None else [f"blocks.{block}.attn.q"])
    for query in cut.values():
        keys = by_name[query.name.replace(".q", ".k")]
        assert query.cut_from == query.ranged == keys.source == keys.ranged
        assert query.source != keys.source
        assert (query.rows, keys.rows) == (1, 5)


def test_layers_are_the_same_in_the_16_bit_twin() -> None:
    wide, half = (
        [(layer.name, layer.rows) for layer in find_layers(tiny("performer", Target.TENSORRT, p))]
        for p in (Precision.FP32, Precision.FP16)
    )
    assert half == wide


def test_every_layer_matches_one_rule_and_every_rule_a_layer() -> None:
    matched = set()
    for kind, target in itertools.product(KINDS, (Target.CPU, Target.TENSORRT)):
        for found in find_layers(tiny(kind, target)):
            (rule,) = (rule for rule in POLICY if re.fullmatch(rule.pattern, found.name))
            matched.add(rule.pattern)
    assert matched == {rule.pattern for rule in POLICY}


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.o", "blocks.0.mlp.fc3", "head2", "xhead", "tokens.splits.2.weights.k"]
)
def test_a_layer_that_no_rule_knows_is_refused_by_name(name: str) -> None:
    rules = ", ".join(rule.pattern for rule in POLICY)
    told = f"whether layer {name} is quantised; expected one of {rules}: quantise a graph that"
    with pytest.raises(CalibrationError, match=re.escape(told)):
        decide([layer(name, "x")])


@pytest.mark.parametrize(
    ("name", "properties", "returned", "quantised", "because"),
    [
        ("blocks.3.mlp.fc1", {"rows": 1}, {}, False, ONE_ROW),
        ("blocks.3.mlp.fc1", {"rows": 2}, {}, True, "linear layer of an MLP"),
        # the first split after its norm only, the second needs none
        ("tokens.splits.0.weights.q", {"normalised": False}, {}, False, NOT_NORMALISED),
        ("tokens.splits.0.weights.q", {}, {}, True, None),
        ("tokens.splits.1.weights.q", {"normalised": False}, {}, True, None),
        # what was returned, before every other reason
        ("blocks.0.mlp.fc2", {}, {"blocks.0.mlp.fc2": "over budget"}, False, "over budget"),
        ("blocks.0.mlp.fc1", {}, {"blocks.0.mlp.fc2": "over budget"}, True, None),
        ("head", {"rows": 1}, {"head": "asked for"}, False, "asked for"),
    ],
)
def test_what_decides_about_a_layer(
    name: str,
    properties: dict[str, Any],
    returned: dict[str, str],
    quantised: bool,
    because: str | None,
) -> None:
    one = layer(name, "x", **properties)
    (found,) = decide([one], returned)
    assert (found.layer, found.quantised) == (one, quantised)
    assert because is None or found.because == because


def test_products_of_two_activations_are_no_layers() -> None:
    model = tiny("performer", Target.TENSORRT)
    stored = {tensor.name for tensor in model.graph.initializer}
    layers = {found.node for found in find_layers(model)}
    others = [
        node for node in model.graph.node if node.op_type == "MatMul" and node.name not in layers
    ]
    # two of each performer, two of each attention
    assert len(others) == 8
    assert not any(name in stored for node in others for name in node.input)


def test_a_graph_without_inferred_shapes_is_refused() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny("performer", Target.TENSORRT))
    del model.graph.value_info[:]
    with pytest.raises(CalibrationError, match=r"the shape of .+ is unknown.+inferred shapes"):
        find_layers(model)


def test_a_graph_whose_tokens_are_not_counted_is_refused() -> None:
    """Of the batch nothing need be known, of each other dimension it must."""

    def with_rows(rows: int | str) -> onnx.ModelProto:
        made = [helper.make_node("MatMul", ["x", "head.weight"], ["y"], name="/head/MatMul")]
        weights = constants({"head.weight": np.ones((4, 2), np.float32)})
        return graph_model(made, weights, {"x": ["n", rows, 3, 4]}, {"y": ["n", rows, 3, 2]})

    told = (
        r"^the shape of x, which /head/MatMul reads, is unknown; expected a graph with inferred "
        r"shapes: export the model again$"
    )
    with pytest.raises(CalibrationError, match=told):
        find_layers(with_rows("rows"))
    (found,) = find_layers(with_rows(5))
    assert (found.name, found.rows, found.inputs, found.outputs) == ("head", 15, 4, 2)


def test_every_layer_of_the_plain_performer_has_a_rule() -> None:
    config = dataclasses.replace(KINDS["performer"], depth=1)
    decisions = decide(find_layers(graph_of(config, Target.TENSORRT, performer="plain")))
    kept = [made.layer.name for made in decisions if made.because == "a performer's exponents"]
    assert kept == [f"tokens.blocks.{index}.w_transposed" for index in (0, 0, 1, 1)]


# variant -> for tensorrt, for cpu: quantised layers, float layers, quantised nodes, float nodes.
# 14/tensorrt: 13 blocks of 6, key and value of the last, 4 of token blocks, 3 of either split and
# the projection are 91; 2 of performers, 4 of the last block and the head are float, and with them,
# as nodes, 2 of each attention and of each performer. For cpu an attention is one node, a performer
# has 3 and the last block, its keys folded, 4.
RELEASED = {
    "7": ((49, 7, 49, 25), (47, 9, 47, 25)),
    "10": ((67, 7, 67, 31), (65, 9, 65, 28)),
    "12": ((79, 7, 79, 35), (77, 9, 77, 30)),
    "14": ((91, 7, 91, 39), (89, 9, 89, 32)),
    "19": ((121, 7, 121, 49), (119, 9, 119, 37)),
    "24": ((151, 7, 151, 59), (149, 9, 149, 42)),
    "t_14": ((93, 5, 93, 37), (91, 5, 91, 26)),
    "t_19": ((123, 5, 123, 47), (121, 5, 121, 31)),
    "t_24": ((153, 5, 153, 57), (151, 5, 151, 36)),
    "14_resnext": ((91, 7, 91, 39), (89, 9, 89, 32)),
    "14_wide": ((31, 7, 31, 19), (29, 9, 29, 22)),
    "dense": ((142, 8, 142, 50), (140, 10, 140, 38)),
    "14_se": ((93, 33, 93, 65), (93, 35, 93, 55)),
    "16_ghost": ((103, 7, 103, 43), (101, 9, 101, 34)),
}
RELEASED_TARGETS = (Target.TENSORRT, Target.CPU)


def test_every_released_variant_is_counted() -> None:
    assert RELEASED.keys() == VARIANTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("target", RELEASED_TARGETS)
@pytest.mark.parametrize("variant", RELEASED)
def test_a_released_variant_has_these_layers_and_nodes(variant: str, target: Target) -> None:
    model = graph_of(config_for_variant(variant), target)
    decisions = decisions_of(model)
    layers = chosen(decisions)
    weights = {
        found.name: RoundedWeight(
            np.zeros((found.inputs, found.outputs), np.int8), np.ones(found.outputs, np.float32)
        )
        for found in layers
    }
    ranges = dict.fromkeys(sources(layers), 1.0)
    placed = place_static(model, decisions, weights, ranges, Precision.INT8)
    found = (len(layers), len(decisions) - len(layers), placed.quantized_nodes, placed.float_nodes)
    assert found == RELEASED[variant][RELEASED_TARGETS.index(target)]


def test_windows_of_token_blocks_are_not_fp8() -> None:
    layers = find_layers(tiny("performer", Target.TENSORRT))
    decided = {found.layer.name: found for found in decide(layers, precision=Precision.FP8)}
    windows = [
        decided[f"tokens.splits.{s}.weights.{p}"] for s in (0, 1) for p in WINDOWS["performer"]
    ]
    assert {(found.quantised, found.because) for found in windows} == {(False, FP8_WINDOWS)}
    assert decided["tokens.project.weights.0"].quantised
    alone = decide(layers, precision=Precision.FP8, placement=WEIGHTS_COMPACT)
    forms = [one.form for one in alone if one.quantised and ".splits." in one.layer.name]
    assert forms == [Form.WEIGHTS] * 6  # where no product is in FP8, their weights are
    in_int8 = {found.layer.name: found for found in decide(layers)}
    assert all(in_int8[window.layer.name].quantised for window in windows)
