"""The parent's end of a worker process: start, ask, and make sure that it ends."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

from t2t_deploy._child import CLOSE_TIMEOUT_S, Child, ChildError, child_environment, module_command
from t2t_deploy.bench._inputs import FixedBatchError
from t2t_deploy.bench._results import BenchCase

WORKER_COMMAND = module_command("t2t_deploy.bench._worker")
LOAD_TIMEOUT_S = 600.0
"""Opening a session and its first call; torch.compile and just-in-time kernels take minutes."""
RUN_GRACE_S = 60.0
"""On top of what a run is expected to take, before the worker is taken to hang."""
_REASON_CHARS = 500


class WorkerError(Exception):
    """A worker that answered with an error, died or hangs; the text is one line.

    not_run: nothing is wrong, the case just cannot be measured.
    """

    def __init__(self, reason: str, *, not_run: bool = False) -> None:
        super().__init__(" ".join(reason.split())[:_REASON_CHARS])
        self.not_run = not_run


class Worker:
    """A worker process. Use as a context manager: on exit nothing of it is left running."""

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
                # a runtime that crashes while it is torn down has been measured all the same
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
            "wanted": case.wanted,
        }
        return self._ask(message, LOAD_TIMEOUT_S)

    def run(self, iterations: int, *, settle: int = 0, expected_ns: float) -> dict[str, Any]:
        """Time ``iterations`` calls after ``settle`` unrecorded ones.

        expected_ns: what one call took so far; far beyond it the worker is taken to hang.
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
            self._child.tell(message)
            answer = self._child.next_message(timeout_s).values
        except ChildError as err:
            raise WorkerError(str(err)) from err
        if not answer["ok"]:
            kind, text = answer["kind"], answer["message"]
            not_run = kind == FixedBatchError.__name__
            raise WorkerError(text if not_run else f"{kind}: {text}", not_run=not_run)
        return answer
