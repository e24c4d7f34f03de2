"""A bench report, and a comparison of two, as tables for a terminal or a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from t2t_deploy._codec import to_plain
from t2t_deploy.bench._comparison import CaseComparison, Comparison
from t2t_deploy.bench._results import BenchReport, BenchStatus, CaseResult
from t2t_deploy.bench._statistics import UNSTABLE_SPREAD

if TYPE_CHECKING:
    from rich.table import Table

_NONE = "-"


def bench_table(report: BenchReport) -> Table:
    """One row per case that ran or failed, with the reason; `not_run_lines` has the others.

    vs eager, vs plain: how many times faster, [low, high] of its 95 % interval. error: relative L2
    of one picture's logits against float64. MB: 10^6 bytes. Columns without figures are left out,
    and streams where all have one.
    """
    missing = {
        name
        for name in ("vs plain", "error")
        if all(_COLUMNS[name](row) == _NONE for row in report.results)
    }
    if _all_have_one(report.results):
        missing.add("streams")
    columns = {name: cell for name, cell in _COLUMNS.items() if name not in missing}
    tried = [row for row in report.results if row.status is not BenchStatus.NOT_RUN]
    cells = ([cell(row) for cell in columns.values()] for row in tried)
    return _table(None, columns, cells, words=("backend", "artifact", "precision", "note"))


def not_run_lines(report: BenchReport) -> list[str]:
    """The cases that were not run, one line per reason."""
    lines = []
    for reason, results in report.not_run.items():
        backends = ", ".join(dict.fromkeys(result.backend for result in results))
        artifacts = dict.fromkeys(result.artifact for result in results)
        which = f"{len(artifacts)} artifacts" if len(artifacts) > 1 else next(iter(artifacts))
        lines.append(f"not run: {backends} ({which or _NONE}): {reason}")
    return lines


def comparison_table(comparison: Comparison) -> Table:
    """One row per case that was compared, or measured without an old one."""
    key = ["backend", "artifact", "precision", "batch", "streams"]
    if _all_have_one(comparison.cases):
        key.remove("streams")
    columns = (*key, "now", "times as fast", "note")
    cells = []
    for case in comparison.cases:
        ratio = case.ratio
        shown = _NONE if ratio is None else f"{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        name = [_COLUMNS[column](case) for column in key]
        cells.append((*name, case.verdict.value, shown, case.reason or ""))
    title = f"against {comparison.old} of {comparison.date_utc}"
    words = ("backend", "artifact", "precision", "now", "note")
    return _table(title, columns, cells, words=words)


def _all_have_one(rows: Iterable[CaseResult | CaseComparison]) -> bool:
    return all(row.streams == 1 for row in rows)


def _table(
    title: str | None,
    columns: Iterable[str],
    rows: Iterable[Iterable[str]],
    *,
    words: Iterable[str],
) -> Table:
    """words: the columns with text."""
    from rich.table import Table  # rich is slow to import
    from rich.text import Text

    table = Table(title=title)
    for name in columns:
        number = name not in words
        justify: Any = "right" if number else "left"
        table.add_column(name, justify=justify, no_wrap=number, overflow="fold")
    for cells in rows:
        # as Text: square brackets in a cell would be read as markup
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _note(result: CaseResult) -> str:
    failed = result.status is BenchStatus.FAILED
    notes = [f"failed: {result.reason}"] if failed else [result.reason] if result.reason else []
    if result.unstable:
        spread = "" if result.spread is None else f"{result.spread:.0%}, "
        notes.append(f"unstable: rounds spread by {spread}more than {UNSTABLE_SPREAD:.0%}")
    if result.warm_up is not None and not result.warm_up.stable:
        notes.append("not warm when measured")
    notes += result.stops
    return "; ".join(notes)


def figure_cell(path: str, form: str = "", unit: float | None = None) -> Callable[[Any], str]:
    """What shows a field, or a field's field, of a record in a table; a hyphen for None.

    form: as of `format`. unit: what the value is divided by.
    """

    def cell(record: Any) -> str:
        value = _value_at(record, path)
        return _NONE if value is None else format(value if unit is None else value / unit, form)

    return cell


def _value_at(record: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for name in path.split("."):
        record = getattr(record, name, None)
    return record


_COLUMNS: dict[str, Callable[[Any], str]] = {
    "backend": figure_cell("backend"),
    "artifact": figure_cell("artifact"),
    "precision": figure_cell("precision"),
    "batch": figure_cell("batch"),
    "streams": figure_cell("streams"),
    "p50 ms": figure_cell("latency_ms.p50", ".2f"),
    "mean ms": figure_cell("latency_ms.mean", ".2f"),
    "p99 ms": figure_cell("latency_ms.p99", ".2f"),
    "images/s": figure_cell("images_per_s", ".1f"),
    "vs eager": figure_cell("speedup_vs_eager"),
    "vs plain": figure_cell("speedup_vs_plain"),
    "error": figure_cell("rel_l2", ".1e"),
    "peak MB": figure_cell("peak_rss_bytes", ".0f", 1e6),
    "note": _note,
}
# column -> path in a result
_CSV_COLUMNS = {
    **{name: name for name in ("backend", "artifact", "precision", "batch", "status", "reason")},
    **{f"{name}_ms": f"latency_ms.{name}" for name in ("p50", "p90", "p99", "mean", "stdev")},
    "samples": "latency_ms.samples",
    "rounds": "rounds",
    "images_per_s": "images_per_s",
    "speedup_vs_eager": "speedup_vs_eager.ratio",
    "speedup_low": "speedup_vs_eager.low",
    "speedup_high": "speedup_vs_eager.high",
    "unstable": "unstable",
    "spread": "spread",
    "warm": "warm_up.stable",
    **{name: name for name in ("load_ms", "first_call_ms", "baseline_rss_bytes", "peak_rss_bytes")},
    "throughput_vs_eager": "throughput_vs_eager.ratio",
    "stalled": "stalled",
    "lost_s": "lost_s",
    "throttled_periods": "throttling.throttled_periods",
    "throttled_s": "throttling.throttled_s",
    "streams": "streams",
}


def bench_csv(report: BenchReport) -> str:
    """One line per case, empty where not measured, with machine and date in every line.

    So lines of several files can be put together. Numbers have all their digits.
    """
    env = report.environment
    threads = " ".join("default" if n is None else str(n) for n in env.threads)
    where = {"threads": threads, "cpu_model": env.cpu_model, "date_utc": env.date_utc}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*_CSV_COLUMNS, *where))
    for result in report.results:
        cells = (_csv_cell(result, path) for path in _CSV_COLUMNS.values())
        writer.writerow((*cells, *where.values()))
    return file.getvalue()


def _csv_cell(result: CaseResult, path: str) -> object:
    """A value of a cell; None leaves it empty."""
    value = _value_at(result, path)
    if isinstance(value, tuple):
        return len(value) or None
    if isinstance(value, bool):
        # False is also the default of a case without measurements
        flags = ("unstable", "stalled")
        return str(value).lower() if result.rounds or path not in flags else None
    return to_plain(value)
