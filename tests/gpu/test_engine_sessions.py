"""Engines on a GPU: right at every profile corner, the same by graph and by thread, no leak."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from t2t_deploy.errors import InputError
from t2t_deploy.runtime import open_session
from t2t_deploy.runtime._cuda import Cuda
from t2t_deploy.runtime._trt_session import CONTEXTS, TensorRTSession
from t2t_deploy.types import INPUT_NAME, TOLERANCES, Precision
from t2t_deploy.workspace import Artifact

from .sessions import (
    Images,
    Logits,
    MakeArtifact,
    answer,
    check_freed,
    check_threads,
    request_of,
    worst,
)

pytestmark = pytest.mark.gpu

FLOATS = (Precision.FP32, Precision.FP16, Precision.BF16)
CORNERS = (1, 2, 4, 8)
LEAK_CALLS = 1000
HOST_GROWTH = 8 << 20
"""Bytes: what an allocator keeps; one leaked output of 1,000 logits a call would be 4 MB, one
leaked picture 600 MB."""


def opened(artifact: Artifact, contexts: int = CONTEXTS, **options: Any) -> TensorRTSession:
    return TensorRTSession(request_of(artifact, **options), contexts=contexts)


@pytest.fixture
def session(engine: MakeArtifact) -> Iterator[TensorRTSession]:
    with opened(engine(Precision.FP16)) as session:
        yield session


@pytest.mark.parametrize("precision", FLOATS)
def test_right_at_every_profile_corner(
    precision: Precision, engine: MakeArtifact, logits: Logits, images: Images
) -> None:
    with opened(engine(precision)) as session:
        for batch in CORNERS:
            for _ in range(2):  # plain, then as a graph
                error = worst(answer(session, images(batch)), logits(images(batch)))
                assert error <= TOLERANCES[precision].rel_l2, f"batch {batch}: {error:.2e}"


def test_a_graph_is_the_same_as_a_plain_call(engine: MakeArtifact, images: Images) -> None:
    batches = (1, 8, 1, 3, 8, 2, 1, 4, 8)
    with opened(engine(Precision.FP16), cuda_graph=False) as plain:
        expected = {batch: answer(plain, images(batch)) for batch in batches}
        assert plain.captured_batches == ()
    with opened(engine(Precision.FP16)) as session:
        for batch in batches:
            assert np.array_equal(answer(session, images(batch)), expected[batch]), batch
        assert session.graph_refusal is None
        assert session.captured_batches == tuple(sorted(set(batches)))


def test_threads_get_the_same_bits(engine: MakeArtifact, images: Images) -> None:
    with opened(engine(Precision.FP16), contexts=3) as session:
        check_threads(session, images, CORNERS)


def test_a_thousand_calls_leak_nothing(session: TensorRTSession, images: Images) -> None:
    def call(times: int) -> tuple[int, int]:
        for turn in range(times):
            answer(session, images(CORNERS[turn % len(CORNERS)]))
        gc.collect()
        return Cuda().free_bytes(), psutil.Process().memory_info().rss

    free_before, resident_before = call(20)
    free_after, resident_after = call(LEAK_CALLS)
    assert free_after == free_before
    assert resident_after - resident_before < HOST_GROWTH


def test_closing_frees_the_device(engine: MakeArtifact, images: Images) -> None:
    with open_session(request_of(engine(Precision.FP16), device=0)) as session:
        assert answer(session, images(2)).shape == (2, 1000)
    check_freed(lambda: opened(engine(Precision.FP16)), images(8))


def test_the_parts_of_a_call(session: TensorRTSession, images: Images) -> None:
    feeds = {INPUT_NAME: images(8)}
    for _ in range(3):
        timing = session.timed_run(feeds).timing
    parts = (timing.h2d_ms, timing.kernel_ms, timing.d2h_ms)
    assert min(parts) > 0
    # two clocks: some microseconds of disagreement
    assert sum(parts) <= timing.end_to_end_ms + 0.05


def test_a_batch_outside_every_profile(session: TensorRTSession, images: Images) -> None:
    with pytest.raises(InputError, match="the batch is 9; this engine takes 1 to 4, 2 to 8"):
        answer(session, images(9))
    answer(session, images(1))


def test_compiled_kernels_are_kept(engine: MakeArtifact, images: Images, tmp_path: Path) -> None:
    artifact = engine(Precision.FP16)
    if artifact.require_manifest().details["engine"]["backend"] != "tensorrt-rtx":
        pytest.skip("TensorRT compiles nothing when it runs")
    with opened(artifact, cache=tmp_path) as session:
        expected = answer(session, images(1))
    (kept,) = tmp_path.glob("*.kernels")
    assert kept.stat().st_size > 0
    with opened(artifact, cache=tmp_path) as session:
        assert np.array_equal(answer(session, images(1)), expected)
