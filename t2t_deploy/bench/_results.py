"""What a bench is asked and what it answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from t2t_deploy._untrusted import shortened
from t2t_deploy.bench._environment import Environment
from t2t_deploy.bench._gpus import GpuRecord
from t2t_deploy.bench._statistics import Latency, Speedup
from t2t_deploy.errors import UsageError
from t2t_deploy.runtime import CallTiming, SessionRequest


class BenchStatus(str, Enum):
    """Outcome of one case; the values are part of the command-line contract."""

    OK = "ok"
    NOT_RUN = "not_run"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class BenchCase:
    """One thing to measure.

    artifact: how it is called in the report; None for the reference itself.
    model: what it computes; speedups are taken against the eager fp32 case of the same model and
        batch.
    wanted: logits of the first picture of the inputs, to tell the case's error by; None tells none.
    """

    request: SessionRequest
    artifact: str | None
    precision: str
    batch: int
    model: str | None = None
    wanted: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"batch is {self.batch}; expected 1 or more: pass --batch 1")

    @property
    def backend(self) -> str:
        """Name of the runtime, as on the command line."""
        return self.request.backend


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Calls made before anything was recorded, the first call included.

    stable: whether the last two chunks' medians agreed; False means the time limit came first.
    """

    iterations: int
    stable: bool


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of one case: the round and the turn within it (both from 1), and its samples."""

    number: int
    turn: int
    samples_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What was measured of one case; the measurements are None unless the status is ok.

    reason: why it was not run or failed; of a measured one, what was not done as asked.
    load_ms: opening the session in a fresh process, the runtime's import included.
    first_call_ms: the first call, where some runtimes compile.
    baseline_rss_bytes, peak_rss_bytes: the worker before it loaded anything, and at its highest.
    speedup_vs_eager: None for the eager case itself, and where there is none to compare with.
    spread: by how much the rounds differ, relative; unstable says that it is too much.
    speedup_vs_plain: against the fastest plain export of the same model in the same runtime.
    rel_l2: relative L2 error of the first picture's logits against what was wanted of them.
    parts_ms: medians of copying in, computing, copying out and all of it, timed apart from the
        latencies; None of a backend that does not tell them.
    """

    backend: str
    artifact: str | None
    precision: str
    batch: int
    status: BenchStatus
    reason: str | None = None
    latency_ms: Latency | None = None
    images_per_s: float | None = None
    speedup_vs_eager: Speedup | None = None
    baseline_rss_bytes: int | None = None
    peak_rss_bytes: int | None = None
    unstable: bool = False
    spread: float | None = None
    load_ms: float | None = None
    first_call_ms: float | None = None
    warm_up: WarmUp | None = None
    parts_ms: CallTiming | None = None
    rounds: tuple[Round, ...] = ()
    speedup_vs_plain: Speedup | None = None
    rel_l2: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with the field names of the command-line contract."""
        return asdict(self) | {"status": self.status.value}


def not_run_result(
    *, backend: str, artifact: str | None, precision: str, batch: int, reason: str
) -> CaseResult:
    """The row of a case that was not measured, and why."""
    return CaseResult(backend, artifact, precision, batch, BenchStatus.NOT_RUN, reason)


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How a bench measured; the thread count is with the environment.

    round_seconds: about what one case took of one round. warm_up_limit_s: when warming up ended at
    the latest. devices: of the cases; None is a backend's own choice, the CPU for most.
    """

    rounds: int
    round_seconds: float
    warm_up_limit_s: float
    seed: int
    devices: tuple[int | None, ...] = (None,)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Where and how the bench ran, and one result per case in the order asked."""

    environment: Environment
    results: tuple[CaseResult, ...]
    settings: BenchSettings | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with the field names of the command-line contract."""
        return {
            "environment": self.environment.to_dict(),
            "settings": None if self.settings is None else self.settings.to_dict(),
            "results": [result.to_dict() for result in self.results],
        }


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
