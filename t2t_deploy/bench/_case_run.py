"""One case on its way through a bench: load, warm up, take turns, end as a result."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import monotonic
from typing import Any

from t2t_deploy.bench._client import Worker, WorkerError
from t2t_deploy.bench._results import BenchCase, BenchStatus, CaseResult, Round, WarmUp
from t2t_deploy.bench._statistics import Speedup, is_unstable, latency_of, rounds_spread
from t2t_deploy.runtime import CallTiming

MIN_ITERATIONS = 3
MAX_ITERATIONS = 200
WARM_UP_LIMIT_S = 5.0
WARM_UP_CHUNK_S = 0.25
WARM_UP_AGREEMENT = 0.05
"""Relative difference of two successive chunks' medians below which a case is warm."""
SETTLE_ITERATIONS = 1
"""Unrecorded calls at the start of a turn: the other cases' turns have pushed this one's weights
out of the caches, where a model that is being served has them."""


class CaseRun:
    """A case and its worker. What goes wrong is kept, ends the worker, and ends in the result."""

    def __init__(self, case: BenchCase, worker: Worker) -> None:
        self.case = case
        self.rounds: list[Round] = []
        self._worker = worker
        self._error: WorkerError | None = None
        self._loaded: dict[str, Any] = {}
        self._peak_rss_bytes = 0
        self._warm_up: WarmUp | None = None
        self._call_ns = 0.0
        self._parts_ms: list[dict[str, float]] = []
        self._graph_refusal: str | None = None

    def prepare(self, seed: int) -> None:
        """Load the model, call it once, and warm it up."""
        self._attempt(lambda: self._prepare(seed))

    def take_turn(self, number: int, turn: int, round_seconds: float) -> None:
        """Measure one round's worth of calls; nothing once the case has failed."""
        self._attempt(lambda: self._take_turn(number, turn, round_seconds))

    @property
    def failed(self) -> bool:
        """Whether the case has come to an end without being measured."""
        return self._error is not None

    def result(self, speedup: Speedup | None) -> CaseResult:
        """What there is to report."""
        case = self.case
        if self._error is not None:
            status = BenchStatus.NOT_RUN if self._error.not_run else BenchStatus.FAILED
            return CaseResult(
                case.backend, case.artifact, case.precision, case.batch, status, str(self._error)
            )
        rounds_ms = [round_.samples_ms for round_ in self.rounds]
        latency = latency_of([value for samples in rounds_ms for value in samples])
        return CaseResult(
            case.backend,
            case.artifact,
            case.precision,
            case.batch,
            BenchStatus.OK,
            reason=self._graph_refusal and f"without CUDA graph: {self._graph_refusal}",
            latency_ms=latency,
            images_per_s=case.batch / (latency.p50 / 1e3),
            speedup_vs_eager=speedup,
            baseline_rss_bytes=self._loaded["baseline_rss_bytes"],
            peak_rss_bytes=self._peak_rss_bytes,
            unstable=is_unstable(rounds_ms),
            spread=rounds_spread(rounds_ms),
            load_ms=self._loaded["load_ns"] / 1e6,
            first_call_ms=self._loaded["first_call_ns"] / 1e6,
            warm_up=self._warm_up,
            parts_ms=_median_parts(self._parts_ms),
            rounds=tuple(self.rounds),
            rel_l2=self._loaded.get("rel_l2"),
        )

    def _attempt(self, step: Callable[[], None]) -> None:
        if self._error is None:
            try:
                step()
            except WorkerError as err:
                self._error = err
                self._worker.kill()  # its memory is free for the others

    def _prepare(self, seed: int) -> None:
        self._loaded = self._worker.load(self.case, seed)
        self._call_ns = self._loaded["first_call_ns"]
        deadline = monotonic() + WARM_UP_LIMIT_S
        count, stable = 1, False
        # the first call says little of the next: it is followed by the smallest chunk
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
        self._warm_up = WarmUp(iterations=count, stable=stable)

    def _take_turn(self, number: int, turn: int, round_seconds: float) -> None:
        iterations = iterations_for(round_seconds, self._call_ns)
        samples_ns = self._run(iterations, settle=SETTLE_ITERATIONS)
        self.rounds.append(Round(number, turn, tuple(value / 1e6 for value in samples_ns)))

    def _run(self, iterations: int, settle: int = 0) -> list[int]:
        answer = self._worker.run(iterations, settle=settle, expected_ns=self._call_ns)
        self._peak_rss_bytes = answer["peak_rss_bytes"]
        # of the latest calls, when it is warm
        self._parts_ms = answer.get("parts_ms", [])
        self._graph_refusal = answer.get("graph_refusal")
        samples_ns: list[int] = answer["samples_ns"]
        return samples_ns


def _median_parts(parts_ms: list[dict[str, float]]) -> CallTiming | None:
    if not parts_ms:
        return None
    return CallTiming(**{name: median(part[name] for part in parts_ms) for name in parts_ms[0]})


def iterations_for(seconds: float, call_ns: float) -> int:
    """How many calls of ``call_ns`` fill about that time, within the limits of a chunk."""
    wanted = round(seconds * 1e9 / max(call_ns, 1.0))
    return min(max(wanted, MIN_ITERATIONS), MAX_ITERATIONS)
