"""Bare sums of codes: found in engines that the builder makes, and by each witness alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from t2t_deploy._codec import to_plain
from t2t_deploy.engine._build import EngineBuild
from t2t_deploy.engine._figures import attest, bare_sums
from t2t_deploy.engine._log import Kernel, LogTensor
from t2t_deploy.types import Precision, ShapeProfile, Status

from .code_graphs import FP8, INT8, Coded, by_output, coded
from .graphs import FP16, FP32, Batch, build, needs_tensorrt_rtx

# as `--sm` is given: one architecture, several, portable
TARGETS: tuple[list[str], ...] = (["75"], ["86"], ["89"], ["120"], ["86", "89"], [])
EVERY_TARGET = pytest.mark.parametrize("sm", TARGETS, ids=lambda sm: ",".join(sm) or "portable")


def built(
    folder: Path,
    *products: Coded,
    sm: Sequence[str],
    batch: Batch = "N",
    codes: int = INT8,
    real: int = FP16,
) -> EngineBuild:
    path = coded(folder / "codes.onnx", products, batch, codes=codes, real=real)
    profiles = [] if isinstance(batch, int) else [ShapeProfile(1, 2, 8)]
    return build(path, sm=sm, profiles=profiles)


def found(engine: EngineBuild) -> list[tuple[str, ...]]:
    """Of the engine, and where its batch is free of its twin for one batch."""
    figures = [engine.figures, *([] if engine.pinned is None else [engine.pinned])]
    assert all(len(one.layers) >= 2 for one in figures)
    return [one.bare_sums for one in figures]


@needs_tensorrt_rtx
@EVERY_TARGET
def test_a_scale_by_output_in_the_operator_leaves_bare_sums(tmp_path: Path, sm: list[str]) -> None:
    """What was wrong with int8 engines: 64 products of 127 by 127 pass the end of float16."""
    engine = built(tmp_path, Coded("fc", by_output(), bias=True), sm=sm)
    assert found(engine) == [("fc",), ("fc",)]
    verdict = attest(engine.figures, Precision.INT8)
    assert (verdict.status, verdict.bare_sums) == (Status.FAILED, ("fc",))
    assert verdict.found == {"Int8": 1.0}  # the types alone tell nothing
    assert to_plain(verdict)["bare_sums"] == ["fc"]
    assert verdict.reason is not None
    assert "1 products of 8-bit codes write their bare sums as Half, before the scale (fc)" in (
        verdict.reason
    )
    assert "t2t-deploy quantize --target tensorrt" in verdict.reason


@needs_tensorrt_rtx
@EVERY_TARGET
def test_one_scale_and_a_product_by_channel_leave_none(tmp_path: Path, sm: list[str]) -> None:
    engine = built(tmp_path, Coded("fc", ratio=by_output(1.0), bias=True), sm=sm)
    assert found(engine) == [(), ()]
    verdict = attest(engine.figures, Precision.INT8)
    assert (verdict.status, verdict.bare_sums, verdict.reason) == (Status.PASSED, (), None)
    assert engine.figures.gemms_by_dtype == {"Int8": 1}


@needs_tensorrt_rtx
@pytest.mark.parametrize(
    ("product", "bare"),
    [
        (Coded("fc", by_output()), ("fc",)),
        (Coded("fc", np.full(64, 0.01)), ("fc",)),
        (Coded("fc", ratio=by_output(1.0)), ()),
        (Coded("fc", bias=True), ()),
        (Coded("fc"), ()),
    ],
    ids=["by output", "one number by output", "by channel", "bias", "plain"],
)
def test_a_fixed_batch(tmp_path: Path, product: Coded, bare: tuple[str, ...]) -> None:
    assert found(built(tmp_path, product, sm=["86"], batch=4)) == [bare]


@needs_tensorrt_rtx
@pytest.mark.parametrize("sm", [["86"], ["89"], ["120"], []])
def test_sums_in_float32_pass_no_end(tmp_path: Path, sm: list[str]) -> None:
    engine = built(tmp_path, Coded("fc", by_output()), sm=sm, batch=4, real=FP32)
    assert found(engine) == [()]
    assert engine.figures.gemms_by_dtype == {"Int8": 1}


@needs_tensorrt_rtx
@pytest.mark.parametrize(
    ("scales", "bare"),
    [((0.01, 0.02, 0.03), "v+k+q"), ((0.01, 0.01, 0.01), None), ((0.01, 0.01, 0.02), "v+k+q")],
)
def test_fp8_products_of_one_tensor_are_merged_and_need_one_scale(
    tmp_path: Path, scales: tuple[float, ...], bare: str | None
) -> None:
    products = [Coded(name, scale) for name, scale in zip("qkv", scales, strict=True)]
    engine = built(tmp_path, *products, sm=["89"], codes=FP8)
    assert engine.figures.gemms_by_dtype == {"FP8": 1}
    assert found(engine) == [() if bare is None else (bare,)] * 2
    status = attest(engine.figures, Precision.FP8).status
    assert status is (Status.PASSED if bare is None else Status.FAILED)


@needs_tensorrt_rtx
def test_int8_products_of_one_tensor_are_merged_where_they_share_a_scale(tmp_path: Path) -> None:
    """Why layers that read one tensor are given one step."""
    for scales, products in (((0.01, 0.01, 0.01), 1), ((0.01, 0.02, 0.03), 3)):
        coded_products = [Coded(name, scale) for name, scale in zip("qkv", scales, strict=True)]
        engine = built(tmp_path, *coded_products, sm=["86"], batch=4)
        assert engine.figures.gemms_by_dtype == {"Int8": products}
        assert found(engine) == [()]


# Kernels as the log has them, made up: one witness at a time.


def tensor(name: str, dtype: str, *dims: int) -> LogTensor:
    return LogTensor(f"__mye{name}_myl0", dims or (4, 64), dtype)


WEIGHTS = tensor("1_dconst", "Int8", 64, 64)
ALPHA_SET, BETA = tensor("549", "Float", 1), tensor("432fc_beta", "Float", 1)
PRODUCT = Kernel(
    "fc_myl0_1",
    "gemm",
    (tensor("7", "Int8"),),
    (tensor("9", "Half"),),
    (WEIGHTS, ALPHA_SET, BETA),
    ("fc", "fc.weight"),
)


BARE = dataclasses.replace(PRODUCT, constants=(WEIGHTS, tensor("323fc_alpha", "Float", 1), BETA))


def following(name: str, *layers: str, read: str = "9") -> Kernel:
    """A kernel that reads what the product writes."""
    return Kernel(
        f"__myl_{name}_myl0_2", "kgen", (tensor(read, "Half"),), (tensor("11", "Half"),), (), layers
    )


ADDS = following("Add", "fc", "bias")


def test_a_product_whose_factor_is_set_has_no_bare_sums() -> None:
    assert bare_sums([PRODUCT]) == ()
    assert bare_sums([PRODUCT, ADDS], b'name="__mye1other_alpha" ') == ()


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("__mye323fc_alpha_myl0", ("fc",)),
        ("__mye573_alpha_myl0", ("fc",)),
        ("__mye5fc_alpha", ("fc",)),  # without its graph
        ("__mye4_myl0", ()),
    ],
)
def test_a_default_factor_in_the_log_is_enough(name: str, bare: tuple[str, ...]) -> None:
    alpha = LogTensor(name, (1,), "Float")
    product = dataclasses.replace(PRODUCT, constants=(WEIGHTS, alpha, BETA))
    assert bare_sums([product, ADDS]) == bare


@pytest.mark.parametrize("name", ["Mul", "CastMulAdd", "MulAddReluCast"])
def test_a_kernel_that_scales_on_behalf_of_the_product_is_enough(name: str) -> None:
    assert bare_sums([PRODUCT, following(name, "fc", "act")]) == ("fc",)
    assert bare_sums([PRODUCT, following(name, "fc.weight")]) == ("fc",)
    # a product by channel that the graph itself asks for is a node of its own
    assert bare_sums([PRODUCT, following(name, "fc/by_channel")]) == ()
    # of another tensor
    assert bare_sums([PRODUCT, following(name, "fc", read="10")]) == ()


def test_a_kernel_that_reads_another_view_of_the_result_is_a_witness() -> None:
    seen = dataclasses.replace(
        following("Mul", "fc"), inputs=(LogTensor("__mye9_myl0.2", (4, 8, 8), "Half"),)
    )
    assert bare_sums([PRODUCT, seen]) == ("fc",)
    written = dataclasses.replace(PRODUCT, outputs=(LogTensor("__mye9_myl0.1", (4, 64), "Half"),))
    assert bare_sums([written, seen]) == ("fc",)


@pytest.mark.parametrize("name", ["Add", "AddCast", "Cast", "ReshTran"])
def test_a_kernel_that_adds_a_bias_is_no_witness(name: str) -> None:
    assert bare_sums([PRODUCT, following(name, "fc", "bias")]) == ()


def test_a_product_that_reads_the_result_is_no_witness() -> None:
    reader = dataclasses.replace(following("FcMul", "fc"), kind="gemm", constants=(WEIGHTS,))
    assert reader.is_gemm_like
    assert bare_sums([PRODUCT, reader]) == ()


@pytest.mark.parametrize(
    ("engine", "bare"),
    [
        (b'..name="__mye12fc_alpha" x', ("fc",)),
        (b'..name="fc_alpha" x', ("fc",)),
        (b'..name="__mye12fc2_alpha" x', ()),
        (b'..name="__mye12_alpha" x', ()),
        (b'..name="__mye12fc_beta" x', ()),
        (b"fc_alpha", ()),
    ],
)
def test_a_default_factor_in_the_engine_is_enough(engine: bytes, bare: tuple[str, ...]) -> None:
    assert bare_sums([PRODUCT, ADDS], engine) == bare


def test_products_that_were_merged_are_called_by_the_first() -> None:
    merged = dataclasses.replace(PRODUCT, name="v+k+q_U12_myl3_14")
    assert bare_sums([merged], b'name="__mye366v_alpha" ') == ("v+k+q",)
    assert bare_sums([merged], b'name="__mye366k_alpha" ') == ()


@pytest.mark.parametrize("dtype", ["Int8", "Float", "BFloat16"])
def test_results_of_other_types_pass_no_end(dtype: str) -> None:
    """Codes and float32; bfloat16 reaches as far as float32."""
    assert bare_sums([BARE]) == ("fc",)
    assert bare_sums([dataclasses.replace(BARE, outputs=(tensor("9", dtype),))]) == ()
    both = (tensor("8", dtype), tensor("9", "Half"))
    assert bare_sums([dataclasses.replace(BARE, outputs=both)]) == ("fc",)


def test_weights_of_codes_that_are_widened_make_no_sums_of_codes() -> None:
    product = dataclasses.replace(BARE, inputs=(tensor("7", "Half"),))
    assert product.dtype == "Half"
    assert bare_sums([product]) == ()


def test_a_kernel_that_is_no_product_has_no_sums() -> None:
    other = dataclasses.replace(BARE, name="__myl_Add_myl0_1", kind="kgen")
    assert bare_sums([other]) == ()
