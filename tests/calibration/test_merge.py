"""Products that read the same codes become one, and ONNX Runtime multiplies it in integers."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from t2t_deploy.calibration._placement import merge_readers
from t2t_deploy.graph import check_graph
from t2t_deploy.runtime import BACKENDS, ProductCounts, SessionRequest
from t2t_deploy.types import INPUT_NAME, Precision, Target

from ..export.conftest import relative_error, run_graph
from .graphs import EVERY_KIND, pictures, static


def merged(kind: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A static graph for any runtime, and the same with its products merged."""
    before = static(kind, Target.PORTABLE).model
    after = copy.deepcopy(before)
    merge_readers(after)
    return before, after


def counts(model: onnx.ModelProto, path: Path) -> ProductCounts | None:
    onnx.save(model, path)
    request = SessionRequest("ort-cpu", path, precision=Precision.INT8)
    return BACKENDS["ort-cpu"].count_products(request)


@EVERY_KIND
def test_the_numbers_stay(kind: str) -> None:
    before, after = merged(kind)
    check_graph(after, batch=None)
    images = {INPUT_NAME: pictures()}
    expected, actual = (run_graph(model, images)["logits"] for model in (before, after))
    assert relative_error(actual, expected) < 1e-6


@EVERY_KIND
def test_codes_have_one_reader(kind: str) -> None:
    before, after = merged(kind)

    def readers(model: onnx.ModelProto) -> set[int]:
        read = Counter(name for node in model.graph.node for name in node.input)
        made = [n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"]
        return {read[name] for name in made}

    assert max(readers(before)) == 3 and readers(after) == {1}
    stored = {tensor.name for tensor in after.graph.initializer}
    assert stored <= {name for node in after.graph.node for name in node.input}
    assert "blocks.0.attn.q+k+v/codes" in stored and "blocks.0.attn.q/codes" not in stored


@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_onnx_runtime_multiplies_all_of_them_in_integers(kind: str, tmp_path: Path) -> None:
    """Of the graph before it computes those in float that share their codes."""
    before, after = merged(kind)
    quantised = sum(
        node.op_type == "DequantizeLinear" and node.output[0].endswith("/weight")
        for node in after.graph.node
    )
    found = counts(after, tmp_path / "after.onnx")
    assert found is not None and found.integer == quantised > 9
    shared = counts(before, tmp_path / "before.onnx")
    assert shared is not None and shared.integer < found.integer and shared.float > found.float


def test_one_scale_for_a_weight_is_left_alone() -> None:
    """Two of them have no columns to stand side by side."""
    model = static("performer", Target.PORTABLE).model
    plain = copy.deepcopy(model)
    scales = {n.input[1] for n in plain.graph.node if n.output[0].endswith("/weight")}
    for tensor in plain.graph.initializer:
        if tensor.name in scales:
            whole = np.float32(onnx.numpy_helper.to_array(tensor).max())
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(whole), tensor.name))
    before = len(plain.graph.node)
    merge_readers(plain)
    assert len(plain.graph.node) == before
