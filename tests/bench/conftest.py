from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy.bench import BenchCase, BenchReport, _run, run_bench
from t2t_deploy.runtime import SessionRequest

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))

MakeCase = Callable[..., BenchCase]


def bench(*cases: BenchCase, **options: Any) -> BenchReport:
    """As few and as short rounds as there may be, unless the options of `run_bench` say more."""
    return run_bench(cases, **{"rounds": 5, "round_seconds": 0.005, **options})


@pytest.fixture(autouse=True)
def short(short_bench: None) -> None:
    """Nothing here depends on being warm."""


@pytest.fixture
def fake_case(monkeypatch: pytest.MonkeyPatch) -> MakeCase:
    """Makes cases that a fake session serves, in a worker that is otherwise the real one."""
    monkeypatch.setattr(_run, "WORKER_COMMAND", FAKE_WORKER)

    def make(
        name: str = "fake",
        backend: str = "ort-cpu",
        batch: int = 1,
        model: str | None = None,
        threads: int | None = None,
        streams: int = 1,
        **config: Any,
    ) -> BenchCase:
        request = SessionRequest(backend, Path(name), threads, config, streams=streams)
        return BenchCase(request, name, "fp32", batch, model)

    return make
