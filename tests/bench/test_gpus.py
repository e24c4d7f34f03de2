"""What GPUs did during a bench, on an NVML that is told what to say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from t2t_deploy._optional import is_installed
from t2t_deploy.bench import (
    BenchReport,
    GpuRecord,
    check_comparable,
    report_from_dict,
    visible_gpus,
)
from t2t_deploy.bench._environment import watch_gpus
from t2t_deploy.errors import ComparisonError

from ..reports import HERE, SETTINGS

pytestmark = pytest.mark.skipif(not is_installed("pynvml"), reason="nvidia-ml-py is not installed")

RECORD = GpuRecord(
    index=0,
    name="Test GPU",
    driver="580.1",
    sm_mhz=(900, 1800),
    max_sm_mhz=2100,
    memory_mhz=(5000, 5000),
    temperature_c=83,
    power_w=290.5,
    throttled=("power cap", "software thermal slowdown"),
)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real pynvml, of which the functions that ask a driver are replaced."""
    import pynvml

    looks: dict[str, Iterator[Any]] = {
        "sm": iter([900, 1800, 1700]),
        "power": iter([100_000, 290_500, 200_000]),
        "temperature": iter([60, 83, 80]),
        "reasons": iter(
            [
                pynvml.nvmlClocksEventReasonGpuIdle,
                pynvml.nvmlClocksEventReasonSwThermalSlowdown,
                pynvml.nvmlClocksEventReasonSwPowerCap
                | pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
            ]
        ),
    }
    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: "Test GPU",
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "nvmlDeviceGetClockInfo": lambda handle, kind: (
            next(looks["sm"]) if kind == pynvml.NVML_CLOCK_SM else 5000
        ),
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 2100,
        "nvmlDeviceGetTemperature": lambda handle, kind: next(looks["temperature"]),
        "nvmlDeviceGetPowerUsage": lambda handle: next(looks["power"]),
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: next(looks["reasons"]),
    }
    for name, answer in answers.items():
        assert hasattr(pynvml, name)
        monkeypatch.setattr(pynvml, name, answer)
    return pynvml


def test_looks_are_merged_and_idling_is_no_throttling(nvml: Any) -> None:
    with watch_gpus() as watch:
        for _ in range(3):
            watch.look()
        assert watch.records() == (RECORD,)


def test_power_that_is_not_told(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(handle: object) -> int:
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(nvml, "nvmlDeviceGetPowerUsage", refused)
    (found,) = visible_gpus()
    assert found.power_w is None


def test_a_machine_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def refused() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refused)
    assert visible_gpus() == ()


def test_a_record_survives_json_and_another_gpu_is_another_machine() -> None:
    with_gpu = dataclasses.replace(HERE, gpus=(RECORD,))
    old = report_from_dict(BenchReport(with_gpu, (), SETTINGS).to_dict())
    assert old.environment.gpus == (RECORD,)
    check_comparable(old, with_gpu, devices=(None,), name="old.json")
    with pytest.raises(ComparisonError, match="GPUs Test GPU there, none here"):
        check_comparable(old, HERE, devices=(None,), name="old.json")
