"""What every test shares: the `gpu` marker skips, with the reason, where no CUDA device is."""

from __future__ import annotations

import ctypes
from functools import cache

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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    reason = why_no_cuda_device()
    if reason is not None:
        pytest.skip(reason)
