"""What `run_bench` asks of its workers, over fake sessions."""

from __future__ import annotations

import dataclasses
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy._limits import Limits
from t2t_deploy.bench import BenchCase, BenchStatus, _run, run_bench
from t2t_deploy.bench._run import (
    MAX_ITERATIONS,
    MAX_ITERATIONS_OF_QUOTA,
    MIN_ITERATIONS,
    iterations_for,
    turn_orders,
)
from t2t_deploy.errors import UsageError
from t2t_deploy.runtime import CallTiming, SessionRequest

from .conftest import MakeCase, bench


def test_rounds_interleave(fake_case: MakeCase, tmp_path: Path) -> None:
    log, names = tmp_path / "log", ("a", "b", "c")
    report = bench(*(fake_case(name, log=str(log), sleep_s=0.0005) for name in names))

    calls = [line.split() for line in log.read_text().splitlines()]
    expected = [*names, *(names[index] for order in turn_orders(3, 5, 0) for index in order)]
    assert [name for name, _ in groupby(name for name, _ in calls)] == [
        name for name, _ in groupby(expected)
    ]
    assert len({total for _, total in calls}) == 1, "all cases get the same numbers"

    seen = {
        (round_.number, round_.turn): name
        for name, result in zip(names, report.results, strict=True)
        for round_ in result.rounds
    }
    assert [seen[key] for key in sorted(seen)] == expected[3:]


def test_turns_are_shuffled_and_complete() -> None:
    orders = turn_orders(4, 7, seed=0)
    assert [sorted(order) for order in orders] == [[0, 1, 2, 3]] * 7
    assert len({tuple(order) for order in orders}) > 1
    assert orders == turn_orders(4, 7, seed=0) != turn_orders(4, 7, seed=1)


def test_iterations_fill_the_asked_time() -> None:
    assert iterations_for(0.5, 25e6) == 20
    assert iterations_for(0.5, 1e10) == MIN_ITERATIONS == 3
    assert iterations_for(0.5, 0) == MAX_ITERATIONS == 200


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, MAX_ITERATIONS), (0.5, MAX_ITERATIONS_OF_QUOTA)]
)
def test_rounds_under_a_quota_may_hold_more_calls(
    fake_case: MakeCase, monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    """A few short ones would fit between two stops."""
    most = []

    def iterations_for(seconds: float, call_ns: float, most_calls: int = 0) -> int:
        most.append(most_calls)
        return 3

    monkeypatch.setattr(_run, "iterations_for", iterations_for)
    monkeypatch.setattr(_run, "read_limits", lambda: Limits(2, quota))
    bench(fake_case())
    assert most[-5:] == [expected] * 5


def test_speedup_is_against_eager_of_the_same_model_and_batch(fake_case: MakeCase) -> None:
    report = bench(
        fake_case("slow", "eager", model="14", sleep_s=0.02),
        fake_case("fast", model="14", sleep_s=0.001),
        fake_case("other model", model="7", sleep_s=0.001),
        fake_case("other batch", model="14", batch=2, sleep_s=0.001),
    )
    slow, fast, *others = report.results
    assert slow.speedup_vs_eager is None
    assert fast.speedup_vs_eager is not None and fast.latency_ms is not None
    assert fast.speedup_vs_eager.low > 1
    assert [other.speedup_vs_eager for other in others] == [None, None]
    assert fast.throughput_vs_eager is not None and slow.images_per_s and fast.images_per_s
    assert fast.throughput_vs_eager.ratio == pytest.approx(fast.images_per_s / slow.images_per_s)
    assert [row.throughput_vs_eager for row in (slow, *others)] == [None, None, None]
    assert fast.latency_ms.samples == tuple(
        value for round_ in fast.rounds for value in round_.samples_ms
    )


def test_without_a_measured_base_there_is_no_speedup(fake_case: MakeCase) -> None:
    base, other = bench(fake_case("dies", "eager", die_at=1), fake_case("goes on")).results
    assert base.status is BenchStatus.FAILED
    assert other.status is BenchStatus.OK
    assert other.speedup_vs_eager is None


def test_the_documents_fields(fake_case: MakeCase) -> None:
    values = json.loads(json.dumps(bench(fake_case("a"), fake_case("b", fail="no")).to_dict()))
    ok, failed = values["results"]
    contract = {
        *("backend", "artifact", "precision", "batch", "status", "reason", "latency_ms"),
        *("images_per_s", "speedup_vs_eager", "peak_rss_bytes", "unstable"),
    }
    more = {
        *("baseline_rss_bytes", "load_ms", "first_call_ms", "warm_up", "rounds", "parts_ms"),
        *("spread", "speedup_vs_plain", "rel_l2"),
        *("throughput_vs_eager", "stalled", "lost_s", "throttling", "streams"),
    }
    assert set(ok) == set(failed) == contract | more
    assert set(ok["latency_ms"]) == {"p50", "p90", "p99", "mean", "stdev", "samples"}
    assert (ok["status"], ok["reason"]) == ("ok", None)
    assert 0 < ok["baseline_rss_bytes"] <= ok["peak_rss_bytes"]
    assert (failed["status"], failed["latency_ms"]) == ("failed", None)
    assert values["environment"]["threads"] == [None]
    assert values["settings"] == {
        "rounds": 5,
        "round_seconds": 0.005,
        "warm_up_limit_s": 0.05,
        "seed": 0,
        "devices": [None],
    }


def test_times_of_a_calls_parts(fake_case: MakeCase) -> None:
    told, untold = bench(fake_case("a", parts_ms=[1, 2, 3, 7]), fake_case("b")).results
    assert told.parts_ms == CallTiming(h2d_ms=1, kernel_ms=2, d2h_ms=3, end_to_end_ms=7)
    assert untold.parts_ms is None


def test_eager_under_autocast_is_no_base(fake_case: MakeCase) -> None:
    exact = fake_case("exact", "eager", model="14", sleep_s=0.01)
    half = dataclasses.replace(fake_case("half", "eager", model="14"), precision="fp16")
    base, other = bench(exact, half).results
    assert base.speedup_vs_eager is None
    assert other.speedup_vs_eager is not None and other.speedup_vs_eager.ratio > 1


def test_a_fixed_batch_is_not_run(fake_case: MakeCase) -> None:
    wrong, right = bench(fake_case("four", fixed=4), fake_case("any")).results
    assert wrong.status is BenchStatus.NOT_RUN
    assert wrong.reason == (
        "input 'image' has its batch fixed to 4; batch 1 was asked: bench with batch 4, or "
        "export with batch dynamic"
    )
    assert right.status is BenchStatus.OK


@pytest.mark.parametrize(
    ("cases", "options", "message"),
    [
        ([{}], {"rounds": 4}, "rounds is 4.*at least 5"),
        ([{}], {"round_seconds": 0.0}, "expected a positive"),
        ([], {}, "no case to bench"),
        ([{"backend": "eager", "model": "14"}] * 2, {}, "2 eager cases of 14 at batch 1"),
        ([{"backend": "eager", "streams": 2}] * 2, {}, "2 eager .* at batch 1, 2 streams; "),
        ([{"batch": 0}], {}, "batch is 0"),
    ],
)
def test_arguments_out_of_range(
    fake_case: MakeCase, cases: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run_bench([fake_case(**case) for case in cases], **options)


def test_progress_counts_every_step(fake_case: MakeCase) -> None:
    steps: list[tuple[str, int, int]] = []
    bench(fake_case("a"), fake_case("b", fail="no"), progress=lambda *step: steps.append(step))
    assert [done for _, done, _ in steps] == list(range(13))
    assert {total for _, _, total in steps} == {12}
    assert steps[0][0] == "loading and warming up ort-cpu a, batch 1"
    assert steps[-1][0] == "done"


def test_a_real_file_is_measured_and_a_missing_one_fails(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "relu.onnx"
    graph = "relu (float[N, 64] image) => (float[N, 64] logits) { logits = Relu(image) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {graph}'), path)
    cases = [
        BenchCase(SessionRequest("ort-cpu", file, threads=1), file.name, "fp32", batch=2)
        for file in (tmp_path / "missing.onnx", path)
    ]
    missing, measured = bench(*cases).results

    assert missing.status is BenchStatus.FAILED
    assert missing.reason is not None and "missing.onnx" in missing.reason

    assert (measured.status, measured.reason) == (BenchStatus.OK, None)
    # the first call and the smallest chunk, after which a loaded machine may be out of time
    assert measured.warm_up is not None and measured.warm_up.iterations >= 4
    assert [round_.number for round_ in measured.rounds] == [1, 2, 3, 4, 5]
    assert measured.load_ms is not None and measured.load_ms > 0
    assert measured.first_call_ms is not None and measured.first_call_ms > 0
