"""Latency, throughput and memory of models, each in its own process, in interleaved rounds."""

from __future__ import annotations

from t2t_deploy.bench._environment import Environment
from t2t_deploy.bench._inputs import make_inputs
from t2t_deploy.bench._results import (
    BenchCase,
    BenchReport,
    BenchStatus,
    CaseResult,
    Round,
    WarmUp,
    not_run_result,
)
from t2t_deploy.bench._run import (
    DEFAULT_ROUND_SECONDS,
    DEFAULT_ROUNDS,
    MIN_ROUNDS,
    run_bench,
    speedup_between,
)
from t2t_deploy.bench._statistics import Latency, Speedup
from t2t_deploy.bench._table import bench_table, not_run_lines

__all__ = [
    "DEFAULT_ROUNDS",
    "DEFAULT_ROUND_SECONDS",
    "MIN_ROUNDS",
    "BenchCase",
    "BenchReport",
    "BenchStatus",
    "CaseResult",
    "Environment",
    "Latency",
    "Round",
    "Speedup",
    "WarmUp",
    "bench_table",
    "make_inputs",
    "not_run_lines",
    "not_run_result",
    "run_bench",
    "speedup_between",
]
