"""That each wrong place of an 8-bit operator is seen: the check that the others rely on."""

from __future__ import annotations

import copy

import onnx
import pytest
from onnx import helper

from t2t_deploy.calibration import stored_arrays
from t2t_deploy.types import Target

from .graphs import (
    EVERY_KIND,
    chosen,
    decisions_of,
    dynamic,
    misplaced,
    static,
    tiny,
    with_codes_before,
)


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
    wrong = misplaced(with_codes_before(model, name, inputs))
    assert wrong == [f"{name}/wide{index} leads to MatMul {name}" for index in inputs]
    # and of a layer, of which one side alone is quantised
    plain = tiny(kind, Target.TENSORRT)
    node = next(layer.node for layer in chosen(decisions_of(plain)))
    wrong = misplaced(with_codes_before(plain, node, (0,)))
    assert wrong == [f"{node}/wide0 leads to MatMul {node}"]


@pytest.mark.parametrize(
    ("op", "constant"),
    [
        *((op, False) for op in ("Add", "LayerNormalization", "Softmax", "Erf", "Div", "Mul")),
        ("Add", True),  # a bias
    ],
)
def test_a_quantised_input_of_any_other_operator_is_misplaced(op: str, constant: bool) -> None:
    model = static("performer", Target.TENSORRT).model
    stored = stored_arrays(model)
    node, index = next(
        (node, index)
        for node in model.graph.node
        for index, name in enumerate(node.input)
        if node.op_type == op and (name in stored) is constant
    )
    wrong = misplaced(with_codes_before(model, node.name, (index,)))
    at_run_time = f"{node.name}/short{index} quantises a constant at run time"
    assert wrong == [at_run_time] * constant + [
        f"{node.name}/wide{index} leads to {op} {node.name}"
    ]


def test_an_integer_product_of_two_activations_is_misplaced() -> None:
    model = copy.deepcopy(dynamic("performer").model)
    first, second, *_ = (n for n in model.graph.node if n.op_type == "DynamicQuantizeLinear")
    model.graph.node.append(
        helper.make_node("MatMulInteger", [first.output[0], second.output[0]], ["by hand"], "hand")
    )
    wrong = misplaced(model)
    assert "hand is no product of codes with a constant weight" in wrong
    assert f"{first.name} leads to MatMulInteger hand" in wrong
