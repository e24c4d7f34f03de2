"""What is missing, in the order in which one would mend it; the driver's absence is real here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from t2t_deploy._codec import from_plain, to_plain
from t2t_deploy._optional import is_installed
from t2t_deploy.engine._device import Unavailable, device_capability, why_no_device
from t2t_deploy.errors import BackendError
from t2t_deploy.runtime import (
    BACKENDS,
    CPU_BACKENDS,
    Backend,
    SessionRequest,
    _eager,
    _session,
    _trt_session,
    backend_for,
    open_session,
)
from t2t_deploy.runtime._cuda import CUDA_MODULE, Cuda
from t2t_deploy.runtime._eager import COMPILE, EAGER
from t2t_deploy.runtime._trt_session import TENSORRT, TENSORRT_RTX
from t2t_deploy.types import Precision, Target

from ..needs import needs_tensorrt_rtx
from ..small import tiny_exports

needs_no_device = pytest.mark.skipif(
    device_capability() is not None, reason="a CUDA device is here: nothing is missing"
)
needs_cpu_wheel = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="onnxruntime-gpu is installed",
)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a device were here, to see what is asked for next."""
    for module in (_session, _eager):
        monkeypatch.setattr(module, "why_no_device", lambda ordinal=0: None)


GPU_BACKENDS = [name for name, backend in BACKENDS.items() if backend.needs_gpu]


def reason(found: Unavailable | None) -> str:
    assert found is not None
    return str(found)


def test_what_runs_without_a_device_and_what_a_target_runs_on() -> None:
    assert CPU_BACKENDS == ("ort-cpu", "openvino")
    assert GPU_BACKENDS == ["ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"]
    assert {target.value: backend_for(target) for target in Target} == {
        "portable": "ort-cpu", "cpu": "ort-cpu", "openvino": "openvino",
        "tensorrt": "tensorrt-rtx", "cuda": "ort-cuda", "ncnn": "ort-cpu",
    }  # fmt: skip


@needs_no_device
@pytest.mark.parametrize("name", GPU_BACKENDS)
def test_the_device_comes_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2t_deploy._optional._installed_name", lambda module: None)
    assert BACKENDS[name].run_unavailable() == why_no_device()


@needs_no_device
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the library's name on Linux")
def test_without_a_driver() -> None:
    found = why_no_device()
    if found is not None and "not found" in found.reason:
        assert found.reason == "no NVIDIA driver (libcuda.so.1 not found)"
        assert found.next_step.startswith("install it on a machine with an NVIDIA GPU")
    assert device_capability(5) is None


def test_torch_needs_a_device_only_where_one_is_named() -> None:
    assert EAGER.run_unavailable() is None
    if device_capability() is None:
        assert EAGER.run_unavailable(0) == why_no_device()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the compiler's name on Linux")
def test_compiling_for_the_cpu_needs_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason(COMPILE.run_unavailable()) == (
        "torch.compile needs a C++ compiler (g++ not found): install it (Debian, Ubuntu: apt "
        "install g++), or name another in CXX"
    )
    (tmp_path / "mine++").touch(mode=0o755)
    monkeypatch.setenv("CXX", "mine++")
    assert COMPILE.run_unavailable() is None and EAGER.run_unavailable() is None


def test_a_torch_without_cuda(device: None) -> None:
    if torch.backends.cuda.is_built():
        pytest.skip("this torch has CUDA")
    for backend in (EAGER, COMPILE):
        assert reason(backend.run_unavailable(0)).startswith("this build of torch has no CUDA: ")


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("eager", "export"), ("compile", "export"), ("ort-cpu", "cpu"), ("openvino", "openvino"),
        ("ort-cuda", "gpu"), ("ort-tensorrt", "gpu"), ("tensorrt", "tensorrt"),
        ("tensorrt-rtx", "rtx"),
    ],
)  # fmt: skip
def test_an_absent_package(
    name: str, extra: str, device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2t_deploy._optional._installed_name", lambda module: None)
    expected = f"{BACKENDS[name].module} is not installed: pip install 't2t-deploy[{extra}]'"
    assert (
        reason(BACKENDS[name].run_unavailable())
        == reason(BACKENDS[name].import_unavailable())
        == expected
    )


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_without_cuda_python(
    name: str, device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_session, "is_installed", lambda module: module != CUDA_MODULE)
    monkeypatch.setattr(Backend, "import_unavailable", lambda backend: None)
    extra = "rtx" if name == "tensorrt-rtx" else "tensorrt"
    expected = f"{CUDA_MODULE} is not installed: pip install 't2t-deploy[{extra}]'"
    assert reason(BACKENDS[name].run_unavailable()) == expected


@needs_cpu_wheel
@pytest.mark.parametrize(
    ("name", "provider"),
    [("ort-cuda", "CUDAExecutionProvider"), ("ort-tensorrt", "TensorrtExecutionProvider")],
)
def test_the_wrong_onnxruntime(name: str, provider: str, device: None) -> None:
    found = reason(BACKENDS[name].run_unavailable())
    assert found.startswith(f"onnxruntime {onnxruntime.__version__} has no {provider} (it has ")
    assert (
        found.endswith(": pip uninstall onnxruntime, then pip install 't2t-deploy[gpu]'")
        and "CPUExecutionProvider" in found
    )


@needs_tensorrt_rtx
@pytest.mark.parametrize(
    ("capability", "runs"), [("75", True), ("86", True), ("90", False), ("130", True)]
)
def test_a_device_that_rtx_has_no_kernels_for(
    capability: str, runs: bool, device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trt_session, "device_capability", lambda ordinal: capability)
    monkeypatch.setattr(_session, "is_installed", lambda module: True)
    found = TENSORRT_RTX.run_unavailable()
    assert (found is None) is runs
    if found is not None:
        assert found.reason.startswith("TensorRT-RTX has no kernels for compute capability 90 (")


def test_what_building_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "import_unavailable", lambda backend: None)
    assert TENSORRT_RTX.build_unavailable() is None
    assert TENSORRT.build_unavailable() == why_no_device()


@needs_no_device
@pytest.mark.parametrize("name", GPU_BACKENDS)
def test_opening_says_the_same(name: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError) as raised:
        open_session(SessionRequest(name, tmp_path / "none"))
    assert str(raised.value) == f"backend {name} cannot run here: {why_no_device()}"


@needs_no_device
@pytest.mark.skipif(not is_installed(CUDA_MODULE), reason="cuda.bindings is not installed")
def test_an_error_of_cuda_is_one_line() -> None:
    with pytest.raises(BackendError) as raised:
        Cuda()
    message = str(raised.value)
    assert message.startswith("cudaGetDeviceCount failed: ") and "\n" not in message
    assert message.endswith((" (cudaErrorInsufficientDriver, 35)", " (cudaErrorNoDevice, 100)"))


@pytest.mark.parametrize(
    "request_",
    [
        SessionRequest("eager", Path("a")),
        SessionRequest(
            *("ort-tensorrt", Path("a"), 2, {"depth": 1}, 3, Precision.FP16, Path("cache")),
            sha256="a" * 64,
        ),
    ],
)
def test_a_request_survives_its_way_to_a_worker(request_: SessionRequest) -> None:
    assert from_plain(SessionRequest, json.loads(json.dumps(to_plain(request_)))) == request_


def test_torch_compile_takes_a_free_batch_after_a_few_sizes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For each of eight sizes it would compile anew, and go on without for the others."""
    workspace = tiny_exports(tmp_path, {})
    (made,) = workspace.artifacts("onnx")
    manifest = made.require_manifest()
    compiled = []

    def counting(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *one, **how: real(*one, **how, backend=counting))
    request = SessionRequest("compile", workspace.weights(manifest), 1, dict(manifest.config))
    with COMPILE.open(request) as session:
        for batch in (4, 2, 3):
            session.run({"image": np.zeros((batch, 3, 32, 32), np.float32)})
        few = len(compiled)
        for batch in range(5, 8):
            found = session.run({"image": np.zeros((batch, 3, 32, 32), np.float32)})
            assert found["logits"].shape[0] == batch
    assert len(compiled) == few
