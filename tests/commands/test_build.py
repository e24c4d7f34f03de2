"""Attestation of what was asked, or of what is found where nobody asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from t2t_deploy.commands._build_trt import _attest
from t2t_deploy.types import Precision, Status


def figures(**macs: int) -> Any:
    return SimpleNamespace(macs_by_dtype=macs, gemms_by_dtype={}, bare_sums=())


def test_the_asked_precision_decides() -> None:
    half = figures(Half=90, Float=10)
    assert _attest(half, Precision.FP16).status is Status.PASSED
    found = _attest(half, Precision.FP32)
    assert (found.status, found.asked) == (Status.FAILED, "fp32")


@pytest.mark.parametrize(
    ("macs", "asked"),
    [({"Float": 5}, "fp32"), ({"Half": 9, "Float": 1}, "fp16"), ({"Int8": 6, "Half": 4}, "int8")],
)
def test_of_a_foreign_file_what_prevails(macs: dict[str, int], asked: str) -> None:
    found = _attest(figures(**macs), None)
    assert (found.status, found.asked) == (Status.PASSED, asked)


def test_bare_sums_fail_whoever_asked() -> None:
    of_codes = figures(Int8=60, Half=40)
    of_codes.bare_sums = ("fc1",)
    for asked in (Precision.INT8, None):
        found = _attest(of_codes, asked)
        assert (found.status, found.bare_sums) == (Status.FAILED, ("fc1",))
        assert found.reason is not None
        assert found.reason.startswith("1 products of 8-bit codes write their bare sums as Half")


def test_of_a_foreign_file_where_nothing_prevails() -> None:
    found = _attest(figures(Float=5, Half=5), None)
    assert (found.status, found.asked) == (Status.NOT_RUN, "fp32")
    assert found.reason == "no precision was asked of a file without manifest, and none prevails"
