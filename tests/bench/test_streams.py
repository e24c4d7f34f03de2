"""Several callers of one session at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2t_deploy.bench import BenchStatus, _run
from t2t_deploy.bench._run import MIN_ITERATIONS

from .conftest import MakeCase, bench


def test_streams_call_at_once_each_with_its_own_pictures(
    fake_case: MakeCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_run, "MAX_ITERATIONS", MIN_ITERATIONS)
    log = tmp_path / "log"
    (row,) = bench(fake_case(streams=2, meet=2, log=str(log))).results
    assert (row.status, row.reason, row.streams) == (BenchStatus.OK, None, 2)
    assert [len(one.samples_ms) for one in row.rounds] == [2 * MIN_ITERATIONS] * 5
    first, *calls = log.read_text().split("\n")[:-1]
    own, others = (calls.count(feeds) for feeds in sorted(set(calls), key=first.__ne__))
    assert own == others and row.warm_up is not None
    # recorded and settling calls of all rounds, and those until it was warm
    assert 1 + own + others == row.warm_up.iterations + 5 * 2 * (MIN_ITERATIONS + 1)


def test_an_error_of_one_stream_fails_the_case(fake_case: MakeCase) -> None:
    bad, good = bench(fake_case(streams=2, die_at=9), fake_case(streams=2)).results
    assert (bad.status, good.status) == (BenchStatus.FAILED, BenchStatus.OK)


def test_a_stream_has_its_share_of_the_threads(fake_case: MakeCase) -> None:
    shares = []
    for threads, streams in ((8, 2), (7, 2), (2, 2), (8, 1)):
        case = fake_case(threads=threads, streams=streams, fail="{OMP_NUM_THREADS}")
        shares.append(bench(case).results[0].reason)
    assert shares == [f"RuntimeError: {share}" for share in (4, 3, 1, 8)]


def test_speedup_is_against_eager_in_as_many_streams(fake_case: MakeCase) -> None:
    rows = bench(
        fake_case("slow", "eager", model="14", sleep_s=0.004),
        fake_case("slow", "eager", model="14", sleep_s=0.02, streams=2),
        fake_case("fast", model="14", sleep_s=0.01, streams=2),
        fake_case("alone", model="14", sleep_s=0.01, streams=3),
    ).results
    fast, alone = rows[2:]
    assert fast.speedup_vs_eager is not None and fast.speedup_vs_eager.low > 1
    assert fast.throughput_vs_eager is not None
    assert alone.speedup_vs_eager is None
