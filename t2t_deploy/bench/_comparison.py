"""Two reports of one machine side by side: which cases became faster, which slower."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from t2t_deploy.bench._environment import Environment
from t2t_deploy.bench._results import BenchReport, BenchStatus, CaseResult
from t2t_deploy.bench._statistics import Speedup, ratio_of_medians
from t2t_deploy.errors import ComparisonError

MIN_DIFFERENCE = 0.03
"""Relative difference below which nothing is said. A bootstrap over rounds does not see what
differs from process to process: of three benches of one file on a shared machine the medians
differed by up to 2.3 %, and one of three intervals, 0.938 to 0.998, left out 1."""
_GIB = 1 << 30
# what an export appends to a file's name, before the suffix
_CONTENT_HASH = re.compile(r"-[0-9a-f]{8}(?=\.\w+$)")


class Verdict(str, Enum):
    """What can be said of a case."""

    FASTER = "faster"
    SLOWER = "slower"
    NOT_DISTINGUISHABLE = "not distinguishable"
    NOT_COMPARED = "not compared"


@dataclass(frozen=True, slots=True)
class CaseComparison:
    """One case then and now.

    ratio: how many times as fast as then, with its 95 % interval; None where it was not compared,
    for the reason given. A reason beside a ratio tells what else changed.
    """

    backend: str
    artifact: str | None
    precision: str
    batch: int
    verdict: Verdict
    ratio: Speedup | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A report against an older one.

    notes: what differs between the two without making them incomparable, a line each.
    """

    old: str
    date_utc: str
    cases: tuple[CaseComparison, ...]
    notes: tuple[str, ...]


_Fact = Callable[[Environment], object]
# what makes it another machine or another way to use it; versions are what one wants to compare
_FACTS: dict[str, _Fact] = {
    "processor": lambda found: found.cpu_model,
    "processor flags": lambda found: _listed(found.cpu_flags),
    "logical cores": lambda found: found.logical_cores,
    "usable cores": lambda found: found.usable_cores,
    "memory": lambda found: f"{found.memory_bytes / _GIB:.0f} GiB",
    "governor": lambda found: found.governor or "unknown",
    "GPUs": lambda found: _listed([gpu.name for gpu in found.gpus]),
    "threads": lambda found: _listed(found.threads),
}


def check_comparable(
    old: BenchReport, environment: Environment, *, devices: Sequence[int | None], name: str
) -> None:
    """Refuse to compare with a report of another machine or of other settings.

    name: how the old report is called. Raises ComparisonError saying what differs.
    """
    assert old.settings is not None
    pairs = {fact: (read(old.environment), read(environment)) for fact, read in _FACTS.items()}
    pairs["device"] = (_listed(old.settings.devices), _listed(devices))
    different = [
        f"{fact} {then} there, {now} here" for fact, (then, now) in pairs.items() if then != now
    ]
    if different:
        raise ComparisonError(
            f"{name} was measured on another machine or with other settings: "
            f"{'; '.join(different)}; only the same can be compared: bench both on one machine "
            "with the same --threads and --device"
        )


def compare_reports(old: BenchReport, new: BenchReport, *, name: str, seed: int = 0) -> Comparison:
    """Hold each case of ``new`` against the same case of ``old``; both are of one machine.

    A case is the same where backend, file name, precision and batch are; a file that was made anew
    may have another content hash in its name, as long as only one of either report fits. Cases
    that were measured neither then nor now are left out.
    """
    before = {row.key: row for row in old.results}
    again = _only_ones(old.results)
    unique = _only_ones(new.results)
    cases: list[CaseComparison] = []
    found: set[tuple[object, ...]] = set()
    for row in new.results:
        then, reason = before.get(row.key), None
        if then is None and _kind(row) in unique:
            then = again.get(_kind(row))
            if then is not None:
                reason = f"then {then.artifact}"
        if then is not None:
            found.add(then.key)
        if BenchStatus.OK in (row.status, None if then is None else then.status):
            cases.append(_compared(then, row, seed=seed, reason=reason))
    for row in old.results:
        if row.status is BenchStatus.OK and row.key not in found:
            cases.append(_not_compared(row, "not among the new results"))
    return Comparison(
        old=name,
        date_utc=old.environment.date_utc,
        cases=tuple(cases),
        notes=_version_notes(old.environment, new.environment),
    )


def _compared(
    then: CaseResult | None, now: CaseResult, *, seed: int, reason: str | None
) -> CaseComparison:
    if then is None:
        return _not_compared(now, "not among the old results")
    for row, when in ((now, "now"), (then, "then")):
        if row.status is not BenchStatus.OK:
            words = "not run" if row.status is BenchStatus.NOT_RUN else "failed"
            return _not_compared(now, f"{words} {when}")
    ratio = ratio_of_medians(then.round_medians_ms(), now.round_medians_ms(), seed=seed)
    reasons = [] if reason is None else [reason]
    unsteady = [word for word, row in (("then", then), ("now", now)) if row.unstable]
    if unsteady:
        reasons.append(f"unstable {' and '.join(unsteady)}")
    return CaseComparison(*now.key, verdict_of(ratio), ratio, "; ".join(reasons) or None)


def _not_compared(row: CaseResult, reason: str) -> CaseComparison:
    return CaseComparison(*row.key, Verdict.NOT_COMPARED, reason=reason)


def verdict_of(ratio: Speedup) -> Verdict:
    """Faster or slower where the whole interval lies beyond `MIN_DIFFERENCE`."""
    if ratio.low > 1 + MIN_DIFFERENCE:
        return Verdict.FASTER
    if ratio.high < 1 / (1 + MIN_DIFFERENCE):
        return Verdict.SLOWER
    return Verdict.NOT_DISTINGUISHABLE


def _kind(row: CaseResult) -> tuple[object, ...]:
    artifact = None if row.artifact is None else _CONTENT_HASH.sub("", row.artifact)
    return (row.backend, artifact, row.precision, row.batch)


def _only_ones(rows: Sequence[CaseResult]) -> dict[tuple[object, ...], CaseResult]:
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


def _listed(values: Sequence[object] | None) -> str:
    if values is None:
        return "unknown"
    return ", ".join("default" if value is None else str(value) for value in values) or "none"
