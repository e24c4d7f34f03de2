"""The process that does the work ends with the one that was started."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from ..children import wait_until_ended
from ..program import start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are supervised on Linux")

# the real command line; the work waits, and holds no pipe that anybody could close
WAITS = """
import sys, time
from t2t_deploy.cli import _machine, main
_machine.variants.callback = lambda **options: (print("at work", flush=True), time.sleep(120))
main()
"""


@pytest.fixture
def working() -> Iterator[subprocess.Popen[str]]:
    with start("variants", code=WAITS, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        yield process


def test_a_killed_command_takes_its_work_along(working: subprocess.Popen[str]) -> None:
    (worker,) = psutil.Process(working.pid).children()
    working.send_signal(signal.SIGKILL)
    assert working.wait(60) == -signal.SIGKILL
    try:
        wait_until_ended(worker.pid)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
