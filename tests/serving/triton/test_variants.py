"""T2T-ViT-7 in fp32, fp16 and int8: all three forms, and what the Python one serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from natural import write_calibration_crops
from triton_server import ServerProcess

from t2t_deploy._optional import is_installed
from t2t_deploy.commands import build_engine, export_onnx, package_artifact, quantize_onnx
from t2t_deploy.serving.triton import ServingFormat
from t2t_deploy.types import Precision, Target
from t2t_deploy.workspace import Workspace

from .conftest import needs_server
from .test_server import Client, as_bytes, close_to, offline, pictures, pixels_of


@pytest.mark.slow
@needs_server
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_all_forms(tmp_path: Path, precision: Precision) -> None:
    if not is_installed("tensorrt_rtx"):
        pytest.skip("tensorrt_rtx is not installed")
    workspace = Workspace(tmp_path / "artifacts")
    source = export_onnx(variant="7", workspace=workspace)
    crops = None
    if precision is Precision.FP16:
        source = export_onnx(variant="7", precision=precision, workspace=workspace)
    elif precision is Precision.INT8:
        crops = write_calibration_crops(tmp_path / "crops", 16)
        source = quantize_onnx(
            source.path, images=crops, target=Target.CPU, speed=False, workspace=workspace
        )
    sm = "86,89" if precision is Precision.INT8 else "portable"
    engine = build_engine(precision=precision, images=crops, sm=sm, workspace=workspace)
    models = tmp_path / "models"
    for serving_format, artifact in (
        (ServingFormat.PYTHON, source),
        (ServingFormat.ONNXRUNTIME, source),
        (ServingFormat.TENSORRT, engine),
    ):
        made = package_artifact(
            artifact.path,
            triton=models,
            format=serving_format,
            name=serving_format.value,
            max_batch=8,
            threads=1,
            workspace=workspace,
        )
        assert len(made.folders) == 4
    files = pictures()[:5]
    wanted = offline(source.path, pixels_of(files, tmp_path, 224))
    with ServerProcess(models, tmp_path / "log", ready=False) as server:
        states = server.model_states()
        for name in ("onnxruntime", "tensorrt"):
            missing = f"unable to find backend library for backend '{name}'"
            assert missing in states[name]["reason"]
        client = Client(server)
        found = client.ask("python_images", "image", as_bytes(files))
        client.close()
    close_to(found.as_numpy("logits"), wanted)
    order = np.argsort(-wanted, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(found.as_numpy("index"), order)
