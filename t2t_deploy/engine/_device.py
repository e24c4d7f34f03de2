"""The CUDA device that this machine has, or why none can be used, by the driver alone."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

# CUdevice_attribute of the driver API, fixed since CUDA 5
_MAJOR, _MINOR = 75, 76
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclass(frozen=True, slots=True)
class Unavailable:
    """What keeps something from running here, and the next step."""

    reason: str
    next_step: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.next_step}"


def why_no_device(ordinal: int = 0) -> Unavailable | None:
    """What keeps CUDA device ``ordinal`` from being used: the driver, any device, or this one."""
    try:
        cuda = ctypes.CDLL(_DRIVER)
    except OSError:
        return Unavailable(
            f"no NVIDIA driver ({_DRIVER} not found)",
            "install it on a machine with an NVIDIA GPU, or start the container with --gpus all",
        )
    status, count = cuda.cuInit(0), ctypes.c_int()
    status = status or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        told = f" (driver status {status})" if status else ""
        return Unavailable(
            f"the NVIDIA driver is there and finds no device{told}",
            "see what nvidia-smi says, and whether CUDA_VISIBLE_DEVICES hides it",
        )
    if not 0 <= ordinal < count.value:
        return Unavailable(
            f"there is no cuda:{ordinal}; this machine has {count.value}",
            f"choose from cuda:0 to cuda:{count.value - 1}",
        )
    return None


def device_capability(ordinal: int = 0) -> str | None:
    """Compute capability of a CUDA device as in ``86``; None without such a device."""
    found = _device(ordinal)
    if found is None:
        return None
    cuda, device = found
    value = ctypes.c_int()
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return None
        numbers.append(str(value.value))
    return "".join(numbers)


def device_name(ordinal: int = 0) -> str | None:
    """What a CUDA device calls itself; None without such a device."""
    found = _device(ordinal)
    name = ctypes.create_string_buffer(256)
    if found is None or found[0].cuDeviceGetName(name, len(name), found[1]) != 0:
        return None
    return name.value.decode(errors="replace")


def _device(ordinal: int) -> tuple[ctypes.CDLL, ctypes.c_int] | None:
    """The driver's library and the handle of a device."""
    try:
        cuda = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    device = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGet(ctypes.byref(device), ordinal) != 0:
        return None
    return cuda, device
