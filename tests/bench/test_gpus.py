"""What GPUs did during a bench, on an NVML that is told what to say."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest.mock import Mock

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

THROTTLED = ("power cap", "software thermal slowdown")
RECORD = GpuRecord(0, "Test GPU", "580.1", (900, 1800), 2100, (5000, 5000), 83, 290.5, THROTTLED)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real pynvml, of which the functions that ask a driver are replaced."""
    import pynvml

    clocks = iter([900, 1800, 1700])
    reasons = [
        pynvml.nvmlClocksEventReasonGpuIdle,
        pynvml.nvmlClocksEventReasonSwThermalSlowdown,
        pynvml.nvmlClocksEventReasonSwPowerCap
        | pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
    ]
    answers = {
        "nvmlInit": Mock(),
        "nvmlShutdown": Mock(),
        "nvmlDeviceGetCount": Mock(return_value=1),
        "nvmlDeviceGetHandleByIndex": Mock(),
        "nvmlDeviceGetName": Mock(return_value="Test GPU"),
        "nvmlSystemGetDriverVersion": Mock(return_value="580.1"),
        "nvmlDeviceGetClockInfo": lambda handle, kind: (
            next(clocks) if kind == pynvml.NVML_CLOCK_SM else 5000
        ),
        "nvmlDeviceGetMaxClockInfo": Mock(return_value=2100),
        "nvmlDeviceGetTemperature": Mock(side_effect=[60, 83, 80]),
        "nvmlDeviceGetPowerUsage": Mock(side_effect=[100_000, 290_500, 200_000]),
        "nvmlDeviceGetCurrentClocksEventReasons": Mock(side_effect=reasons),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    return pynvml


def test_looks_are_merged_and_idling_is_no_throttling(nvml: Any) -> None:
    with watch_gpus() as watch:
        for _ in range(3):
            watch.look()
        assert watch.records() == (RECORD,)


def test_power_that_is_not_told(nvml: Any) -> None:
    nvml.nvmlDeviceGetPowerUsage.side_effect = nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
    (found,) = visible_gpus()
    assert found.power_w is None


def test_a_machine_without_a_driver_has_none(nvml: Any) -> None:
    nvml.nvmlInit.side_effect = nvml.NVMLError(nvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert visible_gpus() == ()


def test_a_record_survives_json_and_another_gpu_is_another_machine() -> None:
    with_gpu = dataclasses.replace(HERE, gpus=(RECORD,))
    old = report_from_dict(BenchReport(with_gpu, (), SETTINGS).to_dict())
    assert old.environment.gpus == (RECORD,)
    check_comparable(old, with_gpu, devices=(None,), name="old.json")
    with pytest.raises(ComparisonError, match="GPUs Test GPU there, none here"):
        check_comparable(old, HERE, devices=(None,), name="old.json")
