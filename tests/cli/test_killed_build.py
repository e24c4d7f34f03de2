"""A build that is stopped or killed at any moment leaves no partial engine and no manifest."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy.workspace import Workspace

from ..program import start

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tensorrt_rtx")]
FLAGS = ("--fp32", "--sm", "86")  # another precision: its graph is exported on the way
MOMENTS = 10


def stopped(folder: Path, kind: int, after_s: float) -> int:
    """Status of a build stopped after some time, its workspace in ``folder``."""
    silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = start("build-trt", *FLAGS, "--workspace", "artifacts", cwd=folder, **silent)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(kind)
    return process.wait(60)


def check(folder: Path, before: set[Path], done: bool) -> None:
    """What is there is whole: no engine without its manifest, nor the other way round.

    A build that was stopped on its way out has left its engine as well.
    """
    workspace = Workspace(folder / "artifacts")
    assert workspace.check().problems == ()
    engines = {path.name for path in (workspace.root / "engines").iterdir() if path.is_file()}
    visible = {name for name in engines if not name.startswith(".t2t-tmp-")}
    assert {f"{name}.manifest.json" for name in visible if name.endswith(".engine")} == {
        name for name in visible if name.endswith(".json")
    }
    assert len(visible) == 4 or (len(visible) == 2 and not done)
    workspace.prune()
    assert not list(workspace.root.rglob(".t2t-tmp-*"))
    assert before <= set(workspace.root.rglob("*"))


def build_seconds(folder: Path) -> float:
    started = time.monotonic()
    assert stopped(folder, signal.SIGINT, 600) == 0
    return time.monotonic() - started


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL], ids=lambda kind: kind.name)
def test_a_stopped_build_leaves_nothing_partial(
    built_once: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    def fresh(name: str) -> Path:
        shutil.copytree(built_once, tmp_path / name / "artifacts")
        return tmp_path / name

    # twice: the first run of a program reads it from disk
    whole_s = min(build_seconds(fresh(name)) for name in ("cold", "warm"))
    stream = random.Random(0)
    cut_short, latest, number = 0, 0.9, 0
    while cut_short < MOMENTS:
        number += 1
        folder = fresh(str(number))
        before = set((folder / "artifacts").rglob("*"))
        status = stopped(folder, kind, stream.uniform(0.1, latest) * whole_s)
        expected = 130 if kind == signal.SIGINT else -kind
        # before the program has started, Python itself answers Ctrl-C
        assert status in {0, expected, -signal.SIGINT if kind == signal.SIGINT else expected, 1}
        check(folder, before, done=status == 0)
        if status == 0:  # this machine is faster now than when the whole build was timed
            latest *= 0.8
            assert latest > 0.2, "no build lasted until its signal"
        else:
            cut_short += 1
    # the workspace a build was cut short in is usable
    assert stopped(folder, kind, 600) == 0
