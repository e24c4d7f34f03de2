"""What a page is made from, and how its cases are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2t_deploy.bench import BenchReport, CaseResult, Comparison, Latency
    from t2t_deploy.workspace import Manifest

EAGER = "eager"
COLOURS = 7
"""How many colours the style sheet has for cases; eager has one of its own."""


@dataclass(frozen=True, slots=True)
class BenchDocument:
    """A bench with all that explains it.

    artifacts: manifests by the name that the rows have. command: measures the same again.
    """

    report: BenchReport
    command: str
    artifacts: Mapping[str, Manifest]
    comparison: Comparison | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A measured row of the table.

    number: of its series, the same file on the same backend at any batch, from 1. name: short;
    stands with the number. colour: class of the style sheet. error: relative L2 by the manifest,
    None where nothing verified it. limit: the error that was allowed.
    """

    result: CaseResult
    number: int
    name: str
    colour: str
    error: float | None
    limit: float | None

    @property
    def is_reference(self) -> bool:
        """Whether it is what others are compared with."""
        return self.result.backend == EAGER

    @property
    def latency(self) -> Latency:
        """Of a call, in ms."""
        assert self.result.latency_ms is not None  # of a row without, no case is made
        return self.result.latency_ms

    @property
    def images_per_s(self) -> float:
        """Pictures per second by the median latency."""
        assert self.result.images_per_s is not None
        return self.result.images_per_s

    @property
    def peak_mb(self) -> float:
        """The highest resident memory, 0 where it is not known."""
        return (self.result.peak_rss_bytes or 0) / 1e6


def measured_cases(document: BenchDocument) -> list[Case]:
    """The rows with figures, in their order."""
    rows = [row for row in document.report.results if row.latency_ms is not None]
    # the last row of each series, in the order of the first ones
    series = {(row.backend, row.artifact, row.precision): row for row in rows}
    names = _names(document, list(series.values()))
    numbers = {key: number for number, key in enumerate(series, start=1)}
    others = [key for key in series if key[0] != EAGER]
    cases = []
    for row in rows:
        key = (row.backend, row.artifact, row.precision)
        manifest = document.artifacts.get(row.artifact or "")
        verified = (manifest and manifest.verification) or {}
        cases.append(
            Case(
                result=row,
                number=numbers[key],
                name=names[numbers[key] - 1],
                colour="c0" if key[0] == EAGER else f"c{others.index(key) % COLOURS + 1}",
                error=_float(verified.get("rel_l2")),
                limit=_float(verified.get("tolerance")),
            )
        )
    return cases


def batches_of(cases: Sequence[Case]) -> list[int]:
    """The batches that were measured, smallest first."""
    return sorted({case.result.batch for case in cases})


def cases_of_batch(cases: Sequence[Case], batch: int) -> list[Case]:
    """The cases of one batch, in their order."""
    return [case for case in cases if case.result.batch == batch]


def _names(document: BenchDocument, rows: Sequence[CaseResult]) -> list[str]:
    """Backend and precision, and variant and target where they tell cases apart.

    Where they do not, the number does, which stands beside every name.
    """
    manifests = [document.artifacts.get(row.artifact or "") for row in rows]
    several = len({manifest.variant for manifest in manifests if manifest is not None}) > 1
    names = [
        (f"{manifest.variant} " if several and manifest is not None else "")
        + f"{row.backend} {row.precision}"
        for row, manifest in zip(rows, manifests, strict=True)
    ]
    return [
        name if names.count(name) == 1 or manifest is None else f"{name} {manifest.target}"
        for name, manifest in zip(names, manifests, strict=True)
    ]


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
