"""Engines of the released variants: each builds, is what was asked, and is the same twice.

Without a GPU. The three builds of `make test` are of a small model, which the command-line tests
have; these are full size.
"""

from __future__ import annotations

from typing import Any

import pytest

from t2t_deploy.commands import build_engine, export_onnx
from t2t_deploy.model import VARIANTS
from t2t_deploy.types import Precision, ShapeProfile
from t2t_deploy.workspace import Artifact

from ..needs import needs_tensorrt_rtx

pytestmark = [
    pytest.mark.slow,
    needs_tensorrt_rtx,
]

ONE, MANY = ShapeProfile(1, 1, 1), ShapeProfile(1, 8, 32)
FORMS = {
    "static": (1, ()),
    "dynamic": (None, (ShapeProfile(1, 1, 32),)),
    "two profiles": (None, (ONE, MANY)),
}
TARGETS = ("75", "86", "89", "120", "86,120")


def export(variant: str, precision: Precision, batch: int | None) -> None:
    made = export_onnx(variant=variant, precision=precision, batch=batch, target="tensorrt")
    assert not made.require_manifest().failed


def check(engine: Artifact, precision: Precision, sm: str, fused: int) -> None:
    details = engine.require_manifest().details
    assert details["attestation"]["status"] == "passed"
    assert details["attestation"]["asked"] == precision.value
    assert details["engine"]["sm"] == sm.split(",")
    if precision is not Precision.FP32:  # float32 attention is not fused
        assert details["engine"]["fused_attention"] >= fused


def engine_of(variant: str, batch: int | None) -> dict[str, Any]:
    """Figures of an engine in the default form: SM86, fp16."""
    export(variant, Precision.FP16, batch)
    built = build_engine(sm="86", profile=() if batch else (MANY,))
    return dict(built.require_manifest().details["engine"])


@pytest.mark.parametrize(
    ("variant", "kernels", "moved_mb", "activation_mb", "fused"),
    [
        # The last block asks one query: a fused kernel of its own. The t_ variants fuse both token
        # attentions besides.
        ("14", 138, 80, 12, 14),
        ("t_14", 131, 82, 11.5, 16),
        ("7", 92, 46, 11.5, 7),
    ],
)
def test_no_more_than_the_figures_to_beat(
    variant: str, kernels: int, moved_mb: float, activation_mb: float, fused: int
) -> None:
    engine = engine_of(variant, batch=1)
    assert engine["kernels"] <= kernels
    assert engine["moved_bytes"] <= moved_mb * 1e6
    assert engine["activation_bytes"] <= activation_mb * 1e6
    assert engine["fused_attention"] == fused


@pytest.mark.parametrize(("variant", "fused"), [("7", 7), ("t_14", 16)])
def test_attention_stays_fused_with_a_free_batch(variant: str, fused: int) -> None:
    assert engine_of(variant, batch=None)["fused_attention"] == fused


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_builds_in_fp16(variant: str) -> None:
    export(variant, Precision.FP16, None)
    engine = build_engine(precision=Precision.FP16, sm="86")
    check(engine, Precision.FP16, "86", VARIANTS[variant].config.depth - 1)
    again = build_engine(precision=Precision.FP16, sm="86")
    assert again.require_manifest().sha256 == engine.require_manifest().sha256


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("variant", ["7", "14", "t_14"])
def test_each_form_builds(variant: str, precision: Precision, form: str) -> None:
    """fp16 for all targets; the other precisions for all but Turing, which lacks them."""
    batch, profiles = FORMS[form]
    export(variant, precision, batch)
    for sm in TARGETS:
        if sm == "75" and precision is not Precision.FP16:
            continue
        engine = build_engine(sm=sm, profile=profiles)
        # Turing's attention is not fused, nor is that of several generations together
        check(engine, precision, sm, VARIANTS[variant].config.depth - 1 if sm == "86" else 0)
        found = engine.require_manifest().details["engine"]["profiles"]
        assert found == [str(profile) for profile in profiles or (ONE,)]
        if batch is not None:
            again = build_engine(sm=sm, profile=profiles)
            assert again.require_manifest().sha256 == engine.require_manifest().sha256
