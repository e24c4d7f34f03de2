"""The table of results, which a few lines of script can sort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from t2t_deploy.report._document import Case
from t2t_deploy.report._markup import Child, Markup, element
from t2t_deploy.report._small_charts import rounds_sparkline

if TYPE_CHECKING:
    from t2t_deploy.bench import CaseResult

_NONE = "–"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, its unit, and of a case what is shown and what it is sorted by."""

    name: str
    unit: str
    cell: Callable[[Case], Child]
    key: Callable[[Case], float | str | None]
    numeric: bool = True


def results_table(cases: Sequence[Case], failed: Sequence[CaseResult]) -> Markup:
    """One row per case; those that failed stand last with their reason and are not sorted."""
    return element(
        "div",
        _sort_choice(),
        element(
            "div",
            element(
                "table",
                element("thead", element("tr", (_heading(column) for column in COLUMNS))),
                element("tbody", (_row(case) for case in cases)),
                element("tbody", (_failed_row(row) for row in failed), class_="failed")
                if failed
                else None,
                id="results",
            ),
            class_="scroll",
            tabindex=0,
            role="region",
            aria_label="Results, scrolls sideways",
        ),
    )


def _heading(column: Column) -> Markup:
    unit = element("span", column.unit, class_="unit") if column.unit else None
    button = element("button", column.name, unit, type="button")
    return element("th", button, scope="col", class_="number" if column.numeric else None)


def _sort_choice() -> Markup:
    """What phones show instead of headings that could be touched."""
    options = [element("option", "as measured", value="")]
    options += [element("option", column.name, value=index) for index, column in enumerate(COLUMNS)]
    return element(
        "label", "Sort by ", element("select", options, id="sort-by"), class_="sort-choice"
    )


def _row(case: Case) -> Markup:
    cells = []
    for column in COLUMNS:
        key = column.key(case)
        cells.append(
            element(
                "td",
                column.cell(case),
                data_label=f"{column.name} {column.unit}".strip(),
                data_sort="" if key is None else repr(key) if isinstance(key, float) else str(key),
                class_="number" if column.numeric else None,
            )
        )
    return element("tr", cells, class_=case.colour, data_series=case.number)


def _failed_row(row: CaseResult) -> Markup:
    words = f"{row.backend}, {row.artifact or _NONE}, {row.precision}, batch {row.batch}"
    reason = element("strong", "failed: ")
    return element("tr", element("td", words, ": ", reason, row.reason, colspan=len(COLUMNS)))


def _name(case: Case) -> Markup:
    return element(
        "span",
        element("span", f"#{case.number}", class_="swatch"),
        element("span", case.result.backend, class_="backend"),
        element("span", case.file or _NONE, class_="file"),
        class_="which",
    )


def _speedup(case: Case) -> Child:
    speedup = case.result.speedup_vs_eager
    if speedup is None:
        return "base" if case.is_reference else _NONE
    interval = element("small", f"{speedup.low:.2f} to {speedup.high:.2f}")
    return element("span", element("b", f"{speedup.ratio:.2f}"), " ", interval)


def _error(case: Case) -> Child:
    if case.error is None:
        return "reference" if case.is_reference else _NONE
    return f"{case.error:.1e}"


def _state(case: Case) -> Markup:
    result = case.result
    spread = _NONE if result.spread is None else f"{result.spread:.0%}"
    words: list[Child] = []
    if result.reason is not None:
        words.append(element("span", result.reason, class_="warn"))
    if result.unstable:
        words.append(element("span", f"unstable, {spread}", class_="warn"))
    if result.warm_up is not None and not result.warm_up.stable:
        words.append(element("span", "not warm", class_="warn"))
    return element("span", rounds_sparkline(case), *(words or [spread]), class_="state")


def _fixed(digits: int, unit: float = 1.0) -> Callable[[float | None], str]:
    def shown(value: float | None) -> str:
        return _NONE if value is None else f"{value / unit:,.{digits}f}"

    return shown


def _latency(name: str) -> Column:
    def key(case: Case) -> float:
        return float(getattr(case.result.latency_ms, name))

    return Column(name, "ms", lambda case: _fixed(2)(key(case)), key)


def _field(name: str, unit: str, field: str, *, digits: int, divisor: float = 1.0) -> Column:
    def key(case: Case) -> float | None:
        value = getattr(case.result, field)
        return None if value is None else float(value)

    return Column(name, unit, lambda case: _fixed(digits, divisor)(key(case)), key)


COLUMNS = (
    Column("case", "", _name, lambda case: float(case.number), numeric=False),
    Column("precision", "", lambda c: c.result.precision, lambda c: c.result.precision, False),
    Column("batch", "", lambda c: c.result.batch, lambda c: float(c.result.batch)),
    _latency("p50"),
    _latency("p90"),
    _latency("p99"),
    _field("images/s", "", "images_per_s", digits=1),
    Column(
        "vs eager",
        "×",
        _speedup,
        lambda c: None if c.result.speedup_vs_eager is None else c.result.speedup_vs_eager.ratio,
    ),
    Column("error", "rel. L2", _error, lambda case: case.error),
    _field("load", "ms", "load_ms", digits=0),
    _field("first call", "ms", "first_call_ms", digits=1),
    _field("peak", "MB", "peak_rss_bytes", digits=0, divisor=1e6),
    Column("rounds", "spread", _state, lambda case: case.result.spread, numeric=False),
)
