"""Pixels in and probabilities out: what is put around an exported graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from t2t_deploy.errors import ExportError
from t2t_deploy.export import onnx_from_deploy
from t2t_deploy.graph import check_graph, expose_tensors, with_graph_io, without_graph_io
from t2t_deploy.runtime import Session, SessionRequest, open_session
from t2t_deploy.types import BARE, GraphIO, Tail
from t2t_deploy.verify import PixelSession, takes_pixels
from t2t_deploy.verify._compare import tail_fault

from ..prepared import normalise, pixels_of, usual
from .conftest import deployed

EVERY = pytest.mark.parametrize(
    "graph_io",
    [GraphIO(embedded, tail) for embedded in (False, True) for tail in Tail if tail.classifies],
    ids=lambda graph_io: "-".join(graph_io.words) or "bare",
)


@pytest.fixture(scope="module")
def bare() -> onnx.ModelProto:
    return check_graph(onnx_from_deploy(deployed("performer")), batch=None)


def session_of(model: onnx.ModelProto, folder: Path) -> Session:
    onnx.save(model, folder / "model.onnx")
    return open_session(SessionRequest("ort-cpu", folder / "model.onnx", threads=1))


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, 32, 32, 3), np.uint8)


def test_pixels_come_back_exactly() -> None:
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    np.testing.assert_array_equal(pixels_of(normalise(every)), every)
    np.testing.assert_array_equal(pixels_of(np.full((3, 1, 1), 99, np.float32)).ravel(), [255] * 3)


@EVERY
def test_each_pair_of_ends(bare: onnx.ModelProto, graph_io: GraphIO, tmp_path: Path) -> None:
    with session_of(bare, tmp_path) as session:
        logits = session.run({"image": normalise(pixels(3))})["logits"]
    made = check_graph(with_graph_io(bare, graph_io, usual(32)), batch=None)
    behind = {Tail.LOGITS: 0, Tail.SOFTMAX: 1, Tail.TOPK: 2, Tail.SIGMOID: 1}
    added = 4 * graph_io.embed_preprocess + behind[graph_io.tail]
    assert len(made.graph.node) == len(bare.graph.node) + added
    assert GraphIO.of_details(graph_io.to_details()) == graph_io
    with session_of(made, tmp_path) as session:
        assert takes_pixels(session) is graph_io.embed_preprocess
        taken = pixels(3) if graph_io.embed_preprocess else normalise(pixels(3))
        found = session.run({"image": taken})
    if graph_io.tail is Tail.LOGITS:
        np.testing.assert_allclose(found["logits"], logits, rtol=1e-4, atol=1e-5)
        return
    assert found["probabilities"].dtype == np.float32
    assert tail_fault(found, logits, graph_io.tail) is None
    if graph_io.tail is Tail.TOPK:
        assert found["indices"].dtype == np.int64
        np.testing.assert_array_equal(found["indices"], np.argsort(-logits, axis=1)[:, :5])
    with session_of(expose_tensors(made, ["logits"]), tmp_path) as session:
        shown = session.run({"image": taken})
    np.testing.assert_allclose(shown.pop("logits"), logits, rtol=1e-4, atol=1e-5)
    for name, array in found.items():
        np.testing.assert_array_equal(shown[name], array)


@EVERY
def test_the_graph_inside_comes_back(bare: onnx.ModelProto, graph_io: GraphIO) -> None:
    made = check_graph(with_graph_io(bare, graph_io, usual(32)), batch=None)
    inside = check_graph(without_graph_io(made), batch=None).graph
    assert (inside.node, inside.initializer) == (bare.graph.node, bare.graph.initializer)
    assert (inside.input, inside.output) == (bare.graph.input, bare.graph.output)


@pytest.mark.parametrize(("classes", "told"), [(10, 5), (3, 3)])
def test_few_classes(bare: onnx.ModelProto, classes: int, told: int) -> None:
    small = onnx.ModelProto()
    small.CopyFrom(bare)
    small.graph.output[0].type.tensor_type.shape.dim[1].dim_value = classes
    outputs = with_graph_io(small, GraphIO(tail=Tail.TOPK), usual(32)).graph.output
    assert [o.type.tensor_type.shape.dim[1].dim_value for o in outputs] == [told, told]
    assert {len(o.type.tensor_type.shape.dim) for o in outputs} == {2}


def test_ends_are_put_on_once(bare: onnx.ModelProto) -> None:
    assert with_graph_io(bare, BARE, usual(32)) == bare
    for graph_io in (GraphIO(embed_preprocess=True), GraphIO(tail=Tail.SOFTMAX)):
        with pytest.raises(ExportError, match="export the model again"):
            with_graph_io(with_graph_io(bare, graph_io, usual(32)), graph_io, usual(32))


def test_the_same_pixels_reach_a_session_inside(bare: onnx.ModelProto, tmp_path: Path) -> None:
    made = with_graph_io(bare, GraphIO(embed_preprocess=True), usual(32))
    with session_of(made, tmp_path) as session, PixelSession(session, usual(32)) as floats:
        wanted = session.run({"image": pixels(2)})["logits"]
        found = floats.run({"image": normalise(pixels(2))})["logits"]
        assert floats.inputs[0].accepts(normalise(pixels(2)))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.5]},
        {"mean": [120, 110, 100], "std": [60, 50, 55], "scale": 1, "color": "bgr"},
    ],
    ids=["released", "own", "BGR of 0 to 255"],
)
def test_the_graph_normalises_as_images_do(
    bare: onnx.ModelProto, tmp_path: Path, values: dict[str, Any]
) -> None:
    """Directly: the first LayerNorm would hide a wrong factor from the logits."""
    steps = usual(32).changed(values, channels=3)
    made = check_graph(with_graph_io(bare, GraphIO(embed_preprocess=True), steps), batch=None)
    inside = next(info for info in made.graph.value_info if info.name == "image_normalised")
    made.graph.output.append(inside)
    every = np.arange(32 * 32 * 3).reshape(1, 32, 32, 3).astype(np.uint8)
    with session_of(made, tmp_path) as session:
        found = session.run({"image": every})["image_normalised"]
    # two roundings of values up to 2.7 instead of three
    np.testing.assert_allclose(found, steps.normalise(every), rtol=0, atol=5e-7)
