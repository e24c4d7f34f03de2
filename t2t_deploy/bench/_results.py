"""What a bench is asked and what it answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from t2t_deploy.bench._environment import Environment
from t2t_deploy.bench._statistics import Latency, Speedup
from t2t_deploy.errors import UsageError
from t2t_deploy.runtime._session import CallTiming, SessionRequest


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
