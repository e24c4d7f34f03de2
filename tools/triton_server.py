"""Triton Inference Server as the nvidia-pytriton wheel ships it, for tests and the load test.

Of the wheel only the server's files are used: it is started on the loopback interface, on ports
that are free, and serves a model repository until it is left.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

SERVER_PYTHON = Path(sys.prefix) / "server"
"""Virtual environment of numpy, Pillow and onnxruntime: numpy 1, for which it was built."""
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
_POLL_S = 0.05


class ServerError(RuntimeError):
    """The server did not start, or ended by itself."""


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """User and system time since the start: of the server itself, and of its Python models."""

    server: float
    models: float

    @property
    def total(self) -> float:
        """Both."""
        return self.server + self.models

    def since(self, earlier: CpuSeconds) -> CpuSeconds:
        """What was used after ``earlier``."""
        return CpuSeconds(self.server - earlier.server, self.models - earlier.models)


class ServerProcess:
    """A running server; a context manager.

    repository: the model repository. log: file for what the server prints. python: the virtual
    environment of its Python models; None is the one that `make` set up. ready: whether all models
    must be loaded.
    Raises ServerError, with the end of the log, where it does not get there.
    """

    def __init__(
        self,
        repository: Path,
        log: Path,
        *,
        python: Path | None = None,
        ready: bool = True,
        options: Sequence[str] = (),
    ) -> None:
        self.log = log
        self._backends = tempfile.TemporaryDirectory(prefix="triton-backends-")
        self.http_port, self.grpc_port, self.metrics_port = _free_ports(3)
        command = [
            str(_wheel_folder() / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={_copy_backends(Path(self._backends.name))}",
            # several servers at a time must not share memory
            f"--backend-config=python,shm-region-prefix-name=t2t_{uuid.uuid4().hex[:12]}",
            "--http-address=127.0.0.1",
            f"--http-port={self.http_port}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self.grpc_port}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={self.metrics_port}",
            # a model that does not load leaves the others served
            "--exit-on-error=false",
            *options,
        ]
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env=_environment(python or SERVER_PYTHON)
            )
        try:
            self._wait(f"http://127.0.0.1:{self.metrics_port}/metrics")
            self._wait(f"http://{self.url}/v2/health/live")
            if ready:
                self._check_models()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Address of the HTTP service, without scheme."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """Address of the gRPC service."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def get(self, path: str) -> Any:
        """The JSON that the HTTP service answers."""
        with urllib.request.urlopen(f"http://{self.url}/{path}", timeout=10) as answer:
            return json.loads(answer.read())

    def post(self, path: str, content: Any) -> Any:
        """The JSON that the HTTP service answers to JSON."""
        request = urllib.request.Request(
            f"http://{self.url}/{path}", json.dumps(content).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or b"null")

    def statistics(self, model: str) -> dict[str, Any]:
        """What the server counted of a model: requests, executions, batch sizes."""
        (found,) = self.get(f"v2/models/{model}/stats")["model_stats"]
        values: dict[str, Any] = found
        return values

    def metrics(self) -> str:
        """The page that Prometheus reads."""
        address = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def model_states(self) -> dict[str, dict[str, str]]:
        """State of each model in the repository, and the reason where it is not ready."""
        found = self.post("v2/repository/index", {})
        return {row["name"]: row for row in found}

    def cpu_seconds(self) -> CpuSeconds:
        """CPU time used so far, Python models apart."""
        process = psutil.Process(self.pid)
        stubs = [_seconds(child) for child in process.children(recursive=True)]
        return CpuSeconds(_seconds(process), sum(stubs))

    def log_text(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")

    def terminate(self) -> None:
        """Ask it to finish what it accepted and to end (SIGTERM)."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Its exit status, once it ended. Raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout_s)

    def close(self) -> None:
        """End it, and what it started."""
        children: list[psutil.Process] = []
        if self._process.poll() is None:
            children = psutil.Process(self.pid).children(recursive=True)
            self.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for child in children:
            if child.is_running():
                child.kill()
        self._backends.cleanup()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _wait(self, address: str) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise ServerError(
                    f"tritonserver ended with status {self._process.returncode}:\n{self._tail()}"
                )
            try:
                with urllib.request.urlopen(address, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(_POLL_S)
        raise ServerError(f"tritonserver is not ready after {START_TIMEOUT_S} s:\n{self._tail()}")

    def _check_models(self) -> None:
        """The server answers once it has tried to load each of them."""
        bad = {
            name: row for name, row in self.model_states().items() if row.get("state") != "READY"
        }
        if bad:
            reasons = "; ".join(f"{name}: {row.get('reason')}" for name, row in bad.items())
            raise ServerError(f"models are not ready: {reasons}")

    def _tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-40:])


def why_no_server() -> str | None:
    """None where a server can be started and talked to."""
    for package in ("pytriton", "tritonclient"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: make test-serve"
    if not (SERVER_PYTHON / "bin" / "python").exists():
        return (
            f"there is no environment for the server's models in {SERVER_PYTHON}: make test-serve"
        )
    if not _stub().is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"nvidia-pytriton has no Python backend for Python {version}"
    return None


def _wheel_folder() -> Path:
    """Where the wheel keeps the server. Nothing of the wheel is imported."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError("nvidia-pytriton is not installed: make test-serve")
    return Path(spec.submodule_search_locations[0]) / "tritonserver"


def _stub() -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return _wheel_folder() / "python_backend_stubs" / version / "triton_python_backend_stub"


def _copy_backends(folder: Path) -> Path:
    """The Python backend with the interpreter that fits this one; the wheel stays as it is."""
    shutil.copytree(_wheel_folder() / "backends" / "python", folder / "python")
    shutil.copy2(_stub(), folder / "python")
    return folder


def _environment(python: Path) -> dict[str, str]:
    libraries = [
        str(_wheel_folder().parents[1] / "nvidia_pytriton.libs"),
        # the stub embeds Python
        sysconfig.get_config_var("LIBDIR") or "",
    ]
    return os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        # the stub is isolated and ignores PYTHONPATH: its packages are those of the first python
        "PATH": os.pathsep.join([str(python / "bin"), os.environ["PATH"]]),
    }


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
