"""Attestation of what was asked, or of what is found where nobody asked; its command line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from t2t_deploy._options import command_words
from t2t_deploy.commands import build_engine, quantize_onnx
from t2t_deploy.commands._build_trt import _attest
from t2t_deploy.recipe._fingerprint import arguments_of
from t2t_deploy.types import Precision, Status


def test_the_words_of_a_command_line_give_its_values() -> None:
    given: dict[str, Any] = {
        "precision": "fp16",
        "profile": ["1:4:8", "1:1:1"],
        "output": "x.engine",
    }
    found = command_words(build_engine, arguments_of(build_engine, given | {"artifact": "-a.onnx"}))
    assert found == [
        *("--fp16", "--profile", "1:4:8", "--profile", "1:1:1", "-o", "x.engine", "./-a.onnx")
    ]
    given = {"type": "int8-weights", "equalise": False, "speed": True, "images": "d"}
    found = command_words(quantize_onnx, arguments_of(quantize_onnx, given), spelled=("count",))
    assert found == [
        *("--type", "int8-weights", "--count", "512", "--no-equalise", "--images", "d")
    ]


def figures(**macs: int) -> Any:
    return SimpleNamespace(macs_by_dtype=macs, gemms_by_dtype={}, bare_sums=())


@pytest.mark.parametrize(
    ("macs", "precision", "status", "asked"),
    [
        ({"Half": 90, "Float": 10}, Precision.FP16, Status.PASSED, "fp16"),
        ({"Half": 90, "Float": 10}, Precision.FP32, Status.FAILED, "fp32"),
        # of a foreign file what prevails
        ({"Float": 5}, None, Status.PASSED, "fp32"),
        ({"Half": 9, "Float": 1}, None, Status.PASSED, "fp16"),
        ({"Int8": 6, "Half": 4}, None, Status.PASSED, "int8"),
        ({"Float": 5, "Half": 5}, None, Status.NOT_RUN, "fp32"),
    ],
)
def test_what_was_asked_decides_or_what_prevails(
    macs: dict[str, int], precision: Precision | None, status: Status, asked: str
) -> None:
    found = _attest(figures(**macs), precision)
    assert (found.status, found.asked) == (status, asked)
    none = "no precision was asked of a file without manifest, and none prevails"
    assert (found.reason == none) is (status is Status.NOT_RUN)


def test_bare_sums_fail_whoever_asked() -> None:
    of_codes = figures(Int8=60, Half=40)
    of_codes.bare_sums = ("fc1",)
    for asked in (Precision.INT8, None):
        found = _attest(of_codes, asked)
        assert (found.status, found.bare_sums) == (Status.FAILED, ("fc1",))
        assert found.reason is not None
        assert found.reason.startswith("1 products of 8-bit codes write their bare sums as Half")
