"""One case of a bench in its worker: load, warm up, turns, result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from statistics import median
from time import monotonic
from types import TracebackType
from typing import Any

from t2t_deploy._child import CLOSE_TIMEOUT_S, Child, ChildError, child_environment, module_command
from t2t_deploy.bench._inputs import FixedBatchError
from t2t_deploy.bench._results import BenchCase, BenchStatus, CaseResult, Round, WarmUp
from t2t_deploy.bench._statistics import is_unstable, latency_of, rounds_spread
from t2t_deploy.runtime import CallTiming

MIN_ITERATIONS = 3
MAX_ITERATIONS = 200
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


class WorkerError(Exception):
    """A worker that answered with an error, died or hangs; the text is one line.

    not_run: the case cannot be measured, which is no failure.
    """

    def __init__(self, reason: str, *, not_run: bool = False) -> None:
        super().__init__(" ".join(reason.split())[:_REASON_CHARS])
        self.not_run = not_run


class Worker:
    """A worker process. Use as a context manager: its exit ends all that it started."""

    def __init__(self, threads: int | None) -> None:
        self._child = Child(WORKER_COMMAND, child_environment(threads), "worker")

    def __enter__(self) -> Worker:
        self._child.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._child.is_running:
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
        """Time ``iterations`` calls after ``settle`` unrecorded ones.

        expected_ns: time of one call so far; far beyond it the worker counts as hung.
        Raises WorkerError.
        """
        timeout_s = RUN_GRACE_S + 20 * (iterations + settle) * expected_ns / 1e9
        message = {"command": "run", "iterations": iterations, "settle": settle}
        return self._ask(message, timeout_s)

    def kill(self) -> None:
        """End the process and all it started; harmless when it has ended."""
        self._child.kill()

    def _ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            self._child.send(message)
            answer = self._child.next_message(timeout_s).values
        except ChildError as err:
            raise WorkerError(str(err)) from err
        if not answer["ok"]:
            kind, text = answer["kind"], answer["message"]
            not_run = kind == FixedBatchError.__name__
            raise WorkerError(text if not_run else f"{kind}: {text}", not_run=not_run)
        return answer


class CaseRun:
    """A case and its worker. An error ends the worker and becomes the result."""

    def __init__(self, case: BenchCase, worker: Worker) -> None:
        self.case = case
        self.rounds: list[Round] = []
        self._worker = worker
        self._error: WorkerError | None = None
        self._loaded: dict[str, Any] = {}
        self._peak_rss_bytes = 0
        self._warm_up: WarmUp | None = None
        self._call_ns = 0.0
        self._timings_ms: list[dict[str, float]] = []
        self._graph_refusal: str | None = None

    def prepare(self, seed: int) -> None:
        """Load the model, call it once, and warm it up."""
        with self._attempt():
            self._loaded = self._worker.load(self.case, seed)
            self._call_ns = self._loaded["first_call_ns"]
            self._warm_up = self._warmed_up()

    def take_turn(self, number: int, turn: int, round_seconds: float) -> None:
        """Measure the calls of one round; nothing after a failure."""
        if self._error is None:
            with self._attempt():
                iterations = iterations_for(round_seconds, self._call_ns)
                samples_ns = self._run(iterations, settle=SETTLE_ITERATIONS)
                self.rounds.append(Round(number, turn, tuple(ns / 1e6 for ns in samples_ns)))

    def result(self) -> CaseResult:
        """The case's result, without comparison with others."""
        if self._error is not None:
            status = BenchStatus.NOT_RUN if self._error.not_run else BenchStatus.FAILED
            return CaseResult(*self.case.key, status, str(self._error))
        rounds_ms = [round_.samples_ms for round_ in self.rounds]
        latency = latency_of([value for samples in rounds_ms for value in samples])
        return CaseResult(
            *self.case.key,
            BenchStatus.OK,
            reason=self._graph_refusal and f"without CUDA graph: {self._graph_refusal}",
            latency_ms=latency,
            images_per_s=self.case.batch / (latency.p50 / 1e3),
            baseline_rss_bytes=self._loaded["baseline_rss_bytes"],
            peak_rss_bytes=self._peak_rss_bytes,
            unstable=is_unstable(rounds_ms),
            spread=rounds_spread(rounds_ms),
            load_ms=self._loaded["load_ns"] / 1e6,
            first_call_ms=self._loaded["first_call_ns"] / 1e6,
            warm_up=self._warm_up,
            parts_ms=_median_timing(self._timings_ms),
            rounds=tuple(self.rounds),
            rel_l2=self._loaded.get("rel_l2"),
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
        while not stable and (before_ns is None or monotonic() < deadline):
            self._call_ns = median(self._run(iterations))
            count += iterations
            stable = (
                before_ns is not None
                and abs(self._call_ns - before_ns) <= WARM_UP_AGREEMENT * before_ns
            )
            before_ns = self._call_ns
            iterations = iterations_for(WARM_UP_CHUNK_S, self._call_ns)
        return WarmUp(iterations=count, stable=stable)

    def _run(self, iterations: int, settle: int = 0) -> list[int]:
        answer = self._worker.run(iterations, settle=settle, expected_ns=self._call_ns)
        self._peak_rss_bytes = answer["peak_rss_bytes"]
        # of the latest calls, which are warm
        self._timings_ms = answer.get("parts_ms", [])
        self._graph_refusal = answer.get("graph_refusal")
        samples_ns: list[int] = answer["samples_ns"]
        return samples_ns


def _median_timing(timings: list[dict[str, float]]) -> CallTiming | None:
    if not timings:
        return None
    return CallTiming(**{name: median(one[name] for one in timings) for name in timings[0]})


def iterations_for(seconds: float, call_ns: float) -> int:
    """How many calls of ``call_ns`` fill about that time, within the limits of a chunk."""
    count = round(seconds * 1e9 / max(call_ns, 1.0))
    return min(max(count, MIN_ITERATIONS), MAX_ITERATIONS)
