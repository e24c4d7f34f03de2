"""SIGTERM and SIGHUP end a command as Ctrl-C does: nothing half-written is left, in one line."""

from __future__ import annotations

import shutil
import signal

import pytest

from .conftest import Commands
from .test_kill import CASES, check, slowly, temporaries

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGTERM")


@pytest.mark.parametrize(
    ("name", "points"), [("predict", [2, 3, 4]), *slowly(None, without=("workspace-prune",))]
)
def test_terminated_before_each_change(
    command: Commands, name: str, points: list[int] | None
) -> None:
    """Before each change, or before some."""
    case = CASES[name]
    changes = command(command.copy(), *case.words).changes
    assert points is None or changes >= max(points)
    for at in points or range(1, changes + 1):
        folder = command.copy()
        done = command(folder, *case.words, at=at, number=signal.SIGTERM)
        if at > done.changes:  # some changes are up to the machine
            assert done.status == case.status
        else:
            assert done.status == 143, (at, done.err)
            assert done.err.splitlines()[-1] == (
                "error: terminated; nothing half-written was left"
            ), (at, done.err)
        assert temporaries(folder) == [], at
        check(command, folder)
        shutil.rmtree(folder)
    print(f"{name}: SIGTERM before each of {changes} changes")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_terminal_that_is_closed(command: Commands) -> None:
    done = command(
        command.copy(), "predict", "model.onnx", "pictures", "--csv", "x.csv", "--json", at=2,
        number=signal.SIGHUP, status=129)  # fmt: skip
    assert done.json["error"]["kind"] == "Terminated"
