"""What reports are made of in tests that measure nothing."""

from __future__ import annotations

import dataclasses
import io

from rich.console import Console

from t2t_deploy._limits import Limits, Throttling
from t2t_deploy.bench import (
    BenchReport,
    BenchSettings,
    BenchStatus,
    CaseResult,
    Environment,
    GpuRecord,
    Latency,
    Round,
    Speedup,
    WarmUp,
)
from t2t_deploy.runtime import CallTiming

HERE = Environment(
    date_utc="2026-01-02T03:04:05+00:00",
    platform="Linux-6.1-x86_64",
    cpu_model="Some CPU",
    cpu_flags=("avx2", "avx512_vnni"),
    logical_cores=4,
    usable_cores=2,
    memory_bytes=16_000_000_000,
    governor="performance",
    python="3.11.2",
    versions={"numpy": "2.4.6", "torch": "2.13.0"},
    threads=(2,),
    load_before=(0.25, 0.5, 0.75),
    load_after=(1.75, 1.0, 0.5),
)
SETTINGS = BenchSettings(rounds=5, round_seconds=0.5, warm_up_limit_s=5.0, seed=0)
GPU = GpuRecord(0, "H100", "580", (1200, 1980), 1980, (2619, 2619), 61, 300.0, ("power cap",))


def full_report(*gpus: GpuRecord) -> BenchReport:
    """A report with something in every field."""
    measured = CaseResult(
        *("ort-cpu", 'a,\n"b".onnx', "fp32", 2, BenchStatus.OK),
        latency_ms=Latency(1.5, 1.9, 2.0, 1.5, 0.25, (1.0, 2.0)),
        images_per_s=1333.25,
        speedup_vs_eager=Speedup(2.0, 1.875, 2.125),
        baseline_rss_bytes=1000,
        peak_rss_bytes=3000,
        unstable=True,
        spread=0.125,
        load_ms=7.5,
        first_call_ms=9.5,
        warm_up=WarmUp(9, stable=False),
        parts_ms=CallTiming(1.0, 2.0, 3.0, 7.0),
        rounds=(Round(1, 2, (1.0,), 1.5), Round(2, 1, (2.0,), 2.5)),
        throughput_vs_eager=Speedup(1.5, 1.375, 1.625),
        stalled=True,
        lost_s=1.25,
        throttling=Throttling(10, 4, 0.25),
        streams=2,
    )
    failed = CaseResult("openvino", None, "bf16", 1, BenchStatus.FAILED, "RuntimeError: no")
    environment = dataclasses.replace(
        HERE, threads=(1, None), load_after=None, gpus=gpus, limits=Limits(2, 0.5, 1 << 30)
    )
    settings = BenchSettings(5, 0.5, 5.0, 0, (None, 0))
    return BenchReport(environment, (measured, failed), settings, "interrupted after 2 of 5 rounds")


def cells(table: object) -> list[list[str]]:
    """The cells of a table as it is printed, row by row."""
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(table)
    return [
        [cell.strip() for cell in line[1:-1].replace("┃", "│").split("│")]
        for line in console.export_text().splitlines()
        if line[0] in "│┃"
    ]
