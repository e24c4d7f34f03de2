"""Reports read back from JSON, and as lines of a spreadsheet."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from typing import Any

import pytest

from t2t_deploy._untrusted import shortened
from t2t_deploy.bench import (
    BenchReport,
    BenchSettings,
    BenchStatus,
    CaseResult,
    GpuRecord,
    Latency,
    Round,
    Speedup,
    WarmUp,
    bench_csv,
    report_from_dict,
)
from t2t_deploy.runtime import CallTiming

from ..reports import HERE
from .conftest import MakeCase, bench


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
    environment = dataclasses.replace(HERE, threads=(1, None), load_after=None)
    return BenchReport(environment, (measured, failed), BenchSettings(5, 0.5, 5.0, 0, (None, 0)))


def written(report: BenchReport) -> Any:
    return json.loads(json.dumps(report.to_dict()))


def test_what_was_written_is_read_back() -> None:
    for report in (made(), with_gpu()):
        assert report_from_dict(written(report)) == report


def test_what_was_measured_is_read_back(fake_case: MakeCase) -> None:
    report = bench(fake_case("base", "eager"), fake_case("a"), fake_case("broken", fail="no"))
    assert report_from_dict(written(report)) == report


def test_fields_of_a_later_version_are_left_out() -> None:
    values = written(made())
    for part in (values, values["environment"], values["settings"], values["results"][0]):
        part["later"] = 1
    assert report_from_dict(values) == made()


ABSENT = object()


def changed(values: Any, path: str, value: object) -> Any:
    """The values with another one at a path, or without the one that is there."""
    *folders, name = (int(x) if x.isdigit() else x for x in re.findall(r"[^.\[\]]+", path))
    inner = values
    for folder in folders:
        inner = inner[folder]
    if value is ABSENT:
        del inner[name]
    else:
        inner[name] = value
    return values


def with_gpu() -> BenchReport:
    gpu = GpuRecord(0, "H100", "580", (1200, 1980), 1980, (2619, 2619), 61, None, ("power cap",))
    report = made()
    return dataclasses.replace(
        report, environment=dataclasses.replace(report.environment, gpus=(gpu,))
    )


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("results", 5, "a list"),
        ("results", "x", "a list"),
        ("results[0].rounds[0]", None, "an object"),
        ("results[0].status", "fine", "one of ok, not_run, failed"),
        ("results[0].batch", 1.0, "a whole number"),
        ("results[0].batch", True, "a whole number"),
        ("results[0].batch", 1 << 63, "a whole number"),
        ("results[0].batch", -(1 << 63), "a whole number"),
        ("results[0].precision", 5, "text"),
        ("results[0].reason", 5, "text"),
        ("results[0].unstable", "yes", "true or false"),
        ("results[0].load_ms", "7", "a finite number"),
        ("results[0].load_ms", True, "a finite number"),
        ("results[0].load_ms", float("inf"), "a finite number"),
        ("results[0].rounds[0].samples_ms", [], "durations above 0"),
        ("results[0].rounds[0].samples_ms", [0.0], "durations above 0"),
        ("results[0].rounds[0].samples_ms", [2.0, -1.0], "durations above 0"),
        ("results[0].rounds[0].samples_ms[0]", "x", "a finite number"),
        ("results[0].rounds[0].samples_ms[0]", float("inf"), "a finite number"),
        ("results[0].rounds[0].number", "1", "a whole number"),
        ("results[0].latency_ms.samples", [], "durations above 0"),
        ("results[0].latency_ms.samples[0]", float("nan"), "a finite number"),
        ("environment.load_before", [], "a list of 3"),
        ("environment.load_before", [1.0, 2.0], "a list of 3"),
        ("environment.load_before[0]", 10**400, "a finite number"),
        ("environment.cpu_flags", "avx2", "a list"),
        ("environment.cpu_flags[0]", 1, "text"),
        ("environment.versions", ["numpy"], "an object"),
        ("environment.versions.numpy", 2, "text"),
        ("environment.gpus[0]", "x", "an object"),
        ("environment.gpus[0].name", 5, "text"),
        ("environment.gpus[0].sm_mhz", [1200], "a list of 2"),
        ("environment.gpus[0].memory_mhz", "12", "a list"),
        ("environment.gpus[0].throttled[0]", 1, "text"),
    ],
)
def test_the_first_value_that_does_not_fit_is_named(
    path: str, value: object, expected: str
) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # the message is looked at below
        report_from_dict(changed(written(with_gpu()), path, value))
    assert str(refused.value) == f"{path} is {shortened(value)}; expected {expected}"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("environment", ABSENT, "environment is missing"),
        ("environment.gpus[0].name", ABSENT, "environment.gpus[0].name is missing"),
        ("settings", ABSENT, "settings are missing"),
        ("settings", None, "settings are missing"),
        ("results[0].rounds", ABSENT, "results[0] was measured and has no rounds"),
        ("results[0].rounds", [], "results[0] was measured and has no rounds"),
    ],
)
def test_what_a_report_needs(path: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        report_from_dict(changed(written(with_gpu()), path, value))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "it is []; expected an object"),
        ({}, "environment is missing"),
        ({"error": {"kind": "UsageError", "message": "no"}}, "environment is missing"),
    ],
)
def test_another_document_is_no_report(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        report_from_dict(values)


def test_csv() -> None:
    everywhere = ["1 default", "Some CPU", "2026-01-02T03:04:05+00:00"]
    assert list(csv.reader(io.StringIO(bench_csv(made())))) == [
        [
            *("backend", "artifact", "precision", "batch", "status", "reason"),
            *("p50_ms", "p90_ms", "p99_ms", "mean_ms", "stdev_ms", "samples", "rounds"),
            *("images_per_s", "speedup_vs_eager", "speedup_low", "speedup_high", "unstable"),
            *("spread", "warm", "load_ms", "first_call_ms"),
            *("baseline_rss_bytes", "peak_rss_bytes", "threads", "cpu_model", "date_utc"),
        ],
        [
            *("ort-cpu", 'a,\n"b".onnx', "fp32", "2", "ok", ""),
            *("1.5", "1.9", "2.0", "1.5", "0.25", "2", "2"),
            *("1333.25", "2.0", "1.875", "2.125", "true"),
            *("0.125", "false", "7.5", "9.5", "1000", "3000", *everywhere),
        ],
        [
            *("openvino", "", "bf16", "1", "failed", "RuntimeError: no"),
            *([""] * 18),
            *everywhere,
        ],
    ]
