"""A bench report as people read it in a terminal."""

from __future__ import annotations

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
    "peak MB",
    "note",
)
_RIGHT = frozenset(("batch", "p50 ms", "p99 ms", "images/s", "vs eager", "peak MB"))


def bench_table(report: BenchReport) -> Table:
    """One row per case that was tried; one that failed says so, with its reason.

    What was not run is told by `not_run_lines`. vs eager: how many times faster, [low, high] of its
    95 % interval. MB: 10^6 bytes.
    """
    from rich.table import Table  # rich is slow to import and only wanted here
    from rich.text import Text

    table = Table()
    for name in _COLUMNS:
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
        table.add_row(*(Text(cell) for cell in _cells(result)))
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


def _cells(result: CaseResult) -> tuple[str, ...]:
    latency, speedup, peak = result.latency_ms, result.speedup_vs_eager, result.peak_rss_bytes
    return (
        result.backend,
        result.artifact or _NONE,
        result.precision,
        str(result.batch),
        _NONE if latency is None else f"{latency.p50:.2f}",
        _NONE if latency is None else f"{latency.p99:.2f}",
        _NONE if result.images_per_s is None else f"{result.images_per_s:.1f}",
        _NONE if speedup is None else _ratio(speedup),
        _NONE if peak is None else f"{peak / 1e6:.0f}",
        _note(result),
    )


def _ratio(speedup: Speedup) -> str:
    return f"{speedup.ratio:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"


def _note(result: CaseResult) -> str:
    if result.status is BenchStatus.FAILED:
        return f"failed: {result.reason}"
    notes = []
    if result.unstable:
        spread = "" if result.spread is None else f"{result.spread:.0%}, "
        notes.append(f"unstable: rounds spread by {spread}more than {UNSTABLE_SPREAD:.0%}")
    if result.warm_up is not None and not result.warm_up.stable:
        notes.append("not warm when measured")
    return "; ".join(notes)
