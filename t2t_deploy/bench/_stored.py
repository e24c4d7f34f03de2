"""A bench report read back from the JSON that it was written as."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from t2t_deploy.bench._environment import Environment
from t2t_deploy.bench._gpus import GpuRecord
from t2t_deploy.bench._results import (
    BenchReport,
    BenchSettings,
    BenchStatus,
    CaseResult,
    Round,
    WarmUp,
)
from t2t_deploy.bench._statistics import Latency, Speedup
from t2t_deploy.runtime._session import CallTiming

_T = TypeVar("_T")


def report_from_dict(values: Mapping[str, Any]) -> BenchReport:
    """The report of `BenchReport.to_dict`; fields that this version does not know are left out.

    Raises ValueError where it is something else.
    """
    try:
        environment = _known(Environment, values["environment"])
        settings = _known(BenchSettings, values["settings"])
        results = tuple(_result(row) for row in values["results"])
    except (AttributeError, KeyError, TypeError, OverflowError) as err:
        raise ValueError(f"{type(err).__name__}: {err}") from err
    return BenchReport(
        dataclasses.replace(
            environment,
            cpu_flags=None if environment.cpu_flags is None else tuple(environment.cpu_flags),
            threads=tuple(environment.threads),
            load_before=_averages(environment.load_before),
            load_after=_averages(environment.load_after),
            gpus=tuple(GpuRecord.from_dict(one) for one in values["environment"].get("gpus", ())),
        ),
        results,
        dataclasses.replace(settings, devices=tuple(settings.devices)),
    )


def _result(values: Mapping[str, Any]) -> CaseResult:
    row = _known(CaseResult, values)
    latency = None if row.latency_ms is None else _known(Latency, values["latency_ms"])
    return dataclasses.replace(
        row,
        status=BenchStatus(row.status),
        latency_ms=latency
        and dataclasses.replace(latency, samples=_durations(values["latency_ms"]["samples"])),
        speedup_vs_eager=_optional(Speedup, values["speedup_vs_eager"]),
        warm_up=_optional(WarmUp, values["warm_up"]),
        parts_ms=_optional(CallTiming, values["parts_ms"]),
        rounds=tuple(
            Round(one["number"], one["turn"], _durations(one["samples_ms"]))
            for one in values["rounds"]
        ),
    )


def _durations(values: Any) -> tuple[float, ...]:
    durations = tuple(float(value) for value in values)
    if not durations or not all(math.isfinite(value) and value > 0 for value in durations):
        raise ValueError("durations that are missing, or not positive numbers")
    return durations


def _averages(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _optional(kind: type[_T], values: Mapping[str, Any] | None) -> _T | None:
    return None if values is None else _known(kind, values)


def _known(kind: type[_T], values: Mapping[str, Any]) -> _T:
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # ours are
    return kind(**{name: value for name, value in values.items() if name in fields})
