"""ONNX Runtime and PyTorch on a GPU against the reference on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from t2t_deploy.runtime import BACKENDS, SessionRequest, open_session, why_not_runnable
from t2t_deploy.runtime._ort_gpu import OrtGpuBackend, OrtGpuSession
from t2t_deploy.types import INPUT_NAME, OUTPUT_NAME, TOLERANCES, Precision, Target
from t2t_deploy.workspace import Workspace

from .sessions import Images, Logits, MakeArtifact, answer, check_freed, check_threads, worst

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("backend", "precision", "target"),
    [
        ("ort-cuda", Precision.FP32, Target.TENSORRT),
        ("ort-cuda", Precision.FP16, Target.TENSORRT),
        ("ort-cuda", Precision.FP32, Target.CUDA),
        ("ort-cuda", Precision.FP16, Target.CUDA),
        # its networks are not strongly typed: float32 would be rounded to TensorFloat-32
        ("ort-tensorrt", Precision.FP16, Target.TENSORRT),
    ],
)
def test_onnxruntime(
    backend: str,
    precision: Precision,
    target: Target,
    graph: MakeArtifact,
    logits: Logits,
    images: Images,
    tmp_path: Path,
) -> None:
    reason = why_not_runnable(backend)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    known = BACKENDS[backend]
    assert isinstance(known, OrtGpuBackend)
    path = graph(precision, target).path
    request = SessionRequest(backend, path, precision=precision, cache=tmp_path)
    with OrtGpuSession(request) as session:
        for batch in (1, 8):
            image = images(batch)
            timed = session.timed_run({INPUT_NAME: image})
            error = worst(timed.outputs[OUTPUT_NAME], logits(image))
            assert error <= TOLERANCES[precision].rel_l2, f"batch {batch}: {error:.2e}"
            assert timed.timing.kernel_ms > 0
        if session.nodes is not None:
            assert {node.provider for node in session.nodes} == {known.provider}
    if backend == "ort-tensorrt":
        assert any(tmp_path.iterdir()), "the engines are kept"


@pytest.fixture(params=[Target.TENSORRT, Target.CUDA])
def opened(graph: MakeArtifact, request: pytest.FixtureRequest) -> Callable[..., OrtGpuSession]:
    """Opens an fp16 graph in ONNX Runtime on CUDA."""
    reason = why_not_runnable("ort-cuda")
    if reason is not None:
        pytest.skip(f"ort-cuda: {reason}")
    path = graph(Precision.FP16, request.param).path
    return lambda **options: OrtGpuSession(SessionRequest("ort-cuda", path, **options))


def test_a_replayed_graph_is_the_plain_call(
    opened: Callable[..., OrtGpuSession], images: Images
) -> None:
    batches = (1, 8, 1, 3, 8, 2, 1, 4, 8)
    with opened(cuda_graph=False) as session:
        plain = [answer(session, images(batch)) for batch in batches]
        assert session.captured_batches == ()
    with opened() as session:
        for batch, wanted in zip(batches, plain, strict=True):
            found = answer(session, images(batch))
            assert found.dtype == wanted.dtype
            # another session may choose other kernels; one session keeps its bits, see below
            assert relative(found, wanted) <= TOLERANCES[Precision.FP16].rel_l2
        assert session.graph_refusal is None
        assert session.captured_batches == tuple(sorted(set(batches)))


def test_each_call_of_a_graph_reads_its_own_picture(
    opened: Callable[..., OrtGpuSession], images: Images
) -> None:
    with opened() as session:
        first, second = images(2), images(2)[::-1]
        kept = answer(session, first)
        wanted = kept.copy()
        swapped = answer(session, second)
        assert np.array_equal(kept, wanted), "an answer is the caller's own"
        assert relative(swapped[::-1], wanted) <= TOLERANCES[Precision.FP16].rel_l2
        assert relative(swapped, wanted) > TOLERANCES[Precision.FP16].rel_l2


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_threads_get_the_same_bits(
    opened: Callable[..., OrtGpuSession], images: Images, cuda_graph: bool
) -> None:
    with opened(cuda_graph=cuda_graph) as session:
        check_threads(session, images, (1, 2, 4, 8))


def test_closing_frees_the_device(opened: Callable[..., OrtGpuSession], images: Images) -> None:
    check_freed(opened, images(8))


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


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
) -> None:
    reason = why_not_runnable(backend, 0)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    manifest = graph(Precision.FP32).require_manifest()
    weights = workspace.weights(manifest)
    request = SessionRequest(backend, weights, config=manifest.config, device=0, precision=autocast)
    with open_session(request) as session:
        found = session.run({INPUT_NAME: images(2)})[OUTPUT_NAME]
    tolerance = TOLERANCES[autocast or Precision.FP32]
    assert worst(found, logits(images(2))) <= tolerance.rel_l2
