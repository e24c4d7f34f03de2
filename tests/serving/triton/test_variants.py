"""T2T-ViT-7 in fp32, fp16 and int8: all three forms, and what the Python one serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from triton_server import ServerProcess, why_no_server

from t2t_deploy._optional import is_installed
from t2t_deploy.commands import (
    BuildRequest,
    ExportRequest,
    PackageRequest,
    QuantizeRequest,
    build_trt,
    export_model,
    package_artifact,
    quantize_artifact,
)
from t2t_deploy.serving.triton import ServingFormat
from t2t_deploy.types import Precision, Target
from t2t_deploy.workspace import Workspace

from ...natural import write_calibration_crops
from .test_server import Client, as_bytes, close_to, offline, pictures, pixels_of

SKIPPED = why_no_server()


@pytest.mark.slow
@pytest.mark.skipif(SKIPPED is not None, reason=str(SKIPPED))
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_all_forms(tmp_path: Path, precision: Precision) -> None:
    if not is_installed("tensorrt_rtx"):
        pytest.skip("tensorrt_rtx is not installed")
    workspace = Workspace(tmp_path / "artifacts")
    source = export_model(workspace, ExportRequest(variant="7"))
    crops = None
    if precision is Precision.FP16:
        source = export_model(workspace, ExportRequest(variant="7", precision=precision))
    elif precision is Precision.INT8:
        crops = write_calibration_crops(tmp_path / "crops", 16)
        form = QuantizeRequest(
            artifact=source.path, images=crops, target=Target.CPU, measure_speed=False
        )
        source = quantize_artifact(workspace, form)
    build = BuildRequest(precision=precision, images=crops, sm="portable")
    if precision is Precision.INT8:
        build = BuildRequest(precision=precision, images=crops, sm="86,89")
    engine = build_trt(workspace, build)
    models = tmp_path / "models"
    for serving_format, artifact in (
        (ServingFormat.PYTHON, source),
        (ServingFormat.ONNXRUNTIME, source),
        (ServingFormat.TENSORRT, engine),
    ):
        request = PackageRequest(
            models,
            artifact=artifact.path,
            format=serving_format,
            name=serving_format.value,
            max_batch=8,
            threads=1,
        )
        assert len(package_artifact(workspace, request).folders) == 4
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
