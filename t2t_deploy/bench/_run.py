"""Measure cases side by side: one worker each, warmed up, then in interleaved rounds."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from statistics import median
from time import monotonic
from typing import Any

import numpy as np

from t2t_deploy._child import CLOSE_TIMEOUT_S, Child, ChildError, child_environment, module_command
from t2t_deploy._codec import from_plain
from t2t_deploy._limits import Throttling, read_limits
from t2t_deploy.bench._environment import load_average, read_environment, watch_gpus
from t2t_deploy.bench._results import (
    BenchCase,
    BenchReport,
    BenchSettings,
    BenchStatus,
    CaseResult,
    FixedBatchError,
    Round,
    WarmUp,
    calls_and_ms,
)
from t2t_deploy.bench._statistics import (
    MIN_ROUNDS,
    STALLED_SHARE,
    UNSTABLE_SPREAD,
    Speedup,
    latency_of,
    rounds_spread,
    speedup_of,
    throughput_ratio,
)
from t2t_deploy.errors import UsageError, counted
from t2t_deploy.runtime import REFERENCE_BACKEND, CallTiming
from t2t_deploy.types import Precision

DEFAULT_ROUNDS = 7
DEFAULT_ROUND_SECONDS = 0.5
MIN_ITERATIONS = 3
MAX_ITERATIONS = 200
MAX_ITERATIONS_OF_QUOTA = 10_000
"""Under a quota of processor time, of which each period (0.1 s) grants a share: so many short calls
that a round spans several periods. 200 calls of 0.2 ms fit between two stops and meet none."""
WARM_UP_LIMIT_S = 5.0
WARM_UP_CHUNK_S = 0.25
WARM_UP_AGREEMENT = 0.05
"""Relative difference of two successive chunks' medians below which a case is warm."""
SETTLE_ITERATIONS = 1
"""Unrecorded calls at the start of a turn: the turns of other cases have evicted this one's weights
from the caches; a served model has them there."""
WORKER_COMMAND = module_command("t2t_deploy.bench._worker")
LOAD_TIMEOUT_S = 600.0
"""Opening a session and its first call; torch.compile and just-in-time kernels take minutes."""
RUN_GRACE_S = 60.0
"""Beyond the expected time of a run, before the worker counts as hung."""
_REASON_CHARS = 500


AfterRound = Callable[[Sequence[CaseResult]], Collection[int]]


class WorkerError(Exception):
    """A worker that answered with an error, died or hangs; the text is one line.

    not_run: the case cannot be measured, which is no failure.
    """

    def __init__(self, reason: str, *, not_run: bool = False) -> None:
        super().__init__(" ".join(reason.split())[:_REASON_CHARS])
        self.not_run = not_run


class Worker(Child):
    """A worker process."""

    def __init__(self, threads: int | None, command: Sequence[str] | None = None) -> None:
        super().__init__(command or WORKER_COMMAND, child_environment(threads), "worker")

    def __enter__(self) -> Worker:
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None and self.is_running:
                # the measurements of a runtime that crashes at shutdown are good
                with contextlib.suppress(WorkerError):
                    self._ask({"command": "close"}, CLOSE_TIMEOUT_S)
        finally:
            self.kill()

    def load(self, case: BenchCase, seed: int) -> dict[str, Any]:
        """Open the session and call it once. Raises WorkerError."""
        message = {
            "command": "load",
            "request": case.request,
            "batch": case.batch,
            "seed": seed,
            "reference_logits": case.reference_logits,
            "typical_norm": case.typical_norm,
        }
        return self._ask(message, LOAD_TIMEOUT_S)

    def run(self, iterations: int, *, settle: int = 0, expected_ns: float) -> dict[str, Any]:
        """Time ``iterations`` calls a stream after ``settle`` unrecorded ones.

        expected_ns: time of one call so far; far beyond it the worker counts as hung.
        Raises WorkerError.
        """
        timeout_s = RUN_GRACE_S + 20 * (iterations + settle) * expected_ns / 1e9
        message = {"command": "run", "iterations": iterations, "settle": settle}
        return self._ask(message, timeout_s)

    def _ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            self.send(message)
            answer = self.next_message(timeout_s).values
        except ChildError as err:
            raise WorkerError(str(err)) from err
        if not answer["ok"]:
            kind, text = answer["kind"], answer["message"]
            not_run = kind == FixedBatchError.__name__
            raise WorkerError(text if not_run else f"{kind}: {text}", not_run=not_run)
        return answer


class CaseRun:
    """A case and its worker. An error ends the worker and becomes the result.

    before: rounds that another run measured. quota: whether the process has a quota of processor
    time. Rounds are sized by how long calls take with their stops then, and hold more calls.
    """

    def __init__(
        self,
        case: BenchCase,
        worker: Worker,
        *,
        quota: bool = False,
        before: Sequence[Round] = (),
    ) -> None:
        self.case = case
        self.rounds = list(before)
        self._worker, self._quota = worker, quota
        self._error: WorkerError | None = None
        self._loaded: dict[str, Any] = {}
        self._peak_rss_bytes = 0
        self._throttling: list[Throttling | None] = []
        self._warm_up: WarmUp | None = None
        self._call_ns = 0.0
        self._timings_ms: list[dict[str, float]] = []
        self._graph_refusal: str | None = None

    def prepare(self, seed: int) -> None:
        """Load the model, call it once, and warm it up."""
        self.load(seed)
        self.warm_up()

    def load(self, seed: int) -> None:
        """Load the model and call it once."""
        with self._attempt():
            self._loaded = self._worker.load(self.case, seed)
            self._call_ns = self._loaded["first_call_ns"]

    def warm_up(self) -> None:
        """Call it until it takes the same time; nothing after a failure."""
        if self._error is None:
            with self._attempt():
                self._warm_up = self._warmed_up()

    def take_turn(self, number: int, turn: int, round_seconds: float) -> None:
        """Measure the calls of one round; nothing after a failure."""
        if self._error is None:
            with self._attempt():
                most = MAX_ITERATIONS_OF_QUOTA if self._quota else MAX_ITERATIONS
                iterations = iterations_for(round_seconds, self._call_ns, most)
                answer = self._run(iterations, settle=SETTLE_ITERATIONS)
                samples_ms = tuple(ns / 1e6 for ns in answer["samples_ns"])
                self.rounds.append(Round(number, turn, samples_ms, answer["elapsed_ns"] / 1e6))
                throttling = answer.get("throttling")
                self._throttling.append(throttling and from_plain(Throttling, throttling))

    def leave(self) -> None:
        """End the worker: its rounds so far are the result."""
        self._worker.kill()

    def result(self, complete: int) -> CaseResult:
        """The case's result over its first ``complete`` rounds, without comparison with others."""
        rounds = self.rounds[:complete]
        if self._error is None:
            status = BenchStatus.OK
            reason = self._graph_refusal and f"without CUDA graph: {self._graph_refusal}"
        else:
            status = BenchStatus.NOT_RUN if self._error.not_run else BenchStatus.FAILED
            after = f" (after {counted(len(rounds), 'complete round')})" if rounds else ""
            reason = f"{self._error}{after}"
        if not rounds or not self._loaded:
            return self.case.result(status, reason)
        rounds_ms = [round_.samples_ms for round_ in rounds]
        latency = latency_of([value for samples in rounds_ms for value in samples])
        spread = rounds_spread(rounds_ms)
        calls, elapsed_ms = (float(values.sum()) for values in calls_and_ms(rounds))
        lost_ms = max(elapsed_ms - calls * latency.p50 / self.case.request.streams, 0.0)
        return self.case.result(
            status,
            reason,
            latency_ms=latency,
            images_per_s=self.case.batch * calls / elapsed_ms * 1e3,
            baseline_rss_bytes=self._loaded["baseline_rss_bytes"],
            peak_rss_bytes=self._peak_rss_bytes,
            unstable=spread > UNSTABLE_SPREAD,
            spread=spread,
            load_ms=self._loaded["load_ns"] / 1e6,
            first_call_ms=self._loaded["first_call_ns"] / 1e6,
            warm_up=self._warm_up,
            parts_ms=_median_timing(self._timings_ms),
            rounds=tuple(rounds),
            rel_l2=self._loaded.get("rel_l2"),
            stalled=lost_ms > STALLED_SHARE * elapsed_ms,
            lost_s=lost_ms / 1e3,
            throttling=_added(self._throttling[: len(rounds)]),
        )

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        try:
            yield
        except WorkerError as err:
            self._error = err
            self._worker.kill()  # frees memory for the others

    def _warmed_up(self) -> WarmUp:
        deadline = monotonic() + WARM_UP_LIMIT_S
        count, stable = 1, False
        # the first call does not predict the next: start with the smallest chunk
        iterations = MIN_ITERATIONS
        before_ns: float | None = None
        mean_ns = self._call_ns
        while not stable and (before_ns is None or monotonic() < deadline):
            answer = self._run(iterations)
            self._call_ns = median(answer["samples_ns"])
            mean_ns = answer["elapsed_ns"] / iterations
            count += len(answer["samples_ns"])
            stable = (
                before_ns is not None
                and abs(self._call_ns - before_ns) <= WARM_UP_AGREEMENT * before_ns
            )
            before_ns = self._call_ns
            iterations = iterations_for(WARM_UP_CHUNK_S, self._call_ns)
        if self._quota:
            self._call_ns = mean_ns
        return WarmUp(iterations=count, stable=stable)

    def _run(self, iterations: int, settle: int = 0) -> dict[str, Any]:
        answer = self._worker.run(iterations, settle=settle, expected_ns=self._call_ns)
        self._peak_rss_bytes = answer["peak_rss_bytes"]
        # of the latest calls, which are warm
        self._timings_ms = answer.get("parts_ms", [])
        self._graph_refusal = answer.get("graph_refusal")
        return answer


def _added(parts: Sequence[Throttling | None]) -> Throttling | None:
    """What all turns saw together; None where one could not tell."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    names = [field.name for field in dataclasses.fields(Throttling)]
    return Throttling(*(sum(getattr(part, name) for part in known) for name in names))


def _median_timing(timings: list[dict[str, float]]) -> CallTiming | None:
    if not timings:
        return None
    return CallTiming(**{name: median(one[name] for one in timings) for name in timings[0]})


def iterations_for(seconds: float, call_ns: float, most: int = MAX_ITERATIONS) -> int:
    """How many calls of ``call_ns`` fill about that time, within the limits of a chunk."""
    count = round(seconds * 1e9 / max(call_ns, 1.0))
    return min(max(count, MIN_ITERATIONS), most)


def run_bench(
    cases: Sequence[BenchCase],
    *,
    rounds: int = DEFAULT_ROUNDS,
    round_seconds: float = DEFAULT_ROUND_SECONDS,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    stage: Callable[[str], None] | None = None,
    interrupted: Callable[[BaseException], None] | None = None,
    worker_command: Sequence[str] | None = None,
    before: Sequence[CaseResult] = (),
    after_round: AfterRound | None = None,
    loads: int = 1,
) -> BenchReport:
    """Measure all cases; a failure becomes a failed result and the others go on.

    Rounds are interleaved because machines drift: the cases of one round are seconds apart.
    round_seconds: about the time of one case in one round. seed: of the inputs, the order of turns
    and the bootstrap. progress: called with the next step, the steps done and the steps in all.
    stage: called with what begins, before the models are loaded and before each round. interrupted:
    called with a KeyboardInterrupt or SystemExit that came after a complete round; the report then
    is of the complete rounds. Before one, or without it, that is raised. worker_command: of a
    program that calls `serve_bench`; None is the usual one. before: rows of an earlier run of the
    same cases, whose rounds count as the first. after_round: called with the rows of all cases so
    far; gives the positions of those that go on, and none ends the bench. loads: how many models
    are opened side by side, which spoils how long each took and no other figure. All models are in
    memory at once, one process each; all processes end on return, and on errors. Raises UsageError.
    """
    _check_request(cases, rounds, round_seconds)
    load_before = load_average()
    steps = len(cases) * (1 + rounds)
    quota = read_limits().quota is not None
    case_runs: list[CaseRun] = []
    known = {row.key: row.rounds for row in before}
    complete, cut_short = max(map(len, known.values()), default=0), None
    going: Collection[int] = range(len(cases))

    announce = progress or (lambda what, done, of: None)
    begin = stage or (lambda what: None)
    try:
        with ExitStack() as stack:
            gpus = stack.enter_context(watch_gpus())
            begin(f"loading and warming up {counted(len(cases), 'case')}")
            for case in cases:
                announce(f"loading and warming up {_label(case)}", len(case_runs), steps)
                worker = stack.enter_context(Worker(case.request.threads_each, worker_command))
                earlier = known.get(case.key, ())
                case_runs.append(CaseRun(case, worker, quota=quota, before=earlier))
                if loads == 1:
                    case_runs[-1].prepare(seed)
            if loads > 1:
                _load_side_by_side(case_runs, seed, loads)
                for case_run in case_runs:
                    case_run.warm_up()
            done = len(cases) * (1 + complete)
            orders = turn_orders(len(cases), rounds, seed)
            for number in range(complete + 1, rounds + 1):
                begin(f"round {number} of {rounds}")
                order = [index for index in orders[number - 1] if index in going]
                for turn, index in enumerate(order, start=1):
                    announce(f"round {number} of {rounds}: {_label(cases[index])}", done, steps)
                    case_runs[index].take_turn(number, turn, round_seconds)
                    done += 1
                gpus.look()
                complete = number
                if after_round is not None:
                    going = after_round([one.result(complete) for one in case_runs])
                    for index, one in enumerate(case_runs):
                        if index not in going:
                            one.leave()
                    if not going:
                        break
            announce("done", done, steps)
    except (KeyboardInterrupt, SystemExit) as err:
        if interrupted is None or not complete:
            raise
        cut_short = f"interrupted after {complete} of {counted(rounds, 'round')}"
        interrupted(err)
    environment = read_environment(
        threads=[case.request.threads for case in cases],
        load_before=load_before,
        gpus=gpus.records(),
    )
    settings = BenchSettings(
        rounds=rounds,
        round_seconds=round_seconds,
        warm_up_limit_s=WARM_UP_LIMIT_S,
        seed=seed,
        devices=tuple(dict.fromkeys(case.request.device for case in cases)),
    )
    results = [case_run.result(complete) for case_run in case_runs]
    bases = {_group(case): row for case, row in zip(cases, results, strict=True) if _is_base(case)}
    compared = (
        with_speedup(row, bases.get(_group(case)), seed)
        for case, row in zip(cases, results, strict=True)
    )
    return BenchReport(environment, tuple(compared), settings, cut_short)


def _load_side_by_side(case_runs: Sequence[CaseRun], seed: int, loads: int) -> None:
    with ThreadPoolExecutor(loads) as pool:
        try:
            list(pool.map(lambda case_run: case_run.load(seed), case_runs))
        except BaseException:  # an interrupt, which the threads do not see
            pool.shutdown(wait=False, cancel_futures=True)
            for case_run in case_runs:
                case_run.leave()
            raise


def turn_orders(cases: int, rounds: int, seed: int) -> list[list[int]]:
    """The order of the cases in each round, shuffled so that their neighbours vary."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(cases).tolist() for _ in range(rounds)]


def speedup_between(base: CaseResult, other: CaseResult, *, seed: int = 0) -> Speedup:
    """How many times faster ``other`` is than ``base``; both measured in one bench."""
    return speedup_of(base.round_medians_ms(), other.round_medians_ms(), seed=seed)


def _check_request(cases: Sequence[BenchCase], rounds: int, round_seconds: float) -> None:
    if not cases:
        raise UsageError("no case to bench; expected at least one: name a backend or an artifact")
    if rounds < MIN_ROUNDS:
        raise UsageError(
            f"rounds is {rounds}; a 95 % interval takes at least {MIN_ROUNDS}: set "
            f"rounds to {MIN_ROUNDS} or more"
        )
    if not (math.isfinite(round_seconds) and round_seconds > 0):
        raise UsageError(
            f"round_seconds is {round_seconds}; expected a positive number, such as "
            f"{DEFAULT_ROUND_SECONDS}"
        )
    eager = Counter(_group(case) for case in cases if _is_base(case))
    for (model, batch, streams), count in eager.items():
        if count > 1:
            raise UsageError(
                f"{count} eager cases of {model or 'one model'} at batch {batch}{_of(streams)}; "
                "speedups need one: leave the others out"
            )


def with_speedup(row: CaseResult, base: CaseResult | None, seed: int) -> CaseResult:
    """The row with how much faster than ``base`` it is, over the rounds that it was in."""
    if base is None or base is row or {base.status, row.status} != {BenchStatus.OK}:
        return row
    if len(row.rounds) < MIN_ROUNDS:  # cut short
        return row
    base = dataclasses.replace(base, rounds=base.rounds[: len(row.rounds)])  # of one that left
    return dataclasses.replace(
        row,
        speedup_vs_eager=speedup_between(base, row, seed=seed),
        throughput_vs_eager=throughput_ratio(
            *(calls_and_ms(one.rounds) for one in (base, row)), seed=seed
        ),
    )


def _group(case: BenchCase) -> tuple[str | None, int, int]:
    """The cases of one group are compared."""
    return (case.model, case.batch, case.request.streams)


def _is_base(case: BenchCase) -> bool:
    # eager under autocast is a case like others
    return (case.backend, case.precision) == (REFERENCE_BACKEND, Precision.FP32.value)


def _label(case: BenchCase) -> str:
    name = case.artifact or case.request.path.name
    return f"{case.backend} {name}, batch {case.batch}{_of(case.request.streams)}"


def _of(streams: int) -> str:
    return "" if streams == 1 else f", {streams} streams"
