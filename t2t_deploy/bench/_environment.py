"""The machine that figures depend on: processor, memory, versions, load, GPUs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from t2t_deploy._limits import Limits, read_limits
from t2t_deploy._optional import is_installed, require
from t2t_deploy._processor import read_processor
from t2t_deploy.runtime import BACKENDS

_PACKAGES = {"numpy", "onnx", *(tool for backend in BACKENDS.values() for tool in backend.tools)}
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_NVML = "pynvml"
# Source: nvml.h, "Clocks Event Reasons". Idle clocks, or those set by the user, are not throttled.
_THROTTLES = {
    "nvmlClocksEventReasonSwPowerCap": "power cap",
    "nvmlClocksEventReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonSyncBoost": "sync boost",
    "nvmlClocksEventReasonSwThermalSlowdown": "software thermal slowdown",
    "nvmlClocksEventReasonHwThermalSlowdown": "hardware thermal slowdown",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "power brake",
}


@dataclass(frozen=True, slots=True)
class GpuRecord:
    """One GPU over a bench, sampled after each round.

    index: NVML's, in the order of the PCI bus, which CUDA's need not be. sm_mhz: lowest and highest
    clock of the multiprocessors; max_sm_mhz: its limit. power_w, temperature_c: highest.
    throttled: reasons why the clocks were reduced, over all samples.
    """

    index: int
    name: str
    driver: str
    sm_mhz: tuple[int, int]
    max_sm_mhz: int
    memory_mhz: tuple[int, int]
    temperature_c: int
    power_w: float | None
    throttled: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and when a bench ran.

    cpu_flags: of the processor, of `FLAGS_OF_INTEREST`; None if unknown.
    usable_cores: how many of the logical cores this process may run on.
    limits: what a container leaves of them and of the memory; None in files of older versions.
    threads: the distinct settings of the cases; None is the runtime's own choice.
    load_before, load_after: 1, 5 and 15 minute averages; None where the system has none.
    gpus: NVIDIA GPUs, where NVML is available.
    """

    date_utc: str
    platform: str
    cpu_model: str
    cpu_flags: tuple[str, ...] | None
    logical_cores: int
    usable_cores: int
    memory_bytes: int
    governor: str | None
    python: str
    versions: dict[str, str]
    threads: tuple[int | None, ...]
    load_before: tuple[float, float, float] | None
    load_after: tuple[float, float, float] | None
    gpus: tuple[GpuRecord, ...] = ()
    limits: Limits | None = None


def read_environment(
    *,
    threads: Sequence[int | None],
    load_before: tuple[float, float, float] | None,
    gpus: tuple[GpuRecord, ...] = (),
) -> Environment:
    """Describe this machine now; ``load_before`` is the `load_average` before the work."""
    processor, limits = read_processor(), read_limits()
    return Environment(
        date_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        platform=platform.platform(),
        cpu_model=processor.model,
        cpu_flags=processor.flags,
        logical_cores=os.cpu_count() or 1,
        usable_cores=limits.affinity,
        memory_bytes=int(psutil.virtual_memory().total),
        governor=_GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else None,
        python=platform.python_version(),
        versions=library_versions(),
        threads=tuple(dict.fromkeys(threads)),
        load_before=load_before,
        load_after=load_average(),
        gpus=gpus,
        limits=limits,
    )


def load_average() -> tuple[float, float, float] | None:
    """1, 5 and 15 minute load averages, or None where the system has none."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that compute, by distribution name; imports none."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        # a damaged install can lack its name
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name in _PACKAGES or name.startswith("tensorrt"):
            # Python imports the first on the path
            versions.setdefault(name, distribution.version)
    return dict(sorted(versions.items()))


def resident_bytes() -> int:
    """Resident memory now, bytes."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Highest resident memory since this program began, bytes.

    On Linux from VmHWM: ru_maxrss survives exec there, so a worker started by a larger parent
    would report the parent's peak as its own.
    """
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        # the line is missing where a sandbox imitates /proc
        return int(match.group(1)) * 1024 if match else resident_bytes()
    import resource  # not on Windows

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS


class GpuWatch:
    """Samples all NVIDIA GPUs; see `watch_gpus`."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._samples: list[list[GpuRecord]] = []

    def look(self) -> None:
        """Sample the state of each GPU."""
        if self._nvml is not None:
            count = self._nvml.nvmlDeviceGetCount()
            self._samples.append([_state(self._nvml, index) for index in range(count)])

    def records(self) -> tuple[GpuRecord, ...]:
        """Each GPU over all samples."""
        return tuple(_merged(states) for states in zip(*self._samples, strict=True))


@contextlib.contextmanager
def watch_gpus() -> Iterator[GpuWatch]:
    """A watch of the GPUs that NVML lists, none without a driver."""
    nvml = require(_NVML) if is_installed(_NVML) else None
    if nvml is not None:
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:  # no driver: no GPU
            nvml = None
    try:
        yield GpuWatch(nvml)
    finally:
        if nvml is not None:
            nvml.nvmlShutdown()


def visible_gpus() -> tuple[GpuRecord, ...]:
    """The GPUs of this machine as they are now."""
    with watch_gpus() as watch:
        watch.look()
        return watch.records()


def _state(nvml: Any, index: int) -> GpuRecord:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    sm = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
    memory = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)
    reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    try:
        power_w = nvml.nvmlDeviceGetPowerUsage(handle) / 1e3
    except nvml.NVMLError:  # not on some laptops
        power_w = None
    return GpuRecord(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        driver=nvml.nvmlSystemGetDriverVersion(),
        sm_mhz=(sm, sm),
        max_sm_mhz=nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        memory_mhz=(memory, memory),
        temperature_c=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        power_w=power_w,
        throttled=tuple(text for name, text in _THROTTLES.items() if reasons & getattr(nvml, name)),
    )


def _merged(states: tuple[GpuRecord, ...]) -> GpuRecord:
    first = states[0]
    powers = [state.power_w for state in states if state.power_w is not None]
    reasons = {reason for state in states for reason in state.throttled}
    return replace(
        first,
        sm_mhz=(min(s.sm_mhz[0] for s in states), max(s.sm_mhz[1] for s in states)),
        memory_mhz=(min(s.memory_mhz[0] for s in states), max(s.memory_mhz[1] for s in states)),
        temperature_c=max(state.temperature_c for state in states),
        power_w=max(powers, default=None),
        throttled=tuple(text for text in _THROTTLES.values() if text in reasons),
    )
