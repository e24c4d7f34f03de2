"""Threads of a session that nobody asked for: a quota's, else the runtime's own choice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort
import psutil
import pytest

from t2t_deploy._codec import to_plain
from t2t_deploy._limits import THREAD_VARIABLES, Limits, read_limits
from t2t_deploy.runtime import (
    SessionRequest,
    _session,
    available_threads,
    open_session,
    session_threads,
)
from t2t_deploy.runtime._ort import OrtSession, OrtStreams, new_options

from ..cgroups import control_group
from ..needs import needs_openvino
from ..program import environment, finish

COUNT = """
import json, sys
from t2t_deploy._codec import from_plain
from t2t_deploy.runtime import SessionRequest, open_session
with open_session(from_plain(SessionRequest, json.loads(sys.argv[1]))) as session:
    if session.backend == "eager":
        import torch
        print(torch.get_num_threads())
    elif session.backend == "openvino":
        print(session.threads)
    else:
        print(session._session.get_session_options().intra_op_num_threads)
"""
KINDS = ["eager", "ort-cpu", pytest.param("openvino", marks=needs_openvino)]


def threads_of(request: SessionRequest, within: list[str], **variables: str) -> int:
    """How many threads a session has in a process of its own."""
    kept = {name: text for name, text in environment().items() if name not in THREAD_VARIABLES}
    words = json.dumps(to_plain(request))
    done = finish(words, code=COUNT, within=within, env=kept | variables, status=0)
    return int(done.out.split()[-1])


several_cores = pytest.mark.skipif(
    read_limits().affinity < 2, reason="one core: a quota narrows nothing"
)


@several_cores
@pytest.mark.parametrize("kind", KINDS)
def test_session_in_a_real_group_takes_its_quota(
    requests: Mapping[str, SessionRequest], kind: str
) -> None:
    with control_group(processors=0.5) as within:
        assert threads_of(requests[kind], within) == 1
    unlimited = 0 if kind == "ort-cpu" else read_limits().affinity
    assert threads_of(requests[kind], []) == unlimited


@several_cores
def test_eager_session_in_a_real_group_leaves_what_the_environment_says(
    requests: Mapping[str, SessionRequest],
) -> None:
    cores = read_limits().affinity
    with control_group(processors=cores - 0.5) as within:  # as many threads as cores
        assert threads_of(requests["eager"], within, OMP_NUM_THREADS="1") == 1


@pytest.mark.parametrize(
    ("limits", "asked", "cores", "expected"),
    [
        (Limits(16), None, 8, None),
        (Limits(16, 16.0), None, 8, None),
        (Limits(16, 0.5), None, 8, 1),
        (Limits(16, 3.5), None, 8, 4),
        (Limits(16, 12.0), None, 8, 8),  # a runtime takes one a core, not one a hyperthread
        (Limits(16, 12.0), None, None, 12),
        (Limits(16, 0.5), 6, 8, 6),
    ],
)
def test_threads_are_those_asked_for_or_the_quotas(
    monkeypatch: pytest.MonkeyPatch,
    limits: Limits,
    asked: int | None,
    cores: int | None,
    expected: int | None,
) -> None:
    monkeypatch.setattr(_session, "read_limits", lambda: limits)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: cores)
    assert session_threads(asked) == expected
    assert new_options(ort, asked).intra_op_num_threads == (expected or 0)


def test_default_threads_of_a_bench_are_the_processors() -> None:
    assert available_threads() == read_limits().processors


@pytest.mark.parametrize(
    ("threads", "streams", "each"),
    [(8, 2, 4), (7, 2, 3), (2, 2, 1), (2, 4, 1), (8, 1, 8), (None, 1, None), (None, 2, 3)],
)
def test_streams_share_the_threads(
    monkeypatch: pytest.MonkeyPatch, threads: int | None, streams: int, each: int | None
) -> None:
    monkeypatch.setattr(_session, "read_limits", lambda: Limits(6))
    request = SessionRequest("ort-cpu", Path("a"), threads, streams=streams)
    assert request.threads_each == each


def test_streams_of_eager_share_the_threads(requests: Mapping[str, SessionRequest]) -> None:
    assert threads_of(dataclasses.replace(requests["eager"], threads=6, streams=2), []) == 3


def test_streams_of_onnx_runtime_have_sessions_where_they_have_several_threads(
    requests: Mapping[str, SessionRequest],
) -> None:
    def opened(threads: int) -> list[int]:
        request = dataclasses.replace(requests["ort-cpu"], threads=threads, streams=2)
        with open_session(request) as session:
            assert isinstance(session, (OrtSession, OrtStreams))
            sessions = session.sessions if isinstance(session, OrtStreams) else [session]
            options = [one._session.get_session_options() for one in sessions]
            return [one.intra_op_num_threads for one in options]

    assert (opened(5), opened(2)) == ([2, 2], [1])
