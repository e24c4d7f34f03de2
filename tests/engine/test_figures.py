"""Figures and the attestation, from the same log excerpt and from kernels made up here."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from t2t_deploy._codec import to_plain
from t2t_deploy.engine._figures import MIN_SHARES, EngineFigures, attest, figures_from_log
from t2t_deploy.types import Precision, Status

LOG = (Path(__file__).parent / "test_log.txt").read_text(encoding="utf-8")
# the second profile's layers alone: the log of an engine for batch 4
FIXED = re.sub(r"Name: \S+_myl0_\d+, LayerType.*\n", "", LOG).replace(" [profile 1]", "")
# batch x tokens x inputs x outputs, and the two products of 4 heads of 32
MACS = {
    "qkv": 4 * 64 * 128 * 384,
    "scores": 4 * 4 * 64 * 64 * 32,
    "mix": 4 * 4 * 64 * 64 * 32,
    "proj": 4 * 64 * 128 * 128,
}


def test_figures_of_a_fixed_batch() -> None:
    figures = figures_from_log(FIXED, MACS)
    assert (figures.kernels, figures.shape_ops, figures.profiles) == (5, 0, 1)
    assert figures.kernels_by_kind == {"gemm": 2, "kgen": 3}
    assert figures.kernels_by_dtype == {"Float": 1, "Half": 4}
    assert figures.gemms_by_dtype == {"Half": 3}
    assert (figures.gemm_mha, figures.gemv_mha, figures.fused_attention) == (1, 0, 1)
    picture, tokens = 4 * 64 * 128 * 4, 4 * 64 * 128 * 2
    # cast; qkv; attention reads q, k, v; proj; transpose and cast
    moved = (picture + tokens) + 4 * tokens + 4 * tokens + 2 * tokens + (tokens + picture)
    assert figures.moved_bytes == moved == 1_048_576


def test_every_multiply_add_has_its_kernel() -> None:
    figures = figures_from_log(FIXED, MACS)
    assert figures.macs_by_dtype == {"Half": sum(MACS.values())}
    assert figures.macs_unplaced == 0
    # its products have the default factor too, and no sums of codes
    assert re.search(r"_alpha(_myl\d+)?, Dim", FIXED)
    assert figures.bare_sums == ()
    assert figures_from_log(FIXED, {**MACS, "gone": 7}).macs_unplaced == 7


def test_a_node_goes_to_the_kernel_that_multiplies() -> None:
    # the first kernel, which reads float32, also names the node: as one that adds a bias would
    text = FIXED.replace("[ONNX Layer: cast_in]", "[ONNX Layer: cast_in][ONNX Layer: qkv]")
    assert set(figures_from_log(text, MACS).macs_by_dtype) == {"Half"}


def test_a_node_without_such_a_kernel_goes_to_the_one_that_names_it() -> None:
    text = FIXED.replace("[ONNX Layer: qkv]", "").replace("cast_in", "qkv")
    found = figures_from_log(text, MACS).macs_by_dtype
    assert found == {"Float": MACS["qkv"], "Half": sum(MACS.values()) - MACS["qkv"]}


def test_a_free_batch_has_no_moved_bytes() -> None:
    figures = figures_from_log(LOG)
    assert figures.moved_bytes is None
    assert (figures.kernels, figures.shape_ops, figures.profiles) == (5, 5, 2)


def made_of(**macs: int) -> EngineFigures:
    return dataclasses.replace(figures_from_log(FIXED), macs_by_dtype=macs)


@pytest.mark.parametrize(
    ("precision", "name"),
    [
        (Precision.FP32, "Float"),
        (Precision.FP16, "Half"),
        (Precision.BF16, "BFloat16"),
        (Precision.INT8, "Int8"),
        (Precision.FP8, "FP8"),
        (Precision.INT8_WEIGHTS, "Half"),
        (Precision.FP8_WEIGHTS, "Half"),
    ],
)
def test_attestation_names(precision: Precision, name: str) -> None:
    verdict = attest(made_of(**{name: 100}), precision)
    assert (verdict.status, verdict.found, verdict.reason) == (Status.PASSED, {name: 1.0}, None)


def test_bare_sums_fail_whatever_the_shares_are() -> None:
    for macs, precision in (({"Int8": 100}, Precision.INT8), ({"Half": 100}, Precision.FP16)):
        figures = dataclasses.replace(made_of(**macs), bare_sums=("q", "k", "v", "fc1", "fc2"))
        verdict = attest(figures, precision)
        assert (verdict.status, verdict.bare_sums) == (Status.FAILED, figures.bare_sums)
        assert verdict.reason is not None
        told = "5 products of 8-bit codes write their bare sums as Half, before the scale "
        assert verdict.reason.startswith(f"{told}(q, k, v and 2 more); ")
    assert to_plain(attest(made_of(Int8=100), Precision.INT8))["bare_sums"] == []


def test_bytes_in_all_are_those_moved_and_the_weights() -> None:
    figures = figures_from_log(FIXED, MACS)
    assert figures.weights_bytes > 0
    assert figures.total_bytes == 1_048_576 + figures.weights_bytes
    values = figures.to_dict()
    assert values["total_bytes"] == figures.total_bytes
    contract = {"activation_bytes", "weights_bytes", "kernels", "moved_bytes", "fused_attention"}
    assert contract <= values.keys()
    assert values["kernels_by_dtype"] == {"Float": 1, "Half": 4}
    free = figures_from_log(LOG)
    assert free.total_bytes is None and free.to_dict()["total_bytes"] is None


@pytest.mark.parametrize("precision", list(Precision))
def test_the_least_share_is_the_border(precision: Precision) -> None:
    name = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "int8": "Int8", "fp8": "FP8"}
    found = "Half" if precision.weights_only else name[precision.value]
    least = round(MIN_SHARES[precision] * 100)
    at = made_of(**{found: least, "UInt8": 100 - least})
    below = made_of(**{found: least - 1, "UInt8": 101 - least})
    assert attest(at, precision).status is Status.PASSED
    assert attest(below, precision).status is Status.FAILED


def test_without_the_graph_kernels_are_counted() -> None:
    figures = figures_from_log(FIXED)
    verdict = attest(figures, Precision.FP16)
    assert (verdict.status, verdict.by, verdict.found) == (Status.PASSED, "kernels", {"Half": 1.0})
    assert attest(figures, Precision.FP32).status is Status.FAILED
    nothing = dataclasses.replace(figures, gemms_by_dtype={})
    assert attest(nothing, Precision.FP16).status is Status.NOT_RUN


def test_a_wrong_build_fails_with_its_shares() -> None:
    wrong = attest(made_of(Half=2, Float=98), Precision.FP16)
    assert (wrong.status, wrong.found) == (Status.FAILED, {"Half": 0.02, "Float": 0.98})
    assert wrong.reason is not None
    assert "fp16 was asked and 2.0% Half, 98.0% Float" in wrong.reason
    assert "at least 75% Half" in wrong.reason
    assert to_plain(wrong)["status"] == "failed"
