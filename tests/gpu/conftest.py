"""Engines and graphs of T2T-ViT-7, made once on the machine with the GPU."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from natural import write_calibration_crops

from t2t_deploy.commands import build_engine, export_onnx, quantize_onnx
from t2t_deploy.errors import EngineError
from t2t_deploy.runtime import BACKENDS, Session, SessionRequest, open_session, why_not_runnable
from t2t_deploy.types import INPUT_NAME, OUTPUT_NAME, QUANTIZED, Precision, ShapeProfile, Target
from t2t_deploy.workspace import Artifact, Workspace

from .sessions import Images, Logits, MakeArtifact

VARIANT = "7"
PROFILES = ("1:1:4", "2:8:8")


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("gpu") / "artifacts")


@pytest.fixture(scope="session")
def graph(workspace: Workspace) -> MakeArtifact:
    """An exported graph, by precision and target; without one it is for TensorRT."""

    @cache
    def make(precision: Precision, target: Target = Target.TENSORRT) -> Artifact:
        asked: dict[str, Any] = {"target": target, "workspace": workspace}
        if precision not in QUANTIZED:
            return export_onnx(variant=VARIANT, precision=precision, **asked)
        asked |= {"artifact": make(Precision.FP32).path, "images": crops(), "speed": False}
        return quantize_onnx(type=precision, **asked)

    @cache
    def crops() -> Path:
        return write_calibration_crops(workspace.root.parent / "crops", 64)

    return make


@pytest.fixture(scope="session")
def engine(workspace: Workspace, graph: MakeArtifact) -> MakeArtifact:
    """An engine of two profiles for this machine's device, by precision."""
    reasons = {
        name: why_not_runnable(name) for name, one in BACKENDS.items() if one.takes == "engine"
    }
    if None not in reasons.values():
        pytest.skip("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))

    @cache
    def make(precision: Precision) -> Artifact:
        path, profiles = graph(precision).path, tuple(map(ShapeProfile.parse, PROFILES))
        return build_engine(path, precision=precision, profile=profiles, workspace=workspace)

    def make_or_skip(precision: Precision) -> Artifact:
        try:
            return make(precision)
        except EngineError as err:
            if re.search("cannot target SM|Turing|cannot multiply in it", str(err)):
                pytest.skip(f"not for this device: {err}")
            raise

    return make_or_skip


@pytest.fixture(scope="session")
def logits(workspace: Workspace, graph: MakeArtifact) -> Logits:
    """What the float32 reference answers, on the CPU."""
    manifest = graph(Precision.FP32).require_manifest()
    request = SessionRequest("eager", workspace.weights(manifest), config=manifest.config)
    reference: Session = open_session(request)
    return lambda image: reference.run({INPUT_NAME: image})[OUTPUT_NAME]


@pytest.fixture(scope="session")
def images() -> Images:
    """Noise of the model's input shape; the same for the same batch."""

    def make(batch: int) -> np.ndarray:
        shape = (batch, 3, 224, 224)
        return np.random.default_rng(batch).standard_normal(shape, dtype=np.float32)

    return make
