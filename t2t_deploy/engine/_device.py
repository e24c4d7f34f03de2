"""The machine's CUDA device, or why it is unavailable, by the driver alone."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from dataclasses import dataclass
from typing import Any

# CUdevice_attribute of the driver API, fixed since CUDA 5
_MAJOR, _MINOR = 75, 76
_NOT_INITIALIZED = 3  # cuInit's answer in a fork of a process that called it
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why something cannot run here, and the next step."""

    reason: str
    next_step: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.next_step}"


def why_no_device(ordinal: int = 0) -> Unavailable | None:
    """Why CUDA device ``ordinal`` cannot be used: no driver, no device at all, or not this one."""
    cuda = _driver()
    if cuda is None:
        return Unavailable(
            f"no NVIDIA driver ({_DRIVER} not found)",
            "install it on a machine with an NVIDIA GPU, or start the container with --gpus all",
        )
    count = ctypes.c_int()
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status == _NOT_INITIALIZED:
        return Unavailable(
            "the NVIDIA driver was in use before this process was forked, and does not serve it",
            "use a GPU in the workers alone (no preload, or spawn)",
        )
    if status != 0 or count.value == 0:
        detail = f" (driver status {status})" if status else ""
        return Unavailable(
            f"the NVIDIA driver has no device{detail}",
            "check nvidia-smi, and whether CUDA_VISIBLE_DEVICES hides it",
        )
    if not 0 <= ordinal < count.value:
        return Unavailable(
            f"there is no cuda:{ordinal}; this machine has {count.value}",
            f"choose from cuda:0 to cuda:{count.value - 1}",
        )
    return None


def device_capability(ordinal: int = 0) -> str | None:
    """Compute capability of a CUDA device as in ``86``; None without such a device."""
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        if not _query(ordinal, "cuDeviceGetAttribute", ctypes.byref(value), attribute):
            return None
        numbers.append(str(value.value))
    return "".join(numbers)


def device_name(ordinal: int = 0) -> str | None:
    """Name of a CUDA device; None without such a device."""
    name = ctypes.create_string_buffer(256)
    read = _query(ordinal, "cuDeviceGetName", name, len(name))
    return name.value.decode(errors="replace") if read else None


def _driver() -> ctypes.CDLL | None:
    with contextlib.suppress(OSError):
        return ctypes.CDLL(_DRIVER)
    return None


def _query(ordinal: int, function: str, *arguments: Any) -> bool:
    """Call a driver function for a device; False without the device or on failure."""
    cuda, device = _driver(), ctypes.c_int()
    if cuda is None or cuda.cuInit(0) != 0 or cuda.cuDeviceGet(ctypes.byref(device), ordinal) != 0:
        return False
    return bool(cuda[function](*arguments, device) == 0)
