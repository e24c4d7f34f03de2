"""Figures of real engines in the default form for TensorRT: SM86, fp16, fixed batch 1."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2t_deploy.commands import build_engine, export_onnx
from t2t_deploy.types import Precision, ShapeProfile, Target
from t2t_deploy.workspace import Workspace

pytest.importorskip("onnxruntime")


def engine_of(folder: Path, variant: str, batch: int | None) -> dict[str, object]:
    workspace = Workspace(folder)
    graph = export_onnx(
        variant=variant,
        precision=Precision.FP16,
        target=Target.TENSORRT,
        batch=batch,
        workspace=workspace,
    )
    profiles = () if batch else (ShapeProfile(1, 8, 32),)
    built = build_engine(artifact=graph.path, sm="86", profile=profiles, workspace=workspace)
    engine: dict[str, object] = built.require_manifest().details["engine"]
    return engine


@pytest.mark.slow
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
    tmp_path: Path, variant: str, kernels: int, moved_mb: float, activation_mb: float, fused: int
) -> None:
    engine = engine_of(tmp_path, variant, batch=1)
    found = {key: engine[key] for key in ("kernels", "moved_bytes", "activation_bytes")}
    limits = {
        "kernels": kernels,
        "moved_bytes": moved_mb * 1e6,
        "activation_bytes": activation_mb * 1e6,
    }
    assert all(found[key] <= limits[key] for key in limits), found  # type: ignore[operator]  # JSON
    assert engine["fused_attention"] == fused


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "fused"), [("7", 7), ("t_14", 16)])
def test_attention_stays_fused_with_a_free_batch(tmp_path: Path, variant: str, fused: int) -> None:
    assert engine_of(tmp_path, variant, batch=None)["fused_attention"] == fused
