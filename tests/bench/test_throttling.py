"""What a quota of processor time takes, in a real control group."""

from __future__ import annotations

import sys

import pytest

from t2t_deploy.bench import _run

from ..cgroups import control_group
from .conftest import FAKE_WORKER, MakeCase, bench


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_a_row_says_how_long_the_quota_stopped_it(
    fake_case: MakeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of 5 ms that may take 20 ms of every 100."""
    case = fake_case(busy_s=0.005)
    with control_group(processors=0.2) as within:
        monkeypatch.setattr(_run, "WORKER_COMMAND", (*within, *FAKE_WORKER))
        (row,) = bench(case, round_seconds=0.5).results
    assert row.latency_ms is not None and row.images_per_s is not None
    assert row.images_per_s < 0.5e3 / row.latency_ms.p50
    assert row.throttling is not None and row.throttling.throttled_s > 0
    assert 0 < row.throttling.throttled_periods <= row.throttling.periods
    stalled, throttled = row.stops
    assert stalled.startswith("stalled: ")
    assert throttled.startswith("throttled by the processor quota in ")
