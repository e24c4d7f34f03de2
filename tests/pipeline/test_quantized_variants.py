"""Released dimensions in 8 bits: error of the logits, engines, and what is in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2t_deploy._optional import is_installed
from t2t_deploy.model import config_for_variant, random_state_dict, save_weights
from t2t_deploy.pipeline import (
    BuildRequest,
    ExportRequest,
    QuantizationMode,
    QuantizeRequest,
    Workspace,
    build_trt,
    export_model,
    quantize_artifact,
)
from t2t_deploy.runtime import SessionRequest, open_session
from t2t_deploy.types import Precision, ShapeProfile, Target
from t2t_deploy.verify import logits_of
from t2t_deploy.workspace import Artifact

from ..natural import held_out_crops, write_calibration_crops
from ..outliers import with_outliers

pytest.importorskip("onnxruntime")

PICTURES = 16
CALIBRATION = 64
# variant -> attentions, all of which stay one kernel
ATTENTIONS = {"7": 7, "14": 14, "t_14": 16, "24": 24}
STATIC, DYNAMIC = 0.035, 0.03
# of all multiply-adds; the rest is attention, and in 7 the first split weighs more
INT8_SHARE = {"7": 0.75, "14": 0.85, "t_14": 0.65, "24": 0.85}
# windows of the token blocks stay half
FP8_SHARE = {"7": 0.65, "14": 0.8}


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_calibration_crops(tmp_path_factory.mktemp("natural"), CALIBRATION)


def exported(workspace: Workspace, variant: str, factor: float) -> Artifact:
    checkpoint = None
    if factor != 1:
        weights = random_state_dict(config_for_variant(variant))
        checkpoint = workspace.root.parent / "outliers.safetensors"
        save_weights(with_outliers(weights, factor).state_dict, checkpoint)
    return export_model(workspace, ExportRequest(variant=variant, checkpoint=checkpoint))


def errors(workspace: Workspace, artifact: Artifact) -> dict[str, np.ndarray]:
    """Relative error of each picture's logits against the float32 reference."""
    manifest = artifact.known()
    size = int(manifest.config["image_size"])
    random = np.random.RandomState(1000).standard_normal((PICTURES, 3, size, size))
    sets = {"random": random.astype(np.float32), "natural": held_out_crops(PICTURES, size)}
    eager = SessionRequest("eager", workspace.weights(manifest), config=manifest.config)
    found = {}
    with (
        open_session(eager) as reference,
        open_session(SessionRequest("ort-cpu", artifact.path)) as session,
    ):
        for name, pictures in sets.items():
            wanted = logits_of(reference, pictures).astype(np.float64)
            off = np.linalg.norm(logits_of(session, pictures) - wanted, axis=1)
            found[name] = off / np.linalg.norm(wanted, axis=1)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1, 30])
@pytest.mark.parametrize("variant", ATTENTIONS)
def test_error_of_the_logits(tmp_path: Path, crops: Path, variant: str, factor: float) -> None:
    workspace = Workspace(tmp_path / "artifacts")
    source = exported(workspace, variant, factor).path
    request = QuantizeRequest(artifact=source, images=crops, measure_speed=False)
    for limit, form in (
        (STATIC, dataclasses.replace(request, target=Target.CPU)),
        (DYNAMIC, dataclasses.replace(request, mode=QuantizationMode.DYNAMIC)),
    ):
        for name, found in errors(workspace, quantize_artifact(workspace, form)).items():
            figures = f"{variant} x{factor} {form.mode.value} {name}"
            print(f"{figures}: mean {found.mean():.4f}, worst {found.max():.4f}")
            assert found.max() <= limit, figures


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty one; skipped, with the reason, where no engine can be built."""
    if not is_installed("tensorrt_rtx"):
        pytest.skip("tensorrt_rtx is not installed")
    return Workspace(tmp_path / "artifacts")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ATTENTIONS)
def test_int8_engines(workspace: Workspace, crops: Path, variant: str) -> None:
    exported(workspace, variant, 1)
    engine, attestation = built(workspace, variant, Precision.INT8, "86,89", crops)
    assert attestation["found"]["Int8"] > INT8_SHARE[variant]
    # what is not int8 is half, but for float32 islands
    assert set(attestation["found"]) <= {"Int8", "Half", "Float"}
    assert attestation["found"].get("Float", 0) < 0.02
    assert engine["fused_attention"] == ATTENTIONS[variant]


@pytest.mark.slow
@pytest.mark.parametrize("variant", FP8_SHARE)
def test_fp8_engines(workspace: Workspace, crops: Path, variant: str) -> None:
    exported(workspace, variant, 1)
    # the second is built from the graph that was made for the first
    for sm, pictures in (("89", crops), ("120", None)):
        engine, attestation = built(workspace, variant, Precision.FP8, sm, pictures)
        assert attestation["found"]["FP8"] > FP8_SHARE[variant]
        assert engine["fused_attention"] == ATTENTIONS[variant]


def built(
    workspace: Workspace, variant: str, precision: Precision, sm: str, crops: Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and attestation of an engine, made from the newest export with pictures.

    Forced: in FP8 seeded random weights of 14 are off by 6.2 %, which the graph's own verdict says
    (6 % is allowed); here it is the engine that is looked at.
    """
    request = BuildRequest(
        precision=precision,
        images=crops,
        sm=sm,
        profiles=(ShapeProfile(1, 1, 8),),
        force=precision is Precision.FP8,
    )
    details = build_trt(workspace, request).known().details
    engine, attestation = details["engine"], details["attestation"]
    print(
        f"{variant} {precision.value} SM {sm}: {engine['kernels']} kernels, "
        f"{engine['kernels_by_dtype']}, {attestation['found']}, "
        f"{engine['fused_attention']} attentions fused, moved {engine['moved_bytes'] / 1e6:.1f} MB"
    )
    assert attestation["status"] == "passed" and attestation["asked"] == precision.value
    return engine, attestation
