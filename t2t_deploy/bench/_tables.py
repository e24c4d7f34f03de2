"""A bench report as people read it in a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from t2t_deploy.bench._results import BenchReport, BenchStatus, CaseResult
from t2t_deploy.bench._statistics import UNSTABLE_SPREAD, Speedup

if TYPE_CHECKING:
    from rich.table import Table

_NONE = "-"
_COLUMNS = (
    "backend",
    "artifact",
    "precision",
    "batch",
    "p50 ms",
    "p99 ms",
    "images/s",
    "vs eager",
    "vs plain",
    "error",
    "peak MB",
    "note",
)
_RIGHT = frozenset(_COLUMNS[3:-1])  # numbers


def bench_table(report: BenchReport) -> Table:
    """One row per case that was tried; one that failed says so, with its reason.

    What was not run is told by `not_run_lines`. vs eager, vs plain: how many times faster, [low,
    high] of its 95 % interval. error: relative L2 of one picture's logits against float64. MB: 10^6
    bytes. Columns of which no case has a figure are left out.
    """
    from rich.table import Table  # rich is slow to import and only wanted here
    from rich.text import Text

    table = Table()
    columns = _columns(report)
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in _RIGHT else "left",
            no_wrap=name in _RIGHT,
            overflow="fold",
        )
    for result in report.results:
        if result.status is BenchStatus.NOT_RUN:
            continue
        # as Text: square brackets in a cell would be read as markup
        table.add_row(*(Text(cell) for cell in _cells(result, columns)))
    return table


def not_run_lines(report: BenchReport) -> list[str]:
    """What was not run and why, one line for each reason."""
    skipped: dict[str, list[CaseResult]] = {}
    for result in report.results:
        if result.status is BenchStatus.NOT_RUN:
            skipped.setdefault(str(result.reason), []).append(result)
    lines = []
    for reason, results in skipped.items():
        backends = ", ".join(dict.fromkeys(result.backend for result in results))
        artifacts = dict.fromkeys(result.artifact for result in results)
        which = f"{len(artifacts)} artifacts" if len(artifacts) > 1 else next(iter(artifacts))
        lines.append(f"not run: {backends} ({which or _NONE}): {reason}")
    return lines


def _columns(report: BenchReport) -> tuple[str, ...]:
    optional = {
        "vs plain": any(result.speedup_vs_plain is not None for result in report.results),
        "error": any(result.rel_l2 is not None for result in report.results),
    }
    return tuple(name for name in _COLUMNS if optional.get(name, True))


def _cells(result: CaseResult, columns: Sequence[str]) -> tuple[str, ...]:
    latency, peak = result.latency_ms, result.peak_rss_bytes
    cells = {
        "backend": result.backend,
        "artifact": result.artifact or _NONE,
        "precision": result.precision,
        "batch": str(result.batch),
        "p50 ms": _NONE if latency is None else f"{latency.p50:.2f}",
        "p99 ms": _NONE if latency is None else f"{latency.p99:.2f}",
        "images/s": _NONE if result.images_per_s is None else f"{result.images_per_s:.1f}",
        "vs eager": _ratio(result.speedup_vs_eager),
        "vs plain": _ratio(result.speedup_vs_plain),
        "error": _NONE if result.rel_l2 is None else f"{result.rel_l2:.1e}",
        "peak MB": _NONE if peak is None else f"{peak / 1e6:.0f}",
        "note": _note(result),
    }
    return tuple(cells[name] for name in columns)


def _ratio(speedup: Speedup | None) -> str:
    return _NONE if speedup is None else str(speedup)


def _note(result: CaseResult) -> str:
    if result.status is BenchStatus.FAILED:
        return f"failed: {result.reason}"
    notes = [] if result.reason is None else [result.reason]
    if result.unstable:
        spread = "" if result.spread is None else f"{result.spread:.0%}, "
        notes.append(f"unstable: rounds spread by {spread}more than {UNSTABLE_SPREAD:.0%}")
    if result.warm_up is not None and not result.warm_up.stable:
        notes.append("not warm when measured")
    return "; ".join(notes)


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
