"""The content of a page, and the names of its cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t2t_deploy.runtime import REFERENCE_BACKEND

if TYPE_CHECKING:
    from t2t_deploy.bench import BenchReport, CaseResult, Comparison, Latency
    from t2t_deploy.workspace import Manifest

COLOURS = 7
"""How many colours the style sheet has for cases; the reference has its own."""


@dataclass(frozen=True, slots=True)
class TuneSummary:
    """What a tuning found. pick: name of the file; None where none keeps the budget.

    errors: relative L2 errors by artifact, in place of those of the manifests; error: what they
    are, in a sentence; limit: the largest that is allowed. rows: all files, with name, streams,
    verdict, ms, times (as the fastest), error, drop (points), size and memory (bytes), reason; None
    is not known.
    """

    pick: str | None
    why: str
    errors: Mapping[str, float]
    error: str
    rows: Sequence[Mapping[str, Any]]
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class BenchDocument:
    """A bench with its context.

    artifacts: manifests by the artifact's name in the rows. command: repeats the bench. tuning: of
    a bench that was there to pick a file.
    """

    report: BenchReport
    command: str
    artifacts: Mapping[str, Manifest]
    comparison: Comparison | None = None
    tuning: TuneSummary | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A measured row of the table.

    number: of its series (one file on one backend in as many streams, at any batch), from 1. name:
    short; shown with the number. colour: class of the style sheet. error: relative L2 by the
    manifest, None if not verified. limit: the allowed error.
    """

    result: CaseResult
    number: int
    name: str
    colour: str
    error: float | None
    limit: float | None

    @property
    def is_reference(self) -> bool:
        """Whether others are compared with it."""
        return self.result.backend == REFERENCE_BACKEND

    @property
    def latency(self) -> Latency:
        """Of a call, in ms."""
        assert self.result.latency_ms is not None  # see `measured_cases`
        return self.result.latency_ms

    @property
    def images_per_s(self) -> float:
        """Pictures over the elapsed time of the calls."""
        assert self.result.images_per_s is not None
        return self.result.images_per_s

    @property
    def peak_mb(self) -> float:
        """The highest resident memory, 0 if unknown."""
        return (self.result.peak_rss_bytes or 0) / 1e6


def measured_cases(document: BenchDocument) -> list[Case]:
    """The rows with figures that did not fail, in their order."""
    ok = [row for row in document.report.results if row.status.value == "ok"]
    rows = [row for row in ok if row.latency_ms is not None]
    # the last row of each series, in the order of the first ones
    series = {_series(row): row for row in rows}
    names = _names(document, list(series.values()))
    numbers = {key: number for number, key in enumerate(series, start=1)}
    others = [key for key in series if key[0] != REFERENCE_BACKEND]
    cases = []
    for row in rows:
        key = _series(row)
        manifest = document.artifacts.get(row.artifact or "")
        verified = (manifest and manifest.verification) or {}
        error, limit = verified.get("rel_l2"), verified.get("tolerance")
        if document.tuning is not None:
            error, limit = document.tuning.errors.get(row.artifact or ""), document.tuning.limit
        cases.append(
            Case(
                result=row,
                number=numbers[key],
                name=names[numbers[key] - 1],
                colour=f"c{others.index(key) % COLOURS + 1}" if key in others else "c0",
                error=_float(error),
                limit=_float(limit),
            )
        )
    return cases


def batches_of(cases: Sequence[Case]) -> list[int]:
    """The measured batches, smallest first."""
    return sorted({case.result.batch for case in cases})


def cases_of_batch(cases: Sequence[Case], batch: int) -> list[Case]:
    """The cases of one batch, in their order."""
    return [case for case in cases if case.result.batch == batch]


def _series(row: CaseResult) -> tuple[str, str | None, str, int]:
    return (row.backend, row.artifact, row.precision, row.streams)


def _names(document: BenchDocument, rows: Sequence[CaseResult]) -> list[str]:
    """Backend and precision, and variant and target where they distinguish cases."""
    manifests = [document.artifacts.get(row.artifact or "") for row in rows]
    several = len({manifest.variant for manifest in manifests if manifest is not None}) > 1
    names = [
        (f"{manifest.variant} " if several and manifest is not None else "")
        + f"{row.backend} {row.precision}"
        + (f" {row.streams} streams" if row.streams > 1 else "")
        for row, manifest in zip(rows, manifests, strict=True)
    ]
    return [
        name if names.count(name) == 1 or manifest is None else f"{name} {manifest.target}"
        for name, manifest in zip(names, manifests, strict=True)
    ]


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
