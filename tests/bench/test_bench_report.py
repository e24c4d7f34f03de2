from __future__ import annotations

import dataclasses
import platform

import numpy as np

from t2t_deploy._limits import read_limits
from t2t_deploy.bench import (
    BenchReport,
    BenchStatus,
    CaseResult,
    Latency,
    Speedup,
    WarmUp,
    bench_table,
    not_run_lines,
)
from t2t_deploy.bench._environment import load_average, read_environment

from ..reports import HERE, cells


def test_environment() -> None:
    found = read_environment(threads=[2, None, 2], load_before=load_average())
    assert found.threads == (2, None)
    assert found.limits == read_limits()
    assert 1 <= found.usable_cores == found.limits.affinity <= found.logical_cores
    assert found.memory_bytes > 1 << 28
    assert found.cpu_model
    assert found.python == platform.python_version()
    assert found.versions["numpy"] == np.__version__
    assert found.date_utc.endswith("+00:00")


def test_not_run_has_its_reason_and_no_figures() -> None:
    found = CaseResult("ort-cuda", "a.onnx", "fp16", 8, BenchStatus.NOT_RUN, "no CUDA device")
    assert (found.status, found.reason) == (BenchStatus.NOT_RUN, "no CUDA device")
    assert found.latency_ms is found.images_per_s is found.peak_rss_bytes is None
    assert found.unstable is False


def test_table_shows_every_row_for_what_it_is() -> None:
    measured = CaseResult(
        *("ort-cpu", "a.onnx", "fp32", 8, BenchStatus.OK),
        latency_ms=Latency(40.0, 41.0, 42.5, 40.1, 0.5, (40.0,)),
        images_per_s=200.0,
        speedup_vs_eager=Speedup(1.5, 1.4, 1.625),
        peak_rss_bytes=123_000_000,
        reason="without CUDA graph: it waits",
        unstable=True,
        spread=0.234,
        warm_up=WarmUp(9, stable=False),
    )
    failed = CaseResult("openvino", "b.onnx", "bf16", 1, BenchStatus.FAILED, "KeyError: [x]")
    not_run = CaseResult("tensorrt", None, "fp16", 1, BenchStatus.NOT_RUN, "no device")
    columns = (
        "backend|artifact|precision|batch|p50 ms|mean ms|p99 ms|images/s|vs eager|peak MB|note"
    )
    none = ["-"] * 6
    figures = ["40.00", "40.10", "42.50", "200.0", "1.50 [1.40, 1.62]", "123"]
    note = (
        "without CUDA graph: it waits; unstable: rounds spread by 23%, more than 10%; not warm "
        "when measured"
    )
    assert cells(bench_table(BenchReport(HERE, (measured, failed, not_run)))) == [
        columns.split("|"),
        ["ort-cpu", "a.onnx", "fp32", "8", *figures, note],
        ["openvino", "b.onnx", "bf16", "1", *none, "failed: KeyError: [x]"],
    ]
    several = dataclasses.replace(failed, streams=2)
    header, *rows = cells(bench_table(BenchReport(HERE, (measured, several))))
    assert [line[3:5] for line in (header, *rows)] == [["batch", "streams"], ["8", "1"], ["1", "2"]]
    report = BenchReport(HERE, (measured, failed, not_run, not_run))
    assert not_run_lines(report) == ["not run: tensorrt (-): no device"]
