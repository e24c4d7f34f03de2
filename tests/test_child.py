"""A process of ours that stands still, and one that only looks as if it did."""

from __future__ import annotations

import signal
import sys

import pytest

from t2t_deploy import _child
from t2t_deploy._child import Child, ChildError, child_environment, ended_how
from t2t_deploy._limits import Limits

from .children import children

ANSWERS = """
import subprocess, sys, time
from t2t_deploy._child import Parent
parent = Parent()
parent.next_message()
{meanwhile}
parent.send({{"done": True}})
"""
BUSY = "import time; until = time.monotonic() + 4\nwhile time.monotonic() < until: pass"
MEANWHILE = {
    "busy": BUSY,
    "waiting for one that is busy": f"subprocess.run([sys.executable, '-c', {BUSY!r}])",
}


def child(meanwhile: str) -> Child:
    command = (sys.executable, "-c", ANSWERS.format(meanwhile=meanwhile))
    return Child(command, child_environment(), "helper")


@pytest.mark.parametrize(
    ("status", "limit", "how"),
    [
        (3, None, "exited with status 3"),
        (-signal.SIGFPE, 512 << 20, "died of SIGFPE"),
        (-signal.SIGKILL, None, "died of SIGKILL (often: out of memory)"),
        (
            *(-signal.SIGKILL, 512 << 20),
            "died of SIGKILL (often: out of memory; the control group allows 512 MiB)",
        ),
    ],
)
def test_end_of_a_child_is_said_with_the_memory_limit(
    monkeypatch: pytest.MonkeyPatch, status: int, limit: int | None, how: str
) -> None:
    monkeypatch.setattr(_child, "read_limits", lambda: Limits(2, None, limit))
    assert ended_how(status) == how


def test_one_that_stands_still_is_ended_and_said_to() -> None:
    running = children()
    with child("time.sleep(600)") as helper:
        helper.send({})
        with pytest.raises(ChildError) as caught:
            helper.next_message(stalled_s=2.0)
    assert caught.value.gone == "the helper used no processor time for 2 s"
    assert children() <= running


@pytest.mark.parametrize("meanwhile", MEANWHILE.values(), ids=MEANWHILE)
def test_one_that_works_without_a_word_is_waited_for(meanwhile: str) -> None:
    with child(meanwhile) as helper:
        helper.send({})
        assert helper.next_message(stalled_s=2.0).values == {"done": True}
