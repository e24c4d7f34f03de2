"""Bare sums of codes: found in engines that the builder makes, and by each witness alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from t2t_deploy._codec import to_plain
from t2t_deploy.engine._build import EngineBuild
from t2t_deploy.engine._figures import attest, bare_sums
from t2t_deploy.engine._log import Kernel, LogTensor
from t2t_deploy.types import Precision, ShapeProfile, Status

from ..needs import needs_tensorrt_rtx
from .code_graphs import FP8, INT8, Coded, by_output, coded
from .graphs import FP16, FP32, Batch, build

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
    ("product", "real", "sm", "bare"),
    [
        (Coded("by_output", by_output()), FP16, "86", ("by_output",)),
        (Coded("one_number", np.full(64, 0.01)), FP16, "86", ("one_number",)),
        (Coded("by_channel", ratio=by_output(1.0)), FP16, "86", ()),
        (Coded("bias", bias=True), FP16, "86", ()),
        (Coded("plain"), FP16, "86", ()),
        # sums in float32 pass no end
        *((Coded("fc", by_output()), FP32, sm, ()) for sm in ("86", "89", "120", "")),
    ],
)
def test_a_fixed_batch(
    tmp_path: Path, product: Coded, real: int, sm: str, bare: tuple[str, ...]
) -> None:
    engine = built(tmp_path, product, sm=sm.split(), batch=4, real=real)
    assert found(engine) == [bare]
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


def with_factor(name: str) -> Kernel:
    """The product, whose factor the log calls so."""
    return replace(PRODUCT, constants=(WEIGHTS, LogTensor(name, (1,), "Float"), BETA))


BARE = with_factor("__mye323fc_alpha_myl0")
MERGED = replace(PRODUCT, name="v+k+q_U12_myl3_14")
HALF = tensor("9", "Half")


def following(name: str, *layers: str, read: LogTensor = HALF) -> Kernel:
    """A kernel that reads what the product writes."""
    written = (tensor("11", "Half"),)
    return Kernel(f"__myl_{name}_myl0_2", "kgen", (read,), written, (), layers)


ADDS = following("Add", "fc", "bias")
SCALES = ("Mul", "CastMulAdd", "MulAddReluCast")
VIEW = following("Mul", "fc", read=LogTensor("__mye9_myl0.2", (4, 8, 8), "Half"))
READS = replace(following("FcMul", "fc"), kind="gemm", constants=(WEIGHTS,))
OTHER_TYPES = ("Int8", "Float", "BFloat16")


@pytest.mark.parametrize(
    ("kernels", "bare"),
    [
        ([PRODUCT], False),  # its factor is set
        # a default factor in the log is enough
        *(([with_factor(f"__mye{name}"), ADDS], True) for name in ("573_alpha_myl0", "5fc_alpha")),
        ([BARE, ADDS], True),
        ([with_factor("__mye4_myl0"), ADDS], False),
        # a kernel that scales on behalf of the product is, too
        *(([PRODUCT, following(name, "fc", "act")], True) for name in SCALES),
        *(([PRODUCT, following(name, "fc.weight")], True) for name in SCALES),
        # a product by channel that the graph itself asks for is a node of its own
        *(([PRODUCT, following(name, "fc/by_channel")], False) for name in SCALES),
        # of another tensor
        *(([PRODUCT, following(n, "fc", read=tensor("10", "Half"))], False) for n in SCALES),
        # another view of the result is the result
        ([PRODUCT, VIEW], True),
        ([replace(PRODUCT, outputs=(LogTensor("__mye9_myl0.1", (4, 64), "Half"),)), VIEW], True),
        # a bias is no witness, nor is a product that reads the result
        *(
            ([PRODUCT, following(name, "fc", "bias")], False)
            for name in ("Add", "AddCast", "Cast", "ReshTran")
        ),
        ([PRODUCT, READS], False),
        # codes and float32 pass no end; bfloat16 reaches as far as float32
        *(([replace(BARE, outputs=(tensor("9", t),))], False) for t in OTHER_TYPES),
        *(([replace(BARE, outputs=(tensor("8", t), HALF))], True) for t in OTHER_TYPES),
        # weights of codes that are widened make no sums of codes, nor does what is no product
        ([replace(BARE, inputs=(tensor("7", "Half"),))], False),
        ([replace(BARE, name="__myl_Add_myl0_1", kind="kgen")], False),
    ],
)
def test_bare_sums_are_seen_in_the_log(kernels: list[Kernel], bare: bool) -> None:
    assert bare_sums(kernels) == (("fc",) if bare else ())


@pytest.mark.parametrize(
    ("product", "factor", "bare"),
    [
        (PRODUCT, b'name="__mye12fc_alpha" ', ("fc",)),
        (PRODUCT, b'name="fc_alpha" ', ("fc",)),
        *((PRODUCT, b'name="__mye12%s" ' % n, ()) for n in (b"fc2_alpha", b"_alpha", b"fc_beta")),
        (PRODUCT, b"fc_alpha", ()),
        # products that were merged are called by the first
        (MERGED, b'name="__mye366v_alpha" ', ("v+k+q",)),
        (MERGED, b'name="__mye366k_alpha" ', ()),
    ],
)
def test_a_default_factor_in_the_engine_is_enough(
    product: Kernel, factor: bytes, bare: tuple[str, ...]
) -> None:
    assert bare_sums([product, ADDS], b".." + factor) == bare
