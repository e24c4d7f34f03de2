"""A process of ours that stands still, and one that only looks as if it did."""

from __future__ import annotations

import sys

import pytest

from t2t_deploy._child import Child, ChildError, child_environment

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
