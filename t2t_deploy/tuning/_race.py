"""Timing what was made side by side, until it is clear who leads; a killed race goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from t2t_deploy._codec import from_plain, to_plain
from t2t_deploy._files import write_text
from t2t_deploy._progress import Progress
from t2t_deploy._untrusted import MAX_BENCH_BYTES, json_from_file
from t2t_deploy.bench import (
    MIN_ROUNDS,
    BenchCase,
    BenchReport,
    BenchStatus,
    CaseResult,
    Speedup,
    report_from_dict,
    run_bench,
    speedup_of,
    standings,
    still_racing,
    times_per_image,
    with_speedup,
)

MOST_ROUNDS = 15
ROUND_SECONDS = 0.4
_SEED = 0
_NONE = np.empty(0)


@dataclass(slots=True)
class Race:
    """Cases against each other beside the reference, which is timed as long as any of them.

    base: the reference's case, or None. throughput: whether it is about pictures a second of all
    streams, instead of the median call. narrowing: whether those that are surely behind leave.
    file: keeps the rounds. time_left: seconds. rows: what was measured before, once `resume` read
    it. report: the whole, once it is there.
    """

    cases: Sequence[BenchCase]
    base: BenchCase | None
    throughput: bool
    narrowing: bool
    file: Path
    time_left: Callable[[], float]
    rows: list[CaseResult] = field(default_factory=list)
    report: BenchReport | None = None

    def resume(self) -> None:
        """Take what an earlier run kept, as far as it can be read."""
        try:
            kept = json_from_file(self.file, MAX_BENCH_BYTES)
            if kept["report"] is not None:
                self.report = report_from_dict(kept["report"])
            self.rows = [from_plain(CaseResult, row) for row in kept["rows"]]
        except (OSError, ValueError, KeyError, TypeError):
            self.report, self.rows = None, []

    def run(self, progress: Progress) -> BenchReport:
        """Measure, or go on measuring."""
        if self.report is not None:
            return self.report
        known = {row.key: row for row in self.rows}
        rounds = max((len(row.rounds) for row in self.rows), default=0)
        cases, more = list(self.cases), MOST_ROUNDS
        if rounds:
            began = [case for case in cases if case.key in known]
            going = self._going([known[case.key] for case in began])
            cases = [began[index] for index in going]
            more = MOST_ROUNDS if going else rounds
        contenders, base = len(cases), self.base
        # where all is clear, one case says what machine it was
        every = [*cases, *([] if base is None else [base])] or list(self.cases[:1])
        before = [known.pop(case.key) for case in every if case.key in known]
        left = list(known.values())

        def after_round(rows: Sequence[CaseResult]) -> list[int]:
            self._keep([*left, *rows], None)
            going = self._going(rows[:contenders])
            return [*going, contenders] if going and base is not None else going

        measured = run_bench(
            every,
            rounds=max(more, MIN_ROUNDS),
            round_seconds=ROUND_SECONDS,
            seed=_SEED,
            progress=progress.progress,
            stage=progress.step,
            before=before,
            loads=2,
            after_round=after_round,
        )
        of_base = [row for row in measured.results if base is not None and row.key == base.key]
        others = [with_speedup(row, of_base[0], _SEED) if of_base else row for row in left]
        self.report = dataclasses.replace(measured, results=(*measured.results, *others))
        self._keep((), self.report)
        return self.report

    def _going(self, rows: Sequence[CaseResult]) -> list[int]:
        """The positions of those that go on; none where it is clear, or time is up."""
        times = self.times(rows)
        enough = max((one.size for one in times), default=0) >= MIN_ROUNDS
        if enough and (not self.narrowing or self.time_left() <= 0):
            return []
        return still_racing(times, seed=_SEED)

    def times(self, rows: Sequence[CaseResult]) -> list[np.ndarray]:
        """Milliseconds a picture in each round, none of a row that failed."""
        return [
            times_per_image(row, throughput=self.throughput)
            if row.status is BenchStatus.OK
            else _NONE
            for row in rows
        ]

    def times_leader(self, rows: Sequence[CaseResult]) -> Mapping[int, Speedup]:
        """How many times the leader's time each row takes, over the rounds that it was in."""
        times = self.times(rows)
        found = dict(standings(times, seed=_SEED))
        if not found:
            return found
        leader = times[next(iter(found))]
        for index, own in enumerate(times):
            if index not in found and own.size:
                found[index] = speedup_of(own, leader[: own.size], seed=_SEED)
        return found

    def _keep(self, rows: Sequence[CaseResult], report: BenchReport | None) -> None:
        kept: dict[str, Any] = {
            "report": None if report is None else report.to_dict(),
            "rows": to_plain(rows),
        }
        write_text(self.file, json.dumps(kept))
