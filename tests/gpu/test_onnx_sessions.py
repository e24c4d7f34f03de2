"""ONNX Runtime and PyTorch on a GPU against the reference on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from t2t_deploy.runtime import SessionRequest, open_session, why_not_runnable
from t2t_deploy.runtime._ort_gpu import PROVIDERS, OrtGpuSession
from t2t_deploy.types import INPUT_NAME, OUTPUT_NAME, TOLERANCES, Precision
from t2t_deploy.workspace import Artifact, Workspace

pytestmark = pytest.mark.gpu

MakeArtifact = Callable[[Precision], Artifact]
Images = Callable[[int], np.ndarray]
Logits = Callable[[np.ndarray], np.ndarray]
Worst = Callable[[np.ndarray, np.ndarray], float]


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        ("ort-cuda", Precision.FP32),
        ("ort-cuda", Precision.FP16),
        # its networks are not strongly typed: float32 would be rounded to TensorFloat-32
        ("ort-tensorrt", Precision.FP16),
    ],
)
def test_onnxruntime(
    backend: str,
    precision: Precision,
    graph: MakeArtifact,
    logits: Logits,
    images: Images,
    worst: Worst,
    tmp_path: Path,
) -> None:
    reason = why_not_runnable(backend)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    path = graph(precision).path
    with OrtGpuSession(path, backend=backend, precision=precision, cache=tmp_path) as session:
        for batch in (1, 8):
            image = images(batch)
            timed = session.timed_run({INPUT_NAME: image})
            error = worst(timed.outputs[OUTPUT_NAME], logits(image))
            assert error <= TOLERANCES[precision].rel_l2, f"batch {batch}: {error:.2e}"
            assert timed.timing.kernel_ms > 0
        if session.placement is not None:
            assert set(session.placement.by_provider) == {PROVIDERS[backend].name}
    if backend == "ort-tensorrt":
        assert any(tmp_path.iterdir()), "the engines are kept"


@pytest.mark.parametrize(
    ("backend", "autocast"),
    [("eager", None), ("eager", Precision.FP16), ("compile", None), ("compile", Precision.FP16)],
)
def test_torch(
    backend: str,
    autocast: Precision | None,
    workspace: Workspace,
    graph: MakeArtifact,
    logits: Logits,
    images: Images,
    worst: Worst,
) -> None:
    reason = why_not_runnable(backend, 0)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    manifest = graph(Precision.FP32).known()
    weights = workspace.weights(manifest)
    request = SessionRequest(backend, weights, config=manifest.config, device=0, precision=autocast)
    with open_session(request) as session:
        found = session.run({INPUT_NAME: images(2)})[OUTPUT_NAME]
    tolerance = TOLERANCES[autocast or Precision.FP32]
    assert worst(found, logits(images(2))) <= tolerance.rel_l2
