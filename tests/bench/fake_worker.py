"""The real worker over sessions that misbehave as the request's config says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping

import numpy as np

from t2t_deploy.bench._worker import serve_bench
from t2t_deploy.runtime import CallTiming, SessionRequest, TimedRun
from t2t_deploy.types import TensorSpec


class FakeSession:
    """Config: sleep_s, busy_s, parts_ms, noise, die_at, hold_pipe, fail, fixed, log, pids, detach,
    crash_at_close, meet."""

    def __init__(self, request: SessionRequest) -> None:
        self.backend = request.backend
        self._config = dict(request.config or {})
        self._name = request.path.name
        self._calls = 0
        # all calls but the first wait until there are so many
        self._meeting = threading.Barrier(self._config.get("meet", 1), timeout=20)
        self.inputs = (TensorSpec("image", "float32", (self._config.get("fixed"), 3, 4, 4)),)
        self.outputs = (TensorSpec("logits", "float32", (None, 2)),)
        if "parts_ms" in self._config:
            self.timed_run = lambda feeds: TimedRun(
                self.run(feeds), CallTiming(*self._config["parts_ms"])
            )
        if "fail" in self._config:
            raise RuntimeError(self._config["fail"].format(**os.environ))
        if "pids" in self._config:
            # a child, and with "detach" another one in a session of its own
            children = [
                subprocess.Popen(["sleep", "60"], start_new_session=own)
                for own in (False, True)[: 1 + self._config.get("detach", False)]
            ]
            pids = [os.getpid(), *(child.pid for child in children)]
            self._append(self._config["pids"], "".join(f"{pid}\n" for pid in pids))

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._calls += 1
        if "log" in self._config:
            self._append(self._config["log"], f"{self._name} {feeds['image'].sum():.6f}\n")
        if self._config.get("noise"):
            print("print")
            os.write(1, b"a library's printf\n")
            sys.stdin.read()
        if self._calls == self._config.get("die_at"):
            with warnings.catch_warnings():  # Python 3.12 warns of threads, on stderr
                warnings.simplefilter("ignore", DeprecationWarning)
                if self._config.get("hold_pipe") and os.fork() == 0:
                    time.sleep(60)
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self._calls > 1:
            self._meeting.wait()
        time.sleep(self._config.get("sleep_s", 0))
        until = time.process_time() + self._config.get("busy_s", 0)
        while time.process_time() < until:
            pass
        return {"logits": np.zeros((feeds["image"].shape[0], 2), np.float32)}

    def close(self) -> None:
        if self._config.get("crash_at_close"):
            os.abort()

    @staticmethod
    def _append(path: str, text: str) -> None:
        with open(path, "a") as file:
            file.write(text)


if __name__ == "__main__":
    serve_bench(FakeSession)  # type: ignore[arg-type]
