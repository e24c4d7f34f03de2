"""No node on the CPU: what is asked of ONNX Runtime, and how its answer is judged."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from t2t_deploy.errors import ArtifactError, BackendError
from t2t_deploy.runtime import BACKENDS, Session, SessionRequest, _ort_replay
from t2t_deploy.runtime._ort import tensor_spec
from t2t_deploy.runtime._ort_gpu import (
    ORT_CUDA,
    ORT_TENSORRT,
    RECORD_PLACEMENT,
    OrtGpuBackend,
    PlacedNode,
    check_placement,
    placed_nodes,
    session_options,
    shape_work,
)
from t2t_deploy.runtime._ort_replay import Replays
from t2t_deploy.types import Precision

from ..onnx_models import constants, save_model

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.fixture
def flatten(tmp_path: Path) -> Path:
    """Relu, then a reshape whose size is computed from the input's shape."""
    nodes = [
        helper.make_node("Relu", ["image"], ["r"], "act"),
        helper.make_node("Shape", ["image"], ["s"], "shape"),
        helper.make_node("Gather", ["s", "zero"], ["n"], "batch"),
        helper.make_node("Unsqueeze", ["n", "zero_axis"], ["n1"], "batch_1d"),
        helper.make_node("Concat", ["n1", "rest"], ["to"], "size", axis=0),
        helper.make_node("Reshape", ["r", "to"], ["f"], "flat"),
        helper.make_node("Gather", ["f", "first"], ["logits"], "choose", axis=1),
    ]
    weights = constants({"zero": 0, "zero_axis": [0], "rest": [-1], "first": [0, 1]})
    return save_model(tmp_path / "flatten.onnx", nodes, weights, ["batch", 3, 4], ["batch", 2])


def opened(path: Path, backend: str) -> Session:
    return BACKENDS[backend].open(SessionRequest(backend, path))


def placed(provider: str, *names: str) -> tuple[PlacedNode, ...]:
    return tuple(PlacedNode(provider, name, name.title()) for name in names)


def test_sizes_are_apart_from_values(flatten: Path) -> None:
    found = shape_work(onnx.load(flatten).graph.node)
    # `choose` gathers values, with a constant index as `batch` does
    assert found == {"shape", "batch", "batch_1d", "size"}


def test_sizes_may_stay_on_the_host(flatten: Path) -> None:
    on_host = placed(CPU, "shape", "batch", "batch_1d", "size")
    check_placement((*placed(CUDA, "act", "flat", "choose"), *on_host), CUDA, flatten)


def test_values_may_not(flatten: Path) -> None:
    nodes = (*placed(CUDA, "act"), *placed(CPU, "shape", "flat", "choose"))
    with pytest.raises(BackendError) as raised:
        check_placement(nodes, CUDA, flatten)
    assert str(raised.value).startswith(
        "2 of 4 nodes of flatten.onnx are not on CUDAExecutionProvider: Flat 'flat', Choose "
        "'choose' on CPUExecutionProvider; "
    )


def real_session(path: Path, options: Any) -> Any:
    return onnxruntime.InferenceSession(str(path), options, providers=[CPU])


def test_the_placement_of_a_real_session(flatten: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*RECORD_PLACEMENT)
    assert placed_nodes(object()) is None  # a release that cannot tell
    nodes = placed_nodes(real_session(flatten, options))
    if nodes is None:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} cannot tell")
    assert {node.provider for node in nodes} == {CPU}
    assert "act" in {node.name for node in nodes}
    check_placement(nodes, CPU, flatten)
    with pytest.raises(BackendError, match="are not on CUDAExecutionProvider: Relu 'act'"):
        check_placement(nodes, CUDA, flatten)


def test_the_options_rule_the_cpu_out_and_sums_in_any_order(flatten: Path) -> None:
    """The real library then refuses even a session that names the CPU."""
    options = session_options(onnxruntime, threads=1)
    # on an H100 threads got other bits without; seen by tests/gpu/test_onnx_sessions.py
    assert options.use_deterministic_compute
    with pytest.raises(Exception, match=r"[Ff]allback to (the )?CPU|disabled fallback"):
        real_session(flatten, options)


def test_a_wheel_without_the_provider(flatten: Path) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    for backend in ("ort-cuda", "ort-tensorrt"):
        with pytest.raises(BackendError, match=r"has no \w+ExecutionProvider \(it has "):
            opened(flatten, backend)
        with pytest.raises(ArtifactError, match="there is no file"):
            opened(flatten.with_name("none.onnx"), backend)


def test_a_provider_that_is_listed_and_leaves_all_to_the_cpu(
    flatten: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What onnxruntime-gpu does where its libraries or the device are missing."""
    monkeypatch.setattr(OrtGpuBackend, "why_no_provider", lambda backend: None)
    with (
        pytest.warns(UserWarning, match="is not in available provider names"),
        pytest.raises(BackendError, match=r"would leave nodes of flatten\.onnx to the CPU"),
    ):
        opened(flatten, "ort-cuda")


@pytest.mark.parametrize(
    ("backend", "device", "precision", "cached", "options"),
    [
        (
            ORT_CUDA,
            2,
            Precision.FP16,
            True,
            {"use_tf32": "0", "enable_skip_layer_norm_strict_mode": "1"},
        ),
        (ORT_TENSORRT, 1, None, False, {}),
        (ORT_TENSORRT, 0, Precision.BF16, False, {"trt_bf16_enable": "1"}),
        (
            *(ORT_TENSORRT, 0, Precision.FP16, True),
            {
                "trt_fp16_enable": "1",
                **{f"trt_{kind}_cache_enable": "1" for kind in ("engine", "timing")},
                **{f"trt_{kind}_cache_path": "kept" for kind in ("engine", "timing")},
            },
        ),
    ],
)
def test_options_of_the_providers(
    backend: OrtGpuBackend,
    device: int,
    precision: Precision | None,
    cached: bool,
    options: dict[str, str],
) -> None:
    cache = Path("kept") if cached else None
    asked = SessionRequest(backend.name, Path("a"), None, None, device, precision, cache)
    assert backend.options(asked) == {"device_id": str(device)} | options


class PageLocked:
    """As `Cuda`: memory that is this machine's, and how many buffers are held."""

    held = 0

    def __init__(self, ordinal: int) -> None:
        assert ordinal == 0

    @contextlib.contextmanager
    def pinned_memory(self, size_bytes: int) -> Iterator[np.ndarray]:
        PageLocked.held += 1
        yield np.empty(size_bytes, np.uint8)
        PageLocked.held -= 1


@pytest.fixture(params=[True, False], ids=["page-locked", "pageable"])
def page_locked(request: pytest.FixtureRequest) -> bool:
    locked: bool = request.param
    return locked


@pytest.fixture
def replays(flatten: Path, monkeypatch: pytest.MonkeyPatch, page_locked: bool) -> Replays:
    """Over a real session, whose device is this machine's memory: it records nothing."""
    monkeypatch.setattr(_ort_replay, "DEVICE", "cpu")
    if page_locked:
        monkeypatch.setattr(_ort_replay, "Cuda", PageLocked)
        monkeypatch.setattr(_ort_replay, "_LARGE_BYTES", 4 * 3 * 4 * 2)  # a batch of two
    session = onnxruntime.InferenceSession(str(flatten), providers=[CPU])
    inputs, outputs = (
        tuple(map(tensor_spec, nodes)) for nodes in (session.get_inputs(), session.get_outputs())
    )
    return Replays(onnxruntime, session, inputs, outputs, 0)


def picture(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3, 4), dtype=np.float32)


def test_each_shape_is_recorded_once_and_reads_what_it_is_given(
    replays: Replays, page_locked: bool
) -> None:
    for batch, turn in itertools.product((2, 1, 3), range(3)):
        image = picture(batch) + turn
        wanted = np.maximum(image, 0).reshape(batch, -1)[:, :2]
        assert np.array_equal(replays.run({"image": image}).outputs["logits"], wanted)
    assert replays.recorded == (((2, 3, 4),), ((1, 3, 4),), ((3, 3, 4),))
    assert replays.refusal is None
    assert PageLocked.held == (3 if page_locked else 0)
    replays._graphs.clear()
    gc.collect()
    assert PageLocked.held == 0


def test_a_view_is_read_in_its_own_order(replays: Replays) -> None:
    image = picture(4)
    for _ in range(3):
        found = replays.run({"image": image[::-1]}).outputs["logits"]
        assert np.array_equal(found, np.maximum(image[::-1], 0).reshape(4, -1)[:, :2])


def test_what_cannot_be_recorded_runs_plainly_and_says_why(
    replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("capture failed\nat some line")

    monkeypatch.setattr(_ort_replay._Graph, "run", refuse)
    image = picture(2)
    for _ in range(2):
        found = replays.run({"image": image}).outputs["logits"]
        assert np.array_equal(found, np.maximum(image, 0).reshape(2, -1)[:, :2])
    assert replays.recorded == ()
    assert replays.refusal == "capture failed"
