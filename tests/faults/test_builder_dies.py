"""A builder that dies, is killed or is stopped takes nobody with it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import psutil
import pytest

from t2t_deploy._child import ChildError, ended_how
from t2t_deploy.engine import BuilderDiedError, BuildOptions, build_engine
from t2t_deploy.engine import _build as _engine_build
from t2t_deploy.errors import EngineError
from t2t_deploy.workspace import Workspace

from ..children import children, wait_until_ended
from ..needs import needs_tensorrt_rtx
from ..onnx_models import parsed
from ..program import PIPES, start

pytestmark = needs_tensorrt_rtx
BUILDER = "t2t_deploy.engine._worker"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "graph.onnx"
    onnx.save(
        parsed("g (float[2,16] image) => (float[2,16] logits) { logits = Relu(image) }"), path
    )
    return path


# The real command; the builder's process waits before it answers, as one that hangs does.
SLEEPS = "import time; from t2t_deploy._child import Parent; Parent(); time.sleep(600)"
HANGING = f"""
import sys
from t2t_deploy.engine import _build as _engine_build
_engine_build.WORKER_COMMAND = (sys.executable, "-c", {SLEEPS!r}, "{BUILDER}")
from t2t_deploy.cli import main
main()
"""
# The real builder on the real graph, stopped in the middle of its work.
STOPPED = """
import os, threading
from t2t_deploy.engine import _worker as worker
make = worker.new_monitor
worker.new_monitor = lambda trt, progress: make(trt, lambda *step: {call})
worker.main()
"""
WAIT_S = 60


@pytest.fixture
def hanging(graph: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """A build-trt whose builder hangs, in ``tmp_path``."""
    words = ("build-trt", graph, "--sm", "86", "--json")
    return start(*words, code=HANGING, cwd=tmp_path, **PIPES)


def its_builder(process: subprocess.Popen[str]) -> psutil.Process:
    deadline = time.monotonic() + WAIT_S
    while True:
        for child in psutil.Process(process.pid).children(recursive=True):
            if BUILDER in child.cmdline():
                return child
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("kind", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_builder_that_hangs_ends_with_the_command(
    hanging: subprocess.Popen[str], tmp_path: Path, kind: signal.Signals, status: int
) -> None:
    builder = its_builder(hanging)
    hanging.send_signal(kind)
    out, _ = hanging.communicate(timeout=WAIT_S)
    assert hanging.returncode == status
    if kind is signal.SIGINT:
        assert json.loads(out)["error"]["kind"] == "Interrupted"
    wait_until_ended(builder.pid)
    assert not list(tmp_path.rglob("*.engine"))


def died_of(
    graph: Path, call: str, monkeypatch: pytest.MonkeyPatch, stalled_s: float = 60.0
) -> BuilderDiedError:
    """What is said of a builder that is stopped so, after which another one builds."""
    running = children()
    with monkeypatch.context() as patch:
        command = (sys.executable, "-c", STOPPED.format(call=call))
        patch.setattr(_engine_build, "WORKER_COMMAND", command)
        patch.setattr(_engine_build, "STALLED_S", stalled_s)
        with pytest.raises(BuilderDiedError) as caught:
            build_engine(graph, BuildOptions(sm=["86"]))
    assert f"INFO: Input filename:   {graph}" in caught.value.log.splitlines()
    assert "\n" not in str(caught.value)
    assert children() <= running
    assert build_engine(graph, BuildOptions(sm=["86"])).engine
    return caught.value


@pytest.mark.parametrize("name", ["SIGFPE", "SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_builder_that_dies(graph: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = int(signal.Signals[name])
    err = died_of(graph, f"os.kill(os.getpid(), {number})", monkeypatch)
    died = f"the engine builder {ended_how(-number)} while it built {graph} for"
    assert str(err).startswith(died) and name in err.log.splitlines()[-1]
    assert isinstance(err.__cause__, ChildError)


def test_a_builder_that_stands_still(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(died_of(graph, "threading.Event().wait()", monkeypatch, stalled_s=2.0))
    hung = "the engine builder used no processor time for 2 s"
    assert text.startswith(f"{hung} while it built {graph} for")
    assert "free memory and retry" in text


def test_a_dead_builder_leaves_its_log(hanging: subprocess.Popen[str], tmp_path: Path) -> None:
    its_builder(hanging).send_signal(signal.SIGSEGV)
    out, err = hanging.communicate(timeout=WAIT_S)
    assert hanging.returncode == 1
    error = json.loads(out)["error"]
    assert error["kind"] == EngineError.__name__
    assert "the engine builder died of SIGSEGV while it built" in error["message"]
    log = tmp_path / "artifacts/logs/graph-died.log"
    assert error["message"].endswith(f"What it said until then is in {log.relative_to(tmp_path)}")
    assert "died of SIGSEGV" in log.read_text()
    assert err.splitlines()[-1] == f"error: {error['message']}"
    assert "Traceback" not in err
    assert Workspace(tmp_path / "artifacts").check().problems == ()
    assert not list(tmp_path.rglob("*.engine"))
