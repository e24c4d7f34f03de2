"""A bench report as a spreadsheet reads it."""

from __future__ import annotations

import csv
import io

from t2t_deploy.bench._results import BenchReport, CaseResult

_CSV_COLUMNS = (
    "backend",
    "artifact",
    "precision",
    "batch",
    "status",
    "reason",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "mean_ms",
    "stdev_ms",
    "samples",
    "rounds",
    "images_per_s",
    "speedup_vs_eager",
    "speedup_low",
    "speedup_high",
    "unstable",
    "spread",
    "warm",
    "load_ms",
    "first_call_ms",
    "baseline_rss_bytes",
    "peak_rss_bytes",
    "threads",
    "cpu_model",
    "date_utc",
)


def bench_csv(report: BenchReport) -> str:
    """One line per case, what was not measured left empty, and where it ran in every line.

    The machine and the date are repeated, so that lines of several files stay apart when they are
    put together. Numbers have all their digits.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    environment = report.environment
    threads = " ".join("default" if n is None else str(n) for n in environment.threads)
    for result in report.results:
        writer.writerow((*_figures(result), threads, environment.cpu_model, environment.date_utc))
    return file.getvalue()


def _figures(result: CaseResult) -> tuple[object, ...]:
    latency, speedup, measured = result.latency_ms, result.speedup_vs_eager, bool(result.rounds)
    # None is written as nothing
    return (
        result.backend,
        result.artifact,
        result.precision,
        result.batch,
        result.status.value,
        result.reason,
        *(
            (None,) * 6
            if latency is None
            else (
                latency.p50,
                latency.p90,
                latency.p99,
                latency.mean,
                latency.stdev,
                len(latency.samples),
            )
        ),
        len(result.rounds) if measured else None,
        result.images_per_s,
        *((None,) * 3 if speedup is None else (speedup.ratio, speedup.low, speedup.high)),
        str(result.unstable).lower() if measured else None,
        result.spread,
        None if result.warm_up is None else str(result.warm_up.stable).lower(),
        result.load_ms,
        result.first_call_ms,
        result.baseline_rss_bytes,
        result.peak_rss_bytes,
    )
