"""Latency, throughput and memory of models, each in its own process, in interleaved rounds."""

from __future__ import annotations

from t2t_deploy.bench._comparison import Comparison, Verdict, check_comparable, compare_reports
from t2t_deploy.bench._environment import (
    Environment,
    GpuRecord,
    read_environment,
    visible_gpus,
)
from t2t_deploy.bench._race import standings, still_racing, times_per_image
from t2t_deploy.bench._results import (
    BenchCase,
    BenchReport,
    BenchSettings,
    BenchStatus,
    CaseResult,
    Round,
    WarmUp,
    make_inputs,
    report_from_dict,
)
from t2t_deploy.bench._run import (
    DEFAULT_ROUND_SECONDS,
    DEFAULT_ROUNDS,
    run_bench,
    speedup_between,
    with_speedup,
)
from t2t_deploy.bench._statistics import MIN_ROUNDS, Latency, Speedup, speedup_of
from t2t_deploy.bench._tables import (
    bench_csv,
    bench_table,
    comparison_table,
    figure_cell,
    not_run_lines,
)

__all__ = [
    "DEFAULT_ROUNDS",
    "DEFAULT_ROUND_SECONDS",
    "MIN_ROUNDS",
    "BenchCase",
    "BenchReport",
    "BenchSettings",
    "BenchStatus",
    "CaseResult",
    "Comparison",
    "Environment",
    "GpuRecord",
    "Latency",
    "Round",
    "Speedup",
    "Verdict",
    "WarmUp",
    "bench_csv",
    "bench_table",
    "check_comparable",
    "compare_reports",
    "comparison_table",
    "figure_cell",
    "make_inputs",
    "not_run_lines",
    "read_environment",
    "report_from_dict",
    "run_bench",
    "speedup_between",
    "speedup_of",
    "standings",
    "still_racing",
    "times_per_image",
    "visible_gpus",
    "with_speedup",
]
