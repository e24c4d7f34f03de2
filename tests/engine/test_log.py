"""Reading a builder log: the excerpt is a real build of one attention, free batch and batch 4."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from t2t_deploy.engine._log import Kernel, parse_kernel, parse_log
from t2t_deploy.errors import EngineError

LOG = (Path(__file__).parent / "test_log.txt").read_text(encoding="utf-8")
LINE = next(line for line in LOG.split("\n") if line.startswith("Name: proj_myl0_8"))


def test_each_profile_has_its_layers() -> None:
    log = parse_log(LOG)
    assert [len(layers) for layers in log.profiles] == [10, 5]
    assert {t.dims[0] for t in log.profiles[0][1].inputs} == {-1}
    assert {t.dims[0] for t in log.profiles[1][0].inputs} == {4}


def test_kernel_fields() -> None:
    kernel = parse_kernel(LINE)
    assert (kernel.name, kernel.kind) == ("proj_myl0_8", "gemm")
    assert [(t.dims, t.dtype) for t in kernel.inputs] == [((-1, 128), "Half")]
    assert [(t.dims, t.dtype) for t in kernel.outputs] == [((-1, 128), "Half")]
    assert [(t.dims, t.dtype) for t in kernel.constants] == [
        ((128, 128), "Half"),
        ((1,), "Float"),
        ((1,), "Float"),
    ]
    assert kernel.onnx_layers == ("proj",)


@pytest.mark.parametrize("separator", ["", "\x1e", "\x1f"])
def test_onnx_names_are_parted_by_control_characters(separator: str) -> None:
    metadata = separator.join(["[ONNX Layer: proj]", "[ONNX Layer: a[0]/b]"])
    log = parse_log(LOG.replace("Metadata: [ONNX Layer: proj]", f"Metadata: {metadata}", 1))
    assert log.profiles[0][8].onnx_layers == ("proj", "a[0]/b")


def test_fused_attention_names_all_its_nodes() -> None:
    attention = parse_log(LOG).profiles[0][7]
    assert attention.is_gemm_mha
    assert not attention.is_gemv_mha
    assert attention.onnx_layers == ("mix", "softmax", "scores")


def test_shape_work_is_no_kernel() -> None:
    work = [layer.kind for layer in parse_log(LOG).profiles[0] if layer.is_shape_work]
    assert work == ["shape_call", "reshape", "cast", "reshape", "cast"]


def test_totals_are_those_of_the_hungriest_profile() -> None:
    totals = parse_log(LOG).totals
    assert totals.activation_bytes == 8_716_288
    assert totals.scratch_bytes == 8_716_288
    assert totals.weights_bytes == 131_328
    assert (totals.host_persistent_bytes, totals.device_persistent_bytes) == (80, 0)


def with_weights_of(dtype: str, inputs: str = "Half") -> Kernel:
    """The kernel of LINE with weights, and an input, of other types."""
    line = LINE.replace("[1,0], Datatype: Half", f"[1,0], Datatype: {inputs}", 1)
    sizes = "[128,128], Strides: [128,1], StrideOrder: [1,0], Datatype: "
    assert line.count(f"{sizes}Half") == 1
    return parse_kernel(line.replace(f"{sizes}Half", sizes + dtype))


def test_dtype_is_that_of_the_weights_not_of_a_residual() -> None:
    assert with_weights_of("BFloat16").dtype == "BFloat16"
    codes = with_weights_of("Int8", "Int8")
    wide = dataclasses.replace(codes.inputs[0], dtype="Half", dims=(-1, 4096))
    assert dataclasses.replace(codes, inputs=(*codes.inputs, wide)).dtype == "Int8"


@pytest.mark.parametrize("codes", ["Int8", "FP8", "Int4", "FP4"])
def test_weights_of_codes_are_widened_where_the_input_is_wider(codes: str) -> None:
    kernel = with_weights_of(codes)
    assert kernel.inputs[0].dtype == "Half" and kernel.dtype == "Half"
    assert with_weights_of(codes, codes).dtype == codes
    # an input that is not told of cannot be wider
    assert dataclasses.replace(kernel, inputs=()).dtype == codes


def test_dtype_without_weights_is_that_of_the_largest_input() -> None:
    layers = parse_log(LOG).profiles[0]
    assert layers[1].dtype == "Float"  # reads the picture, writes Half
    assert layers[7].dtype == "Half"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("LayerType: gemm, ", "", "layer 'proj_myl0_8.* the line"),
        (
            "Datatype: Half",
            "Datatype: Quarter",
            r"layer 'proj_.* the tensor '\{ Name: __mye5",
        ),
        (
            "Dimensions: [-1,128]",
            "Dims: [-1,128]",
            r"layer 'proj_.* the tensor '\{ Name: __mye5",
        ),
        ("StreamId: 0", "StreamId: none", "layer 'proj_myl0_8.* the line"),
        (LINE, "something else", "layer 'something else'"),
        ("VERBOSE: Layers:", "", "no 'Layers:' section"),
        ("Total Weights Memory", "", "does not state 'Total Weights Memory'"),
    ],
)
def test_what_does_not_fit_or_is_missing_is_an_error(old: str, new: str, message: str) -> None:
    log = LOG.replace(LINE, LINE.replace(old, new, 1)) if old in LINE else LOG.replace(old, new)
    assert log != LOG
    with pytest.raises(EngineError, match=f"(?s){message}"):
        parse_log(log)
