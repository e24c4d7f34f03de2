"""T2T-ViT-7 in fp32, fp16 and int8: all three forms, and what the Python one serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from natural import write_calibration_crops
from triton_server import ServerProcess

from t2t_deploy.commands import build_engine, export_onnx, package_artifact, quantize_onnx
from t2t_deploy.serving.triton import ServingFormat
from t2t_deploy.types import Precision, Target

from ...needs import needs_tensorrt_rtx
from .conftest import needs_server
from .test_server import Client, as_bytes, close_to, offline, pictures, pixels_of


@pytest.mark.slow
@needs_server
@needs_tensorrt_rtx
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_all_forms(empty_folder: Path, precision: Precision) -> None:
    source = export_onnx(variant="7")
    crops = None
    if precision is Precision.FP16:
        source = export_onnx(variant="7", precision=precision)
    elif precision is Precision.INT8:
        crops = write_calibration_crops(Path("crops"), 16)
        source = quantize_onnx(source.path, images=crops, target=Target.CPU, speed=False)
    sm = "86,89" if precision is Precision.INT8 else "portable"
    engine = build_engine(precision=precision, images=crops, sm=sm)
    for serving_format, artifact in (
        (ServingFormat.PYTHON, source),
        (ServingFormat.ONNXRUNTIME, source),
        (ServingFormat.TENSORRT, engine),
    ):
        form: dict[str, Any] = {"format": serving_format, "name": serving_format.value}
        made = package_artifact(artifact.path, triton="models", **form, max_batch=8, threads=1)
        assert len(made.folders) == 4
    files = pictures()[:5]
    wanted = offline(source.path, pixels_of(files, empty_folder, 224))
    with ServerProcess(empty_folder / "models", empty_folder / "log", ready=False) as server:
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
