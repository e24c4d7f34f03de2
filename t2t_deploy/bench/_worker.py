"""The process that loads one model and times it for `_run.Worker`; run as a module."""

from __future__ import annotations

import dataclasses
import gc
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from t2t_deploy._child import Parent
from t2t_deploy._codec import from_plain
from t2t_deploy._limits import read_throttling
from t2t_deploy.bench._environment import peak_resident_bytes, resident_bytes
from t2t_deploy.bench._results import make_inputs
from t2t_deploy.runtime import ReplayingSession, Session, SessionRequest, TimedSession, open_session
from t2t_deploy.types import PROBABILITIES_NAME, relative_errors

_TIMED_CALLS = 5
_T = TypeVar("_T")


class _Bench:
    """The one session of this process, and its commands.

    Each stream is a thread that calls it with feeds of its own; the first is the main thread.
    """

    def __init__(self, opener: Callable[[SessionRequest], Session]) -> None:
        self._open = opener
        self._session: Session | None = None
        self._feeds: list[dict[str, np.ndarray]] = []
        self._others = ThreadPoolExecutor(1)

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        match message["command"]:
            case "load":
                return self._load(message)
            case "run":
                return self._run(message["iterations"], message["settle"])
            case "close":
                if self._session is not None:
                    self._session.close()
                return {}
            case other:
                raise ValueError(f"command is {other!r}; expected load, run or close")

    def _load(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """rel_l2: None without reference logits, or of a model that takes or gives others."""
        request = from_plain(SessionRequest, message["request"])
        batch, seed, reference = message["batch"], message["seed"], message.get("reference_logits")
        baseline_rss_bytes = resident_bytes()
        started = time.perf_counter_ns()
        session = self._open(dataclasses.replace(request, batch=batch))
        loaded = time.perf_counter_ns()
        self._session = session
        self._feeds = [
            make_inputs(session.inputs, batch=batch, seed=seed + stream)
            for stream in range(request.streams)
        ]
        self._others = ThreadPoolExecutor(request.streams)
        before_call = time.perf_counter_ns()
        outputs = session.run(self._feeds[0])
        after_call = time.perf_counter_ns()
        error = None
        if reference and gives_logits(session):
            error = relative_l2(outputs, reference, message.get("typical_norm", 0.0))
        return {
            "load_ns": loaded - started,
            "first_call_ns": after_call - before_call,
            "baseline_rss_bytes": baseline_rss_bytes,
            "rel_l2": error,
        }

    def _run(self, iterations: int, settle: int) -> dict[str, Any]:
        if self._session is None:
            raise ValueError("run came before load")
        run, clock = self._session.run, time.perf_counter_ns
        # each stream takes the next as soon as it can
        turns = iter(range(iterations * len(self._feeds)))

        def time_calls(feeds: Mapping[str, np.ndarray]) -> list[int]:
            samples_ns = []
            for _ in turns:
                started = clock()
                run(feeds)
                samples_ns.append(clock() - started)
            return samples_ns

        throttling = read_throttling()
        gc.collect()
        gc.disable()
        try:
            self._each(lambda feeds: [run(feeds) for _ in range(settle)])
            began = clock()
            samples_ns = self._each(time_calls)
            elapsed_ns = clock() - began
        finally:
            gc.enable()
        answer = {
            "samples_ns": [sample for of_stream in samples_ns for sample in of_stream],
            "elapsed_ns": elapsed_ns,
            "peak_rss_bytes": peak_resident_bytes(),
        }
        throttling_now = read_throttling()
        if throttling is not None and throttling_now is not None:
            answer["throttling"] = throttling_now.since(throttling)
        if isinstance(self._session, TimedSession):
            # after the samples, and few: the timing itself takes time
            calls = [self._session.timed_run(self._feeds[0]) for _ in range(_TIMED_CALLS)]
            answer["parts_ms"] = [call.timing for call in calls]
        if isinstance(self._session, ReplayingSession):
            answer["graph_refusal"] = self._session.graph_refusal
        return answer

    def _each(self, work: Callable[[Mapping[str, np.ndarray]], _T]) -> list[_T]:
        """What each stream gives for its feeds."""
        others = [self._others.submit(work, feeds) for feeds in self._feeds[1:]]
        return [work(self._feeds[0]), *(other.result() for other in others)]


def gives_logits(session: Session) -> bool:
    """Whether a session takes normalised pictures and gives logits."""
    return session.inputs[0].dtype != "uint8" and session.outputs[0].name != PROBABILITIES_NAME


def relative_l2(
    outputs: Mapping[str, np.ndarray], expected: Sequence[float], typical: float = 0.0
) -> float | None:
    """Relative L2 error of the first picture's logits, the first output; None if not finite.

    typical: as of `relative_errors`. Raises ValueError where their number differs.
    """
    actual = np.asarray(next(iter(outputs.values()))[0], np.float64)
    exact = np.asarray(expected, np.float64)
    if actual.shape != exact.shape:
        raise ValueError(f"the first output is {actual.shape} a picture; expected {exact.shape}")
    (error,) = relative_errors(actual[None], exact[None], typical)
    return float(error) if math.isfinite(error) else None


def serve_bench(opener: Callable[[SessionRequest], Session] = open_session) -> None:
    """Answer commands until close; end at once when the parent is gone.

    opener: opens the session that is timed.
    """
    parent = Parent()
    bench = _Bench(opener)
    closing = False
    while not closing:
        message = parent.next_message()
        closing = message["command"] == "close"
        try:
            answer = {"ok": True, **bench.answer(message)}
        except Exception as err:  # the parent gets all errors and decides
            traceback.print_exc(file=sys.stderr)
            answer = {"ok": False, "kind": type(err).__name__, "message": str(err)}
        parent.send(answer)


if __name__ == "__main__":
    serve_bench()
