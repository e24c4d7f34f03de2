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
from onnx import TensorProto, helper

from t2t_deploy._child import ChildError
from t2t_deploy._optional import is_installed
from t2t_deploy.engine import BuilderDiedError, BuildOptions, build_engine
from t2t_deploy.engine import _build as _engine_build
from t2t_deploy.errors import EngineError
from t2t_deploy.workspace import Workspace

from ..children import children
from ..program import PIPES, start

pytestmark = pytest.mark.skipif(
    not is_installed("tensorrt_rtx"), reason="tensorrt_rtx is not installed"
)
BUILDER = "t2t_deploy.engine._worker"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    nodes = [helper.make_node("Relu", ["image"], ["logits"], "act")]
    graph_io = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 16])
        for name in ("image", "logits")
    ]
    made = helper.make_model(
        helper.make_graph(nodes, "graph", graph_io[:1], graph_io[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    path = tmp_path / "graph.onnx"
    onnx.save(made, path)
    return path


def builders(of: int) -> list[psutil.Process]:
    found = psutil.Process(of).children(recursive=True)
    return [process for process in found if BUILDER in process.cmdline()]


# The real builder on the real graph, struck in the middle of its work.
STRUCK = """
import os
from t2t_deploy.engine import _worker as worker
make = worker.new_monitor
worker.new_monitor = lambda trt, progress: make(trt, lambda *step: os.kill(os.getpid(), {number}))
worker.main()
"""


@pytest.mark.parametrize("name", ["SIGFPE", "SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_builder_that_dies(graph: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    struck = (sys.executable, "-c", STRUCK.format(number=int(signal.Signals[name])))
    running = children()
    with monkeypatch.context() as patch:
        patch.setattr(_engine_build, "WORKER_COMMAND", struck)
        with pytest.raises(BuilderDiedError) as caught:
            build_engine(graph, BuildOptions(sm=["86"]))
    hint = " (often: out of memory)" if name == "SIGKILL" else ""
    text = str(caught.value)
    assert text.startswith(f"the engine builder died of {name}{hint} while it built {graph} for")
    assert "\n" not in text
    assert isinstance(caught.value.__cause__, ChildError)
    log = caught.value.log.splitlines()
    assert f"INFO: Input filename:   {graph}" in log and name in log[-1]
    assert children() <= running
    assert build_engine(graph, BuildOptions(sm=["86"])).engine


# The real command; the builder's process waits before it answers, as one that hangs does.
SLEEPS = "import time; from t2t_deploy._child import Parent; Parent(); time.sleep(600)"
HANGING = f"""
import sys
from t2t_deploy.engine import _build as _engine_build
_engine_build.WORKER_COMMAND = (sys.executable, "-c", {SLEEPS!r}, "{BUILDER}")
from t2t_deploy.cli import main
main()
"""
WAIT_S = 60


@pytest.fixture
def hanging(graph: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """A build-trt whose builder hangs, in ``tmp_path``."""
    words = ("build-trt", graph, "--sm", "86", "--json")
    return start(*words, code=HANGING, cwd=tmp_path, **PIPES)


def its_builder(process: subprocess.Popen[str]) -> psutil.Process:
    deadline = time.monotonic() + WAIT_S
    while not (found := builders(process.pid)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    return found[0]


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
    deadline = time.monotonic() + WAIT_S
    while builder.is_running() and builder.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the builder outlives its command"
        time.sleep(0.05)
    assert not list(tmp_path.rglob("*.engine"))


# The real builder, waiting for ever in the middle of its work.
STANDS_STILL = """
import threading
from t2t_deploy.engine import _worker as worker
make = worker.new_monitor
worker.new_monitor = lambda trt, progress: make(trt, lambda *step: threading.Event().wait())
worker.main()
"""


def test_a_builder_that_hangs_is_killed(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = children()
    with monkeypatch.context() as patch:
        patch.setattr(_engine_build, "WORKER_COMMAND", (sys.executable, "-c", STANDS_STILL))
        patch.setattr(_engine_build, "STALLED_S", 2.0)
        with pytest.raises(BuilderDiedError) as caught:
            build_engine(graph, BuildOptions(sm=["86"]))
    text = str(caught.value)
    hung = "the engine builder used no processor time for 2 s"
    assert text.startswith(f"{hung} while it built {graph} for")
    assert "free memory and retry" in text and "\n" not in text
    assert f"INFO: Input filename:   {graph}" in caught.value.log
    assert children() <= running
    assert build_engine(graph, BuildOptions(sm=["86"])).engine


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
