"""Reports read back from JSON, and as lines of a spreadsheet."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from t2t_deploy.bench import (
    BenchCase,
    BenchReport,
    BenchSettings,
    BenchStatus,
    CaseResult,
    Environment,
    GpuRecord,
    Latency,
    Round,
    Speedup,
    WarmUp,
    bench_csv,
    report_from_dict,
    run_bench,
)
from t2t_deploy.runtime import CallTiming

MakeCase = Callable[..., BenchCase]


def made() -> BenchReport:
    """A report with something in every field."""
    latency = Latency(1.5, 1.9, 2.0, 1.5, 0.25, (1.0, 2.0))
    measured = CaseResult(
        *("ort-cpu", 'a,\n"b".onnx', "fp32", 2, BenchStatus.OK),
        latency_ms=latency,
        images_per_s=1333.25,
        speedup_vs_eager=Speedup(2.0, 1.875, 2.125),
        baseline_rss_bytes=1000,
        peak_rss_bytes=3000,
        unstable=True,
        spread=0.125,
        load_ms=7.5,
        first_call_ms=9.5,
        warm_up=WarmUp(9, stable=False),
        parts_ms=CallTiming(1.0, 2.0, 3.0, 7.0),
        rounds=(Round(1, 2, (1.0,)), Round(2, 1, (2.0,))),
    )
    failed = CaseResult("openvino", None, "bf16", 1, BenchStatus.FAILED, "RuntimeError: no")
    environment = Environment(
        date_utc="2026-01-02T03:04:05+00:00",
        platform="Linux-6.1",
        cpu_model="Some CPU",
        cpu_flags=("avx2",),
        logical_cores=2,
        usable_cores=2,
        memory_bytes=8 << 30,
        governor="performance",
        python="3.11.2",
        versions={"numpy": "2.4.6"},
        threads=(1, None),
        load_before=(0.5, 0.25, 0.125),
        load_after=None,
    )
    return BenchReport(environment, (measured, failed), BenchSettings(5, 0.5, 5.0, 0, (None, 0)))


def written(report: BenchReport) -> Any:
    return json.loads(json.dumps(report.to_dict()))


def test_what_was_written_is_read_back() -> None:
    assert report_from_dict(written(made())) == made()


def test_what_was_measured_is_read_back(fake_case: MakeCase) -> None:
    cases = [fake_case("base", "eager"), fake_case("a"), fake_case("broken", fail="no")]
    report = run_bench(cases, rounds=5, round_seconds=0.005)
    assert report_from_dict(written(report)) == report


def test_fields_of_a_later_version_are_left_out() -> None:
    values = written(made())
    for part in (values, values["environment"], values["settings"], values["results"][0]):
        part["later"] = 1
    assert report_from_dict(values) == made()


def broken(change: Callable[[Any], object]) -> Callable[[Any], Any]:
    def apply(values: Any) -> Any:
        change(values)
        return values

    return apply


def of_environment(**fields: Any) -> Callable[[Any], Any]:
    return broken(lambda values: values["environment"].update(fields))


def of_row(**fields: Any) -> Callable[[Any], Any]:
    return broken(lambda values: values["results"][0].update(fields))


def of_round(**fields: Any) -> Callable[[Any], Any]:
    return broken(lambda values: values["results"][0]["rounds"][0].update(fields))


def of_gpu(**fields: Any) -> Callable[[Any], Any]:
    return broken(lambda values: values["environment"]["gpus"][0].update(fields))


NOT_POSITIVE = "durations that are missing, or not positive"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: [], "TypeError: list indices must be integers or slices, not str"),
        (lambda values: {}, "KeyError: 'environment'"),
        (
            lambda values: {"error": {"kind": "UsageError", "message": "no"}},
            "KeyError: 'environment'",
        ),
        (broken(lambda values: values.pop("settings")), "KeyError: 'settings'"),
        (broken(lambda values: values["results"][0].pop("rounds")), "KeyError: 'rounds'"),
        (broken(lambda values: values.update(results=5)), "TypeError: object of type 'int' has no"),
        (broken(lambda values: values.update(results="x")), "AttributeError: 'str' object has no"),
        (of_environment(load_before=[]), "load_before is []"),
        (of_environment(load_after=[1.0, 2.0]), "load_after is [1.0, 2.0]"),
        (of_environment(load_before=[10**400, 0, 0]), "OverflowError: int too large to convert"),
        (of_row(status="fine"), "'fine' is not a valid BenchStatus"),
        (of_row(batch=1.0), "batch is 1.0"),
        (of_row(batch=True), "batch is True"),
        (of_row(batch=1 << 63), "batch is 9223372036854775808"),
        (of_row(batch=-(1 << 63)), "batch is -9223372036854775808"),
        (of_row(precision=5), "precision is 5"),
        (of_row(reason=5), "reason is 5"),
        (of_row(unstable="yes"), "unstable is 'yes'"),
        (of_row(load_ms="7"), "load_ms is '7'"),
        (of_row(load_ms=True), "load_ms is True"),
        (of_row(load_ms=float("inf")), "load_ms is inf"),
        (of_row(rounds=[None]), "rounds is [None]"),
        (of_environment(cpu_flags="avx2"), "cpu_flags is 'avx2'"),
        (of_environment(cpu_flags=[1]), "cpu_flags is [1]"),
        (of_environment(versions=["numpy"]), "versions is ['numpy']"),
        (of_environment(versions={"numpy": 2}), "versions is {'numpy': 2}"),
        (of_round(samples_ms=[]), NOT_POSITIVE),
        (of_round(samples_ms=[0.0]), NOT_POSITIVE),
        (of_round(samples_ms=[2.0, -1.0]), NOT_POSITIVE),
        (of_round(samples_ms=["x"]), "samples_ms is ['x']"),
        (of_round(samples_ms=[float("inf")]), "samples_ms is [inf]"),
        (of_round(number="1"), "number is '1'"),
        (
            broken(lambda values: values["results"][0]["latency_ms"].update(samples=[])),
            NOT_POSITIVE,
        ),
        (
            broken(
                lambda values: values["results"][0]["latency_ms"].update(samples=[float("nan")])
            ),
            "samples is [nan]",
        ),
        (of_environment(gpus=["x"]), "AttributeError: 'str' object has no attribute 'items'"),
        (broken(lambda values: values["environment"]["gpus"][0].pop("name")), "TypeError: "),
        (of_gpu(name=5), "name is 5"),
        (of_gpu(sm_mhz=[1200]), "sm_mhz is [1200]"),
        (of_gpu(memory_mhz="12"), "memory_mhz is '12'"),
        (of_gpu(throttled=[1]), "throttled is [1]"),
    ],
)
def test_anything_else_is_a_value_error(change: Callable[[Any], Any], message: str) -> None:
    gpu = GpuRecord(0, "H100", "580", (1200, 1980), 1980, (2619, 2619), 61, None, ("power cap",))
    report = made()
    report = dataclasses.replace(
        report, environment=dataclasses.replace(report.environment, gpus=(gpu,))
    )
    assert report_from_dict(written(report)) == report
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # the message is looked at below
        report_from_dict(change(written(report)))
    told = str(refused.value)
    # the words after a class of Python's are Python's own
    assert told.startswith(message) if "Error: " in message else told == message


def test_csv() -> None:
    measured, failed = csv.DictReader(io.StringIO(bench_csv(made())))
    everywhere = {
        "threads": "1 default",
        "cpu_model": "Some CPU",
        "date_utc": "2026-01-02T03:04:05+00:00",
    }
    assert measured == {
        "backend": "ort-cpu",
        "artifact": 'a,\n"b".onnx',
        "precision": "fp32",
        "batch": "2",
        "status": "ok",
        "reason": "",
        "p50_ms": "1.5",
        "p90_ms": "1.9",
        "p99_ms": "2.0",
        "mean_ms": "1.5",
        "stdev_ms": "0.25",
        "samples": "2",
        "rounds": "2",
        "images_per_s": "1333.25",
        "speedup_vs_eager": "2.0",
        "speedup_low": "1.875",
        "speedup_high": "2.125",
        "unstable": "true",
        "spread": "0.125",
        "warm": "false",
        "load_ms": "7.5",
        "first_call_ms": "9.5",
        "baseline_rss_bytes": "1000",
        "peak_rss_bytes": "3000",
        **everywhere,
    }
    named = {"backend": "openvino", "precision": "bf16", "batch": "1", "status": "failed"}
    assert failed == dict.fromkeys(measured, "") | named | everywhere | {
        "reason": "RuntimeError: no"
    }
