"""One layer by hand, in ONNX Runtime against numpy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from t2t_deploy._processor import Processor
from t2t_deploy.calibration import Codes, RoundedWeight, stored_arrays
from t2t_deploy.runtime import SessionRequest, _ort, open_session
from t2t_deploy.runtime._ort import new_options
from t2t_deploy.types import Target

from ..export.conftest import relative_error
from ..onnx_models import constants, graph_model
from .graphs import chosen, dynamic, pictures, rounded_weights, run, tiny


def product(rows: int, codes: np.ndarray, *, signed: bool = False) -> onnx.ModelProto:
    """MatMulInteger of unsigned activations around 128 with stored codes."""
    storage = (Codes.VNNI if signed else Codes.EXACT).weights
    stored = storage.store(codes)
    arrays = {
        "w": stored,
        "zx": np.array(128, np.uint8),
        "zw": np.full(codes.shape[1], storage.zero, stored.dtype),
    }
    node = helper.make_node("MatMulInteger", ["x", "w", "zx", "zw"], ["y"], "product")
    shapes = {"x": [rows, len(codes)]}, {"y": [rows, codes.shape[1]]}
    types = TensorProto.UINT8, TensorProto.INT32
    return graph_model([node], constants(arrays), *shapes, types=types)


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


@pytest.mark.skipif(not has_vnni(), reason="this processor has no VNNI")
@pytest.mark.parametrize("rows", [1, 3, 32])
def test_signed_weights_by_unsigned_activations_are_exact_with_vnni(rows: int) -> None:
    x, w = extremes()
    x = x[:rows]
    np.testing.assert_array_equal(run(product(rows, w, signed=True), x=x)["y"], exact(x, w))


@pytest.mark.parametrize(
    ("flags", "signed", "weights"),
    [
        *((flags, signed, np.uint8) for flags in (("avx2",), None) for signed in (True, False)),
        (("avx2", "avx512_vnni"), True, np.int8),
    ],
)
def test_sessions_multiply_unsigned_codes_unless_there_is_vnni(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...] | None,
    signed: bool,
    weights: type,
) -> None:
    assert weights_computed(tmp_path, monkeypatch, flags, signed=signed) == weights


def weights_computed(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...] | None,
    *,
    signed: bool,
) -> np.dtype:
    """The type of a product's weights in the graph that our session makes of a file."""
    x, w = extremes()
    path, optimised = folder / "product.onnx", folder / "optimised.onnx"
    onnx.save(product(len(x), w, signed=signed), path)

    def options(*given: Any) -> Any:
        made = new_options(*given)
        made.optimized_model_filepath = str(optimised)
        return made

    monkeypatch.setattr(_ort, "new_options", options)
    monkeypatch.setattr(_ort, "read_processor", lambda: Processor("one", flags))
    open_session(SessionRequest("ort-cpu", path)).close()
    codes = stored_arrays(onnx.load(optimised)).values()
    (weights,) = (array for array in codes if array.shape == w.shape)
    return weights.dtype


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
    assert found[f"{source}/scale"].shape == ()  # one range for all rows of a batch
    codes, scale, zero = quantised_by_the_spec(found[source])
    assert found[f"{source}/scale"] == pytest.approx(scale, rel=1e-6)
    assert found[f"{source}/zero"] == zero
    np.testing.assert_array_equal(found[f"{source}/quantized"], codes)
    sums = (codes.astype(np.int64) - int(zero)) @ weight.codes.astype(np.int64)
    np.testing.assert_array_equal(found["blocks.0.mlp.fc1/sum"], sums)
    *_, result = found.values()
    wanted = sums.astype(np.float64) * float(scale) * weight.scale.astype(np.float64)
    np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-7)
