"""Reports read back from JSON, and as lines of a spreadsheet."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from typing import Any

import pytest

from t2t_deploy._untrusted import shortened
from t2t_deploy.bench import BenchReport, bench_csv, report_from_dict

from ..reports import GPU, full_report
from .conftest import MakeCase, bench


def written(report: BenchReport) -> Any:
    return json.loads(json.dumps(report.to_dict()))


@pytest.mark.parametrize("report", [full_report(), full_report(GPU)], ids=["CPU", "GPU"])
def test_what_was_written_is_read_back(report: BenchReport) -> None:
    assert report_from_dict(written(report)) == report


def test_what_was_measured_is_read_back(fake_case: MakeCase) -> None:
    report = bench(fake_case("base", "eager"), fake_case("a"), fake_case("broken", fail="no"))
    assert report_from_dict(written(report)) == report


def test_what_an_older_version_wrote_is_read() -> None:
    values = written(full_report())
    del values["cut_short"], values["environment"]["limits"]
    row = values["results"][0]
    for name in ("throughput_vs_eager", "stalled", "lost_s", "throttling", "streams"):
        del row[name]
    for one in row["rounds"]:
        del one["elapsed_ms"]
    report = report_from_dict(values)
    assert report.cut_short is report.environment.limits is report.results[0].lost_s is None
    assert (report.results[0].stops, report.results[0].streams) == ([], 1)


def test_fields_of_a_later_version_are_left_out() -> None:
    values = written(full_report())
    for part in (values, values["environment"], values["settings"], values["results"][0]):
        part["later"] = 1
    assert report_from_dict(values) == full_report()


def changed(values: Any, path: str, *value: object) -> Any:
    """A copy of the values with another one at a path, or without the one that is there."""
    *folders, name = (int(x) if x.isdigit() else x for x in re.findall(r"[^.\[\]]+", path))
    inner = copied = copy.deepcopy(values)
    for folder in folders:
        inner = inner[folder]
    if value:
        (inner[name],) = value
    else:
        del inner[name]
    return copied


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
    message = re.escape(f"{path} is {shortened(value)}; expected {expected}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        report_from_dict(changed(written(full_report(GPU)), path, value))


FULL = written(full_report(GPU))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "it is []; expected an object"),
        ({}, "environment is missing"),
        ({"error": {"kind": "UsageError", "message": "no"}}, "environment is missing"),
        (changed(FULL, "environment.gpus[0].name"), "environment.gpus[0].name is missing"),
        (changed(FULL, "settings"), "settings are missing"),
        (changed(FULL, "settings", None), "settings are missing"),
        (changed(FULL, "results[0].rounds"), "results[0] was measured and has no rounds"),
        (changed(FULL, "results[0].rounds", []), "results[0] was measured and has no rounds"),
    ],
)
def test_another_document_is_no_report(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        report_from_dict(values)


def test_csv() -> None:
    everywhere = ["1 default", "Some CPU", "2026-01-02T03:04:05+00:00"]
    assert list(csv.reader(io.StringIO(bench_csv(full_report())))) == [
        [
            *("backend", "artifact", "precision", "batch", "status", "reason"),
            *("p50_ms", "p90_ms", "p99_ms", "mean_ms", "stdev_ms", "samples", "rounds"),
            *("images_per_s", "speedup_vs_eager", "speedup_low", "speedup_high", "unstable"),
            *("spread", "warm", "load_ms", "first_call_ms"),
            *("baseline_rss_bytes", "peak_rss_bytes", "throughput_vs_eager", "stalled", "lost_s"),
            *("throttled_periods", "throttled_s", "streams", "threads", "cpu_model", "date_utc"),
        ],
        [
            *("ort-cpu", 'a,\n"b".onnx', "fp32", "2", "ok", ""),
            *("1.5", "1.9", "2.0", "1.5", "0.25", "2", "2"),
            *("1333.25", "2.0", "1.875", "2.125", "true"),
            *("0.125", "false", "7.5", "9.5", "1000", "3000", "1.5", "true", "1.25", "4", "0.25"),
            *("2", *everywhere),
        ],
        [
            *("openvino", "", "bf16", "1", "failed", "RuntimeError: no"),
            *([""] * 23),
            *("1", *everywhere),
        ],
    ]
