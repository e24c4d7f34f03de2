"""What every test shares: Ctrl-C is heeded; `gpu` skips, with the reason, where no device is.

Nothing of the package is imported here: some folders' tests are about what an import loads.
"""

from __future__ import annotations

import ctypes
import signal
from functools import cache
from pathlib import Path

import pytest


@cache
def why_no_cuda_device() -> str | None:
    """Ask the driver itself: no framework is loaded for it. None where a device is there."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as err:
        return f"no CUDA driver: {err}"
    status = driver.cuInit(0)
    if status != 0:
        return f"the CUDA driver does not start: cuInit returned {status}"
    count = ctypes.c_int()
    status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return f"the CUDA driver does not answer: cuDeviceGetCount returned {status}"
    return None if count.value else "the CUDA driver is there, a device is not"


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is the test's own, and `./artifacts` in it the workspace."""
    monkeypatch.delenv("T2T_DEPLOY_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def short_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench in no time: what is measured does not matter, that it is does."""
    from t2t_deploy.bench import _run
    from t2t_deploy.commands import _bench
    from t2t_deploy.commands import _compare as _compare_speed

    monkeypatch.setattr(_run, "WARM_UP_LIMIT_S", 0.05)
    monkeypatch.setattr(_run, "WARM_UP_CHUNK_S", 0.01)
    for module in (_bench, _compare_speed):
        monkeypatch.setattr(module, "DEFAULT_ROUND_SECONDS", 0.01)


def pytest_configure() -> None:
    """Heed Ctrl-C, as must the programs that tests start, in a background job of a shell too.

    Such a job ignores it, and what it starts inherits that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    reason = why_no_cuda_device()
    if reason is not None:
        pytest.skip(reason)
