"""A program that opens a session, forks, and prints as JSON what became of it in each of the forks.

    python -c 'from tests.runtime.forked import main; main()' REQUEST
    python -c 'from tests.runtime.forked import under_load; under_load()' REQUEST FORKS

REQUEST is a SessionRequest as JSON. Under load three threads use the session during FORKS forks.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import pickle
import sys
import threading
import time
from collections import Counter, UserDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from t2t_deploy._codec import from_plain
from t2t_deploy.runtime import Session, SessionRequest, open_session
from t2t_deploy.serving import Classifier, ClassifierRequest
from tests.forks import LIMIT_S, answer, in_executor, in_fork, in_pool

request = from_plain(SessionRequest, json.loads(sys.argv[1]))
session = open_session(request)
feeds = {
    spec.name: np.ones((2, *(int(dim or 1) for dim in spec.shape[1:])), spec.dtype)
    for spec in session.inputs
}


def run(one: Session = session) -> str:
    digest = hashlib.sha256()
    for array in one.run(feeds).values():
        digest.update(array.tobytes())
    return digest.hexdigest()


def run_again() -> str:
    """By a session of its own."""
    with open_session(request) as own:
        return run(own)


def run_twice_and_close() -> list[str]:
    found = [run(), run()]
    session.close()
    return found


def close_twice() -> None:
    session.close()
    session.close()


def classify() -> list[int]:
    with Classifier(session, ClassifierRequest(request)) as classifier:
        shape = (1, *classifier.signature.preparation.size, 3)
        return list(classifier.classify(np.zeros(shape, np.uint8), 1)[0].shape)


@contextlib.contextmanager
def opened_in_forks() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Makes a fork's work say too how many sessions of ONNX Runtime it opened."""
    import onnxruntime

    opened: list[None] = []

    class Counted(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, *given: Any, **options: Any) -> None:
            opened.append(None)
            super().__init__(*given, **options)

    before, onnxruntime.InferenceSession = onnxruntime.InferenceSession, Counted
    yield lambda work: [work(), len(opened)]
    onnxruntime.InferenceSession = before


class Waiting(UserDict[str, np.ndarray]):
    """Feeds that keep their call waiting."""

    def __init__(self, given: Mapping[str, np.ndarray]) -> None:
        super().__init__(given)
        self.reached, self.go_on = threading.Event(), threading.Event()

    def keys(self) -> Any:  # read once the feeds are checked
        self.reached.set()
        assert self.go_on.wait(60)
        return super().keys()


def in_fork_during_a_call(work: Callable[[], Any]) -> Any:
    waiting = Waiting(feeds)
    thread = threading.Thread(target=session.run, args=(waiting,))
    thread.start()
    assert waiting.reached.wait(60)
    try:
        return in_fork(work)
    finally:
        waiting.go_on.set()
        thread.join()


def replaced() -> Any:
    """What a fork says where the file was replaced by an equal one."""
    copied = request.path.with_suffix(".copy")
    copied.write_bytes(request.path.read_bytes())
    os.replace(copied, request.path)
    return in_fork(run)


def main() -> None:
    alone = run()
    time.sleep(0.5)  # threads of the runtime that look for work fall asleep
    found: dict[str, Any] = {"pid": os.getpid(), "alone": alone}
    found |= {
        "fork": in_fork(run_twice_and_close),
        "pool": in_pool(run),
        "executor": in_executor(run),
        "fork of a fork": in_fork(lambda: in_fork(run, LIMIT_S / 2)),
        "class": in_fork(classify),
        "close": in_fork(close_twice),
        "nothing": in_fork(lambda: None),
        "anew": in_fork(run_again),
        "pickle": answer(lambda: pickle.dumps(session)),
        "copy": answer(lambda: copy.deepcopy(session)),
        "parent": run(),
    }
    if request.backend == "ort-cpu":
        with opened_in_forks() as counting:
            found["opened"] = in_fork(lambda: counting(run))
            found["opened during a call"] = in_fork_during_a_call(lambda: counting(run))
        found["replaced"] = replaced()
    session.close()
    found["closed"] = in_fork(run)
    found["anew, closed before"] = in_fork(run_again)
    print(json.dumps(found))


def under_load() -> None:
    alone, going_on = run(), True

    def work() -> None:
        while going_on:
            run()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    found = Counter(in_fork(run) == alone for _ in range(int(sys.argv[2])))
    going_on = False
    for thread in threads:
        thread.join()
    print(json.dumps({"right": found[True], "else": found[False]}))
