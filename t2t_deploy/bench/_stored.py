"""A bench report read back from the JSON that it was written as."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from t2t_deploy._untrusted import shortened
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
_MOST_ROWS = 10_000
_LARGEST = 1 << 63


def report_from_dict(values: Mapping[str, Any]) -> BenchReport:
    """The report of `BenchReport.to_dict`; fields that this version does not know are left out.

    Raises ValueError where it is something else.
    """
    try:
        environment = _known(Environment, values["environment"])
        settings = _known(BenchSettings, values["settings"])
        if len(values["results"]) > _MOST_ROWS:
            raise ValueError(f"{len(values['results']):,} rows; expected at most {_MOST_ROWS:,}")
        results = tuple(_result(row) for row in values["results"])
        gpus = tuple(_gpu(one) for one in values["environment"].get("gpus", ()))
    except (AttributeError, KeyError, TypeError, OverflowError) as err:
        raise ValueError(f"{type(err).__name__}: {err}") from err
    return BenchReport(
        dataclasses.replace(
            environment,
            cpu_flags=None if environment.cpu_flags is None else tuple(environment.cpu_flags),
            threads=tuple(environment.threads),
            load_before=_averages(environment.load_before),
            load_after=_averages(environment.load_after),
            gpus=gpus,
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
            dataclasses.replace(_known(Round, one), samples_ms=_durations(one["samples_ms"]))
            for one in values["rounds"]
        ),
    )


def _durations(values: Any) -> tuple[float, ...]:
    durations = tuple(float(value) for value in values)
    if not durations or min(durations) <= 0:
        raise ValueError("durations that are missing, or not positive")
    return durations


def _gpu(values: Mapping[str, Any]) -> GpuRecord:
    found = _known(GpuRecord, values)
    return dataclasses.replace(
        found,
        sm_mhz=(found.sm_mhz[0], found.sm_mhz[1]),
        memory_mhz=(found.memory_mhz[0], found.memory_mhz[1]),
        throttled=tuple(found.throttled),
    )


def _averages(values: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]), float(values[2]))


def _optional(kind: type[_T], values: Mapping[str, Any] | None) -> _T | None:
    return None if values is None else _known(kind, values)


def _known(kind: type[_T], values: Mapping[str, Any]) -> _T:
    hints = get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # ours are
    known = {name: value for name, value in values.items() if name in fields}
    for name, value in known.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} is {shortened(value)}")
    return kind(**known)


def _fits(value: Any, hint: Any) -> bool:
    """Whether JSON has what a field is declared as; what is a class of ours is looked at later."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is tuple:
        several = isinstance(value, (list, tuple)) and all(_fits(v, arguments[0]) for v in value)
        return several and (arguments[-1] is Ellipsis or len(value) == len(arguments))
    if origin is not None:
        return isinstance(value, dict) and all(_fits(one, arguments[1]) for one in value.values())
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint is int:
        return type(value) is int and abs(value) < _LARGEST
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    return value is not None
