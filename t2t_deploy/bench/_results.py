"""The cases of a bench, their inputs and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from t2t_deploy._codec import from_plain, to_plain
from t2t_deploy._limits import Throttling
from t2t_deploy.bench._environment import Environment
from t2t_deploy.bench._statistics import Durations, Latency, Speedup, round_medians
from t2t_deploy.errors import InputError, UsageError, counted
from t2t_deploy.runtime import CallTiming, SessionRequest
from t2t_deploy.types import TensorSpec

CaseKey = tuple[str, str | None, str, int, int]
"""Backend, artifact, precision, batch and streams."""
_MOST_ROWS = 10_000


class BenchStatus(str, Enum):
    """Outcome of one case; the values are part of the command-line contract."""

    OK = "ok"
    NOT_RUN = "not_run"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class BenchCase:
    """One thing to measure.

    artifact: its name in the report; None for the reference itself.
    model: its model; speedups are against the eager fp32 case of the same model, batch and streams.
    reference_logits: of the first picture of the inputs, for the error; None for no error.
    typical_norm: of logits, as of `relative_errors`.
    """

    request: SessionRequest
    artifact: str | None
    precision: str
    batch: int
    model: str | None = None
    reference_logits: tuple[float, ...] | None = None
    typical_norm: float = 0.0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"batch is {self.batch}; expected 1 or more")

    @property
    def backend(self) -> str:
        """Name of the runtime, as on the command line."""
        return self.request.backend

    @property
    def key(self) -> CaseKey:
        """Its identity in a bench."""
        return (self.backend, self.artifact, self.precision, self.batch, self.request.streams)

    def result(self, status: BenchStatus, reason: str | None = None, **figures: Any) -> CaseResult:
        """Its row."""
        row = (*self.key[:4], status, reason)
        return CaseResult(*row, streams=self.request.streams, **figures)


class FixedBatchError(InputError):
    """The model's fixed batch is not the batch to measure."""


def make_inputs(specs: Sequence[TensorSpec], *, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Standard-normal arrays (bytes 0..255 for uint8) for a session's inputs.

    A free first dimension becomes ``batch``. The values depend on seed, position and shape alone,
    never on names or dtypes: every runtime gets the same numbers.
    Raises FixedBatchError for another fixed batch, InputError for an unsupported input.
    """
    return {
        spec.name: _random_array(spec, _shape(spec, batch), [seed, index])
        for index, spec in enumerate(specs)
    }


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    first, *rest = spec.shape or (None,)
    if first is not None and first != batch:
        raise FixedBatchError(
            f"input {spec.name!r} has its batch fixed to {first}; batch {batch} was asked: bench "
            f"with batch {first}, or export with batch dynamic"
        )
    sizes = [size for size in rest if size is not None]
    if not spec.shape or len(sizes) < len(rest):
        raise InputError(
            f"input {spec} is not (batch, fixed sizes...); only the batch may be free to be "
            "measured: export with fixed sizes"
        )
    return (batch, *sizes)


def _random_array(spec: TensorSpec, shape: tuple[int, ...], seed: list[int]) -> np.ndarray:
    rng = np.random.default_rng([*seed, *shape])
    dtype = np.dtype(spec.dtype)
    if dtype == np.uint8:
        return rng.integers(0, 256, size=shape, dtype=np.uint8)
    if dtype.kind != "f":
        raise InputError(
            f"input {spec} is neither floating point nor uint8; only these can be filled: export "
            "with a picture as input"
        )
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Calls before the recorded ones, the first call included.

    stable: whether the last two chunks' medians agreed; False if the time limit came first.
    """

    iterations: int
    stable: bool


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of one case: the round and the turn within it (both from 1), and its samples.

    elapsed_ms: from the start of the first recorded call to the end of the last, over all streams;
    None in a bench of an older version.
    """

    number: int
    turn: int
    samples_ms: Durations
    elapsed_ms: float | None = None


def calls_and_ms(rounds: Sequence[Round]) -> tuple[np.ndarray, np.ndarray]:
    """How many calls each round recorded, and their elapsed time, ms: (R,) each."""
    calls = [len(one.samples_ms) for one in rounds]
    elapsed_ms = [one.elapsed_ms or sum(one.samples_ms) for one in rounds]
    return np.array(calls), np.array(elapsed_ms)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """Measurements of one case, None where no round was complete.

    A case that failed after complete rounds has their figures.
    reason: why it was not run or failed; of a measured one, what was not done as requested.
    streams: how many callers computed batches of their own at once; latencies are of one call.
    images_per_s: pictures of the recorded calls over their elapsed time.
    load_ms: opening the session in a fresh process, the runtime's import included.
    first_call_ms: the first call, where some runtimes compile.
    baseline_rss_bytes, peak_rss_bytes: of the worker before loading, and at its highest.
    speedup_vs_eager: by the medians of latency; None for the eager case itself, or without one.
    throughput_vs_eager: the same of images_per_s.
    spread: relative difference of the rounds; unstable if it is too large.
    speedup_vs_plain: against the fastest plain export of the same model in the same runtime.
    rel_l2: relative L2 error of the first picture's logits.
    stalled: whether the mean is far above the median, see `STALLED_SHARE`; lost_s: how much longer
        the recorded calls took than as many of the median duration.
    throttling: what a quota of processor time took in the turns; None where it is not counted.
    parts_ms: medians of copying in, computing, copying out and all of it, not of the calls that
        the latencies are of; None if the backend does not time them.
    """

    backend: str
    artifact: str | None
    precision: str
    batch: int
    streams: int = field(default=1, kw_only=True)
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
    throughput_vs_eager: Speedup | None = None
    stalled: bool = False
    lost_s: float | None = None
    throttling: Throttling | None = None

    @property
    def key(self) -> CaseKey:
        """Its identity in a report."""
        return (self.backend, self.artifact, self.precision, self.batch, self.streams)

    @property
    def stops(self) -> list[str]:
        """What stopped the calls for long, and how long."""
        notes = []
        if self.stalled and self.lost_s is not None:
            seconds = sum(one.elapsed_ms or 0.0 for one in self.rounds) / 1e3
            notes.append(f"stalled: {self.lost_s:.1f} of {seconds:.1f} s lost beside p50")
        quota = self.throttling
        if quota is not None and quota.throttled_periods:
            notes.append(
                f"throttled by the processor quota in {quota.throttled_periods} of "
                f"{counted(quota.periods, 'period')}, {quota.throttled_s:.1f} s"
            )
        return notes

    def round_medians_ms(self) -> np.ndarray:
        """The median of each round: (R,) float64, ms."""
        return round_medians([one.samples_ms for one in self.rounds])


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How a bench measured; thread counts are in the environment.

    round_seconds: about the time of one case in one round. warm_up_limit_s: most time to warm up.
    devices: of the cases; None is a backend's default, the CPU for most.
    """

    rounds: int
    round_seconds: float
    warm_up_limit_s: float
    seed: int
    devices: tuple[int | None, ...] = (None,)


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Where and how the bench ran, and one result per case, in their order.

    cut_short: where it was interrupted; the results are of the complete rounds before. None if it
    ran to its end.
    """

    environment: Environment
    results: tuple[CaseResult, ...]
    settings: BenchSettings | None = None
    cut_short: str | None = None

    @property
    def not_run(self) -> dict[str, list[CaseResult]]:
        """The cases that were not run, by the reason."""
        reasons: dict[str, list[CaseResult]] = {}
        for row in self.results:
            if row.status is BenchStatus.NOT_RUN:
                reasons.setdefault(str(row.reason), []).append(row)
        return reasons

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with the field names of the command-line contract."""
        names = ("environment", "settings", "cut_short", "results")
        return {name: to_plain(getattr(self, name)) for name in names}


def report_from_dict(values: Any) -> BenchReport:
    """The report of `BenchReport.to_dict`; ignores fields unknown to this version.

    Raises ValueError for anything else.
    """
    # before reading them: comparing gets slower with each
    rows = values.get("results") if isinstance(values, Mapping) else None
    if isinstance(rows, list) and len(rows) > _MOST_ROWS:
        raise ValueError(f"{len(rows):,} rows; expected at most {_MOST_ROWS:,}")
    report = from_plain(BenchReport, values)
    if report.settings is None:
        raise ValueError("settings are missing")
    for index, row in enumerate(report.results):
        if row.status is BenchStatus.OK and not row.rounds:
            raise ValueError(f"results[{index}] was measured and has no rounds")
    return report
