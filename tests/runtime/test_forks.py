"""Sessions in forks of the process that opened them, really forked; see `forked.py`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from t2t_deploy._codec import to_plain
from t2t_deploy.engine import _device, why_no_device
from t2t_deploy.errors import BackendError
from t2t_deploy.runtime import BACKENDS, SessionRequest
from t2t_deploy.runtime._session import RuntimeSession

from ..needs import needs_openvino
from ..program import finish

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are safe on Linux alone")

ROOT = Path(__file__).parents[2]
ELSEWHERE = (
    "BackendError: the session was opened in process {pid}: open it in each worker (no preload, or "
    "spawn)"
)
NO_PICKLE = (
    "BackendError: a session cannot be pickled or copied: its runtime is part of this process; "
    "send what it was opened with, and open it there"
)
USED = (
    "BackendError: backend openvino cannot run here: process {pid} used OpenVINO before it was "
    "forked into this one: open it in the workers alone (no preload, or spawn)"
)
Found = Mapping[str, Any]


def printed(function: str, request: SessionRequest, *words: object) -> Found:
    code = f"from tests.runtime.forked import {function}; {function}()"
    how: dict[str, Any] = {"code": code, "cwd": ROOT, "timeout_s": 3600}
    found: Found = finish(json.dumps(to_plain(request)), *words, **how, status=0).json
    return found


@pytest.fixture(scope="module")
def each(requests: Mapping[str, SessionRequest]) -> Mapping[str, SessionRequest]:
    """Each kind of session; two threads, so that there is one to miss."""
    found = {name: replace(request, threads=2) for name, request in requests.items()}
    return found | {"ort-cpu, one thread": replace(requests["ort-cpu"], threads=1)}


@pytest.fixture(scope="module")
def forked(each: Mapping[str, SessionRequest]) -> Callable[[str], Found]:
    """What became of each kind of session."""
    return cache(lambda kind: printed("main", each[kind]))


EAGER = "eager"
COMPILE = pytest.param("compile", marks=pytest.mark.slow)
OPENVINO = pytest.param("openvino", marks=needs_openvino)
ORT = ["ort-cpu", "ort-cpu, one thread"]
WAYS = ["pool", "executor", "fork of a fork"]


@pytest.mark.parametrize("kind", ORT)
def test_onnx_runtime_goes_on_in_forks(forked: Callable[[str], Found], kind: str) -> None:
    found = forked(kind)
    assert found["fork"] == [found["alone"]] * 2
    assert [found[way] for way in WAYS] == [found["alone"]] * 3
    assert found["class"] == [1, 1]


@pytest.mark.parametrize("kind", [EAGER, COMPILE, OPENVINO])
def test_other_sessions_refuse_to_run_in_forks(forked: Callable[[str], Found], kind: str) -> None:
    found = forked(kind)
    for way in (*WAYS, "fork", "class"):
        assert found[way] == ELSEWHERE.format(pid=found["pid"]), way


@pytest.mark.parametrize("kind", [EAGER, COMPILE, *ORT, OPENVINO])
def test_forks_end_and_the_parent_goes_on(forked: Callable[[str], Found], kind: str) -> None:
    """Whether they close the session, or leave it to the interpreter's end."""
    found = forked(kind)
    assert found["close"] is found["nothing"] is None
    assert found["parent"] == found["alone"]


@pytest.mark.parametrize("kind", [EAGER, COMPILE, *ORT, OPENVINO])
def test_a_fork_opens_sessions_of_its_own_or_is_refused_what_its_parent_used(
    forked: Callable[[str], Found], kind: str
) -> None:
    found = forked(kind)
    expected = USED.format(pid=found["pid"]) if kind == "openvino" else found["alone"]
    assert found["anew"] == found["anew, closed before"] == expected


@pytest.mark.parametrize("kind", [EAGER, COMPILE, *ORT, OPENVINO])
def test_a_session_is_not_pickled(forked: Callable[[str], Found], kind: str) -> None:
    assert forked(kind)["pickle"] == forked(kind)["copy"] == NO_PICKLE


@pytest.mark.parametrize("kind", ORT)
def test_a_session_closed_before_the_fork_is_closed(
    forked: Callable[[str], Found], kind: str
) -> None:
    assert forked(kind)["closed"] == "BackendError: the session is closed; open a new one"


@pytest.mark.parametrize(("kind", "sessions"), [("ort-cpu", 1), ("ort-cpu, one thread", 0)])
def test_a_session_of_one_thread_is_shared_unless_it_was_computing(
    forked: Callable[[str], Found], kind: str, sessions: int
) -> None:
    found = forked(kind)
    assert found["opened"] == [found["alone"], sessions]
    assert found["opened during a call"] == [found["alone"], 1]


def test_a_fork_finds_another_file(forked: Callable[[str], Found]) -> None:
    found = forked("ort-cpu")
    assert re.fullmatch(
        rf"ArtifactError: \S+\.onnx was replaced after it was opened in process {found['pid']}: "
        "open it in each worker",
        found["replaced"],
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ORT)
def test_a_thousand_forks_while_three_threads_compute(
    each: Mapping[str, SessionRequest], kind: str
) -> None:
    """Sessions that share what the parent holds hang in one fork of some hundred."""
    assert printed("under_load", each[kind], 1000) == {"right": 1000, "else": 0}


@pytest.mark.parametrize("name", BACKENDS)
def test_no_backend_forgets_the_guard(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = BACKENDS[name].open
    # a function says what it gives
    is_class = isinstance(opens, type)
    kinds: tuple[Any, ...] = (opens,) if is_class else get_args(get_type_hints(opens)["return"])
    assert kinds and all(issubclass(kind, RuntimeSession) for kind in kinds)
    for kind in kinds:
        session = kind.__new__(kind)
        monkeypatch.setattr(kind, "_goes_on", lambda self: False)
        session._enter_child()
        refused = f"the session was opened in process {os.getpid()}: open it in each worker"
        for call in ("run", "timed_run"):
            if hasattr(session, call):
                with pytest.raises(BackendError, match=refused):
                    getattr(session, call)({})
        session.close()


def test_a_driver_that_the_parent_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer in a fork, CUDA_ERROR_NOT_INITIALIZED, by a driver that gives nothing else."""

    @dataclasses.dataclass
    class Driver:
        cuInit: Callable[[int], int] = lambda flags: 3  # the driver's name

    monkeypatch.setattr(_device, "_driver", lambda: Driver())
    assert str(why_no_device()) == (
        "the NVIDIA driver was in use before this process was forked, and does not serve it: use a "
        "GPU in the workers alone (no preload, or spawn)"
    )
