"""What this machine can run: the CUDA device there is, and whether an engine loads on it."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass

from t2t_deploy.engine._module import BuilderLog, TensorRT, load_tensorrt, new_logger

# CUdevice_attribute of the driver API, fixed since CUDA 5
_MAJOR, _MINOR = 75, 76
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# how TensorRT's log names an error of the CUDA runtime: number, text
CUDA_ERROR = re.compile(r"cudaError (\d+): ([^)]+)\)")


@dataclass(frozen=True, slots=True)
class Unavailable:
    """What keeps something from running here, and the next step."""

    reason: str
    next_step: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.next_step}"


@dataclass(frozen=True, slots=True)
class Runnable:
    """Whether an engine runs on this machine, and why not."""

    runs: bool
    why_not: str | None


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


def runnable_here(engine: bytes, trt: TensorRT | None = None) -> Runnable:
    """Load a serialized engine on this machine's device; nothing is run and nothing is kept.

    trt: the TensorRT module; None takes TensorRT-RTX. Raises MissingDependencyError without it.
    """
    trt = load_tensorrt() if trt is None else trt
    log = BuilderLog()
    loaded = trt.Runtime(new_logger(trt, log)).deserialize_cuda_engine(engine)
    return Runnable(True, None) if loaded is not None else Runnable(False, load_refusal(log))


def load_refusal(log: BuilderLog) -> str:
    """Why a runtime did not load an engine, from what it said."""
    errors = log.errors()
    cuda = CUDA_ERROR.search(errors)
    if cuda:
        what = "no CUDA device" if device_capability() is None else "the CUDA device refuses"
        return f"{what}: {cuda[2]} (cudaError {cuda[1]})"
    return f"the runtime does not load it: {errors or 'it gives no reason'}"
