"""Timing what was made side by side, until it is clear who leads; a killed race goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from t2t_deploy.commands import Bench
from t2t_deploy.errors import counted
from t2t_deploy.recipe import RUNTIME_TOOLS, machine, text_sha256, tools
from t2t_deploy.runtime import REFERENCE_BACKEND
from t2t_deploy.tuning._plan import Asked
from t2t_deploy.tuning._results import Goal, TunedFile, Verdict
from t2t_deploy.tuning._workshop import Workshop
from t2t_deploy.workspace import TUNE

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


def timed_files(
    workshop: Workshop, files: Sequence[TunedFile]
) -> tuple[list[TunedFile], BenchReport | None]:
    """The files that keep the budget, timed; in several streams each is a file of its own."""
    asked = workshop.asked
    kept = [one for one in files if one.verdict is Verdict.FRONTIER]
    if not kept or not asked.timed:
        return list(files), None
    cases: list[BenchCase] = []
    entrants: list[TunedFile] = []
    others = [one for one in files if one not in kept]
    several = asked.goal is Goal.THROUGHPUT and asked.device is None and asked.threads > 1
    for one in kept:
        for streams in (1, asked.threads) if several else (1,):
            case = _case(asked, one, streams)
            if isinstance(case, BenchCase):
                cases.append(case)
                entrants.append(replace(one, streams=streams))
            else:
                others.append(replace(one, verdict=Verdict.FAILED, reason=case))
    if not cases:
        return others, None
    base = _case(asked, kept[0], 1, REFERENCE_BACKEND)
    race = Race(
        cases,
        base if isinstance(base, BenchCase) else None,
        throughput=asked.goal is Goal.THROUGHPUT,
        narrowing=asked.goal in (Goal.LATENCY, Goal.THROUGHPUT),
        file=asked.workspace.root / TUNE / f"{_key(asked, cases, kept)}.json",
        time_left=workshop.time_left,
    )
    if not asked.again:
        race.resume()
    if race.report is not None:
        workshop.out.note(
            f"timed before, on {race.report.environment.date_utc[:16]} UTC: --again times anew"
        )
    elif race.rows:
        done = max(len(row.rounds) for row in race.rows)
        workshop.out.note(f"going on after {counted(done, 'round')} of an earlier tune")
    report = race.run(workshop.progress("timing"))
    rows = {row.key: row for row in report.results}
    timed = [rows[case.key] for case in cases]
    times = race.times_leader(timed)
    most = max(len(row.rounds) for row in timed)
    entered = []
    for index, (one, row) in enumerate(zip(entrants, timed, strict=True)):
        if index not in times:
            entered.append(replace(one, verdict=Verdict.FAILED, reason=row.reason))
            continue
        early = len(row.rounds) < most
        left = f"surely slower after {counted(len(row.rounds), 'round')}" if early else None
        entered.append(replace(one, row=row, times=times[index], reason=left))
    return [*entered, *others], report


def _case(
    asked: Asked, one: TunedFile, streams: int, backend: str | None = None
) -> BenchCase | str:
    """A file on its runtime, or why not."""
    assert one.artifact is not None and one.backend is not None
    bench = Bench(
        asked.workspace, asked.threads, batches=(asked.batch,), device=asked.device, named=True
    )
    found = bench.case(one.artifact, backend or one.backend, asked.batch)
    if not isinstance(found, BenchCase):
        return "it does not run here" if found is None else found.reason
    return replace(found, request=replace(found.request, streams=streams))


def _key(asked: Asked, cases: Sequence[BenchCase], files: Sequence[TunedFile]) -> str:
    """What the figures of a race depend on."""
    parts = [
        sorted(map(str, (case.key for case in cases))),
        [one.artifact.require_manifest().sha256 for one in files if one.artifact is not None],
        [asked.threads, asked.device, asked.goal.value, ROUND_SECONDS],
        machine(processor=True) | tools(*RUNTIME_TOOLS),
    ]
    return f"race-{text_sha256(json.dumps(parts, sort_keys=True))[:16]}"
