"""Two reports of one machine side by side: which cases became faster, which slower."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from t2t_deploy.bench._environment import Environment
from t2t_deploy.bench._results import BenchReport, BenchStatus, CaseResult
from t2t_deploy.bench._statistics import MIN_ROUNDS, Speedup, ratio_of_medians
from t2t_deploy.errors import ComparisonError, counted

MIN_DIFFERENCE = 0.03
"""Relative difference below which there is no verdict. A bootstrap over rounds misses differences
between processes: of three benches of one file on a shared machine the medians
differed by up to 2.3 %, and one of three intervals, 0.938 to 0.998, left out 1."""
_GIB = 1 << 30
# the hash that an export appends to a file's stem
_CONTENT_HASH = re.compile(r"-[0-9a-f]{8}(?=\.\w+$)")


class Verdict(str, Enum):
    """The outcome of one comparison."""

    FASTER = "faster"
    SLOWER = "slower"
    NOT_DISTINGUISHABLE = "not distinguishable"
    NOT_COMPARED = "not compared"


@dataclass(frozen=True, slots=True)
class CaseComparison:
    """One case then and now.

    ratio: how many times as fast as then, with its 95 % interval; None if not compared, with the
    reason. A reason beside a ratio names other changes.
    """

    backend: str
    artifact: str | None
    precision: str
    batch: int
    streams: int = field(default=1, kw_only=True)
    verdict: Verdict
    ratio: Speedup | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A report against an older one.

    notes: differences that leave them comparable, one line each.
    """

    old: str
    date_utc: str
    cases: tuple[CaseComparison, ...]
    notes: tuple[str, ...]


# each must be equal to compare; versions may differ
_SAME: dict[str, Callable[[Environment], object]] = {
    "processor": lambda env: env.cpu_model,
    "processor flags": lambda env: _listed(env.cpu_flags),
    "logical cores": lambda env: env.logical_cores,
    "usable cores": lambda env: env.usable_cores,
    "memory": lambda env: f"{env.memory_bytes / _GIB:.0f} GiB",
    "processor limit": lambda env: _limit(env, "quota", 1, "processors"),
    "memory limit": lambda env: _limit(env, "memory_bytes", _GIB, "GiB"),
    "governor": lambda env: env.governor or "unknown",
    "GPUs": lambda env: _listed([gpu.name for gpu in env.gpus]),
    "threads": lambda env: _listed(env.threads),
}


def check_comparable(
    old: BenchReport, environment: Environment, *, devices: Sequence[int | None], name: str
) -> None:
    """Refuse to compare with a report of another machine or of other settings.

    name: of the old report. Raises ComparisonError naming the differences.
    """
    assert old.settings is not None
    pairs = {name: (read(old.environment), read(environment)) for name, read in _SAME.items()}
    pairs["device"] = (_listed(old.settings.devices), _listed(devices))
    different = [
        f"{what} {then} there, {now} here" for what, (then, now) in pairs.items() if then != now
    ]
    if different:
        raise ComparisonError(
            f"{name} was measured on another machine or with other settings: "
            f"{'; '.join(different)}; only the same can be compared: bench both on one machine "
            "with the same threads and device"
        )


def compare_reports(old: BenchReport, new: BenchReport, *, name: str) -> Comparison:
    """Compare each case of ``new`` with the same case of ``old``; both are of one machine.

    A case is the same if backend, file name, precision, batch and streams are. The content hash in
    a file name may differ, if only one case of each report matches without it. Cases measured in
    neither report are left out.
    """
    before = {row.key: row for row in old.results}
    unique_before = _unique_rows(old.results)
    unique = _unique_rows(new.results)
    cases: list[CaseComparison] = []
    matched: set[tuple[object, ...]] = set()
    for row in new.results:
        then, reason = before.get(row.key), None
        if then is None and _kind(row) in unique:
            then = unique_before.get(_kind(row))
            if then is not None:
                reason = f"then {then.artifact}"
        if then is not None:
            matched.add(then.key)
        if BenchStatus.OK in (row.status, None if then is None else then.status):
            cases.append(_compared(then, row, reason))
    for row in old.results:
        if row.status is BenchStatus.OK and row.key not in matched:
            cases.append(_not_compared(row, "not among the new results"))
    return Comparison(
        old=name,
        date_utc=old.environment.date_utc,
        cases=tuple(cases),
        notes=_version_notes(old.environment, new.environment),
    )


def _compared(then: CaseResult | None, now: CaseResult, reason: str | None) -> CaseComparison:
    if then is None:
        return _not_compared(now, "not among the old results")
    for row, when in ((now, "now"), (then, "then")):
        if row.status is not BenchStatus.OK:
            words = "not run" if row.status is BenchStatus.NOT_RUN else "failed"
            return _not_compared(now, f"{words} {when}")
        if len(row.rounds) < MIN_ROUNDS:
            return _not_compared(now, f"cut short {when}: {counted(len(row.rounds), 'round')}")
    ratio = ratio_of_medians(then.round_medians_ms(), now.round_medians_ms(), seed=0)
    reasons = [] if reason is None else [reason]
    for mark in ("unstable", "stalled"):
        marked = [word for word, row in (("then", then), ("now", now)) if getattr(row, mark)]
        if marked:
            reasons.append(f"{mark} {' and '.join(marked)}")
    return _comparison(now, verdict_of(ratio), ratio, "; ".join(reasons) or None)


def _not_compared(row: CaseResult, reason: str) -> CaseComparison:
    return _comparison(row, Verdict.NOT_COMPARED, None, reason)


def _comparison(
    row: CaseResult, verdict: Verdict, ratio: Speedup | None, reason: str | None
) -> CaseComparison:
    return CaseComparison(*row.key[:4], verdict, ratio, reason, streams=row.streams)


def verdict_of(ratio: Speedup) -> Verdict:
    """Faster or slower if the interval is beyond `MIN_DIFFERENCE`."""
    if ratio.low > 1 + MIN_DIFFERENCE:
        return Verdict.FASTER
    if ratio.high < 1 / (1 + MIN_DIFFERENCE):
        return Verdict.SLOWER
    return Verdict.NOT_DISTINGUISHABLE


def _kind(row: CaseResult) -> tuple[object, ...]:
    backend, artifact, *rest = row.key
    return (backend, artifact and _CONTENT_HASH.sub("", artifact), *rest)


def _unique_rows(rows: Sequence[CaseResult]) -> dict[tuple[object, ...], CaseResult]:
    """The rows whose kind no other row has."""
    kinds = [_kind(row) for row in rows]
    return {kind: row for kind, row in zip(kinds, rows, strict=True) if kinds.count(kind) == 1}


def _version_notes(old: Environment, new: Environment) -> tuple[str, ...]:
    then = {**old.versions, "python": old.python, "platform": old.platform}
    now = {**new.versions, "python": new.python, "platform": new.platform}
    return tuple(
        f"{name}: {then.get(name, 'absent')} then, {now.get(name, 'absent')} now"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    )


def _limit(env: Environment, field: str, unit: int, name: str) -> str:
    """A limit of a container; benches of versions that read none count as without."""
    value = getattr(env.limits, field, None)
    return "none" if value is None else f"{value / unit:.4g} {name}"


def _listed(values: Sequence[object] | None) -> str:
    if values is None:
        return "unknown"
    return ", ".join("default" if value is None else str(value) for value in values) or "none"
