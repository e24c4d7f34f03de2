"""What the GPUs of a machine did during a bench: clocks, temperature, power, and what held them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from t2t_deploy._optional import is_installed, require

_NVML = "pynvml"
# Source: nvml.h, "Clocks Event Reasons". Being idle, or clocks set by the user, hold nothing back.
_HOLDING = {
    "nvmlClocksEventReasonSwPowerCap": "power cap",
    "nvmlClocksEventReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonSyncBoost": "sync boost",
    "nvmlClocksEventReasonSwThermalSlowdown": "software thermal slowdown",
    "nvmlClocksEventReasonHwThermalSlowdown": "hardware thermal slowdown",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "power brake",
}


@dataclass(frozen=True, slots=True)
class GpuRecord:
    """One GPU over a bench, looked at after each round.

    index: NVML's, in the order of the PCI bus, which CUDA's need not be. sm_mhz: lowest and highest
    clock of the multiprocessors; max_sm_mhz: what it may reach. power_w, temperature_c: highest.
    throttled: what held the clocks down at any look.
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

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


class GpuWatch:
    """Looks at all NVIDIA GPUs through NVML; on a machine without any it sees none.

    Use it as a context manager.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._looks: list[list[GpuRecord]] = []

    def __enter__(self) -> GpuWatch:
        if is_installed(_NVML):
            nvml = require(_NVML)
            try:
                nvml.nvmlInit()
            except nvml.NVMLError:  # no driver: no GPU
                return self
            self._nvml = nvml
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def look(self) -> None:
        """Note the state of each GPU now."""
        if self._nvml is not None:
            count = self._nvml.nvmlDeviceGetCount()
            self._looks.append([_state(self._nvml, index) for index in range(count)])

    def records(self) -> tuple[GpuRecord, ...]:
        """What all looks together say of each GPU."""
        return tuple(_merged(states) for states in zip(*self._looks, strict=True))


def visible_gpus() -> tuple[GpuRecord, ...]:
    """The GPUs of this machine as they are now."""
    with GpuWatch() as watch:
        watch.look()
        return watch.records()


def _state(nvml: Any, index: int) -> GpuRecord:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    sm = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
    memory = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)
    reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    try:
        power_w = nvml.nvmlDeviceGetPowerUsage(handle) / 1e3
    except nvml.NVMLError:  # some laptops' do not tell
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
        throttled=tuple(text for name, text in _HOLDING.items() if reasons & getattr(nvml, name)),
    )


def _merged(states: tuple[GpuRecord, ...]) -> GpuRecord:
    first = states[0]
    powers = [state.power_w for state in states if state.power_w is not None]
    held = {reason for state in states for reason in state.throttled}
    return GpuRecord(
        index=first.index,
        name=first.name,
        driver=first.driver,
        sm_mhz=(min(s.sm_mhz[0] for s in states), max(s.sm_mhz[1] for s in states)),
        max_sm_mhz=first.max_sm_mhz,
        memory_mhz=(min(s.memory_mhz[0] for s in states), max(s.memory_mhz[1] for s in states)),
        temperature_c=max(state.temperature_c for state in states),
        power_w=max(powers, default=None),
        throttled=tuple(text for text in _HOLDING.values() if text in held),
    )
