"""Latencies of the compared combinations, in interleaved rounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2t_deploy._optional import is_installed
from t2t_deploy.bench import (
    DEFAULT_ROUND_SECONDS,
    MIN_ROUNDS,
    BenchCase,
    BenchStatus,
    CaseResult,
    run_bench,
)
from t2t_deploy.errors import counted
from t2t_deploy.pipeline._compare_values import RUNTIME, ComparedStrategies
from t2t_deploy.pipeline._export import ExportRequest
from t2t_deploy.pipeline._progress import Report
from t2t_deploy.runtime import SessionRequest, why_not_in, why_not_runnable
from t2t_deploy.types import Precision

if TYPE_CHECKING:
    pass

_OPENVINO = "openvino"
_WARM_UP_SECONDS = 4.0  # of one case, its process included
_MIN_ROUND_SECONDS = 0.05  # a few calls, however little time is left


def with_latencies(
    rows: Sequence[ComparedStrategies],
    files: Sequence[Path],
    eager: SessionRequest,
    request: ExportRequest,
    left_s: float,
    report: Report,
) -> list[ComparedStrategies]:
    """The rows with latencies, one process each and all of one round within seconds.

    files: the graph of each row. eager: the reference, which float32 is also timed against. left_s:
    what the whole measurement may take; a case always takes a few calls a round.
    """
    rows = list(rows)
    exported = [index for index, row in enumerate(rows) if row.exported]
    runtimes = []
    for runtime, told in _latency_words().items():
        reason = why_not_runnable(runtime) or why_not_in(runtime, request.precision)
        if reason is None:
            runtimes.append(runtime)
            continue
        for index in exported:
            rows[index] = rows[index].because(f"no {told}: {reason}")
    if not exported or not runtimes:
        return rows
    batch, precision, model = request.batch or 1, request.precision.value, "the compared one"
    places = [(runtime, index) for index in exported for runtime in runtimes]
    cases = [
        BenchCase(
            SessionRequest(runtime, files[index], eager.threads, precision=request.precision),
            rows[index].name,
            precision,
            batch,
            model,
        )
        for runtime, index in places
    ]
    # The reference computes in float32: it is no base for the speed of another precision.
    base = [BenchCase(eager, "reference", precision, batch, model)]
    everything = cases + (base if request.precision is Precision.FP32 else [])
    left_s -= _WARM_UP_SECONDS * len(everything)
    wanted_s = max(left_s / (MIN_ROUNDS * len(everything)), _MIN_ROUND_SECONDS)
    report.step(f"measuring {counted(len(everything), 'case')} in interleaved rounds")
    measured = run_bench(
        everything,
        rounds=MIN_ROUNDS,
        round_seconds=min(DEFAULT_ROUND_SECONDS, wanted_s),
        progress=report.progress,
    )
    for (runtime, index), result in zip(places, measured.results, strict=False):
        rows[index] = _with_latency(rows[index], runtime, result)
    return rows


def _latency_words() -> dict[str, str]:
    """The runtimes to measure, and what the figure of each is called; OpenVINO where it is."""
    words = {RUNTIME: "latency"}
    return words | ({_OPENVINO: "OpenVINO latency"} if is_installed(_OPENVINO) else {})


def _with_latency(row: ComparedStrategies, runtime: str, result: CaseResult) -> ComparedStrategies:
    told = _latency_words()[runtime]
    if result.status is not BenchStatus.OK:
        return row.because(f"no {told}: {result.reason}")
    if result.unstable:
        row = row.because(f"the {told} is unstable: its rounds differ")
    latency, speedup = result.latency_ms, result.speedup_vs_eager
    if runtime == _OPENVINO:
        return dataclasses.replace(
            row, openvino_latency_ms=latency, openvino_speedup_vs_eager=speedup
        )
    return dataclasses.replace(row, latency_ms=latency, speedup_vs_eager=speedup)
