"""Warm-up of one case, over a worker whose clock is simulated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from t2t_deploy.bench import BenchCase, BenchStatus, WarmUp, _run
from t2t_deploy.bench._run import CaseRun, Worker
from t2t_deploy.runtime import SessionRequest


class SimulatedWorker:
    """Each chunk's calls take the next of ``chunks_ms``; time passes on ``now`` alone.

    stall_ms: how much longer the last call of a chunk takes.
    """

    def __init__(self, chunks_ms: Iterator[float]) -> None:
        self.now = self.stall_ms = 0.0
        self.streams = 1
        self.asked: list[tuple[int, int]] = []
        self._chunks_ms = chunks_ms

    def load(self, case: BenchCase, seed: int) -> dict[str, Any]:
        return {"load_ns": 7_000_000, "first_call_ns": 900_000_000, "baseline_rss_bytes": 1}

    def run(self, iterations: int, *, settle: int = 0, expected_ns: float) -> dict[str, Any]:
        self.asked.append((iterations, settle))
        call_ms = next(self._chunks_ms)
        samples_ns = [round(call_ms * 1e6)] * iterations
        samples_ns[-1] += round(self.stall_ms * 1e6)
        elapsed_ns = sum(samples_ns)
        self.now += elapsed_ns / 1e9
        samples_ns *= self.streams
        return {"samples_ns": samples_ns, "elapsed_ns": elapsed_ns, "peak_rss_bytes": 2}


def prepared(
    monkeypatch: pytest.MonkeyPatch,
    chunks_ms: list[float],
    *,
    quota: bool = False,
    streams: int = 1,
    stall_ms: float = 0.0,
) -> tuple[CaseRun, SimulatedWorker]:
    """stall_ms: while it warms up too."""
    worker = SimulatedWorker(iter(chunks_ms))
    worker.streams, worker.stall_ms = streams, stall_ms
    monkeypatch.setattr(_run, "monotonic", lambda: worker.now)
    monkeypatch.setattr(_run, "WARM_UP_LIMIT_S", 5.0)
    monkeypatch.setattr(_run, "WARM_UP_CHUNK_S", 0.25)
    case = BenchCase(SessionRequest("ort-cpu", Path("a"), streams=streams), "a", "fp32", 4)
    case_run = CaseRun(case, cast(Worker, worker), quota=quota)
    case_run.prepare(seed=0)
    return case_run, worker


def test_warm_up_ends_when_two_chunks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    case_run, worker = prepared(monkeypatch, [50.0, 25.0, 20.0, 20.5, 20.0])
    # 3, then 0.25 s of 50, 25 and 20 ms calls; 20.5 is within 5 % of 20
    assert worker.asked == [(3, 0), (5, 0), (10, 0), (12, 0)]
    case_run.take_turn(1, 1, round_seconds=0.41)
    result = case_run.result(complete=1)
    assert result.warm_up == WarmUp(iterations=31, stable=True)
    assert worker.asked[-1] == (20, 1)  # sized by the last chunk, after one unrecorded call
    assert result.status is BenchStatus.OK
    assert (result.load_ms, result.first_call_ms, result.peak_rss_bytes) == (7.0, 900.0, 2)
    assert result.images_per_s == pytest.approx(200.0)
    assert [len(round_.samples_ms) for round_ in result.rounds] == [20]


def test_warm_up_that_never_settles_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    case_run, worker = prepared(monkeypatch, [1000.0, 2000.0, 1000.0, 2000.0])
    assert worker.asked == [(3, 0), (3, 0)]  # 9 s; the limit is looked at between chunks
    case_run.take_turn(1, 1, round_seconds=0.5)
    assert case_run.result(complete=1).warm_up == WarmUp(iterations=7, stable=False)


@pytest.mark.parametrize(
    ("streams", "stall_ms", "stalled", "stops"),
    [
        (1, 0.0, False, []),
        (1, 90.0, False, []),  # 90 of 490 ms
        (1, 400.0, True, ["stalled: 0.4 of 0.8 s lost beside p50"]),
        (2, 400.0, True, ["stalled: 0.4 of 0.8 s lost beside p50"]),
    ],
)
def test_throughput_counts_what_the_median_does_not_see(
    monkeypatch: pytest.MonkeyPatch, streams: int, stall_ms: float, stalled: bool, stops: list[str]
) -> None:
    """In each stream 20 calls of 20 ms, of which one takes longer: four pictures each."""
    case_run, worker = prepared(monkeypatch, [20.0] * 3, streams=streams)
    worker.stall_ms = stall_ms
    case_run.take_turn(1, 1, round_seconds=0.4)
    result = case_run.result(complete=1)
    assert result.latency_ms is not None and result.latency_ms.p50 == 20.0
    assert result.images_per_s == pytest.approx(streams * 80 / (0.4 + stall_ms / 1e3))
    assert result.lost_s == pytest.approx(stall_ms / 1e3)
    assert (result.stalled, result.stops) == (stalled, stops)
    assert result.warm_up == WarmUp(iterations=1 + streams * (3 + 12), stable=True)


def test_a_round_under_a_quota_is_as_long_as_asked_with_its_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The median of the calls alone would make it twice as long."""
    case_run, worker = prepared(monkeypatch, [10.0] * 3, quota=True, stall_ms=250.0)
    case_run.take_turn(1, 1, round_seconds=0.5)
    assert worker.asked == [(3, 0), (25, 0), (25, 1)]


def test_graphs_that_were_refused_are_told_beside_the_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case_run, worker = prepared(monkeypatch, [20.0, 20.0, 20.0])
    plain = worker.run
    monkeypatch.setattr(
        worker, "run", lambda *args, **kw: plain(*args, **kw) | {"graph_refusal": "it waits"}
    )
    case_run.take_turn(1, 1, round_seconds=0.1)
    result = case_run.result(complete=1)
    assert (result.status, result.reason) == (BenchStatus.OK, "without CUDA graph: it waits")
