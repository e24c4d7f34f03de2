"""The layer over the CUDA runtime, without an engine: copies, events, graphs, errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from t2t_deploy.bench import visible_gpus
from t2t_deploy.engine import device_capability, device_name, why_no_device
from t2t_deploy.errors import BackendError
from t2t_deploy.runtime._cuda import Cuda

pytestmark = pytest.mark.gpu

SIZE = 1 << 24


@pytest.fixture
def cuda() -> Cuda:
    unavailable = why_no_device(0)
    if unavailable is not None:
        pytest.skip(str(unavailable))
    return Cuda(0)


def test_bytes_go_there_and_back(cuda: Cuda) -> None:
    wanted = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    with (
        cuda.stream() as stream,
        cuda.device_memory(SIZE) as address,
        cuda.pinned_memory(SIZE) as source,
        cuda.pinned_memory(SIZE) as target,
        cuda.event() as start,
        cuda.event() as end,
    ):
        source[:] = wanted
        cuda.record(start, stream)
        cuda.copy_to_device(address, source, stream)
        cuda.copy_from_device(target, address, stream)
        cuda.record(end, stream)
        cuda.synchronize(stream)
        assert np.array_equal(target, wanted)
        # 32 MB over a bus of at most 1 TB/s
        assert cuda.elapsed_ms(start, end) > 0.03


def test_a_recorded_copy_runs_at_each_launch_and_not_before(cuda: Cuda) -> None:
    with (
        cuda.stream() as stream,
        cuda.device_memory(SIZE) as address,
        cuda.pinned_memory(SIZE) as source,
        cuda.pinned_memory(SIZE) as target,
    ):
        target[:] = 0

        def enqueue() -> None:
            cuda.copy_to_device(address, source, stream)
            cuda.copy_from_device(target, address, stream)

        source[:] = 1
        graph = cuda.capture(stream, enqueue)
        cuda.synchronize(stream)
        assert not target.any()
        for value in (2, 3):
            source[:] = value
            cuda.launch(graph, stream)
            cuda.synchronize(stream)
            assert (target == value).all()
        cuda.free_graph(graph)


def test_what_cannot_be_recorded_leaves_the_stream_usable(cuda: Cuda) -> None:
    with cuda.stream() as stream:
        # waiting for a stream that is being recorded is not allowed
        with pytest.raises(BackendError, match="cudaStreamSynchronize failed"):
            cuda.capture(stream, lambda: cuda.synchronize(stream))
        cuda.synchronize(stream)


def test_memory_is_given_back(cuda: Cuda) -> None:
    before = cuda.free_bytes()
    for _ in range(20):
        with cuda.device_memory(SIZE):
            assert cuda.free_bytes() <= before - SIZE
    assert cuda.free_bytes() == before


def test_more_memory_than_there_is(cuda: Cuda) -> None:
    with (
        pytest.raises(BackendError, match=r"cudaMalloc failed: out of memory"),
        cuda.device_memory(1 << 50),
    ):
        pass
    with cuda.device_memory(SIZE):  # the error does not stick
        pass


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(BackendError, match=r"there is no device cuda:99; this machine has \d+"):
        Cuda(99)


def test_every_thread_can_use_the_device(cuda: Cuda) -> None:
    def free(_: int) -> int:
        cuda.activate()
        with cuda.device_memory(1 << 20):
            return cuda.free_bytes()

    with ThreadPoolExecutor(8) as threads:
        assert all(found > 0 for found in threads.map(free, range(64)))


def test_nvml_and_cuda_tell_of_the_same_device() -> None:
    (gpu, *_) = visible_gpus()
    assert gpu.name == device_name(0)
    assert 0 < gpu.sm_mhz[0] <= gpu.max_sm_mhz
    assert gpu.memory_mhz[0] > 0
    assert 0 < gpu.temperature_c < 120
    assert device_capability(0) is not None
