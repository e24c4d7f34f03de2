"""What a tuning found: a row for each file, the pick, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from t2t_deploy._codec import to_plain
from t2t_deploy.bench import BenchReport, CaseResult, Speedup
from t2t_deploy.commands import artifact_values
from t2t_deploy.workspace import Artifact

TIED = 1.02
"""Up to so many times the best figure counts as the same: the smaller error decides."""


class Goal(str, Enum):
    """What the best file is best in."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    SIZE = "size"
    MEMORY = "memory"


class Verdict(str, Enum):
    """What became of a file; the values are part of the command-line contract."""

    PICK = "pick"
    FRONTIER = "frontier"
    BEATEN = "beaten"
    OVER_BUDGET = "over_budget"
    FAILED = "failed"
    NOT_TRIED = "not_tried"


@dataclass(frozen=True, slots=True)
class TunedFile:
    """A file that was tried, in so many streams, or could not be.

    verdict: beaten is where another file is faster and no further off. reason: of the verdict.
    error: mean relative L2 error of the logits on the pictures of ``eval``, else the worst one of
    the verification. drop: points of ``measure`` lost on ``eval``. row: what was timed; times: how
    many times the fastest's time it takes.
    """

    name: str
    verdict: Verdict
    reason: str | None = None
    backend: str | None = None
    streams: int = 1
    artifact: Artifact | None = None
    error: float | None = None
    drop: float | None = None
    measure: str | None = None
    row: CaseResult | None = None
    times: Speedup | None = None

    @property
    def size_bytes(self) -> int | None:
        """Of the file."""
        return None if self.artifact is None else self.artifact.require_manifest().size_bytes

    @property
    def memory_bytes(self) -> int | None:
        """By which the resident memory of its process grew."""
        if self.row is None or self.row.peak_rss_bytes is None:
            return None
        return self.row.peak_rss_bytes - (self.row.baseline_rss_bytes or 0)

    @property
    def ms_per_image(self) -> float | None:
        """By the median call of its streams."""
        if self.row is None or self.row.latency_ms is None:
            return None
        return self.row.latency_ms.p50 / self.row.batch

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        engine = None
        if self.artifact is not None and self.artifact.kind == "engine":
            engine = self.artifact.require_manifest().details.get("engine")
        row = self.row
        return {
            "name": self.name,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "backend": self.backend,
            "streams": self.streams,
            "artifact": None if self.artifact is None else artifact_values(self.artifact),
            "error": self.error,
            "drop": self.drop,
            "measure": self.measure,
            "ms_per_image": self.ms_per_image,
            "images_per_s": None if row is None else row.images_per_s,
            "times_fastest": to_plain(self.times),
            "speedup_vs_eager": None if row is None else to_plain(row.speedup_vs_eager),
            "rounds": 0 if row is None else len(row.rounds),
            "size_bytes": self.size_bytes,
            "memory_bytes": self.memory_bytes,
            "engine": engine,
        }


@dataclass(frozen=True, slots=True)
class Tuning:
    """A tuning: its files, the pick first.

    pick: None where no file keeps the budget; nearest is what comes closest then. why: of either.
    budget: what was asked for. report: what was timed. recipe, page: files that were written.
    """

    goal: Goal
    batch: int
    threads: int
    budget: Mapping[str, float | None]
    files: tuple[TunedFile, ...]
    pick: TunedFile | None
    nearest: TunedFile | None
    why: str
    seconds: float
    report: BenchReport | None = None
    recipe: Path | None = None
    page: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with the field names of the command-line contract."""
        written = (self.recipe, self.page)
        return {
            "goal": self.goal.value,
            "batch": self.batch,
            "threads": self.threads,
            "budget": dict(self.budget),
            "pick": None if self.pick is None else self.pick.to_dict(),
            "nearest": None if self.nearest is None else self.nearest.to_dict(),
            "why": self.why,
            "files": [one.to_dict() for one in self.files],
            "recipe": None if self.recipe is None else str(self.recipe),
            "page": None if self.page is None else str(self.page),
            "written": [str(path) for path in written if path is not None],
            "seconds": self.seconds,
        }


def judged(files: Sequence[TunedFile], pick: TunedFile | None) -> list[TunedFile]:
    """The files, those that were timed as the pick, of the frontier, or beaten.

    The frontier: no other file is both faster, or moves less, and no further off.
    """
    known = [one for one in files if one.verdict is Verdict.FRONTIER and _time(one) < math.inf]
    faster = sorted(known, key=_time)
    found = []
    for one in files:
        beating = (o for o in faster if _time(o) < _time(one) and _error(o) <= _error(one))
        better = next(beating, None) if one in known else None
        if one is pick:
            one = replace(one, verdict=Verdict.PICK)
        elif better is not None:
            how = "moves less" if one.times is None else "is faster"
            reason = f"{better.name} {how} and is no further off"
            one = replace(one, verdict=Verdict.BEATEN, reason=reason)
        found.append(one)
    return found


def choose(files: Sequence[TunedFile], goal: Goal) -> TunedFile | None:
    """The best of the files that keep the budget; of those that are as good, the nearest one.

    Without a time, of engines that cannot run here, by the bytes that their kernels move.
    """
    figures = [(one, _figure(one, goal)) for one in files]
    known = [(one, figure) for one, figure in figures if figure is not None]
    if not known:
        return None
    best = min(figure for _, figure in known)
    tied = [one for one, figure in known if figure <= TIED * best]
    speeds = goal in (Goal.LATENCY, Goal.THROUGHPUT)
    # two digits of an error tell files apart
    return min(
        tied, key=lambda one: (float(f"{_error(one):.1e}"), _time(one)) if speeds else _time(one)
    )


def nearest(files: Sequence[TunedFile], max_drop: float | None) -> TunedFile | None:
    """Of files beyond the budget the one that loses least."""
    return min(
        (one for one in files if one.verdict is Verdict.OVER_BUDGET),
        key=lambda one: (
            0.0 if max_drop is None else max(_drop(one) - max_drop, 0.0),
            _error(one),
        ),
        default=None,
    )


def moved_bytes(one: TunedFile) -> float | None:
    """What an engine's kernels read and write, by its builder; None of other files."""
    found = one.to_dict()["engine"]
    moved = None if found is None else found.get("moved_bytes")
    return None if moved is None else float(moved)


def _figure(one: TunedFile, goal: Goal) -> float | None:
    if goal is Goal.SIZE:
        return one.size_bytes
    if goal is Goal.MEMORY:
        return one.memory_bytes
    time = _time(one)
    return time if time < math.inf else None


def _time(one: TunedFile) -> float:
    """Of an engine that cannot run here, what its kernels move stands for its time."""
    if one.times is not None:
        return one.times.ratio
    moved = moved_bytes(one)
    return math.inf if moved is None else moved


def _drop(one: TunedFile) -> float:
    return math.inf if one.drop is None else one.drop


def _error(one: TunedFile) -> float:
    return math.inf if one.error is None else one.error


def order_of(one: TunedFile) -> tuple[int, float, float]:
    """The pick, then what was timed by its time, then the others."""
    verdicts = list(Verdict)
    timed = one.times is not None or moved_bytes(one) is not None
    rank = 0 if one.verdict is Verdict.PICK else 1 if timed else 2 + verdicts.index(one.verdict)
    time = one.times.ratio if one.times is not None else 0.0
    return rank, time, moved_bytes(one) or 0.0
