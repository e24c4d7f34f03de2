"""8-bit engines on a GPU: what their sums do there is what a kernel list can only suggest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from natural import held_out_crops, write_calibration_crops

from t2t_deploy.commands import build_engine, evaluate_artifacts, quantize_onnx, verify_artifacts
from t2t_deploy.runtime import SessionRequest, open_session
from t2t_deploy.types import TOLERANCES, Precision, ShapeProfile, Status, Target
from t2t_deploy.verify import logits_of, standard_pictures
from t2t_deploy.workspace import Artifact, Workspace

from ..prepared import usual
from .sessions import MakeArtifact, request_of, worst

pytestmark = pytest.mark.gpu

EIGHT_BITS = (Precision.INT8, Precision.FP8, Precision.INT8_WEIGHTS, Precision.FP8_WEIGHTS)
# what 16-bit arithmetic between the same codes may add to ONNX Runtime's float32
SAME_CODES = 0.02


def logits_by(artifact: Artifact, pictures: np.ndarray) -> np.ndarray:
    """An engine's logits, a picture at a time."""
    with open_session(request_of(artifact, device=0)) as session:
        return np.concatenate([logits_of(session, one[None]) for one in pictures])


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_an_engine_computes_what_its_graph_does(
    precision: Precision, graph: MakeArtifact, engine: MakeArtifact
) -> None:
    pictures = np.concatenate((standard_pictures(usual(224)).pictures[:4], held_out_crops(12, 224)))
    found = logits_by(engine(precision), pictures)
    with open_session(SessionRequest("ort-cpu", graph(precision).path)) as session:
        wanted = logits_of(session, pictures)
    assert np.isfinite(found).all()
    assert worst(found, wanted) <= SAME_CODES


@pytest.mark.parametrize("placement", ["balanced", "compact", "accurate"])
def test_every_placement_of_int8_is_finite_and_right(
    placement: str, workspace: Workspace, graph: MakeArtifact, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {
        "target": Target.TENSORRT,
        "images": write_calibration_crops(tmp_path / "crops", 64),
        "placement": placement,
        "speed": False,
    }
    made = quantize_onnx(graph(Precision.FP32).path, **asked, workspace=workspace)
    options: dict[str, Any] = {"profile": (ShapeProfile(1, 1, 8),), "sm": "native"}
    built = build_engine(made.path, precision=Precision.INT8, **options, workspace=workspace)
    assert built.require_manifest().details["attestation"]["bare_sums"] == []
    pictures = held_out_crops(16, 224)
    with open_session(SessionRequest("ort-cpu", made.path)) as session:
        wanted = logits_of(session, pictures)
    assert worst(logits_by(built, pictures), wanted) <= SAME_CODES


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_verify_runs_an_engine(
    precision: Precision, workspace: Workspace, engine: MakeArtifact
) -> None:
    (found,) = verify_artifacts([engine(precision).path], workspace=workspace)
    assert found.verification.status is Status.PASSED
    assert found.verification.rel_l2 is not None
    assert found.verification.rel_l2 <= TOLERANCES[precision].rel_l2


def test_evaluate_runs_an_engine(
    workspace: Workspace, engine: MakeArtifact, tmp_path: Path
) -> None:
    pictures = write_calibration_crops(tmp_path / "pictures", 24, seed=7)
    artifacts = [engine(Precision.FP16).path]
    (found,) = evaluate_artifacts(images=pictures, artifacts=artifacts, workspace=workspace).results
    assert found.status is Status.PASSED
    assert found.accuracy is not None and found.accuracy.images == 24
    assert found.accuracy.agreement == 1.0
